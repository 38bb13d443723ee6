"""The node's firewall: one nftables table of our own, brought to its wanted form in one transaction.

What it enforces, each by name in the table:

* What comes out of WireGuard is a peer's, by its key; while peers change over, packets come by either device.
  Its own datagrams, which it judges by their keys, go past connection tracking.
* ``received``, ``from_members``: VXLAN only from the underlay addresses of members (``vteps``), and past
  connection tracking.
* ``from_mapped``: packets for the second device only from where a peer behind NAT was seen (``mapped``, address
  and port), and on a node behind one, from its peers' own addresses and port.
* ``between``, ``relayed``: from behind a NAT packets go on to another node, or from there to behind one, only
  between ranges that both are (``hidden``, on gateways), and where the Service proxy has translated.
* ``passing``: no pod sends VXLAN to the outside: masqueraded, it would come to another node as from a member.
* ``delivered``: whatever else reaches the VXLAN port itself is dropped, but only once connections were tracked:
  another program's masquerade may choose that port as its source (1 flow in 64,000), and the replies, which
  are for somebody else then, must find back.
* ``forwarded``, ``delivered``, and for both ``tunnelled``, ``pods``, ``others``: a container address comes
  only from where its route leads: the own range from pods, all others from the tunnel (no spoofing), and
  nothing else leaves the tunnel: no other source has its route there. Nobody
  outside opens a connection to a container address, a ClusterIP included. Replies pass, and what the Service
  proxy has translated (NodePort, LoadBalancer, hostPort).
* ``entered``, ``answered``: on gateways the sources of ``entries`` are let in to pods and ClusterIPs, only from
  where their route leads (not a pod that pretends to be one of them), and not to a range's first two addresses,
  which are a node's own; answers leave by the gateway that has the connection. Each packet is asked anew: who
  is no longer listed is cut off in running connections, too.
* ``neighboured``: a container address may also come in by the underlay device itself, in no tunnel, but only
  from the MAC of that member (``neighbours``: as the kernel's neighbour table has it), with an address of that
  member's range, and to this node's own range. ``nearby`` are these ranges: to them plain packets may
  leave, and from them packets may come by the tunnel although the way back is another one.
* ``strays``: pods with addresses of a range that the node had before answer this node (probes), and are
  cut off from everybody else.
* ``masqueraded``: pods that talk to the outside do it with the node's address, and the node itself and whom
  the Service proxy sends through the tunnel with its VTEP's, both by source ports clear of the VXLAN port.
  So do the sources of ``entries``, whichever node the pod is on: other nodes need to know nothing of them, and
  answers come back to the gateway that has the connection, also after the address has moved on.
* ``leaving``, ``inside``: what would still carry a container address to the outside is dropped, and so is what
  goes to a range that nobody has.

Each packet runs every base chain once or twice, so these are short, by what each expression costs (Linux
6.18, a warm cache, per run): an empty chain 18 ns, a comparison of a device's index 17, of its name 30, of an
address 14, of a part of it that is not 1, 2 or 4 bytes 27, ``ip`` in a table of two families 17 more, the
state of a connection 21, a jump 23, a set 20, an interval set 50, a route looked up 82. So the tunnel is
compared by index, a single CIDR by prefix, a port before the protocol and an address before the device, pods'
packets before everybody else's, members' outer packets leave by the first rule that knows them, and what a
device has proven is not asked again. A packet out of the tunnel to the VXLAN port is judged like any other: a
pod must not speak to this node as if it were a member. Nor to WireGuard's port. A tunnel device made anew has
another index: until the rules are written again, its name counts.

Sets and chains stay in place when the rules are written anew. Deleting the table and making it again in one
transaction is atomic for whoever lists it, but not for packets: one that is being judged by the old rules
meanwhile finds the old set empty and is dropped (Linux 6.18: one in four times at 8,000 packets/s).

It never touches another table; rules of other programs still apply to what passes here. Cancelled, a
transaction has taken effect as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, ip_address

import msgspec

from events.errors import Refused
from nodeagent import system
from nodeagent.firewall.elements import (
    NOBODY,
    TABLE,
    Second,
    between,
    elements,
    from_mapped,
    from_member,
    near_sets,
    render_mapped,
    render_members,
    render_near,
    sealed,
    source_ports,
    tunnelled,
    within,
)
from nodeagent.firewall.listing import elements_by_set, elements_in, rules_by_chain

VXLAN_FLAGS = "@th,64,32 0x08000000"
"""Matches what the kernel's VXLAN driver takes: this flag and no other. Behind a match of the UDP port."""
TIMEOUT_S = 30.0
LINES = "\n    ".join
LOOPBACK = 1
"""The index of ``lo``, the first device of every network namespace."""
INSTALL = "apt-get install nftables (or dnf install nftables)"


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What the table depends on, apart from the members' addresses.

    ``ifindex`` is the tunnel device's; 0 compares by its name. ``underlay`` is the node's own underlay
    address, empty while it is not known.
    """

    device: str
    port: int
    own_range: str
    cidrs: tuple[str, ...]
    ifindex: int = 0
    underlay: str = ""
    strays: tuple[str, ...] = ()
    """Addresses of pods of a range that this node had before: its own probes reach them, nobody else does."""
    wireguard: str = ""
    """The devices out of which encrypted packets come, as a pattern; empty: nothing is encrypted."""
    wireguard_ports: str = ""
    """Their UDP ports, a range: outer packets to and from them pass connection tracking."""
    entries: tuple[str, ...] = ()
    """CIDRs outside of the container network, disjoint, whose hosts this gateway lets in to pods."""
    second: Second | None = None
    """The device for peers behind NAT; None: nobody's packets come by such a one."""
    direct: int = 0
    """Index of the underlay device by which neighbours' packets may come in without a tunnel; 0: none may."""


def render(
    rules: Rules,
    vteps: Iterable[str],
    *,
    stale: Iterable[str] = (),
    near: Mapping[str, str] = NOBODY,
    stale_near: Mapping[str, str] = NOBODY,
    mapped: Iterable[str] = (),
    stale_mapped: Iterable[str] = (),
    hidden: Iterable[str] = (),
) -> str:
    """The transaction: make the table (so that flushing works), drop its rules, write them again.

    ``near``: the MAC of each member whose plain packets may come in, by its range; ``mapped``: from which
    ``ADDRESS . PORT`` packets for the second device may; ``hidden``: between which ranges it relays. The
    ``stale`` ones are in the sets and should not be.
    """
    known = sorted(vteps, key=lambda text: ip_address(text).packed)
    ports = source_ports(rules.port)
    own = within(rules.own_range)
    containers = rules.cidrs[0] if len(rules.cidrs) == 1 else "@containers"
    tunnel = f" {rules.ifindex}" if rules.ifindex else f'name "{rules.device}"'
    encrypted = f'iifname "{rules.wireguard}"' if rules.wireguard else ""
    wireguard = f"{encrypted} accept" if encrypted else ""
    strange = f"ip saddr != {containers} ip daddr {containers}"
    second = rules.second
    devices = [rules.device, *([second.device] if second is not None else [])]
    tunnels = [tunnel, *([f" {second.ifindex}"] if second is not None else [])]
    overlay = [*devices, *([rules.wireguard] if rules.wireguard else [])]
    datagrams = sealed(rules.wireguard_ports if encrypted else "", rules.underlay)
    answering = "ip saddr @strays fib saddr . iif oif exists ct state established accept" * bool(rules.strays)
    probing = "ip daddr @strays fib saddr type local accept" if rules.strays else ""
    direct = rules.direct
    sets = near_sets(near) if direct else ""
    network = IPv4Network(rules.own_range)
    vtep = network.network_address
    # A masqueraded connection ends when its packets leave by another device, as with a key's change.
    outside = "through" if direct or second is not None or encrypted else "outside"
    return f"""\
table inet {TABLE} {{}}
flush table inet {TABLE}
{render_members((), stale)}{render_near({}, stale_near)}{render_mapped((), stale_mapped)}\
table inet {TABLE} {{ set strays {{ type ipv4_addr; }}; set entries {{ type ipv4_addr; flags interval; }}; }}
table inet {TABLE} {{ set hidden {{ type ipv4_addr; flags interval; }}; }}
flush set inet {TABLE} strays
flush set inet {TABLE} entries
flush set inet {TABLE} hidden
table inet {TABLE} {{
  set vteps {{
    type ipv4_addr
    {elements(a for a in known if ":" not in a)}
  }}
  set vteps6 {{
    type ipv6_addr
    {elements(a for a in known if ":" in a)}
  }}
  set containers {{
    type ipv4_addr
    flags interval
    {elements(rules.cidrs)}
  }}
  set strays {{
    type ipv4_addr
    {elements(rules.strays)}
  }}
  set entries {{
    type ipv4_addr
    flags interval
    {elements(rules.entries)}
  }}
  set hidden {{
    type ipv4_addr
    flags interval
    {elements(sorted(hidden))}
  }}
  set mapped {{
    type ipv4_addr . inet_service
    {elements(sorted(mapped))}
  }}
  {sets}
  chain received {{
    type filter hook prerouting priority raw; policy accept;
    {f"{encrypted} ip saddr != {containers} counter drop" if encrypted else ""}
    th dport {rules.port} meta l4proto udp {VXLAN_FLAGS} jump from_members
    {datagrams.arriving}
  }}
  chain from_members {{
    {LINES(f"iif{one} ip saddr != {containers} counter drop" for one in tunnels)}
    {f"@th,96,24 {second.vni} goto from_mapped" if second is not None else ""}
    {from_member(rules.underlay)}
    fib daddr type != local goto passing
    ip saddr @vteps notrack accept
    ip6 saddr @vteps6 notrack accept
    counter drop
  }}
  chain passing {{
    ip saddr {containers} ip daddr != {containers} counter drop
  }}
  chain from_mapped {{
    {LINES(from_mapped(second, rules.underlay))}
  }}
  chain sent {{
    type filter hook output priority raw; policy accept;
    th dport {rules.port} meta l4proto udp {VXLAN_FLAGS} notrack
    {datagrams.leaving}
  }}
  chain tunnelled {{
    {LINES(tunnelled(rules.device, rules.wireguard, second, direct=bool(rules.direct)))}
  }}
  chain between {{
    {LINES(between(second, tunnel))}
  }}
  chain relayed {{
    ct status dnat goto tunnelled
    ip saddr @hidden ip daddr @hidden goto tunnelled
    counter drop
  }}
  chain neighboured {{
    ip daddr {own} accept
    counter drop
  }}
  chain pods {{
    fib saddr . iif oif missing counter drop
    accept
  }}
  chain others {{
    {LINES(f'iifname "{one}" goto tunnelled' for one in devices)}
    {f"iif {direct} ether saddr . ip saddr @neighbours goto neighboured" if direct else ""}
    counter drop
  }}
  chain entered {{
    fib saddr . iif oif missing counter drop
    ct direction original ip daddr & {network.hostmask} <= 0.0.0.1 ip daddr {containers} counter drop
    ct original ip saddr @entries accept
    counter drop
  }}
  chain answered {{
    ct direction reply ct original ip daddr {containers} ip daddr @entries accept
    counter drop
  }}
  chain forwarded {{
    type filter hook forward priority filter - 5; policy accept;
    {f"oif {second.ifindex} iif{tunnel} goto relayed" if second is not None else ""}
    iif{tunnel} goto tunnelled
    {f"iif {second.ifindex} goto between" if second is not None else ""}
    ip saddr {own} goto pods
    {f'{encrypted} oifname "{rules.wireguard}" goto relayed' if encrypted else ""}
    {wireguard}
    ip saddr {containers} goto others
    ct original ip saddr != {containers} ct original ip daddr {containers} goto entered
    ct state established,related accept
    ct status dnat accept
    ip daddr {containers} counter drop
  }}
  chain delivered {{
    type filter hook input priority filter - 5; policy accept;
    th dport {rules.port} meta l4proto udp ct state untracked accept
    th dport {rules.port} meta l4proto udp counter drop
    iif {LOOPBACK} accept
    {LINES(f"iif{one} goto tunnelled" for one in tunnels)}
    {datagrams.delivered}
    ip saddr {own} goto pods
    {wireguard}
    {answering}
    ip saddr {containers} goto others
    ct direction original ct status dnat ct original ip daddr {containers} goto entered
    ct state established,related accept
    ct status dnat accept
    ip daddr {containers} counter drop
  }}
  chain masqueraded {{
    type nat hook postrouting priority srcnat + 5; policy accept;
    ip saddr {own} ip daddr != {containers} jump outside
    {LINES(f'oifname "{one}" {strange} jump {outside}' for one in overlay)}
    {f"oif {direct} ip saddr != {containers} ip daddr @nearby jump through" if direct else ""}
    ip saddr @entries ip daddr {containers} fib saddr type != local jump outside
  }}
  chain outside {{
    ip daddr 224.0.0.0/4 return
    meta l4proto tcp counter masquerade to :{ports} fully-random
    meta l4proto udp counter masquerade to :{ports} fully-random
    counter masquerade
  }}
  chain through {{
    meta l4proto tcp counter snat ip to {vtep}:{ports} fully-random
    meta l4proto udp counter snat ip to {vtep}:{ports} fully-random
    counter snat ip to {vtep}
  }}
  chain leaving {{
    type filter hook postrouting priority srcnat + 50; policy accept;
    ip daddr {containers} goto inside
    ip saddr {containers} oif != {LOOPBACK} goto answered
  }}
  chain inside {{
    {LINES(f"oif{one} accept" for one in tunnels)}
    ip daddr {own} accept
    {f"oif {direct} ip saddr {own} ip daddr @nearby accept" if direct else ""}
    {LINES(f'oifname "{one}" accept' for one in overlay)}
    oif {LOOPBACK} accept
    {probing}
    counter drop
  }}
}}
"""


async def nft(script: str) -> None:
    """Run one transaction: all of it takes effect or nothing.

    Raises Refused: ``prerequisite_missing`` without the program, ``firewall_refused`` with its words.
    """
    await _run("-f", "-", stdin=script)


async def replace(
    rules: Rules,
    vteps: Iterable[str],
    *,
    also: str = "",
    near: Mapping[str, str] = NOBODY,
    mapped: Iterable[str] = (),
    hidden: Iterable[str] = (),
) -> None:
    """Bring the table to this form without losing a packet, whatever it holds now; ``also`` in the same step.

    A table whose chains or sets are of another kind (another version's, somebody's own beside ours) cannot
    be changed in place: it is deleted and made anew. Raises Refused as `nft` does.
    """
    wanted, places = list(vteps), frozenset(mapped)
    others = rules_by_chain(await listing()).keys() - rules_by_chain(render(rules, ())).keys()
    stale = await elements_of("vteps", "vteps6") - set(wanted)
    there = await neighbours()
    stale_near = {cidr: mac for cidr, mac in there.items() if near.get(cidr) != mac}
    stale_mapped = await elements_of("mapped") - places
    other_cidrs = await elements_of("containers") - set(rules.cidrs)
    try:
        if not other_cidrs and not others:
            text = render(
                rules, wanted, stale=stale, near=near, stale_near=stale_near, mapped=places,
                stale_mapped=stale_mapped, hidden=hidden,
            )  # fmt: skip
            await nft(text + also)
            return
    except Refused as error:
        if error.code != "firewall_refused":
            raise
    fresh = render(rules, wanted, near=near, mapped=places, hidden=hidden)
    await nft(f"table inet {TABLE} {{}}\ndelete table inet {TABLE}\n" + fresh + also)


async def neighbours() -> dict[str, str]:
    """Whose plain packets the table lets in: range → MAC. Raises Refused as `nft` does."""
    pairs = [text.split(" . ") for text in await elements_of("neighbours") if " . " in text]
    return {cidr: mac for mac, cidr in pairs}


async def elements_of(*names: str, family: str = "inet", table: str = TABLE) -> set[str]:
    """What the named sets of a table hold; nothing for one that is not there. Raises Refused as `nft` does."""
    found: set[str] = set()
    for name in names:
        try:
            text = await _run("--json", "list", "set", family, table, name)
        except Refused as error:
            if error.code == "prerequisite_missing":
                raise
            continue
        found |= elements_in(text)
    return found


async def listing() -> str:
    """The table as the kernel has it, without counters' values; empty when it is not there."""
    try:
        return await _run("--stateless", "list", "table", "inet", TABLE)
    except Refused as error:
        if error.code == "prerequisite_missing":
            raise
        return ""


def as_written(
    text: str,
    rules: Rules,
    vteps: Iterable[str],
    near: Mapping[str, str] = NOBODY,
    mapped: Iterable[str] = (),
    *,
    hidden: Iterable[str] = (),
) -> bool:
    """Whether a listing has these chains, as many rules in each, and these members; no less and no more."""
    sets = elements_by_set(text)
    wanted = {
        "vteps": {address for address in vteps if ":" not in address},
        "vteps6": {str(ip_address(address)) for address in vteps if ":" in address},
        "strays": set(rules.strays),
        "hidden": set(hidden),
        "mapped": {word for place in mapped for word in place.split()},
        **({"nearby": set(near)} if rules.direct else {}),
    }
    return rules_by_chain(text) == rules_by_chain(render(rules, ())) and all(
        sets.get(name) == elements for name, elements in wanted.items()
    )


async def remove() -> bool:
    """Remove our table; False when there was none."""
    if not await listing():
        return False
    await nft(f"delete table inet {TABLE}\n")
    return True


async def _run(*arguments: str, stdin: str = "") -> str:
    program = system.find("nft")
    if program is None:
        raise Refused(
            "prerequisite_missing",
            f"the program nft is not installed, so pods are not shielded from outside: {INSTALL}",
            program="nft",
        )
    ended = await system.run(program, *arguments, stdin=stdin, timeout_s=TIMEOUT_S)
    if ended.code:
        words = ended.err.strip().splitlines()
        raise Refused(
            "firewall_refused",
            f"nft refused the table inet {TABLE}: {words[0] if words else ended.code}. "
            f"`isthmus doctor` checks for missing kernel features",
        )
    return ended.out
