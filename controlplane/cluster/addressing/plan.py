"""The address plan: how a container CIDR is cut into node ranges and the Service range.

Pure arithmetic with the cloud product's own rules and numbers (TKE documentation 457/9083,
457/38966; limits from its Terraform provider): both maxima are rounded up to powers of two, the
Service range is the last segment of the CIDR, a node's range serves ``size − 3`` pods (network
number, broadcast, gateway), the Service range ``size − 5`` Services (network number, broadcast,
three default Services), and ``nodes = ⌊(addresses − Service size) / node size⌋``.

Nothing here looks at a cluster's state; proposals live in :mod:`controlplane.cluster.addressing.proposal`.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from controlplane.cluster.addressing.addresses import Net, address_text, network
from events.errors import Refused

MIN_PODS_PER_NODE = 4
MIN_SERVICES = 32
MAX_SERVICES = 32768
PODS_UNUSABLE = 3
SERVICES_UNUSABLE = 5

PRIVATE = (
    Net(9 << 24, 1 << 24),
    Net(10 << 24, 1 << 24),
    Net(0xAC100000, 1 << 20),
    Net(0xC0A80000, 1 << 16),
)
"""Where a container CIDR may lie; 9/8 is the provider's extension of RFC 1918."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A container CIDR, cut. Sizes are addresses; ``capacity`` is the number of node ranges.

    ``stranded`` addresses lie between the last whole node range and the Service range.
    ``first_range`` and ``last_range`` are CIDRs.
    """

    container_cidr: str
    max_pods_per_node: int
    max_services: int
    range_size: int
    service_size: int
    service_cidr: str
    capacity: int
    usable_pods: int
    usable_services: int
    stranded: int
    first_range: str
    last_range: str


def round_up(value: int) -> int:
    """The smallest power of two that is at least ``value`` (≥ 1)."""
    return 1 << (value - 1).bit_length()


def prefix_of(size: int) -> int:
    """The mask length of a network of ``size`` addresses."""
    return 33 - size.bit_length()


@lru_cache(maxsize=65_536)  # ranges go round: the same ones are named again and again
def range_cidr(first: int, size: int, position: int) -> str:
    """The CIDR of the ``position``-th range of ``size`` addresses counted from address ``first``."""
    return f"{address_text(first + position * size)}/{prefix_of(size)}"


def check_private(net: Net) -> Net:
    """Return ``net`` if it lies in a private range. Raises Refused(cidr_not_private)."""
    if not any(block.contains(net) for block in PRIVATE):
        raise Refused(
            "cidr_not_private",
            f"container CIDR {net} is not inside {', '.join(map(str, PRIVATE[:-1]))} or {PRIVATE[-1]}",
            given=str(net),
            allowed=[str(block) for block in PRIVATE],
        )
    return net


def addresses_and_pods(size: int) -> str:
    """A node's range in words, the same everywhere: "64 addresses, 61 pods"."""
    return f"{size:,} addresses, {max(0, size - PODS_UNUSABLE):,} pods"


def check_pods(pods: int, net: Net) -> int:
    """The range size for ``pods`` addresses per node. Raises Refused(pods_out_of_range)."""
    if not MIN_PODS_PER_NODE <= pods <= net.size:
        raise Refused(
            "pods_out_of_range",
            f"{pods} addresses per node: the bounds are {MIN_PODS_PER_NODE} … {net.size} (those of {net})",
            given=pods,
            min=MIN_PODS_PER_NODE,
            max=net.size,
        )
    return round_up(pods)


def check_services(services: int) -> int:
    """The Service range's size. Raises Refused(services_out_of_range)."""
    if not MIN_SERVICES <= services <= MAX_SERVICES:
        raise Refused(
            "services_out_of_range",
            f"{services} Services: the bounds are {MIN_SERVICES} … {MAX_SERVICES}",
            given=services,
            min=MIN_SERVICES,
            max=MAX_SERVICES,
        )
    return round_up(services)


def capacity_of(size: int, range_size: int, service_size: int) -> int:
    """The formula: whole ranges before the Service range (0 when it leaves no room)."""
    return max(0, size - service_size) // range_size


def formula(size: int, range_size: int, service_size: int) -> str:
    """The capacity formula with its numbers, for messages."""
    nodes = capacity_of(size, range_size, service_size)
    return f"({size:,} addresses − {service_size:,} for Services) / {range_size:,} per node = {nodes:,}"


def smallest_changes(net: Net, range_size: int, service_size: int, nodes: int) -> list[str]:
    """The smallest single changes by which ``net`` would hold ``nodes`` ranges, smallest first.

    Halves the range, halves the Service range, or widens the CIDR (while it stays private).
    """
    changes: list[str] = []
    size = range_size
    while size > MIN_PODS_PER_NODE:
        size //= 2
        if (count := capacity_of(net.size, size, service_size)) >= nodes:
            changes.append(f"{addresses_and_pods(size)} per node instead of {range_size} gives {_nodes(count)}")
            break
    size = service_size
    while size > MIN_SERVICES:
        size //= 2
        if (count := capacity_of(net.size, range_size, size)) >= nodes:
            changes.append(f"{size} Services instead of {service_size} gives {_nodes(count)}")
            break
    size = net.size
    while size < 1 << 24:
        size *= 2
        wider = Net(net.first & ~(size - 1), size)
        if not any(block.contains(wider) for block in PRIVATE):
            break
        if (count := capacity_of(size, range_size, service_size)) >= nodes:
            changes.append(f"{wider} instead of {net} gives {_nodes(count)}")
            break
    return changes


def _nodes(count: int) -> str:
    return f"{count:,} node{'' if count == 1 else 's'}"


def make_plan(container_cidr: str, pods_per_node: int, services: int) -> Plan:
    """Cut ``container_cidr``.

    Raises Refused: ``cidr_invalid``, ``cidr_not_private``, ``pods_out_of_range``,
    ``services_out_of_range``, ``cidr_too_small`` (with the smallest changes that would work).
    """
    net = check_private(network(container_cidr, "container CIDR"))
    service_size = check_services(services)
    range_size = check_pods(pods_per_node, net)
    capacity = capacity_of(net.size, range_size, service_size)
    if capacity == 0:
        changes = smallest_changes(net, range_size, service_size, 1)
        raise Refused(
            "cidr_too_small",
            f"{net} has no room for a single node: {formula(net.size, range_size, service_size)}. "
            f"What would work: {'; '.join(changes) or 'a CIDR in another private block'}",
            addresses=net.size,
            range_size=range_size,
            service_size=service_size,
            changes=changes,
        )
    service_first = net.first + net.size - service_size
    return Plan(
        container_cidr=str(net),
        max_pods_per_node=pods_per_node,
        max_services=services,
        range_size=range_size,
        service_size=service_size,
        service_cidr=f"{address_text(service_first)}/{prefix_of(service_size)}",
        capacity=capacity,
        usable_pods=range_size - PODS_UNUSABLE,
        usable_services=service_size - SERVICES_UNUSABLE,
        stranded=net.size - service_size - capacity * range_size,
        first_range=range_cidr(net.first, range_size, 0),
        last_range=range_cidr(net.first, range_size, capacity - 1),
    )
