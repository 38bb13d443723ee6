"""The design's invariants, checked on a state and, far cheaper, on each event before it is folded.

:func:`check` looks at one state as a whole and trusts no index of it. :func:`violation` asks, in
O(1), whether the event about to be folded would break an invariant: over a whole log it proves
them at every sequence. Both report; neither stops anything.

Numbers are those of the design, section 4: 1 disjoint and aligned ranges, 2 next-fit, 3 one node
per name, uid and address (behind NAT: address and site), 5 no reuse before confirmation and rest, 6 the sum,
7 the CLB pair, 11 one holder per CLB address, 19 entries' sources. (The others speak of agents and the kernel.)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any, NamedTuple

from controlplane.cluster import entry_sources, nat
from controlplane.cluster.addressing.addresses import Net, address_value, network
from controlplane.cluster.addressing.plan import make_plan
from controlplane.cluster.addressing.pool import cursor_behind
from controlplane.cluster.state import ClusterState
from events import types
from events.errors import Refused


class Violation(NamedTuple):
    """Which invariant (its number in the design), at which sequence, and both sides of the contradiction."""

    invariant: int
    sequence: int
    message: str


Finding = tuple[int, str] | None
Check = Callable[[ClusterState, Any], Finding]


# --- one event, before it is folded ----------------------------------------------------------------


def _allocated(state: ClusterState, event: types.RangeAllocated) -> Finding:
    pool = state.pool
    index = event.index
    ranges = state.ranges
    if index in ranges:
        return _taken(state, event)
    capacity = pool.capacity
    cursor = pool.cursor
    if not 0 <= index < capacity:
        return 1, f"index {index} is outside the pool of {capacity} ranges"
    if index != cursor and pool.next_free(cursor) != index:
        return 2, f"index {index} was taken; the next free one from cursor {cursor} is {pool.next_free(cursor)}"
    if event.cursor_after != (index + 1) % capacity:
        return 2, f"cursor {event.cursor_after} after index {index} in a pool of {capacity}"
    return _owner(state, event)


def _adopted(state: ClusterState, event: types.RangeAdopted) -> Finding:
    """The one way to a given range: while the cluster is in adoption, the cursor behind the range after it."""
    index, pool = event.index, state.pool
    if not state.adoption:
        return 2, f"range {event.cidr} is adopted by {event.node!r}, and the cluster is in no adoption"
    if index in state.ranges:
        return _taken(state, event)
    if not 0 <= index < pool.capacity:
        return 1, f"index {index} is outside the pool of {pool.capacity} ranges"
    if event.cursor_after != cursor_behind(pool, index):
        return 2, f"cursor {event.cursor_after} after adopting index {index} at cursor {pool.cursor}"
    return _owner(state, event)


def _taken(state: ClusterState, event: types.RangeAllocated) -> Finding:
    held = state.ranges[event.index]
    return 1, f"range {held.cidr} of {held.node!r} (epoch {held.epoch}) is given to {event.node!r}"


def _owner(state: ClusterState, event: types.RangeAllocated) -> Finding:
    if state.pool.free + len(state.ranges) != state.pool.capacity:
        return 6, _sum(state)
    if state.definition is None or event.cidr != state.cidr_of(event.index):
        return 1, f"range {event.cidr} is not where index {event.index} lies"
    node = event.node
    member = state.nodes.get(node)
    if member is None or member.uid != event.uid:
        return 3, f"range {event.cidr} is given to {node!r} (uid {event.uid!r}), which is no member"
    if node in state.owned:
        return 3, f"{node!r} gets {event.cidr} and still owns {state.owned[node].cidr}"
    return None


def _joined(state: ClusterState, event: types.NodeJoined) -> Finding:
    node = event.node
    if node in state.nodes:
        return 3, f"{node!r} joins with uid {event.uid!r} while {state.nodes[node].uid!r} is live"
    if event.uid in state.by_uid:
        return 3, f"uid {event.uid!r} joins as {node!r} while it is live as {state.by_uid[event.uid]!r}"
    if event.uid in state.fenced:
        return 3, f"the fenced uid {event.uid!r} joins as {node!r}"
    other = state.by_address.get(event.announced) or nat.at_site(state, event.announced, event.site, "")
    if other:
        return 3, f"{node!r} announces {event.announced}, the address of {other!r}"
    if event.vtep_mac in state.by_mac:
        return 3, f"{node!r} has VTEP MAC {event.vtep_mac}, that of {state.by_mac[event.vtep_mac]!r}"
    return None


def _out(state: ClusterState, event: types.NodeLeft | types.NodeFenced) -> Finding:
    member = state.nodes.get(event.node)
    if isinstance(event, types.NodeFenced) and event.former:
        if event.uid in state.by_uid:
            return 3, f"{event.node!r} (uid {event.uid!r}) is fenced as a former member, and is one"
        return None
    if member is None or member.uid != event.uid:
        return 3, f"{event.node!r} (uid {event.uid!r}) goes, but it is no member"
    return _holds(state, event.node) if state.holders else None


def _holds(state: ClusterState, node: str) -> Finding:
    for held in state.holders.values():
        if held.node == node:
            return 11, f"{node!r} is a gateway no more while it holds {held.address} (epoch {held.epoch})"
    return None


def _unmarked(state: ClusterState, event: types.NodeGatewayUnmarked) -> Finding:
    return _holds(state, event.node)


def _assigned(state: ClusterState, event: types.ClbHolderAssigned) -> Finding:
    held = state.holders.get(event.address)
    if held is not None:
        since = f"while {held.node!r} holds it (epoch {held.epoch})"
        return 11, f"{event.address} is given to {event.node!r} {since}"
    return _fit(state, event.name, event.purpose, event.address, event.node, event.uid)


def _fit(  # noqa: PLR0917  a holder's fields
    state: ClusterState, name: str, purpose: str, address: str, node: str, uid: str
) -> Finding:
    """A holder is a live gateway, and what it holds is a reserved address of that purpose."""
    reservation = state.clb.get(name)
    pairs = [(a.purpose, a.address) for a in reservation.addresses] if reservation is not None else []
    if (purpose, address) not in pairs:
        return 11, f"{node!r} holds {address}, which is no {purpose!r} address of reservation {name!r}"
    member = state.nodes.get(node)
    if member is None or member.uid != uid or node not in state.gateways:
        return 11, f"{address} is held by {node!r} (uid {uid!r}), which is no live gateway"
    return None


def _withdrawn(state: ClusterState, event: types.ClbHolderWithdrawn) -> Finding:
    held = state.holders.get(event.address)
    if held is None or (held.node, held.epoch) != (event.node, event.epoch):
        return 11, f"{event.address} is taken from {event.node!r} (epoch {event.epoch}), which does not hold it"
    return None


def _released(state: ClusterState, event: types.ClbReleased) -> Finding:
    for item in event.addresses:
        held = state.holders.get(item.address)
        if held is not None:
            return 11, f"{item.address} is released while {held.node!r} holds it (epoch {held.epoch})"
    return None


def _moved(state: ClusterState, event: types.NodeUnderlayChanged) -> Finding:
    member = state.nodes.get(event.node)
    if member is None or member.uid != event.uid:
        return 3, f"{event.node!r} (uid {event.uid!r}) moves, but it is no member"
    other = nat.holder(state, event.announced, member.site, event.node)
    if other != event.node:
        return 3, f"{event.node!r} announces {event.announced}, the address of {other!r}"
    other = state.by_mac.get(event.vtep_mac, event.node)
    if other != event.node or (event.vtep_mac and not state.adoption):
        return 3, f"{event.node!r} has VTEP MAC {event.vtep_mac}, that of {other!r}, or not in an adoption"
    return None


def _bound(state: ClusterState, event: types.NodeBound) -> Finding:
    member = state.nodes.get(event.node)
    if member is None or member.uid != event.uid:
        return 3, f"{event.node!r} (uid {event.uid!r}) is bound to a Kubernetes Node, but it is no member"
    return None


def _draining(state: ClusterState, event: types.RangeDraining) -> Finding:
    held = state.owned.get(event.node)
    if held is None or held.index != event.index or held.epoch != event.epoch:
        return 5, f"range {event.cidr} (epoch {event.epoch}) drains, but {event.node!r} does not own it"
    if event.node in state.nodes:
        return 5, f"range {event.cidr} drains while its owner {event.node!r} is a member"
    if state.pool.free + len(state.ranges) != state.pool.capacity:
        return 6, _sum(state)
    return None


def _quarantined(state: ClusterState, event: types.RangeQuarantined) -> Finding:
    since = state.draining.get(event.index)
    if since is None:
        return 5, f"range {event.cidr} is quarantined, but it does not drain"
    if event.watermark < since:
        return 5, f"range {event.cidr} drains since {since}, the agents' watermark is {event.watermark}"
    if state.ranges[event.index].epoch != event.epoch:
        epoch = state.ranges[event.index].epoch
        return 5, f"range {event.cidr} has epoch {epoch}, it is quarantined with {event.epoch}"
    return None


def _freed(state: ClusterState, event: types.RangeFreed) -> Finding:
    rest = state.quarantined.get(event.index)
    if rest is None or rest.epoch != event.epoch:
        return 5, f"range {event.cidr} (epoch {event.epoch}) is freed, but it was not quarantined"
    if len(state.owned) + len(state.draining) + len(state.quarantined) != len(state.ranges):
        return 6, _sum(state)
    return None


def _defined(state: ClusterState, event: types.ClusterDefined) -> Finding:
    del state
    try:
        plan = make_plan(event.container_cidr, event.max_pods_per_node, event.max_services)
    except Refused as error:
        return 6, f"the plan does not hold: {error.message}"
    stated = (event.range_size, event.service_size, event.service_cidr, event.capacity)
    computed = (plan.range_size, plan.service_size, plan.service_cidr, plan.capacity)
    return None if stated == computed else (6, f"the plan states {stated}, the formula gives {computed}")


def _appended(state: ClusterState, event: types.CidrAppended) -> Finding:
    try:
        net = network(event.cidr)
    except Refused as error:
        return 1, error.message
    size = state.definition.range_size if state.definition else 1
    if event.capacity != net.size // size or event.first_index != state.capacity:
        return 6, f"{event.cidr} states {event.capacity} ranges from index {event.first_index}"
    for own in state.cidrs:
        if network(own.cidr).overlaps(net):
            return 1, f"{event.cidr} overlaps the container CIDR {own.cidr}"
    return (19, known) if (known := entry_sources.appended(state, net)) else None


def _reserved(state: ClusterState, event: types.ClbReserved) -> Finding:
    if event.name in state.clb:
        return 7, f"reservation {event.name!r} exists already"
    problem = _pair(event)
    if problem:
        return 7, problem
    for item in event.addresses:
        other = state.clb_addresses.get(item.address) or state.by_address.get(item.address)
        if other is not None:
            return 7, f"{item.address} of reservation {event.name!r} is {other!r}'s"
    return None


def _pair(event: types.ClbReserved) -> str:
    """What is wrong with the two addresses by themselves; empty when nothing is."""
    try:
        subnet = network(event.subnet)
        shut_out = [Net(address_value(e) or 0, 1) if "/" not in e else network(e) for e in event.excluded]
    except Refused as error:
        return error.message
    values = [address_value(item.address) for item in event.addresses]
    if len(values) != 2 or values[0] == values[1]:
        return f"reservation {event.name!r} is not a pair: {', '.join(a.address for a in event.addresses)}"
    for item, value in zip(event.addresses, values, strict=True):
        if value is None or not subnet.first < value < subnet.last:
            return f"{item.address} is no host address of {subnet}"
        if item.address == event.gateway or any(net.has(value) for net in shut_out):
            return f"{item.address} is the gateway or excluded"
    return ""


def _sum(state: ClusterState) -> str:
    return (
        f"{len(state.owned)} allocated + {len(state.draining)} draining + {len(state.quarantined)} quarantined "
        f"+ {state.pool.free} free ≠ {state.capacity} ranges ({len(state.ranges)} are held)"
    )


CHECKS: dict[type[types.Event], Check] = {
    types.RangeAllocated: _allocated,
    types.RangeAdopted: _adopted,
    types.NodeJoined: _joined,
    types.NodeLeft: _out,
    types.NodeFenced: _out,
    types.NodeUnderlayChanged: _moved,
    types.NodeBound: _bound,
    types.NodeNatChanged: nat.changed,
    types.RangeDraining: _draining,
    types.RangeQuarantined: _quarantined,
    types.RangeFreed: _freed,
    types.ClusterDefined: _defined,
    types.CidrAppended: _appended,
    types.ClbReserved: _reserved,
    types.ClbReleased: _released,
    types.ClbHolderAssigned: _assigned,
    types.ClbHolderWithdrawn: _withdrawn,
    types.NodeGatewayUnmarked: _unmarked,
    types.EntryAdded: entry_sources.added,
}
"""Event type → its check; the others can break nothing. For loops that must be lean."""


def violation(
    state: ClusterState, sequence: int, event: types.Event, moment: datetime | None = None
) -> Violation | None:
    """What folding ``event`` into ``state`` would break, or None. O(1); call it before the fold.

    ``moment`` is the event's own time; with it, the end of a quarantine is checked too.
    """
    check_ = CHECKS.get(type(event))
    if check_ is None:
        return None
    finding = check_(state, event)
    if finding is not None:
        return Violation(finding[0], sequence, finding[1])
    if moment is not None and type(event) is types.RangeFreed:
        until = state.quarantined[event.index].until
        if moment < until:
            message = (
                f"range {event.cidr} is freed at {moment.isoformat()}, its quarantine ends {until.isoformat()}"
            )
            return Violation(5, sequence, message)
    return None


# --- a state as a whole -----------------------------------------------------------------------------


def check(state: ClusterState) -> list[Violation]:
    """Every violation of invariants 1, 2, 3, 6, 7, 11 and 19 in the state. O(n log n)."""
    definition = state.definition
    if definition is None:
        return []
    found = (
        *_ranges(state, definition),
        *_cursor(state),
        *_nodes(state),
        *_counts(state, definition),
        *_reservations(state),
        *_holders(state),
        *entry_sources.whole(state),
        *nat.whole(state),
    )
    return [Violation(number, state.sequence, message) for number, message in found]


def _ranges(state: ClusterState, definition: types.ClusterDefined) -> Iterator[tuple[int, str]]:
    size = definition.range_size
    services = network(definition.service_cidr)
    containers = [network(own.cidr) for own in state.cidrs]
    try:
        spans = sorted((network(held.cidr), index) for index, held in state.ranges.items())
    except Refused as error:
        yield 1, error.message
        return
    for (net, _), (following, _) in pairwise(spans):
        if net.overlaps(following):
            yield 1, f"ranges {net} and {following} overlap"
    for net, index in spans:
        if net.size != size or (net.first - _origin(containers, net)) % size:
            yield 1, f"range {net} is not an aligned range of {size} addresses"
        if net.overlaps(services):
            yield 1, f"range {net} overlaps the Service range {services}"
        if not any(own.contains(net) for own in containers):
            yield 1, f"range {net} is outside the container CIDRs"
        if state.ranges[index].index != index or state.cidr_of(index) != str(net):
            yield 1, f"range {net} is kept under index {index}"
    for position, own in enumerate(containers):
        for other in containers[:position]:
            if own.overlaps(other):
                yield 1, f"container CIDRs {own} and {other} overlap"


def _origin(containers: list[Net], net: Net) -> int:
    return next((own.first for own in containers if own.contains(net)), 0)


def _cursor(state: ClusterState) -> Iterator[tuple[int, str]]:
    if not 0 <= (cursor := state.pool.cursor) < state.capacity:
        yield 2, f"cursor {cursor} is outside the pool of {state.capacity} ranges"
    for index, held in state.ranges.items():
        if not state.pool.taken(index):
            yield 2, f"range {held.cidr} of {held.node!r} counts as free"


def _nodes(state: ClusterState) -> Iterator[tuple[int, str]]:
    for what, values in (
        ("uid", [node.uid for node in state.nodes.values()]),
        ("address", [node.announced for node in state.nodes.values() if node.name not in state.behind_nat]),
        ("VTEP MAC", [node.vtep_mac for node in state.nodes.values()]),
    ):
        for value, count in Counter(values).items():
            if count > 1:
                yield 3, f"{what} {value} belongs to {count} live nodes"
    for name, node in state.nodes.items():
        if node.uid in state.fenced:
            yield 3, f"{name!r} is live with the fenced uid {node.uid!r}"
        owned = state.owned.get(name)
        if owned is not None and owned.uid != node.uid:
            yield 3, f"{name!r} has uid {node.uid!r}, its range {owned.cidr} belongs to {owned.uid!r}"


def _counts(state: ClusterState, definition: types.ClusterDefined) -> Iterator[tuple[int, str]]:
    size = definition.range_size
    formula = 0
    for own in state.cidrs:
        services = definition.service_size if own.first_index == 0 else 0
        formula += (network(own.cidr).size - services) // size
    held = len(state.owned) + len(state.draining) + len(state.quarantined)
    phases = [*(r.index for r in state.owned.values()), *state.draining, *state.quarantined]
    if formula != state.capacity:
        yield 6, f"the formula gives {formula} ranges, the pool has {state.capacity}"
    if held + state.pool.free != state.capacity or sorted(phases) != sorted(state.ranges):
        yield 6, _sum(state)


def _reservations(state: ClusterState) -> Iterator[tuple[int, str]]:
    seen: dict[str, str] = {}
    for name, event in state.clb.items():
        problem = _pair(event)
        if problem:
            yield 7, problem
        for item in event.addresses:
            if item.address in seen:
                yield 7, f"{item.address} is reserved by {seen[item.address]!r} and {name!r}"
            seen[item.address] = name


def _holders(state: ClusterState) -> Iterator[tuple[int, str]]:
    epochs: dict[int, str] = {}
    for address, held in state.holders.items():
        if held.address != address:
            yield 11, f"the holder of {held.address} is kept under {address}"
        if held.epoch in epochs:
            yield 11, f"{address} and {epochs[held.epoch]} are held since the same epoch {held.epoch}"
        epochs[held.epoch] = address
        finding = _fit(state, held.name, held.purpose, address, held.node, held.uid)
        if finding is not None:
            yield finding
    for name in state.gateways:
        if name not in state.nodes:
            yield 11, f"gateway {name!r} is no member"
    for key in state.backends:
        if key.name not in state.clb:
            yield 7, f"backend {key.address}:{key.backend_port} belongs to no reservation ({key.name!r})"
