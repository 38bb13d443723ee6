"""Overlaps between the container network and everything else that is routed.

A container CIDR that overlaps a VPC route wins inside the container network (TKE documentation
457/9083), so the other side silently becomes unreachable: this check exists to prevent exactly
that. Every conflict names both sides with their bounds and, where there is one, a way out. An
operator may override a conflict by its code, with a reason; the override becomes an event.

The checks themselves compare :class:`Net` bounds rather than build netaddr objects: a check reads each
member's address, a comparison of two integers is a line either way, and an ``IPNetwork`` costs microseconds.
What is free, once something conflicts, is netaddr's set arithmetic
(:mod:`controlplane.cluster.addressing.free`).

Codes follow the provider's ``InternalError.CidrConflictWith…``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from controlplane.cluster.addressing.addresses import Net, address_text, address_value, network
from controlplane.cluster.addressing.free import free_networks
from controlplane.cluster.decision import DecisionContext
from controlplane.cluster.input_checks import text
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest, Refused
from events.protocol.commands import Override
from events.types import ConflictOverridden, Network

CODE_OF_KIND = {
    "vpc": "cidr_conflict_with_vpc",
    "idc": "cidr_conflict_with_idc",
    "clb": "cidr_conflict_with_clb_subnet",
    "route": "cidr_conflict_with_route",
}

NAME_OF_KIND = {
    "vpc": "VPC CIDR",
    "idc": "IDC network",
    "clb": "CLB subnet",
    "route": "route",
}

ENTRY = "cidr_conflict_with_entry"

OVERRIDABLE = (
    *CODE_OF_KIND.values(),
    "cidr_conflict_with_other_cluster",
    "cidr_conflict_with_node",
)
"""The checks that an operator may override. An overlap with an own container CIDR or with an entry never is."""


OFFERED = 3
"""Free networks that a refusal names."""


class Side(NamedTuple):
    """One side of a possible conflict: the network, and how a message names it."""

    net: Net
    label: str
    host: bool = False

    def __str__(self) -> str:
        if self.host:
            return f"{self.label} {address_text(self.net.first)}"
        if self.net.size == 1:
            return f"{self.label} {self.net}"
        first, last = address_text(self.net.first), address_text(self.net.last)
        return f"{self.label} {self.net} ({first} … {last})"


class Conflict(NamedTuple):
    """Two networks that overlap, by which check, and what may be done."""

    code: str
    ours: Side
    theirs: Side
    advice: str = ""

    @property
    def message(self) -> str:
        """Both sides with their bounds, and the way out."""
        advice = f"; {self.advice}" if self.advice else ""
        return f"{self.ours} overlaps {self.theirs}{advice}"

    def refused(self) -> Refused:
        """The error that says so."""
        return Refused(
            self.code,
            self.message,
            ours=str(self.ours.net),
            theirs=str(self.theirs.net),
            theirs_label=self.theirs.label,
            overridable=self.code in OVERRIDABLE,
        )

    def overridden(self, cluster: str, reason: str) -> ConflictOverridden:
        """The event that says that somebody accepted it."""
        return ConflictOverridden(
            cluster=cluster, code=self.code, ours=str(self.ours.net), theirs=str(self.theirs.net), reason=reason
        )


def network_side(item: Network) -> Side:
    """The other side that a declared network is. Raises Refused(cidr_invalid)."""
    kind = NAME_OF_KIND[item.kind]
    label = f"{kind} {item.name!r}" if item.name else kind
    return Side(network(item.cidr, kind), label)


def container_conflicts(
    ours: Side, state: ClusterState, context: DecisionContext, networks: Iterable[Network] = ()
) -> list[Conflict]:
    """Everything that a container CIDR runs into: own CIDRs, networks (``networks`` besides the
    declared ones), CLB subnets, other clusters, members' addresses. O(members)."""  # fmt: skip
    others = list(_obstacles(state, context, networks))
    found = [(code, side) for code, side in others if ours.net.overlaps(side.net)]
    if not found:
        return []
    advice = _offer(ours.net.size, [side.net for _, side in others])
    return [Conflict(code, ours, side, advice) for code, side in found]


def free_offer(size: int, state: ClusterState, context: DecisionContext) -> str:
    """A few container CIDRs of ``size`` addresses that conflict with nothing, in words. O(members)."""
    return _offer(size, [side.net for _, side in _obstacles(state, context, ())])


def _offer(size: int, taken: Sequence[Net]) -> str:
    first, *more = [str(net) for net in islice(free_networks(size, taken), OFFERED)] or [""]
    if not first:
        return "no private network of that size is free"
    return f"{first} would be free" + (f", as would {' and '.join(more)}" if more else "")


def _obstacles(
    state: ClusterState, context: DecisionContext, networks: Iterable[Network]
) -> Iterator[tuple[str, Side]]:
    for own in state.cidrs:
        yield "cidr_conflict_with_own_cidr", Side(network(own.cidr), "this cluster's container CIDR")
    for item in (*state.networks.values(), *networks):
        yield CODE_OF_KIND[item.kind], network_side(item)
    for reservation in state.clb.values():
        label = f"the subnet of CLB reservation {reservation.name!r}"
        yield "cidr_conflict_with_clb_subnet", Side(network(reservation.subnet), label)
    for name, entry in state.entries.items():
        for source in entry.sources:
            yield ENTRY, Side(network(source), f"a source of entry {name!r}:")
    yield from _foreign(state, context)
    for node in state.nodes.values():
        for address in {node.underlay, node.announced}:
            value = address_value(address)
            if value is not None:
                yield "cidr_conflict_with_node", Side(Net(value, 1), f"node {node.name!r} at", host=True)


def _foreign(state: ClusterState, context: DecisionContext) -> Iterator[tuple[str, Side]]:
    for name, cidrs in sorted(context.clusters.items()):
        if name != state.name:
            for cidr in cidrs:
                side = Side(network(cidr), f"the container CIDR of cluster {name!r}")
                yield "cidr_conflict_with_other_cluster", side


def network_conflicts(item: Network, state: ClusterState) -> list[Conflict]:
    """The container CIDRs of this cluster that a routed network overlaps."""
    theirs = network_side(item)
    code = CODE_OF_KIND[item.kind]
    return [Conflict(code, ours, theirs) for ours in _containers(state) if ours.net.overlaps(theirs.net)]


def subnet_conflicts(subnet: Net, state: ClusterState, context: DecisionContext) -> list[Conflict]:
    """The container CIDRs, of this cluster and of others, that a CLB subnet overlaps."""
    theirs = Side(subnet, "CLB subnet")
    advice = "choose a subnet of the VPC that no container network covers"
    found = [
        Conflict("cidr_conflict_with_clb_subnet", ours, theirs, advice)
        for ours in _containers(state)
        if ours.net.overlaps(subnet)
    ]
    for code, side in _foreign(state, context):
        if side.net.overlaps(subnet):
            found.append(Conflict(code, theirs, side, advice))
    return found


def source_conflicts(entry: str, source: Net, state: ClusterState) -> list[Conflict]:
    """The container CIDRs of this cluster, Services included, that a source of an entry overlaps."""
    theirs = Side(source, f"a source of entry {entry!r}:")
    advice = "an entry is for hosts outside of the container network; inside nothing has to be let in"
    return [Conflict(ENTRY, ours, theirs, advice) for ours in _containers(state) if ours.net.overlaps(source)]


def address_conflicts(
    node: str, addresses: Iterable[int], state: ClusterState, context: DecisionContext
) -> list[Conflict]:
    """The container CIDRs, of this cluster and of others, that a node's addresses lie in. O(CIDRs)."""
    found: list[Conflict] = []
    for value in addresses:
        for own in state.cidrs:
            if own.first <= value and network(own.cidr).has(value):
                ours = Side(network(own.cidr), "container CIDR")
                advice = "give the node an underlay address outside the container network"
                found.append(Conflict("cidr_conflict_with_node", ours, _host(node, value), advice))
        if context.clusters and any(
            network(cidr).has(value) for cidrs in context.clusters.values() for cidr in cidrs
        ):
            theirs = [(code, side) for code, side in _foreign(state, context) if side.net.has(value)]
            found += [Conflict(code, _host(node, value), side) for code, side in theirs]
    return found


def _host(node: str, address: int) -> Side:
    return Side(Net(address, 1), f"node {node!r} at", host=True)


def _containers(state: ClusterState) -> list[Side]:
    return [Side(network(own.cidr), "container CIDR") for own in state.cidrs]


def settle(
    conflicts: Sequence[Conflict], overrides: Sequence[Override], cluster: str
) -> tuple[list[ConflictOverridden], Conflict | None]:
    """Events for the overridden conflicts, and the first one that nobody accepted.

    Raises BadRequest(override_invalid) for an override of a check that has none, or without a reason.
    """
    reasons: dict[str, str] = {}
    for item in overrides:
        if item.code not in OVERRIDABLE or not item.reason.strip():
            raise BadRequest(
                "override_invalid",
                f"override {item.code[:64]!r}: "
                + ("give a reason" if item.code in OVERRIDABLE else f"it is none of {', '.join(OVERRIDABLE)}"),
                given=item.code[:64],
                allowed=list(OVERRIDABLE),
            )
        reasons[item.code] = text(item.reason, "the override's reason")
    accepted: list[ConflictOverridden] = []
    for conflict in conflicts:
        if conflict.code not in reasons:
            return [], conflict
        accepted.append(conflict.overridden(cluster, reasons[conflict.code]))
    return accepted, None
