"""What would make the overlay do harm on this node, and what merely deserves a word.

Facts are gathered here and judged by pure functions; nothing is changed. Only :func:`refuse_conflicting_routes`
stops a start: where the container network overlaps a route that is not ours, traffic that works
today would vanish into the tunnel.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv4Network

import msgspec

from events.errors import Refused
from nodeagent.netlink import dump, links, messages
from nodeagent.netlink.constants import (
    AF_INET,
    PROBE_PROTOCOL,
    PROTOCOL,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_OIF,
    RTM_NEWROUTE,
)
from nodeagent.netlink.links import Link
from nodeagent.netlink.socket import dumped

_RTMSG = struct.Struct("=BBBBBBBBI")

OVERLAY_PREFIXES: dict[str, str] = {
    "flannel": "flannel",
    "cilium_": "Cilium",
    "vxlan.calico": "Calico",
    "tunl0": "Calico (IPIP)",
    "weave": "Weave Net",
    "antrea-": "Antrea",
    "ovn0": "kube-ovn",
    "genev_sys": "Open vSwitch",
}
"""Device name prefix → the overlay that makes it."""


ROUTE_MAKERS = {
    2: "the kernel, for an address",
    3: "hand or a boot script",
    4: "an administrator",
    8: "MRT",
    11: "zebra",
    12: "BIRD",
    16: "DHCP",
    17: "multicast daemon",
    18: "keepalived",
    42: "Babel",
    186: "BGP (FRR)",
    187: "IS-IS (FRR)",
    188: "OSPF (FRR)",
    189: "RIP (FRR)",
}
"""Protocol number of a route → who makes it (rtnetlink.h)."""


class ForeignRoute(msgspec.Struct, frozen=True):
    """A main-table route that does not carry our protocol number."""

    network: IPv4Network
    ifindex: int
    protocol: int

    def __str__(self) -> str:
        maker = ROUTE_MAKERS.get(self.protocol)
        return f"{self.network}" + (f" (made by {maker})" if maker else "")


def foreign_routes(own_ifindex: int = 0, protocols: Iterable[int] = (0,)) -> list[ForeignRoute]:
    """All IPv4 main-table routes but ours, those of our device and the default route. Raises OSError.

    ``protocols`` are the makers whose routes the kernel is asked for; 0: all.
    """
    return [
        route
        for protocol in protocols
        for message in dumped(messages.dump_routes(1, protocol=protocol), RTM_NEWROUTE)
        if (route := foreign_route(*message)) is not None
        and route.ifindex != own_ifindex
        and route.network.prefixlen
    ]


def foreign_route(data: bytes, start: int, end: int) -> ForeignRoute | None:
    """The route that a message between two offsets describes; None for one of ours or of another table."""
    family, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(data, start)
    if family != AF_INET or table != RT_TABLE_MAIN or protocol in {PROTOCOL, PROBE_PROTOCOL}:
        return None
    attributes = dump.attributes(data, start + _RTMSG.size, end)
    network = IPv4Network((attributes.get(RTA_DST, bytes(4)), length))
    return ForeignRoute(network, int.from_bytes(attributes.get(RTA_OIF, b""), "little"), protocol)


def overlapping(
    routes: Iterable[ForeignRoute], cidrs: Iterable[str], own_range: str = ""
) -> list[tuple[ForeignRoute, str]]:
    """Routes into a container CIDR, with that CIDR; the node's own pods are no conflict.

    A route that leads to more than the CIDR is none either, as little as a default route: the ranges' longer
    prefixes win over it, and it goes on serving the rest.
    """
    own = IPv4Network(own_range) if own_range else None
    containers = [IPv4Network(cidr) for cidr in cidrs]
    return [
        (route, str(container))
        for route in routes
        for container in containers
        if route.network.subnet_of(container) and not (own is not None and route.network.subnet_of(own))
    ]


def overriding_routes(
    routes: Iterable[ForeignRoute], cidrs: Iterable[str], own_range: str
) -> list[ForeignRoute]:
    """Those of them that win over the routes to ranges: no shorter than a range."""
    length = IPv4Network(own_range).prefixlen
    return [route for route, _ in overlapping(routes, cidrs, own_range) if route.network.prefixlen >= length]


def accepted(networks: Iterable[str], cidrs: Iterable[str], underlay: str) -> Callable[[IPv4Network], bool]:
    """Which routes somebody has accepted beside the container network, as the log says.

    The controller lets a network that overlaps a container CIDR be declared, and a node with an address inside
    of one join, only when an operator overrides the conflict, which is recorded with a reason. ``underlay`` is
    empty where no node has joined.
    """
    containers = [IPv4Network(cidr) for cidr in cidrs]
    overridden: list[IPv4Network] = []
    for text in networks:
        with contextlib.suppress(ValueError):  # what the log says need not make sense
            network = IPv4Network(text)
            if any(network.overlaps(each) for each in containers):
                overridden.append(network)
    address = None
    with contextlib.suppress(ValueError):
        address = IPv4Address(underlay)
    inside = address is not None and any(address in container for container in containers)

    def is_accepted(route: IPv4Network) -> bool:
        return any(route.subnet_of(network) for network in overridden) or (inside and address in route)

    return is_accepted


def refuse_conflicting_routes(
    cidrs: Iterable[str],
    own_range: str,
    own_ifindex: int = 0,
    *,
    accepted: Callable[[IPv4Network], bool] = lambda _: False,
) -> None:
    """Raises Refused(route_conflict) when the overlay would take over traffic that has a route today.

    Routes that are ``accepted`` are left to those who accepted them.
    """
    found = overlapping(foreign_routes(own_ifindex), cidrs, own_range)
    conflicts = [(route, cidr) for route, cidr in found if not accepted(route.network)]
    if conflicts:
        route, cidr = conflicts[0]
        device = next((link.name for link in links.links() if link.index == route.ifindex), "no device")
        raise Refused(
            "route_conflict",
            f"the container network {cidr} overlaps this node's route {route.network} on {device}"
            f"{f' and {len(conflicts) - 1} more' if len(conflicts) > 1 else ''}: its traffic would go astray. "
            f"Remove it (`ip route del {route.network}`), define the cluster with another CIDR, or declare the "
            f"network and accept the overlap (`isthmus cluster network add --help`)",
            route=str(route.network),
            cidr=cidr,
            device=device,
        )


def other_overlays(present: Iterable[Link], own_device: str) -> list[tuple[Link, str]]:
    """Devices of other overlays, with their names."""
    return [
        (link, name)
        for link in present
        for prefix, name in OVERLAY_PREFIXES.items()
        if link.name.startswith(prefix) and link.name != own_device
    ]


def vxlan_conflicts(present: Iterable[Link], own_device: str, vni: int, port: int) -> list[Link]:
    """Other vxlan devices with which ours cannot be up: same VNI and port, or the whole port."""
    return [
        link
        for link in present
        if link.kind == "vxlan"
        and link.name != own_device
        and link.port == port
        and (link.vni == vni or link.metadata)
    ]
