"""A gateway's nftables tables ``isthmus_clb``: balancing (family ip), and who answers ARP (family arp).

Balancing: a new connection to a port of a held address goes to one of its healthy backends, with the
gateway's own address as its source, so that replies return. The kernel's connection tracking keeps
established connections where they are, whatever the rules say later. What has no backend is refused;
the gateway's own services are never reachable by a held address.

ARP: the kernel itself yields. Whoever announces a held address (ARP with that sender) silences us for
it for :data:`YIELD_S`, unless the address is in ``defended``. The agent puts it there for
:data:`DEFENCE_S` at a time while the log, currently read, says that this node holds it. So an agent
that is dead or cut off changes nothing (the address keeps working), but cannot fight either.

Carrying on (family ip, ``isthmus_clb_former``): connections that began at the holder before this one are
known to its kernel only. Their packets (TCP without SYN, of no connection balanced here) go on to that machine
as they are; its connection tracking still has the backend and the source port, and the backend's replies
never left it. That works as long as it lives and keeps its tables, which is why a gateway that holds
nothing any more keeps the empty ones. A packet that comes back from it (it does not know the connection
either) is balanced here like any other, and the backend resets it.

What still arrives for an address that another gateway holds now goes on there, untracked: tracked as it is
it would be a connection without a backend, and be taken for that once the address comes back here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from events.types import Affinity, Protocol
from nodeagent.firewall.elements import source_ports

TABLE = "isthmus_clb"
PREVIOUS_TABLE = "isthmus_clb_former"
"""A table of its own: a kernel without the ``dup`` statement refuses this transaction and no other."""

DEFENCE_S = 2.0
"""How long a confirmed view lets us defend an address. Less than the controller's patience with a silent
gateway (:data:`controlplane.cluster.decisions.holders.SILENCE_S`), so that the old holder yields to the new
one's first announcement."""

YIELD_S = 10.0
"""How long an announcement silences us. The true holder repeats its own every second."""

SLOTS = 64
"""With affinity, clients hash to so many slots; a backend that goes moves the clients of its slots only."""


class Listener(NamedTuple):
    """A port of a held address and its healthy backends (address, port), in a fixed order."""

    address: str
    protocol: Protocol
    port: int
    affinity: Affinity
    targets: tuple[tuple[str, int], ...]


class PreviousHolder(NamedTuple):
    """A held address, and the machine that held it just before: its underlay address and MAC."""

    address: str
    underlay: str
    mac: str


def render(addresses: Sequence[str], listeners: Sequence[Listener], vxlan_port: int) -> str:
    """The transaction that brings both tables to their wanted form, whatever they hold now.

    With nothing held the tables rest: no rule is left, but the kernel goes on translating the connections
    that it knows.
    """
    held = f"elements = {{ {', '.join(addresses)} }}" if addresses else ""
    ports = source_ports(vxlan_port)
    balance = "\n    ".join(_rule(listener) for listener in listeners if listener.targets)
    return f"""\
{_arp(held)}\
table ip {TABLE} {{
  set held {{ type ipv4_addr; }}
}}
flush table ip {TABLE}
flush set ip {TABLE} held
table ip {TABLE} {{
  set held {{ type ipv4_addr; {held} }}
  chain balance {{
    type nat hook prerouting priority dstnat - 5; policy accept;
    {balance}
  }}
  chain own {{
    type nat hook output priority -105; policy accept;
    {balance}
  }}
  chain source {{
    type nat hook postrouting priority srcnat - 5; policy accept;
    ct status dnat ct original ip daddr @held jump outward
  }}
  chain outward {{
    meta l4proto tcp counter masquerade to :{ports} fully-random
    meta l4proto udp counter masquerade to :{ports} fully-random
  }}
  chain guard {{
    type filter hook input priority filter - 6; policy accept;
    ip daddr @held jump refuse
  }}
  chain refuse {{
    icmp type echo-request accept
    meta l4proto tcp counter reject with tcp reset
    counter reject
  }}
}}
"""


def _arp(held: str) -> str:
    return f"""\
table arp {TABLE} {{
  set held {{ type ipv4_addr; }}
  set defended {{ type ipv4_addr; flags timeout; }}
  set yielded {{ type ipv4_addr; size 1024; flags dynamic,timeout; timeout {YIELD_S:.0f}s; }}
}}
flush table arp {TABLE}
flush set arp {TABLE} held
table arp {TABLE} {{
  set held {{ type ipv4_addr; {held} }}
  chain heard {{
    type filter hook input priority filter; policy accept;
    arp saddr ip @held arp saddr ip != @defended update @yielded {{ arp saddr ip }}
  }}
  chain said {{
    type filter hook output priority filter; policy accept;
    arp saddr ip @yielded counter drop
  }}
}}
"""


def render_previous(previous: Sequence[PreviousHolder], elsewhere: Sequence[str], device: str) -> str:
    """The transaction after which what began at these machines is sent on to them, and nothing else.

    ``elsewhere``: addresses that other gateways hold; what comes for them by ``device`` goes on to them.
    """
    rules = [
        f"ip daddr {f.address} tcp flags & syn == 0 ct status & dnat == 0 ether saddr != {f.mac} "
        f'counter dup to {f.underlay} device "{device}" drop'
        for f in previous
    ]
    rules += [
        f'iifname "{device}" ip daddr {address} ct status & dnat == 0 counter '
        f'dup to {address} device "{device}" drop'
        for address in elsewhere
    ]
    lines = "\n    ".join(rules)
    return f"""\
table ip {PREVIOUS_TABLE} {{}}
flush table ip {PREVIOUS_TABLE}
table ip {PREVIOUS_TABLE} {{
  chain carried {{
    type filter hook prerouting priority mangle; policy accept;
    {lines}
  }}
}}
"""


def render_removal() -> str:
    """The transaction after which none of the tables exists."""
    tables = (("arp", TABLE), ("ip", TABLE), ("ip", PREVIOUS_TABLE))
    return "".join(f"table {family} {name} {{}}\ndelete table {family} {name}\n" for family, name in tables)


def render_defence(addresses: Sequence[str], for_s: float) -> str:
    """Defend these addresses for ``for_s`` seconds from now, and answer for them if we were silenced."""
    elements = ", ".join(f"{address} timeout {max(1, int(for_s * 1000))}ms" for address in addresses)
    return (
        f"{_without('defended', addresses)}{_without('yielded', addresses)}"
        f"add element arp {TABLE} defended {{ {elements} }}\n"
    )


def render_undefended(addresses: Sequence[str]) -> str:
    """Defend these no longer: from the next announcement of another machine on, we are silent."""
    return _without("defended", addresses)


def _without(name: str, addresses: Sequence[str]) -> str:
    """Lines after which a set does not hold these, whether it did or not: deleting what is not there fails."""
    elements = ", ".join(addresses)
    return "".join(f"{verb} element arp {TABLE} {name} {{ {elements} }}\n" for verb in ("add", "delete"))


def _rule(listener: Listener) -> str:
    match = f"ip daddr {listener.address} {listener.protocol} dport {listener.port} counter dnat to"
    targets = listener.targets
    if len(targets) == 1:
        return f"{match} {targets[0][0]}:{targets[0][1]}"
    if listener.affinity == "source":
        slots = spread(targets)
        entries = ", ".join(f"{n} : {targets[slot][0]} . {targets[slot][1]}" for n, slot in slots.items())
        return f"{match} jhash ip saddr mod {SLOTS} seed 0x6973746d map {{ {entries} }}"
    entries = ", ".join(f"{number} : {address} . {port}" for number, (address, port) in enumerate(targets))
    return f"{match} numgen random mod {len(targets)} map {{ {entries} }}"


def spread(targets: Sequence[tuple[str, int]]) -> Mapping[int, int]:
    """Slot → index of its target, by the highest random weight (Thaler and Ravishankar, 1998).

    The same on every gateway, so that a client stays with its backend over a change of the holder.
    """

    def weight(slot: int, target: tuple[str, int]) -> bytes:
        return blake2b(f"{slot} {target[0]}:{target[1]}".encode(), digest_size=8).digest()

    return {
        slot: max(range(len(targets)), key=lambda index: weight(slot, targets[index])) for slot in range(SLOTS)
    }
