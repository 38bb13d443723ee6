"""What the lab consists of: sites, nodes, addresses. Pure description; it must never touch the system.

The addresses come from the private ranges (RFC 1918) and, for the management network, from the shared
range of RFC 6598, so that nobody mistakes one network for another when reading the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

CONTAINER_CIDR = IPv4Network("10.200.0.0/16")
MAX_PODS_PER_NODE = 64
MAX_SERVICES = 256
MANAGEMENT = IPv4Network("100.64.0.0/24")
WAN = IPv4Network("203.0.113.0/24")
"""What routers of sites behind NAT are connected by: addresses for documentation (RFC 5737)."""


@dataclass(frozen=True, slots=True)
class Site:
    """One side of the cluster: a subnet, its bridge, and the router's address in it."""

    name: str
    kind: str  # what a node here is called on the bus: cloud | external
    subnet: IPv4Network
    outside: IPv4Address | None = None
    """The one address in :data:`WAN` as which its router shows everybody behind it; None: it is routed."""

    @property
    def bridge(self) -> str:
        return f"br-{self.name}"

    @property
    def gateway(self) -> IPv4Address:
        return self.subnet[1]


@dataclass(frozen=True, slots=True)
class Node:
    """One machine: its machine in a site, its way to the bus, and the names of its pods."""

    name: str
    site: Site
    underlay: IPv4Address
    management: IPv4Address
    pods: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.site.kind


@dataclass(frozen=True, slots=True)
class Topology:
    """The lab as a whole. `spare` joins later, to show which range a newcomer gets, or by which command."""

    sites: tuple[Site, ...]
    nodes: tuple[Node, ...]
    spare: Node
    controller: IPv4Address
    operator: IPv4Address


def with_branches(pods_per_node: int = 1) -> Topology:
    """A VPC and an IDC, and two branches behind a NAT of their own each, with the same private addresses.

    The first branch has three nodes; the last of them is the spare.
    """
    routed = two_sites(cloud=2, external=1, pods_per_node=pods_per_node)
    lan = IPv4Network("192.168.1.0/24")
    branch, home = (Site(name, "external", lan, WAN[number]) for name, number in (("branch", 11), ("home", 12)))
    nodes = list(routed.nodes)
    for site, count in ((branch, 3), (home, 1)):
        for index in range(1, count + 1):
            name = f"{site.name}-{index}"
            pods = tuple(f"{name}-{letter}" for letter in "abcdefghijkl"[:pods_per_node])
            nodes.append(Node(name, site, lan[10 + index], MANAGEMENT[30 + len(nodes)], pods))
    sites = (*routed.sites, branch, home)
    spare = next(node for node in nodes if node.name == "branch-3")
    first = tuple(node for node in nodes if node is not spare)
    return Topology(sites, first, spare, routed.controller, routed.operator)


def two_sites(cloud: int = 3, external: int = 2, pods_per_node: int = 2) -> Topology:
    """A VPC with `cloud` nodes and an IDC with `external` ones, plus one spare cloud node."""
    vpc = Site("vpc", "cloud", IPv4Network("172.16.0.0/24"))
    idc = Site("idc", "external", IPv4Network("192.168.50.0/24"))
    next_management = 11

    def node(site: Site, index: int) -> Node:
        nonlocal next_management
        name = f"{site.kind if site is vpc else site.name}-{index}"
        pods = tuple(f"{name}-{letter}" for letter in "abcdefghijkl"[:pods_per_node])
        made = Node(name, site, site.subnet[10 + index], MANAGEMENT[next_management], pods)
        next_management += 1
        return made

    nodes = [node(vpc, i) for i in range(1, cloud + 1)] + [node(idc, i) for i in range(1, external + 1)]
    return Topology((vpc, idc), tuple(nodes), node(vpc, cloud + 1), MANAGEMENT[1], MANAGEMENT[254])
