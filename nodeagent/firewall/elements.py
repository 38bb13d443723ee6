"""What the sets of the table hold, and the rules for peers behind NAT. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network
from types import MappingProxyType
from typing import NamedTuple

import msgspec

TABLE = "isthmus"
NOBODY: Mapping[str, str] = MappingProxyType({})


class Second(msgspec.Struct, frozen=True):
    """The device for peers behind NAT: name, index, VNI."""

    device: str
    ifindex: int
    vni: int


def from_mapped(second: Second | None, underlay: str) -> list[str]:
    """The rules for packets of its VNI that were sent to this node; none where there is no such device.

    The first one knows what comes to the node's own address without looking up a route.
    """
    if second is None:
        return []
    proven = "ip saddr . udp sport @mapped notrack accept"
    return [
        *([f"ip daddr {underlay} {proven}"] if underlay and ":" not in underlay else []),
        "fib daddr type != local goto passing",
        proven,
        "counter drop",
    ]


def render_mapped(added: Iterable[str], removed: Iterable[str]) -> str:
    """A transaction that only changes from which ``ADDRESS . PORT`` such packets may come."""
    return "".join(
        f"{verb} element inet {TABLE} mapped {{ {place} }}\n"
        for verb, places in (("add", added), ("delete", removed))
        for place in sorted(places)
    )


def between(second: Second | None, tunnel: str) -> list[str]:
    """The rules for what comes out of the second device; none where there is no such device."""
    if second is None:
        return []
    return [f"oif {second.ifindex} goto relayed", f"oif{tunnel} goto relayed", "goto tunnelled"]


def from_member(underlay: str) -> str:
    """The first rule that knows members' packets to the node's own address; none while that is not known."""
    ip, family = ("ip6", "6") if ":" in underlay else ("ip", "")
    return f"{ip} daddr {underlay} {ip} saddr @vteps{family} notrack accept" if underlay else ""


class Datagrams(NamedTuple):
    """The rules for WireGuard's own packets."""

    arriving: str = ""
    leaving: str = ""
    delivered: str = ""


def sealed(ports: str, underlay: str) -> Datagrams:
    """What WireGuard judges by its keys needs no connection tracking. None without ports or address."""
    if not ports or not underlay:
        return Datagrams()
    ip = "ip6" if ":" in underlay else "ip"
    to, by = (f"th {end}port {ports} {ip} {end}addr {underlay} meta l4proto udp" for end in "ds")
    return Datagrams(f"{to} notrack accept", f"{by} notrack", f"{to} accept")


def within(cidr: str) -> str:
    """A comparison with a prefix. Of one of 24 bits, nft would load 3 bytes, which the kernel does slowly."""
    network = IPv4Network(cidr)
    return f"& {network.netmask} == {network.network_address}" if network.prefixlen == 24 else cidr


def source_ports(vxlan_port: int) -> str:
    """The larger side of the port space, without the VXLAN port and the privileged ports."""
    return f"1024-{vxlan_port - 1}" if vxlan_port > 32768 else f"{vxlan_port + 1}-65535"


def tunnelled(device: str, wireguard: str, second: Second | None, *, direct: bool) -> list[str]:
    """What comes out of the tunnel, and whose route leads into it; or into WireGuard, while peers change over.

    Without a set of the two: packets that are judged while rules are replaced would find it empty.
    """
    if not wireguard and not direct:
        return ["fib saddr . iif oif missing counter drop", "accept"]
    leads = ["fib saddr . iif oif exists accept"]
    if wireguard:
        leads = [f'fib saddr oifname "{name}" accept' for name in (device, wireguard)]
        leads += [f'fib saddr oifname "{second.device}" accept'] if second is not None else []
    return [*leads, *(["ip saddr @nearby accept"] if direct else []), "counter drop"]


def render_hidden(added: Iterable[str], removed: Iterable[str]) -> str:
    """A transaction that only changes between which ranges this node relays."""
    return "".join(
        f"{verb} element inet {TABLE} hidden {{ {cidr} }}\n"
        for verb, cidrs in (("delete", removed), ("add", added))
        for cidr in sorted(cidrs)
    )


def render_members(added: Iterable[str], removed: Iterable[str]) -> str:
    """A transaction that only changes the set of known VTEPs."""
    lines = [
        f"{verb} element inet {TABLE} {'vteps6' if ':' in address else 'vteps'} {{ {address} }}\n"
        for verb, addresses in (("add", added), ("delete", removed))
        for address in sorted(addresses)
    ]
    return "".join(lines)


def render_near(added: Mapping[str, str], removed: Mapping[str, str]) -> str:
    """A transaction that only changes whose plain packets come in; what is removed goes first."""
    lines = []
    moved = added.keys() & removed.keys()
    for verb, near in (("delete", removed), ("add", added)):
        for cidr, mac in sorted(near.items()):
            lines.append(f"{verb} element inet {TABLE} neighbours {{ {mac} . {cidr} }}\n")
            if cidr not in moved:
                lines.append(f"{verb} element inet {TABLE} nearby {{ {cidr} }}\n")
    return "".join(lines)


def near_sets(near: Mapping[str, str]) -> str:
    return f"""set neighbours {{
    type ether_addr . ipv4_addr
    flags interval
    {elements(f"{mac} . {cidr}" for cidr, mac in sorted(near.items()))}
  }}
  set nearby {{
    type ipv4_addr
    flags interval
    {elements(sorted(near))}
  }}"""


def elements(values: Iterable[str]) -> str:
    joined = ", ".join(values)
    return f"elements = {{ {joined} }}" if joined else ""
