/* The fast path between pods and the underlay: flows that the node's own stack has let through.
 *
 * The first packet of a flow takes the ordinary way: conntrack, nftables, routes, neighbours, the vxlan device,
 * whatever others have put there. If that very packet comes out at the other end with the addresses and ports that
 * it went in with, what the stack did with it becomes the verdict for the next ones, for `node.period_ns` at most;
 * then a packet takes the ordinary way again. So whatever changes in the stack, by whomever and with or without
 * a notice, reaches running flows within one period. The agent makes all verdicts void at once by another
 * `node.generation` when it learns of a change.
 *
 *   isthmus_pod_tx   ingress, host side of a pod's veth   sends by verdict, or marks the packet and lets it pass
 *   isthmus_net_tx   egress, underlay                     learns what became of a marked packet: outer headers
 *   isthmus_net_rx   ingress, underlay                    delivers by verdict, or marks the packet, still in the tunnel
 *   isthmus_pod_rx   egress, host side of a pod's veth    learns to whom a marked packet is given
 *   isthmus_br_rx    the same for a bridge with pods
 *   isthmus_wg_tx    egress, a WireGuard device           learns what leaves encrypted
 *   isthmus_wg_rx    ingress, a WireGuard device          delivers by verdict, or marks the packet
 *
 * A peer that is reached without the tunnel (DIRECT) has the same verdicts: net_tx and net_rx learn and use them for
 * plain packets then, from and to that neighbour's MAC only. One that is reached through a NAT (MAPPED) has those of
 * the second vxlan device: another VNI, one source port, and an address and port of the peer that probes have proved,
 * to which and from which alone they are used. For a peer behind a relay these are the relay's, with its MAC. To one
 * that is encrypted (SEALED) packets are given to the WireGuard device that its route leads to, and to nothing else;
 * whose a packet is that comes out of it, WireGuard has seen by the key.
 *
 * The mark is a random number in skb->hash, one for each flow and generation, which no pod can see or choose. A
 * packet that was translated into a flow's addresses carries another one: it proves nothing about that flow. Nor
 * does one that comes out of the tunnel and was not marked where packets are delivered by verdict: it came by
 * another device, or was encrypted there by somebody else, and nobody has judged what comes plain.
 *
 * Whatever is not recognised goes on to the stack (TCX_NEXT). Nothing is dropped here except where a packet was
 * already taken apart. Fragments, options, a TTL that ends, closing and opening segments, packets larger than the
 * way, congestion marks of the underlay, IPv6: all are the stack's.
 *
 * No GPL-only helper is used. No packet pointer is compared with NULL, and no byte of the stack stays unset: the
 * verifier allows the contrary only to holders of CAP_PERFMON, which this does not ask for.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define NEXT (-1)
#define DROP 2
#define PACKET_HOST 0
#define FAST 0x49737468 /* in skb->cb[0] between us and the underlay's egress: ours, nothing to learn */
#define ECN 3
#define CE 3
#define ECT_0 2
#define TUNNEL_FLAGS bpf_htonl(0x08000000)
#define FRAGMENT bpf_htons(0xbfff) /* all of frag_off but "do not fragment" */
#define GOLDEN 0x9e3779b1
/* The way to a peer, in its epoch. */
#define WAY(epoch) ((epoch) & 0xc0000000)
#define TUNNEL 0
#define MAPPED 0x40000000 /* by the second device, to and from the place `vtep` and `port` alone */
#define DIRECT 0x80000000 /* `vtep` and `mac` are of its underlay device, on this node's link */
#define SEALED 0xc0000000 /* `vtep` is the index of the WireGuard device */
#define OUTSIDE 0x80000000 /* in neither vxlan device */

/* What the agent and the programs share. Python: nodeagent/fastpath/layout.py. */
struct range { __u32 bits; __be32 address; };
struct peer { __be32 vtep; __u8 mac[6]; __u16 mtu; __u32 epoch; __be16 port; __u16 unused; };
struct node {
    __u32 generation; /* 0: everything takes the stack */
    __u32 tunnel, underlay, second; /* device indices; no second one: 0 */
    __be32 local, vni;
    __be16 port;
    __u8 mac[6]; /* of the vxlan devices */
    __be32 second_vni;
    __u32 direct; /* how many peers are DIRECT, at least */
    __u64 period_ns;
};
struct held {
    __u64 until; /* on the coarse monotonic clock: until then flows of `address` (0: all) take the stack */
    __be32 address, reserved;
};
struct flow { __be32 from, to, ports; __u32 protocol; };
struct verdict {
    __u64 until; /* written last */
    __u32 proven; /* the mark of the packet that has proved it; for another flow or generation it is nothing */
    __u32 nonce, in, epoch, out;
    __u32 priority, mark; /* what rules gave the packet that left, for whoever queues it there */
    __be32 vtep;
    __be16 source, fragment;
    __u16 size; /* of the largest piece that has passed */
    __u8 tos, ttl, outer_tos, outer_ttl;
    __u8 to[6], from[6]; /* Ethernet addresses at the egress */
    __u16 identifier;
    __u8 asked_tos, asked_ttl; /* of the packet that the stack was last asked about; it may well be dropped */
    __u8 handed; /* given to the device, not past it into the pod */
    __u8 peers; /* it comes from a peer, as opposed to a pod */
    __be16 port;
    __u8 unused[2];
};
enum { FAST_OUT, FAST_OUT_BYTES, FAST_IN, FAST_IN_BYTES, SLOW_OUT, SLOW_IN, LEARNED_OUT, LEARNED_IN, WRONG_SOURCE,
       FORM, SIZE, CLOSING, HELD, FAILED, COUNTERS = 16 };
struct counters { __u64 of[COUNTERS]; };

struct { __uint(type, BPF_MAP_TYPE_LPM_TRIE); __type(key, struct range); __type(value, struct peer);
         __uint(max_entries, 65536); __uint(map_flags, BPF_F_NO_PREALLOC); } peers SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __type(key, struct flow); __type(value, struct verdict);
         __uint(max_entries, 65536); } flows SEC(".maps");
/* The address from which the pod at a device sends: its own, by which it takes what is given to it. */
struct mac { __u8 of[6]; __u16 unused; };
struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __type(key, __u32); __type(value, struct mac);
         __uint(max_entries, 4096); } macs SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __type(key, __u32); __type(value, struct counters);
         __uint(max_entries, 1); } counts SEC(".maps");
volatile struct node node;
volatile struct held held SEC(".data.held"); /* a map of its own: whoever captures writes it, not the agent */

/* A header begins at an even place. Without saying so each byte is read and written by itself, and whoever reads
 * a word of single bytes just written (a checksum does) waits for them. */
#define PACKED __attribute__((packed, aligned(2)))
struct vxlan { __be32 flags, vni; };
struct outer { struct iphdr ip; struct udphdr udp; struct vxlan vxlan; struct ethhdr eth; } PACKED;
struct bare { struct iphdr ip; __be32 ports; } PACKED;
struct plain { struct ethhdr eth; struct iphdr ip; __be32 ports; } PACKED;
struct packet { struct ethhdr eth; struct outer outer; struct iphdr ip; __be32 ports; } PACKED;

static __always_inline void count(__u32 which, __u64 by) {
    __u32 zero = 0;
    struct counters *all = bpf_map_lookup_elem(&counts, &zero);
    if (all) all->of[which] += by;
    asm volatile("" ::: "memory"); /* two of these must not be joined: their sum of pointer and either number is refused */
}
/* A packet and its bytes, which have the next counter. */
static __always_inline void count_packet(__u32 which, __u64 bytes) {
    __u32 zero = 0;
    struct counters *all = bpf_map_lookup_elem(&counts, &zero);
    if (all) {
        all->of[which] += 1;
        all->of[which + 1] += bytes;
    }
    asm volatile("" ::: "memory");
}
static __always_inline struct peer *peer_of(__be32 address) {
    struct range key = {32, address};
    return bpf_map_lookup_elem(&peers, &key);
}
/* Ethernet addresses. All of them are at even places, here and in packets. */
static __always_inline int same(const volatile void *a, const volatile void *b) {
    const volatile __u16 *x = a, *y = b;
    return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}
static __always_inline void copy(volatile void *to, const volatile void *from) {
    volatile __u16 *x = to;
    const volatile __u16 *y = from;
#pragma unroll
    for (int i = 0; i < 3; i++) x[i] = y[i];
}
/* One hop: the host's. The caller has seen that the TTL allows it. */
static __always_inline void hop(struct iphdr *ip) {
    __u32 sum = ip->check;
    sum += bpf_htons(0x0100);
    ip->check = (__u16)(sum + (sum >= 0xffff));
    ip->ttl--;
}
static __always_inline void *linear(struct __sk_buff *skb, __u32 length) {
    if ((void *)(long)skb->data + length <= (void *)(long)skb->data_end) return (void *)(long)skb->data;
    bpf_skb_pull_data(skb, skb->len < length ? skb->len : length);
    return (void *)(long)skb->data; /* the caller compares with data_end */
}

/* Whether an IP header without options is intact, as every hop checks. */
static __always_inline int intact(const void *header) {
    const __u16 *word = header;
    __u32 sum = 0;
#pragma unroll
    for (int i = 0; i < 10; i++) sum += word[i];
    sum = (sum & 0xffff) + (sum >> 16);
    return (__u16)(sum + (sum >> 16)) == 0xffff;
}
/* The size of the largest piece of a packet on the wire, from its IP header on; 0: the TCP header is not there. */
static __always_inline __u32 piece_of(struct __sk_buff *skb, struct iphdr *ip) {
    __u32 header = sizeof *ip + sizeof(struct udphdr);
    if (!skb->gso_size) return bpf_ntohs(ip->tot_len);
    if (ip->protocol == IPPROTO_TCP) {
        __u8 *offset = (void *)(ip + 1) + 12;
        if ((void *)(offset + 1) > (void *)(long)skb->data_end) return 0;
        header = sizeof *ip + (*offset >> 4) * 4;
    }
    return header + skb->gso_size;
}

/* What a flow is known by: whole TCP and UDP packets without options that the stack would forward as they are.
 * `bytes` is what follows the Ethernet header. 0: none of that; else the size of the largest piece. */
static __always_inline __u32 flow_of(struct __sk_buff *skb, struct iphdr *ip, __u32 bytes, struct flow *flow) {
    __be32 *ports = (void *)(ip + 1);
    if (*(__u8 *)ip != 0x45 || ip->frag_off & FRAGMENT || ip->ttl <= 1 || bpf_ntohs(ip->tot_len) != bytes ||
        (ip->protocol != IPPROTO_TCP && ip->protocol != IPPROTO_UDP) || !intact(ip)) {
        count(FORM, 1);
        return 0;
    }
    *flow = (struct flow){ip->saddr, ip->daddr, *ports, ip->protocol};
    if (ip->protocol == IPPROTO_TCP) {
        __u8 *flags = (void *)ports + 13;
        if ((void *)(flags + 1) > (void *)(long)skb->data_end) {
            count(FORM, 1);
            return 0;
        }
        if ((*flags & 0x37) != 0x10) { /* of URG, ACK, RST, SYN, FIN only ACK */
            if (!(*flags & 7)) {
                count(FORM, 1);
                return 0;
            }
            bpf_map_delete_elem(&flows, flow); /* opens or ends: to be judged anew */
            count(CLOSING, 1);
            return 0;
        }
    }
    return piece_of(skb, ip);
}
static __always_inline __u32 mark_of(struct verdict *verdict) {
    return (verdict->nonce + node.generation * GOLDEN) | 1; /* 0 would mean: no hash */
}
/* The map gives the room of an entry that goes to another flow at once, also while somebody settles what the former
 * one has proved: so a verdict counts only with the mark of its own flow. */
static __always_inline int running(struct verdict *verdict, __u64 now) {
    return verdict->proven == mark_of(verdict) && now < verdict->until;
}
static __always_inline int good(struct verdict *verdict, struct peer *peer, struct flow *flow, __u32 in, __u64 now,
                                struct iphdr *ip, __u32 piece) {
    if (!verdict || !running(verdict, now) || verdict->in != in || verdict->epoch != peer->epoch ||
        verdict->tos >> 2 != ip->tos >> 2 || verdict->ttl != ip->ttl) return 0; /* rules may tell them apart */
    if (piece > verdict->size) { /* no packet of that size has passed yet: the stack may cut it, or answer it */
        count(SIZE, 1);
        return 0;
    }
    if (now < held.until && (!held.address || held.address == flow->from || held.address == flow->to)) {
        count(HELD, 1);
        return 0;
    }
    return 1;
}
/* Lets the stack judge this packet; whoever sees it come out recognises it by its mark. One that IPsec has decrypted
 * and given to its device once more gets none: the next one could come in the clear. */
static __always_inline int judge(struct __sk_buff *skb, struct iphdr *ip, struct flow *flow, struct verdict *verdict, __u64 now,
                                 __u8 peers) {
    struct bpf_xfrm_state by = {};
    if (peers && !bpf_skb_get_xfrm_state(skb, 0, &by, sizeof by, 0)) return NEXT;
    if (verdict && verdict->in != skb->ifindex) {
        /* By another device: a running flow is not disturbed by whoever pretends to be it. */
        if (running(verdict, now)) return NEXT;
        bpf_map_delete_elem(&flows, flow);
        verdict = 0;
    }
    if (!verdict) {
        struct verdict fresh;
        __builtin_memset(&fresh, 0, sizeof fresh);
        fresh.nonce = bpf_get_prandom_u32();
        fresh.in = skb->ifindex;
        fresh.peers = peers;
        fresh.asked_tos = ip->tos;
        fresh.asked_ttl = ip->ttl;
        bpf_map_update_elem(&flows, flow, &fresh, BPF_NOEXIST);
        bpf_set_hash(skb, mark_of(&fresh));
        return NEXT;
    }
    verdict->asked_tos = ip->tos;
    verdict->asked_ttl = ip->ttl;
    bpf_set_hash(skb, mark_of(verdict));
    return NEXT;
}
/* The verdict that a packet which comes out may speak for: it is the packet that was marked, and unchanged.
 * What comes from a peer and leaves for another one (a relay, a range that has moved) is the stack's: a verdict of
 * the one kind must never serve the other. */
static __always_inline struct verdict *proven(struct __sk_buff *skb, struct iphdr *ip, __be32 ports, __u8 peers) {
    struct flow flow = {ip->saddr, ip->daddr, ports, ip->protocol};
    if (*(__u8 *)ip != 0x45 || ip->frag_off & FRAGMENT || !node.generation) return 0;
    struct verdict *verdict = bpf_map_lookup_elem(&flows, &flow);
    if (!verdict || skb->hash != mark_of(verdict) || ip->ttl + 1 != verdict->asked_ttl ||
        ip->tos != verdict->asked_tos || verdict->peers != peers) return 0;
    return verdict;
}
/* What is settled is what this packet has proven, whatever others ask about meanwhile. */
static __always_inline void settle(struct __sk_buff *skb, struct verdict *verdict, struct peer *peer, struct iphdr *ip,
                                   __u32 piece, __u32 which) {
    __u64 now = bpf_ktime_get_coarse_ns();
    if (!running(verdict, now) || piece > verdict->size || verdict->tos != ip->tos || verdict->ttl != ip->ttl + 1)
        verdict->size = piece;
    verdict->tos = ip->tos;
    verdict->ttl = ip->ttl + 1;
    verdict->epoch = peer->epoch;
    verdict->vtep = peer->vtep;
    verdict->port = peer->port;
    verdict->out = skb->ifindex;
    verdict->priority = skb->priority;
    verdict->mark = skb->mark;
    verdict->proven = skb->hash;
    __sync_lock_test_and_set(&verdict->until, now + node.period_ns);
    count(which, 1);
}

/* Both are read, so that no address is computed of which the verifier sees two kinds. */
static __always_inline __be32 vni_of(struct peer *peer) {
    __be32 first = node.vni, second = node.second_vni;
    return WAY(peer->epoch) == MAPPED ? second : first;
}
static __always_inline __u8 outer_ecn(__u8 inner) { return (inner & ECN) == CE ? ECT_0 : inner & ECN; }

static __always_inline int encapsulate(struct __sk_buff *skb, struct verdict *verdict, struct peer *peer) {
    __u32 bytes = skb->len - sizeof(struct ethhdr), out = verdict->out;
    if (bpf_skb_adjust_room(skb, sizeof(struct outer), BPF_ADJ_ROOM_MAC,
            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
            BPF_F_ADJ_ROOM_ENCAP_L2(sizeof(struct ethhdr)) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH | BPF_F_ADJ_ROOM_NO_CSUM_RESET)) {
        count(FAILED, 1);
        return NEXT; /* refused before anything was changed */
    }
    struct packet *p = (void *)(long)skb->data;
    if ((void *)(p + 1) > (void *)(long)skb->data_end) {
        count(FAILED, 1);
        return DROP;
    }
    hop(&p->ip);
    __u16 segments = skb->gso_segs ? skb->gso_segs : 1;
    struct iphdr *ip = &p->outer.ip;
    __be16 length = bpf_htons(bytes + sizeof(struct outer)), identifier = bpf_htons(verdict->identifier), fragment = verdict->fragment;
    __u16 head = bpf_htons(0x4500 | (verdict->outer_tos & ~ECN) | outer_ecn(p->ip.tos)), way = bpf_htons(verdict->outer_ttl << 8 | IPPROTO_UDP);
    __be32 from = node.local, to = verdict->vtep;
    __u32 sum = (__u32)head + length + identifier + fragment + way + (from & 0xffff) + (from >> 16) + (to & 0xffff) + (to >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    *(__u16 *)ip = head;
    ip->tot_len = length;
    ip->id = identifier;
    ip->frag_off = fragment;
    *(__u16 *)&ip->ttl = way;
    ip->check = ~((sum & 0xffff) + (sum >> 16));
    ip->saddr = from;
    ip->daddr = to;
    verdict->identifier += segments; /* a router may cut it: pieces of different packets must not be mixed up */
    p->outer.udp = (struct udphdr){.source = verdict->source, .dest = peer->port,
        .len = bpf_htons(bytes + sizeof(struct outer) - sizeof(struct iphdr))};
    struct vxlan *vxlan = &p->outer.vxlan;
    vxlan->flags = TUNNEL_FLAGS;
    vxlan->vni = vni_of(peer);
    copy(p->outer.eth.h_dest, peer->mac);
    copy(p->outer.eth.h_source, node.mac);
    p->outer.eth.h_proto = bpf_htons(ETH_P_IP);
    copy(p->eth.h_dest, verdict->to);
    copy(p->eth.h_source, verdict->from);
    skb->cb[0] = FAST;
    count_packet(FAST_OUT, bytes);
    return bpf_redirect(out, 0);
}

/* What the stack does with a packet for a neighbour: one hop, and the Ethernet addresses that it gave before. */
static __always_inline int pass_on(struct __sk_buff *skb, struct plain *p, struct verdict *verdict, __u32 bytes, __u32 which) {
    hop(&p->ip);
    copy(p->eth.h_dest, verdict->to);
    copy(p->eth.h_source, verdict->from);
    count_packet(which, bytes);
    return verdict->out;
}

static __always_inline void sends_from(struct __sk_buff *skb, const void *address) {
    __u32 port = skb->ifindex;
    struct mac *known = bpf_map_lookup_elem(&macs, &port);
    if (known && same(known->of, address)) return;
    struct mac fresh = {};
    copy(fresh.of, address);
    bpf_map_update_elem(&macs, &port, &fresh, BPF_ANY);
}

SEC("tc") int isthmus_pod_tx(struct __sk_buff *skb) {
    struct flow flow;
    if (skb->protocol == bpf_htons(ETH_P_ARP)) { /* of a pod that only takes, this is all there is */
        struct ethhdr *eth = (void *)(long)skb->data;
        if ((void *)(eth + 1) <= (void *)(long)skb->data_end) sends_from(skb, eth->h_source);
        return NEXT;
    }
    if (!node.generation || skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST || skb->vlan_present) return NEXT;
    struct plain *p = linear(skb, sizeof *p + 10);
    if ((void *)(p + 1) > (void *)(long)skb->data_end) return NEXT;
    struct peer *peer = peer_of(p->ip.daddr);
    if (!peer) return NEXT;
    __u32 bytes = skb->len - sizeof(struct ethhdr), piece = flow_of(skb, &p->ip, bytes, &flow);
    if (!piece) return NEXT;
    __u64 now = bpf_ktime_get_coarse_ns();
    struct verdict *verdict = bpf_map_lookup_elem(&flows, &flow);
    if (good(verdict, peer, &flow, skb->ifindex, now, &p->ip, piece) &&
        verdict->vtep == peer->vtep && verdict->port == peer->port && piece <= peer->mtu && bytes + sizeof(struct outer) <= 65535) {
        skb->priority = verdict->priority;
        skb->mark = verdict->mark;
        if (!(peer->epoch & OUTSIDE)) return encapsulate(skb, verdict, peer);
        skb->cb[0] = FAST; /* a device without Ethernet headers is given none */
        return bpf_redirect(pass_on(skb, p, verdict, bytes, FAST_OUT), 0);
    }
    count(SLOW_OUT, 1);
    sends_from(skb, p->eth.h_source);
    return judge(skb, &p->ip, &flow, verdict, now, 0);
}

/* A packet in VXLAN, of either device. */
static __always_inline int ours(struct packet *p) {
    struct vxlan *vxlan = &p->outer.vxlan;
    return p->eth.h_proto == bpf_htons(ETH_P_IP) && *(__u8 *)&p->outer.ip == 0x45 && p->outer.ip.protocol == IPPROTO_UDP &&
        !(p->outer.ip.frag_off & FRAGMENT) && vxlan->flags == TUNNEL_FLAGS &&
        (vxlan->vni == node.vni || (node.second && vxlan->vni == node.second_vni)) &&
        p->outer.eth.h_proto == bpf_htons(ETH_P_IP);
}

SEC("tc") int isthmus_net_tx(struct __sk_buff *skb) {
    if (skb->cb[0] == FAST) {
        skb->cb[0] = 0;
        return NEXT;
    }
    if (!node.generation || skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present) return NEXT;
    if (node.direct) {
        struct plain *q = linear(skb, sizeof *q);
        if ((void *)(q + 1) > (void *)(long)skb->data_end) return NEXT;
        struct peer *near = peer_of(q->ip.daddr);
        if (near) {
            struct verdict *verdict = proven(skb, &q->ip, q->ports, 0);
            __u32 piece = piece_of(skb, &q->ip);
            if (!verdict || !piece || WAY(near->epoch) != DIRECT || !same(q->eth.h_dest, near->mac) ||
                skb->ifindex != node.underlay) return NEXT;
            copy(verdict->to, q->eth.h_dest);
            copy(verdict->from, q->eth.h_source);
            settle(skb, verdict, near, &q->ip, piece, LEARNED_OUT);
            return NEXT;
        }
    }
    struct packet *p = linear(skb, sizeof *p);
    if ((void *)(p + 1) > (void *)(long)skb->data_end || !ours(p) || p->outer.ip.saddr != node.local) return NEXT;
    struct peer *peer = peer_of(p->ip.daddr);
    if (!peer || peer->epoch & OUTSIDE || peer->vtep != p->outer.ip.daddr || peer->port != p->outer.udp.dest ||
        p->outer.vxlan.vni != vni_of(peer) || !same(p->outer.eth.h_dest, peer->mac) ||
        !same(p->outer.eth.h_source, node.mac)) return NEXT;
    struct verdict *verdict = proven(skb, &p->ip, p->ports, 0);
    __u32 piece = piece_of(skb, &p->ip);
    if (!verdict || !piece || skb->ifindex != node.underlay) return NEXT;
    verdict->source = p->outer.udp.source;
    verdict->fragment = p->outer.ip.frag_off;
    verdict->outer_tos = p->outer.ip.tos;
    verdict->outer_ttl = p->outer.ip.ttl;
    verdict->identifier = bpf_get_prandom_u32();
    copy(verdict->to, p->eth.h_dest);
    copy(verdict->from, p->eth.h_source);
    settle(skb, verdict, peer, &p->ip, piece, LEARNED_OUT);
    return NEXT;
}

SEC("tc") int isthmus_net_rx(struct __sk_buff *skb) {
    struct flow flow;
    if (!node.generation || skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST || skb->vlan_present) return NEXT;
    if (node.direct && skb->ifindex == node.underlay) {
        struct plain *q = linear(skb, sizeof *q + 10);
        if ((void *)(q + 1) > (void *)(long)skb->data_end) return NEXT;
        struct peer *near = peer_of(q->ip.saddr);
        if (near) {
            if (WAY(near->epoch) != DIRECT || !same(q->eth.h_source, near->mac)) {
                count(WRONG_SOURCE, 1);
                return NEXT; /* the firewall judges, and counts what it drops */
            }
            __u32 size = skb->len - sizeof(struct ethhdr), largest = flow_of(skb, &q->ip, size, &flow);
            if (!largest) return NEXT;
            __u64 now = bpf_ktime_get_coarse_ns();
            struct verdict *known = bpf_map_lookup_elem(&flows, &flow);
            if (good(known, near, &flow, skb->ifindex, now, &q->ip, largest)) {
                __u32 out = pass_on(skb, q, known, size, FAST_IN);
                return known->handed ? bpf_redirect(out, 0) : bpf_redirect_peer(out, 0);
            }
            count(SLOW_IN, 1);
            return judge(skb, &q->ip, &flow, known, now, 1);
        }
    }
    struct packet *p = linear(skb, sizeof *p + 10); /* with the flags of TCP */
    if ((void *)(p + 1) > (void *)(long)skb->data_end || !ours(p) || p->outer.udp.dest != node.port ||
        p->outer.ip.daddr != node.local) return NEXT;
    __u32 bytes = skb->len - sizeof(struct ethhdr);
    struct peer *peer = peer_of(p->ip.saddr);
    int mapped = peer && WAY(peer->epoch) == MAPPED;
    if (!peer || peer->epoch & OUTSIDE || peer->vtep != p->outer.ip.saddr || p->outer.vxlan.vni != vni_of(peer) ||
        (mapped && peer->port != p->outer.udp.source) || !same(p->outer.eth.h_source, peer->mac) ||
        !same(p->outer.eth.h_dest, node.mac)) {
        count(WRONG_SOURCE, 1);
        return NEXT; /* not from whom it claims: the firewall judges, and counts what it drops */
    }
    if (bpf_ntohs(p->outer.ip.tot_len) != bytes || bpf_ntohs(p->outer.udp.len) != bytes - sizeof(struct iphdr) ||
        p->outer.ip.ttl == 0 || !intact(&p->outer.ip) || (p->outer.ip.tos & ECN) != outer_ecn(p->ip.tos)) {
        count(FORM, 1);
        return NEXT;
    }
    __u32 piece = flow_of(skb, &p->ip, bytes - sizeof(struct outer), &flow);
    if (!piece) return NEXT;
    /* To the stack, to be asked: a checksum that nobody has verified yet, and datagrams that are to be cut apart
     * (GSO). These say that they are in a tunnel, which cannot be taken back here: who cuts them would go by it. */
    int whole = (!p->outer.udp.check || bpf_csum_level(skb, BPF_CSUM_LEVEL_QUERY) >= 0) &&
        (!skb->gso_size || p->ip.protocol != IPPROTO_UDP);
    if (!whole) count(FORM, 1);
    __u64 now = bpf_ktime_get_coarse_ns();
    struct verdict *verdict = bpf_map_lookup_elem(&flows, &flow);
    if (!whole || !good(verdict, peer, &flow, skb->ifindex, now, &p->ip, piece)) {
        count(SLOW_IN, 1);
        return judge(skb, &p->ip, &flow, verdict, now, 1);
    }
    if (bpf_skb_adjust_room(skb, -(int)sizeof(struct outer), BPF_ADJ_ROOM_MAC,
            BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET)) {
        count(FAILED, 1);
        return NEXT;
    }
    bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC); /* what the NIC has verified was the outer one */
    struct plain *inner = (void *)(long)skb->data;
    if ((void *)(inner + 1) > (void *)(long)skb->data_end) {
        count(FAILED, 1);
        return DROP;
    }
    hop(&inner->ip);
    copy(inner->eth.h_dest, verdict->to);
    copy(inner->eth.h_source, verdict->from);
    count_packet(FAST_IN, bytes - sizeof(struct outer));
    return verdict->handed ? bpf_redirect(verdict->out, 0) : bpf_redirect_peer(verdict->out, 0);
}

SEC("tc") int isthmus_wg_tx(struct __sk_buff *skb) {
    if (skb->cb[0] == FAST) {
        skb->cb[0] = 0;
        return NEXT;
    }
    if (!node.generation || skb->protocol != bpf_htons(ETH_P_IP)) return NEXT;
    struct bare *p = linear(skb, sizeof *p);
    if ((void *)(p + 1) > (void *)(long)skb->data_end) return NEXT;
    struct peer *peer = peer_of(p->ip.daddr);
    if (!peer || WAY(peer->epoch) != SEALED || peer->vtep != skb->ifindex) return NEXT;
    struct verdict *verdict = proven(skb, &p->ip, p->ports, 0);
    __u32 piece = piece_of(skb, &p->ip);
    if (!verdict || !piece) return NEXT;
    settle(skb, verdict, peer, &p->ip, piece, LEARNED_OUT);
    return NEXT;
}

SEC("tc") int isthmus_wg_rx(struct __sk_buff *skb) {
    struct flow flow;
    if (!node.generation || skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST) return NEXT;
    struct bare *p = linear(skb, sizeof *p + 10);
    if ((void *)(p + 1) > (void *)(long)skb->data_end) return NEXT;
    struct peer *peer = peer_of(p->ip.saddr);
    if (!peer || WAY(peer->epoch) != SEALED) return NEXT;
    __u32 bytes = skb->len, piece = flow_of(skb, &p->ip, bytes, &flow);
    if (!piece) return NEXT;
    __u64 now = bpf_ktime_get_coarse_ns();
    struct verdict *known = bpf_map_lookup_elem(&flows, &flow);
    if (!good(known, peer, &flow, skb->ifindex, now, &p->ip, piece)) {
        count(SLOW_IN, 1);
        return judge(skb, &p->ip, &flow, known, now, 1);
    }
    if (bpf_skb_change_head(skb, sizeof(struct ethhdr), 0)) {
        count(FAILED, 1);
        return NEXT;
    }
    struct plain *q = (void *)(long)skb->data;
    if ((void *)(q + 1) > (void *)(long)skb->data_end) {
        count(FAILED, 1);
        return DROP;
    }
    q->eth.h_proto = bpf_htons(ETH_P_IP);
    __u32 out = pass_on(skb, q, known, bytes, FAST_IN);
    return known->handed ? bpf_redirect(out, 0) : bpf_redirect_peer(out, 0);
}

static __always_inline int given(struct __sk_buff *skb, __u8 bridge) {
    if (!node.generation || skb->protocol != bpf_htons(ETH_P_IP) || skb->vlan_present) return NEXT;
    struct plain *p = linear(skb, sizeof *p);
    if ((void *)(p + 1) > (void *)(long)skb->data_end) return NEXT;
    struct verdict *verdict = proven(skb, &p->ip, p->ports, 1);
    struct peer *peer = peer_of(p->ip.saddr);
    __u32 piece = piece_of(skb, &p->ip), port = skb->ifindex;
    if (!verdict || !piece || !peer) return NEXT;
    /* Past the device goes only what the pod would take from it: a packet for its own address. */
    struct mac *own = bpf_map_lookup_elem(&macs, &port);
    verdict->handed = bridge || !own || !same(own->of, p->eth.h_dest);
    copy(verdict->to, p->eth.h_dest);
    copy(verdict->from, p->eth.h_source);
    settle(skb, verdict, peer, &p->ip, piece, LEARNED_IN);
    bpf_set_hash_invalid(skb);
    return NEXT;
}
SEC("tc") int isthmus_pod_rx(struct __sk_buff *skb) { return given(skb, 0); }
SEC("tc") int isthmus_br_rx(struct __sk_buff *skb) { return given(skb, 1); }

char _license[] SEC("license") = "Apache-2.0";
