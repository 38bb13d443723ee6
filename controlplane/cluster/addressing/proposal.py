"""Which plan would hold a given number of nodes: the smallest CIDR, or the smallest changes.

Pure arithmetic on top of :mod:`controlplane.cluster.addressing.plan`; it knows no cluster,
only networks to avoid.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from controlplane.cluster.addressing.addresses import Net, network
from controlplane.cluster.addressing.free import next_free_network
from controlplane.cluster.addressing.plan import (
    PRIVATE,
    Plan,
    capacity_of,
    check_pods,
    check_services,
    formula,
    make_plan,
    prefix_of,
    round_up,
    smallest_changes,
)
from events.errors import Refused

LARGEST = 1 << 24
"""Addresses of the largest private block (10/8)."""


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """A plan for ``nodes`` nodes. ``smaller`` says that the asked CIDR was larger than needed."""

    nodes: int
    plan: Plan
    asked_cidr: str = ""
    smaller: bool = False


def smallest_size(nodes: int, range_size: int, service_size: int) -> int:
    """The addresses of the smallest CIDR that holds ``nodes`` ranges and the Service range."""
    return round_up(nodes * range_size + service_size)


def propose(cidr: str, pods_per_node: int, services: int, nodes: int, avoid: Sequence[str] = ()) -> Proposal:
    """The smallest plan for ``nodes`` nodes: at the start of ``cidr``, or anywhere private when it is empty.

    Raises Refused: ``cidr_too_small`` when ``cidr`` does not hold so many (with the smallest changes
    that would work), and whatever :func:`controlplane.cluster.addressing.plan.make_plan` raises.
    """
    if nodes < 1:
        raise Refused("cidr_too_small", f"{nodes} nodes need no network; ask for at least one", nodes=nodes)
    taken = [network(item, "network to avoid") for item in avoid]
    if not cidr:
        return Proposal(nodes=nodes, plan=_anywhere(pods_per_node, services, nodes, taken))
    asked = make_plan(cidr, pods_per_node, services)
    net = network(asked.container_cidr)
    if asked.capacity < nodes:
        changes = smallest_changes(net, asked.range_size, asked.service_size, nodes)
        raise Refused(
            "cidr_too_small",
            f"{net} does not hold {nodes:,} nodes: {formula(net.size, asked.range_size, asked.service_size)}. "
            f"What would work: {'; '.join(changes) or 'nothing inside the private ranges'}",
            nodes=nodes,
            capacity=asked.capacity,
            changes=changes,
        )
    size = min(net.size, smallest_size(nodes, asked.range_size, asked.service_size))
    plan = make_plan(str(Net(net.first, size)), pods_per_node, services)
    return Proposal(nodes=nodes, plan=plan, asked_cidr=str(net), smaller=size < net.size)


def _anywhere(pods_per_node: int, services: int, nodes: int, taken: Sequence[Net]) -> Plan:
    service_size = check_services(services)
    range_size = check_pods(pods_per_node, PRIVATE[1])
    size = smallest_size(nodes, range_size, service_size)
    if size > LARGEST:
        most = capacity_of(LARGEST, range_size, service_size)
        raise Refused(
            "cidr_too_small",
            f"{nodes:,} nodes × {range_size} addresses + {service_size} for Services need a "
            f"/{prefix_of(size)}; the largest private block is a /8, which holds {most:,} nodes of that size",
            nodes=nodes,
            capacity=most,
        )
    free = next_free_network(size, taken)
    if free is None:
        raise Refused(
            "cidr_too_small",
            f"{nodes:,} nodes need a /{prefix_of(size)}, and no private network of that size is clear of the "
            f"{len(taken)} networks to avoid",
            nodes=nodes,
        )
    return make_plan(str(free), pods_per_node, services)
