"""The fold: one event into the state. The only writer of :class:`controlplane.cluster.state.ClusterState`.

Pure but for changing the state it is given: no clock, no I/O, no randomness, and no decision. An
event is a fact; a fact that contradicts the state (a range freed that nobody held) stops the fold
loudly instead of being bent to fit, and leaves the state as it was before it: each handler looks before
it writes.

A million events pass here on every replay, so each handler is a handful of dict operations: events
carry indices, and no address is parsed for a node or a range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from controlplane.cluster.addressing.addresses import network
from controlplane.cluster.folds import clb, encryption, entries, nat, paths, tokens
from controlplane.cluster.folds.contradiction import Contradiction
from controlplane.cluster.state import (
    Adoption,
    Bound,
    Cidr,
    ClusterState,
    Fenced,
    Node,
    Range,
    Refusal,
    asker_clb,
    asker_command,
    asker_node,
)
from events import types
from events.codec import SkippedEvent, UnknownEvent
from events.errors import Refused, VerificationFailed
from events.parking import events_followed

Handler = Callable[[ClusterState, int, Any], None]


_STOPS = (LookupError, Contradiction, Refused)
"""What a handler raises for an event that cannot follow (Refused: a CIDR in it is none)."""


# --- ranges and nodes: the hot ones ----------------------------------------------------------------


def _joined(state: ClusterState, sequence: int, event: types.NodeJoined) -> None:
    name = event.node
    uid = event.uid
    announced = event.announced
    mac = event.vtep_mac
    kind = event.kind
    state.nodes[name] = Node(name, uid, kind, event.underlay, announced, mac, event.site, sequence, sequence)
    state.by_uid[uid] = name
    state.by_address[announced] = name
    state.by_mac[mac] = name
    if kind == "external":
        state.external += 1
    if state.refusals:
        state.refusals.pop(asker_node(name), None)


def _allocated(state: ClusterState, sequence: int, event: types.RangeAllocated) -> None:
    index = event.index
    # The member's own strings are kept and the event's equal ones dropped: half the memory, warm caches.
    member = state.nodes[event.node]
    pool = state.pool
    pool.take(index)
    pool.cursor = event.cursor_after
    state.owned[member.name] = state.ranges[index] = Range(index, event.cidr, member.name, member.uid, sequence)


def _adopted(state: ClusterState, sequence: int, event: types.RangeAdopted) -> None:
    if not state.adoption:
        raise Contradiction(f"range {event.cidr} is adopted, and the cluster is in no adoption")
    _allocated(state, sequence, event)


def _out(state: ClusterState, sequence: int, event: types.NodeLeft | types.NodeFenced) -> None:  # noqa: ARG001
    name = event.node
    node = state.nodes[name]
    behind = bool(state.behind_nat) and name in state.behind_nat
    placed = nat.held(state, node) if behind else node.announced in state.by_address
    if not (node.uid in state.by_uid and placed and node.vtep_mac in state.by_mac):
        raise Contradiction(f"another member has taken the uid or an address of {name}")
    del state.nodes[name]
    del state.by_uid[node.uid]
    if behind:
        nat.forget(state, node)
        del state.behind_nat[name]
    else:
        del state.by_address[node.announced]
    del state.by_mac[node.vtep_mac]
    if node.kind == "external":
        state.external -= 1
    for known in (state.unreachable, state.gateways, state.bound):
        if known:
            known.pop(name, None)
    if state.keys:
        encryption.forget(state, name)


def _fenced(state: ClusterState, sequence: int, event: types.NodeFenced) -> None:
    if not event.former:
        _out(state, sequence, event)
    elif event.uid in state.by_uid:
        raise Contradiction(f"uid {event.uid!r} is fenced as a former member, and is one")
    state.fenced[event.uid] = Fenced(event.node, sequence, event.cause, event.by_uid)


def _draining(state: ClusterState, sequence: int, event: types.RangeDraining) -> None:
    del state.owned[event.node]
    state.draining[event.index] = sequence


def _quarantined(state: ClusterState, sequence: int, event: types.RangeQuarantined) -> None:  # noqa: ARG001
    index = event.index
    until = event.until
    del state.draining[index]
    quarantined = state.quarantined
    if not quarantined:
        state.quarantine_ordered = True
    elif until < state.quarantine_last:  # type: ignore[operator]  # set with the first entry
        state.quarantine_ordered = False
    state.quarantine_last = until
    quarantined[index] = event


def _freed(state: ClusterState, sequence: int, event: types.RangeFreed) -> None:  # noqa: ARG001
    index = event.index
    if index not in state.ranges:
        raise Contradiction(f"nobody held range {index}")
    del state.quarantined[index]
    del state.ranges[index]
    state.pool.release(index)


def _underlay_changed(state: ClusterState, sequence: int, event: types.NodeUnderlayChanged) -> None:
    old = state.nodes[event.node]
    nat.forget(state, old)  # which fails before anything is written
    if event.vtep_mac:
        del state.by_mac[old.vtep_mac]
        state.by_mac[event.vtep_mac] = event.node
    state.nodes[event.node] = Node(
        old.name,
        old.uid,
        old.kind,
        event.underlay,
        event.announced,
        event.vtep_mac or old.vtep_mac,
        old.site,
        old.joined,
        sequence,
    )
    nat.keep(state, state.nodes[event.node])
    if state.refusals:
        state.refusals.pop(asker_node(event.node), None)


def _unreachable(state: ClusterState, sequence: int, event: types.NodeUnreachable) -> None:  # noqa: ARG001
    if event.node not in state.nodes:
        raise Contradiction(f"{event.node} is no member")
    state.unreachable[event.node] = event.last_seen


def _recovered(state: ClusterState, sequence: int, event: types.NodeRecovered) -> None:  # noqa: ARG001
    del state.unreachable[event.node]


def _bound(state: ClusterState, sequence: int, event: types.NodeBound) -> None:
    member = state.nodes.get(event.node)
    if member is None or member.uid != event.uid:
        raise Contradiction(f"{event.node} (uid {event.uid}) is no member")
    state.bound[event.node] = Bound(event.node_uid, sequence)


# --- the cluster -------------------------------------------------------------------------------------


def _defined(state: ClusterState, sequence: int, event: types.ClusterDefined) -> None:
    if state.definition is not None:
        raise Contradiction(f"the cluster was defined before as {state.definition.container_cidr}")
    if state.name not in {"", event.cluster}:
        raise Contradiction(f"this is the log of cluster {state.name}")
    first = network(event.container_cidr).first
    state.name = event.cluster
    state.definition = event
    state.cidrs = (Cidr(event.container_cidr, 0, event.capacity, first, sequence),)
    state.pool.grow(event.capacity)
    for item in event.networks:
        state.networks[item.cidr] = item


def _deleted(state: ClusterState, sequence: int, event: types.ClusterDeleted) -> None:  # noqa: ARG001
    state.deleted = sequence


def _appended(state: ClusterState, sequence: int, event: types.CidrAppended) -> None:
    if event.first_index != state.pool.capacity:
        raise Contradiction(
            f"its ranges begin at index {event.first_index}, the pool ends at {state.pool.capacity}"
        )
    first = network(event.cidr).first
    state.cidrs = (*state.cidrs, Cidr(event.cidr, event.first_index, event.capacity, first, sequence))
    state.pool.grow(event.capacity)
    state.refusals.pop(asker_command("append-cidr"), None)


def _adoption_begun(state: ClusterState, sequence: int, event: types.AdoptionBegun) -> None:
    if state.adoption:
        raise Contradiction(f"the cluster is in adoption since event {state.adoption[event.cluster].since}")
    state.adoption[event.cluster] = Adoption(event.source, event.plan, sequence)


def _adoption_ended(state: ClusterState, sequence: int, event: types.AdoptionEnded) -> None:  # noqa: ARG001
    del state.adoption[event.cluster]


def _declared(state: ClusterState, sequence: int, event: types.NetworkDeclared) -> None:  # noqa: ARG001
    state.networks[event.network.cidr] = event.network
    state.refusals.pop(asker_command("declare-network"), None)


def _withdrawn(state: ClusterState, sequence: int, event: types.NetworkWithdrawn) -> None:  # noqa: ARG001
    del state.networks[event.cidr]


def _overridden(state: ClusterState, sequence: int, event: types.ConflictOverridden) -> None:  # noqa: ARG001
    state.overrides[event.code, event.ours, event.theirs] = event


# --- refusals ----------------------------------------------------------------------------------------


def _refuse(state: ClusterState, sequence: int, asker: str, code: str, message: str) -> None:
    # A new dict each time: a fork may share the old one.
    state.refusals[asker] = {**state.refusals.get(asker, {}), code: Refusal(sequence, code, message)}


def _allocation_refused(state: ClusterState, sequence: int, event: types.AllocationRefused) -> None:
    _refuse(state, sequence, asker_node(event.node), event.code, event.message)


def _clb_refused(state: ClusterState, sequence: int, event: types.ClbRefused) -> None:
    _refuse(state, sequence, asker_clb(event.name), event.code, event.message)


def _conflict_refused(state: ClusterState, sequence: int, event: types.ConflictRefused) -> None:
    _refuse(state, sequence, asker_command(event.command), event.code, event.message)


def _unknown(state: ClusterState, sequence: int, event: UnknownEvent) -> None:  # noqa: ARG001
    raise VerificationFailed(
        "event_unknown",
        f"event {sequence} is of type {event.type!r}, which this version cannot fold",
        sequence=sequence,
        type=event.type,
    )


def _token_used(state: ClusterState, sequence: int, event: types.JoinTokenUsed) -> None:
    """Nothing that a later decision rests on: the command's id keeps a token from a second use."""


def _skipped(state: ClusterState, sequence: int, event: SkippedEvent) -> None:  # noqa: ARG001
    state.parked |= {sequence}


def _events_parked(state: ClusterState, sequence: int, event: types.EventsParked) -> None:
    if not state.parked.issuperset(range(event.first, event.last + 1)):
        raise events_followed(sequence, event)


HANDLERS: dict[type[types.Event], Handler] = {
    types.ClusterDefined: _defined,
    types.ClusterDeleted: _deleted,
    types.CidrAppended: _appended,
    types.NetworkDeclared: _declared,
    types.NetworkWithdrawn: _withdrawn,
    types.ConflictOverridden: _overridden,
    types.ConflictRefused: _conflict_refused,
    types.NodeJoined: _joined,
    types.NodeUnderlayChanged: _underlay_changed,
    types.NodeLeft: _out,
    types.NodeUnreachable: _unreachable,
    types.NodeRecovered: _recovered,
    types.NodeFenced: _fenced,
    types.NodeBound: _bound,
    types.PathLost: paths.lost,
    types.PathRestored: paths.restored,
    types.RangeAllocated: _allocated,
    types.RangeDraining: _draining,
    types.RangeQuarantined: _quarantined,
    types.RangeFreed: _freed,
    types.AllocationRefused: _allocation_refused,
    types.ClbReserved: clb.reserved,
    types.ClbReleased: clb.released,
    types.ClbRefused: _clb_refused,
    types.ClbBackendAdded: clb.backend_added,
    types.ClbBackendRemoved: clb.backend_removed,
    types.ClbBackendHealthChanged: clb.health_changed,
    types.ClbHolderAssigned: clb.assigned,
    types.ClbHolderWithdrawn: clb.holder_withdrawn,
    types.NodeGatewayMarked: clb.marked,
    types.NodeGatewayUnmarked: clb.unmarked,
    types.JoinTokenUsed: _token_used,
    types.EventsParked: _events_parked,
    types.AdoptionBegun: _adoption_begun,
    types.AdoptionEnded: _adoption_ended,
    types.RangeAdopted: _adopted,
    types.EntryAdded: entries.added,
    types.EntryRemoved: entries.removed,
    types.SharedTokenUsed: tokens.shared_used,
    types.ClusterEncryptionChanged: encryption.changed,
    types.NodeKeyChanged: encryption.key_changed,
    types.NodeNatChanged: nat.changed,
    SkippedEvent: _skipped,
    UnknownEvent: _unknown,
}
"""Event type → its handler; a test keeps it complete."""


def evolve(state: ClusterState, sequence: int, event: types.Event) -> ClusterState:
    """Fold the event stored at ``sequence`` into ``state`` and return it.

    Raises VerificationFailed: ``event_unknown`` for a type that this version cannot fold,
    ``invariant_violated`` for an event that contradicts the state. The state is then as it was before.
    """
    try:
        HANDLERS[type(event)](state, sequence, event)
    except _STOPS as error:
        raise contradiction(sequence, event, error) from error
    state.sequence = sequence
    return state


def fold(state: ClusterState, recorded: Iterable[tuple[int, types.Event]]) -> ClusterState:
    """Fold many events, given with their sequences; the same as :func:`evolve` on each, faster.

    Raises as it does; the state is then that before the event which the error names.
    """
    handlers = HANDLERS
    sequence, event = state.sequence, None
    try:
        for sequence, event in recorded:
            handlers[type(event)](state, sequence, event)
    except _STOPS as error:
        if event is None:
            raise
        state.sequence = sequence - 1
        raise contradiction(sequence, event, error) from error
    except VerificationFailed:
        state.sequence = sequence - 1
        raise
    state.sequence = sequence
    return state


def contradiction(sequence: int, event: types.Event, error: Exception) -> VerificationFailed:
    """The error that names an event which cannot follow the state before it."""
    # A handler that misses what it expects meets the bare key.
    why = f"it has no {error} where this event needs one" if isinstance(error, KeyError) else str(error)
    return VerificationFailed(
        "invariant_violated",
        f"event {sequence} ({event.type_name()} of {event.entity}) contradicts the state before it: {why}",
        sequence=sequence,
        type=event.type_name(),
        entity=event.entity,
    )
