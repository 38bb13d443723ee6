/* The floor for bench_agent_rows.py: the rows of N peers as packed rtnetlink batches, errors only.
 *
 * For each peer a permanent neighbour, an FDB row and a route with a metric of its own, as the agent
 * writes them. Prints the seconds from the first byte packed to the last answer read.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BATCH 1024
#define FDB_BATCH 128 /* the kernel enlarges that table between sends only: see nodeagent/netlink/socket.py */
static char buffer[BATCH * 64 + 64], answer[1 << 18];
static size_t used;
static unsigned queued, failures, batch = BATCH;
static int sock;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void flush(void) {
    if (!queued) return;
    struct nlmsghdr *barrier = (void *)(buffer + used);
    *barrier = (struct nlmsghdr){.nlmsg_len = 16, .nlmsg_type = NLMSG_NOOP, .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK};
    if (send(sock, buffer, used + 16, 0) < 0) { perror("send"); exit(1); }
    for (int done = 0; !done;) {
        ssize_t n = recv(sock, answer, sizeof answer, 0);
        if (n < 0) { perror("recv"); exit(1); }
        for (struct nlmsghdr *h = (void *)answer; NLMSG_OK(h, n); h = NLMSG_NEXT(h, n)) {
            struct nlmsgerr *e = NLMSG_DATA(h);
            if (h->nlmsg_type != NLMSG_ERROR) continue;
            if (e->error) failures++; else done = 1;
        }
    }
    used = 0; queued = 0;
}

static struct nlmsghdr *begin(uint16_t type, size_t body) {
    if (queued >= batch) flush();
    struct nlmsghdr *h = (void *)(buffer + used);
    memset(h, 0, NLMSG_LENGTH(body));
    h->nlmsg_type = type;
    h->nlmsg_flags = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE;
    h->nlmsg_len = NLMSG_LENGTH(body);
    return h;
}

static void attribute(struct nlmsghdr *h, uint16_t type, const void *data, uint16_t length) {
    struct rtattr *a = (void *)((char *)h + NLMSG_ALIGN(h->nlmsg_len));
    a->rta_type = type;
    a->rta_len = RTA_LENGTH(length);
    memcpy(RTA_DATA(a), data, length);
    h->nlmsg_len = NLMSG_ALIGN(h->nlmsg_len) + RTA_ALIGN(a->rta_len);
}

static void end(struct nlmsghdr *h) { used += NLMSG_ALIGN(h->nlmsg_len); queued++; }

int main(int argc, char **argv) {
    unsigned count = atoi(argv[1]), index = atoi(argv[2]);
    int size = 4 << 20, one = 1;
    sock = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    setsockopt(sock, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof size);
    setsockopt(sock, SOL_SOCKET, SO_SNDBUFFORCE, &size, sizeof size);
    setsockopt(sock, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
    double start = now();
    for (int pass = 0; pass < 3; pass++) {
        flush();
        batch = pass == 1 ? FDB_BATCH : BATCH;
        for (unsigned i = 0; i < count; i++) {
            uint32_t range = 0x0A000040u + i * 64, address = htonl(range), underlay = htonl(0x64400000u + i);
            uint8_t mac[6] = {0x66, 0, i >> 24, i >> 16, i >> 8, i}, protocol = 84;
            if (pass == 2) {
                struct nlmsghdr *h = begin(RTM_NEWROUTE, sizeof(struct rtmsg));
                *(struct rtmsg *)NLMSG_DATA(h) = (struct rtmsg){
                    .rtm_family = AF_INET, .rtm_dst_len = 26, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = protocol,
                    .rtm_type = RTN_UNICAST, .rtm_flags = RTNH_F_ONLINK};
                attribute(h, RTA_DST, &address, 4);
                attribute(h, RTA_GATEWAY, &address, 4);
                attribute(h, RTA_OIF, &index, 4);
                attribute(h, RTA_PRIORITY, &range, 4);
                end(h);
                continue;
            }
            struct nlmsghdr *h = begin(RTM_NEWNEIGH, sizeof(struct ndmsg));
            struct ndmsg *n = NLMSG_DATA(h);
            n->ndm_ifindex = index;
            if (pass == 0) {
                n->ndm_family = AF_INET; n->ndm_state = NUD_PERMANENT;
                attribute(h, NDA_DST, &address, 4);
                attribute(h, NDA_LLADDR, mac, 6);
                attribute(h, NDA_PROTOCOL, &protocol, 1);
            } else {
                n->ndm_family = AF_BRIDGE; n->ndm_state = NUD_PERMANENT | NUD_NOARP; n->ndm_flags = NTF_SELF;
                attribute(h, NDA_LLADDR, mac, 6);
                attribute(h, NDA_DST, &underlay, 4);
            }
            end(h);
        }
    }
    flush();
    printf("%.6f %u\n", now() - start, failures);
    return failures != 0;
}
