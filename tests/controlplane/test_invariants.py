"""The checker finds what it is for: each way to break a log is found at its event, and in the state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from controlplane.cluster.decide import AdvanceDrains
from controlplane.cluster.evolve import HANDLERS, evolve, fold
from controlplane.cluster.invariants import CHECKS, check, violation
from controlplane.cluster.state import ClusterState
from events.codec import SkippedEvent, UnknownEvent
from events.errors import VerificationFailed
from events.protocol.commands import (
    AdoptedNode,
    AdoptNodes,
    AppendCidr,
    BeginAdoption,
    ChangeUnderlay,
    FenceNode,
    RemoveNode,
    ReserveClb,
)
from events.types import (
    EVENT_TYPES,
    CidrAppended,
    ClbAddress,
    ClbReserved,
    ClusterDefined,
    Event,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    NodeUnderlayChanged,
    RangeAdopted,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)
from tests.controlplane.world import START, World

OLD = AdoptedNode(
    node="old",
    uid="uid-old",
    kind="cloud",
    underlay="192.0.2.99",
    range="10.0.0.0/27",
    vtep_mac="8a:00:00:00:00:01",
)


def history() -> World:
    """A log in which every checked type of event occurs."""
    world = World(container_cidr="10.0.0.0/24", pods_per_node=32, quarantine_s=60)
    for number in range(4):
        world.join(number)
    world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/28"))
    world.ok(ChangeUnderlay(node="n3", uid="uid-3", underlay="192.0.2.44"))
    world.ok(RemoveNode(node="n0"))
    world.ok(FenceNode(node="n1"))
    applied = dict.fromkeys(world.state.by_uid, world.state.sequence)
    world.do(AdvanceDrains(applied=applied))
    world.forward(60)
    world.do(AdvanceDrains(applied=applied))
    world.ok(AppendCidr(cidr="10.1.0.0/26"))
    world.join(5)
    world.ok(BeginAdoption(source="flannel"))
    world.ok(AdoptNodes(nodes=(OLD,)))
    world.join(2, uid="reinstalled")
    return world


def other(**changes: Any) -> Callable[[Event], Event]:
    return lambda event: msgspec.structs.replace(event, **changes)


def pair(first: str, second: str) -> tuple[ClbAddress, ClbAddress]:
    return ClbAddress(purpose="a", address=first), ClbAddress(purpose="b", address=second)


# invariant, type, which of that type, how it is forged
FORGERIES: list[tuple[int, type[Event], int, Callable[[Event], Event]]] = [
    (1, RangeAllocated, 2, other(index=0)),
    (1, RangeAllocated, 2, other(index=7)),
    (1, RangeAllocated, 2, other(index=-1)),
    (1, RangeAllocated, 2, other(cidr="10.0.0.0/27")),
    (1, RangeAllocated, 2, other(cidr="10.0.0.64/28")),
    (1, CidrAppended, 0, other(cidr="10.0.0.192/26")),
    (2, RangeAllocated, 2, other(index=3, cidr="10.0.0.96/27", cursor_after=4)),
    (2, RangeAllocated, 2, other(cursor_after=2)),
    (2, RangeAllocated, 4, other(index=0, cidr="10.0.0.0/27", cursor_after=1)),
    (1, RangeAdopted, 0, other(index=2)),
    (1, RangeAdopted, 0, other(index=99)),
    (1, RangeAdopted, 0, other(index=-1)),
    (1, RangeAdopted, 0, other(cidr="10.0.0.0/28")),
    (2, RangeAdopted, 0, other(cursor_after=1)),
    (3, RangeAdopted, 0, other(node="ghost")),
    (3, RangeAdopted, 0, other(uid="twin")),
    (3, RangeAllocated, 2, other(node="ghost")),
    (3, RangeAllocated, 2, other(uid="twin")),
    (3, NodeJoined, 2, other(node="n1")),
    (3, NodeJoined, 2, other(uid="uid-1")),
    (3, NodeJoined, 2, other(announced="192.0.2.1")),
    (3, NodeJoined, 4, other(uid="uid-1")),
    (3, NodeLeft, 0, other(uid="uid-2")),
    (3, NodeLeft, 0, other(node="ghost")),
    (3, NodeUnderlayChanged, 0, other(announced="192.0.2.2")),
    (5, RangeDraining, 0, other(epoch=4)),
    (5, RangeDraining, 0, other(node="n2")),
    (5, RangeQuarantined, 0, other(watermark=3)),
    (5, RangeQuarantined, 0, other(index=2)),
    (5, RangeQuarantined, 0, other(epoch=9)),
    (5, RangeFreed, 0, other(epoch=9)),
    (5, RangeFreed, 0, other(index=2)),
    (6, ClusterDefined, 0, other(capacity=8)),
    (6, ClusterDefined, 0, other(service_cidr="10.0.0.0/27")),
    (6, CidrAppended, 0, other(capacity=3)),
    (6, CidrAppended, 0, other(first_index=5)),
    (7, ClbReserved, 0, other(addresses=pair("198.51.100.2", "198.51.100.2"))),
    (7, ClbReserved, 0, other(addresses=pair("198.51.100.0", "198.51.100.2"))),
    (7, ClbReserved, 0, other(addresses=pair("198.51.100.2", "198.51.100.15"))),
    (7, ClbReserved, 0, other(addresses=pair("198.51.100.1", "198.51.100.2"))),
    (7, ClbReserved, 0, other(addresses=pair("198.51.101.2", "198.51.100.2"))),
    (7, ClbReserved, 0, other(excluded=("198.51.100.3",))),
    (7, ClbReserved, 0, other(subnet="192.0.2.0/28", gateway="", addresses=pair("192.0.2.2", "192.0.2.9"))),
]


def test_an_honest_log_has_no_violation() -> None:
    world = history()
    state = ClusterState("prod")
    for sequence, event in enumerate(world.log, 1):
        assert violation(state, sequence, event, START + timedelta(days=1)) is None
        evolve(state, sequence, event)
        assert check(state) == []


@pytest.mark.parametrize("forgery", FORGERIES, ids=lambda f: f"{f[0]}-{f[1].__name__}")
def test_a_forged_event_is_found_where_it_stands(
    forgery: tuple[int, type[Event], int, Callable[[Event], Event]],
) -> None:
    invariant, kind, position, forge = forgery
    state = ClusterState("prod")
    count = 0
    for sequence, event in enumerate(history().log, 1):
        if type(event) is kind:
            if count == position:
                found = violation(state, sequence, forge(event))
                assert found is not None
                assert (found.invariant, found.sequence) == (invariant, sequence)
                assert found.message
                return
            count += 1
        assert violation(state, sequence, event) is None
        evolve(state, sequence, event)
    pytest.fail("the history holds no such event")


def test_a_range_freed_before_its_time_is_found_with_the_events_time() -> None:
    state = ClusterState("prod")
    for sequence, event in enumerate(history().log, 1):
        if isinstance(event, RangeFreed):
            early = violation(state, sequence, event, START + timedelta(seconds=59))
            assert early is not None
            assert early.invariant == 5
            assert violation(state, sequence, event, START + timedelta(seconds=60)) is None
            return
        evolve(state, sequence, event)


def broken(change: Callable[[ClusterState], object]) -> list[int]:
    """The invariants that a check of the whole state finds violated after ``change``."""
    state = fold(ClusterState("prod"), enumerate(history().log, 1))
    assert check(state) == []
    change(state)
    return sorted({found.invariant for found in check(state)})


def _own(state: ClusterState, index: int, **changes: Any) -> None:
    held = msgspec.structs.replace(state.ranges[index], **changes)
    state.ranges[index] = held


@pytest.mark.parametrize(
    ("change", "invariant"),
    [
        (lambda s: _own(s, 3, cidr="10.0.0.64/27"), 1),
        (lambda s: _own(s, 3, cidr="10.0.0.224/27"), 1),
        (lambda s: _own(s, 3, cidr="10.0.0.97/27"), 1),
        (lambda s: _own(s, 3, cidr="10.99.0.0/27"), 1),
        (lambda s: s.pool.release(3), 2),
        (lambda s: setattr(s.pool, "cursor", 99), 2),
        (lambda s: s.nodes.update(n9=msgspec.structs.replace(s.nodes["n3"], name="n9")), 3),
        (lambda s: s.fenced.update({"uid-3": s.fenced["uid-1"]}), 3),
        (lambda s: s.owned.pop("n3"), 6),
        (lambda s: s.ranges.pop(3), 6),
        (lambda s: s.draining.update({3: 5}), 6),
        (lambda s: s.pool.grow(1), 6),
        (lambda s: s.clb.update(x=msgspec.structs.replace(s.clb["main"], name="x")), 7),
        (lambda s: s.clb.update(main=other(addresses=pair("198.51.100.0", "198.51.100.2"))(s.clb["main"])), 7),
    ],
)
def test_a_damaged_state_is_found_as_a_whole(change: Callable[[ClusterState], object], invariant: int) -> None:
    assert invariant in broken(change)


# --- the fold itself -----------------------------------------------------------------------------------


def test_every_event_type_has_a_handler_and_every_check_a_type() -> None:
    assert set(HANDLERS) == {*EVENT_TYPES, SkippedEvent, UnknownEvent}
    assert set(CHECKS) <= set(EVENT_TYPES)


def test_an_unknown_event_stops_the_fold() -> None:
    with pytest.raises(VerificationFailed) as failed:
        evolve(ClusterState("prod"), 1, UnknownEvent(type="node.teleported.v9", body=b"{}"))
    assert failed.value.code == "event_unknown"
    assert failed.value.details["type"] == "node.teleported.v9"


CHAINED = (NodeJoined, NodeLeft, NodeFenced, RangeAllocated, RangeDraining, RangeQuarantined)


@pytest.mark.parametrize("drop", [n for n, event in enumerate(history().log[:-1]) if type(event) in CHAINED])
def test_a_log_with_a_membership_or_range_event_left_out_is_stopped_or_reported(drop: int) -> None:
    """(An address change, a CLB reservation or a range adopted behind the cursor that never was is consistent,
    and so is a log cut off at its end: only the hash chain tells.)"""
    log = [event for number, event in enumerate(history().log) if number != drop]
    state = ClusterState("prod")
    found = []
    stopped = None
    for sequence, event in enumerate(log, 1):
        found.append(violation(state, sequence, event))
        try:
            evolve(state, sequence, event)
        except VerificationFailed as error:
            stopped = error
            break
    if stopped is not None:
        assert stopped.code == "invariant_violated"
        assert f"event {sequence} " in stopped.message
    else:
        assert any(found) or check(state)


def test_a_contradiction_names_the_event() -> None:
    with pytest.raises(VerificationFailed, match=r"event 1 \(range\.freed\.v1 of 10\.0\.0\.0/27\)"):
        fold(ClusterState("prod"), [(1, RangeFreed(cidr="10.0.0.0/27", index=0, epoch=1))])
    log = history().log
    with pytest.raises(VerificationFailed, match="defined before"):
        evolve(fold(ClusterState("prod"), enumerate(log, 1)), len(log) + 1, log[0])
    with pytest.raises(VerificationFailed, match="this is the log of cluster stage"):
        evolve(ClusterState("stage"), 1, log[0])


def _contents(state: ClusterState) -> dict[str, Any]:
    """Everything that a state holds, copied, with the order of its maps."""
    found: dict[str, Any] = {}
    for slot in ClusterState.__slots__:
        value = getattr(state, slot)
        if slot == "pool":
            value = (value.capacity, value.cursor, value.free, [value.taken(i) for i in range(value.capacity)])
        found[slot] = list(value.items()) if isinstance(value, dict) else value
    return found


def test_an_event_that_is_refused_changes_nothing() -> None:
    """At every position: every event of the log once more, every forged one, and one of an unknown type."""
    log = history().log
    candidates: list[Event] = [*log, UnknownEvent(type="node.teleported.v9", body=b"{}")]
    for _, kind, position, forge in FORGERIES:
        honest = [event for event in log if type(event) is kind][position]
        candidates.append(forge(honest))
    # Also behind logs that are wrong already without a contradiction: two members of one uid, and the like.
    pasts = [log[:end] for end in range(0, len(log) + 1, 3)]
    pasts += [[*log[:20], forged, *log[20:]] for forged in candidates[len(log) :]]
    refused: set[type[Event]] = set()
    for past in pasts:
        state = _as_far_as_it_goes(past)
        before = _contents(state)
        for event in candidates:
            try:
                evolve(state, state.sequence + 1, event)
            except VerificationFailed:
                assert _contents(state) == before
                refused.add(type(event))
            else:
                state = _as_far_as_it_goes(past)
    assert {RangeFreed, RangeAllocated, NodeLeft, ClusterDefined, CidrAppended, UnknownEvent} <= refused


def _as_far_as_it_goes(events: list[Event]) -> ClusterState:
    state = ClusterState("prod")
    for event in events:
        with suppress(VerificationFailed):
            evolve(state, state.sequence + 1, event)
    return state


def test_a_fold_that_is_stopped_stands_before_the_event_that_it_names() -> None:
    log = history().log
    state = ClusterState("prod")
    with pytest.raises(VerificationFailed, match="event 8 "):
        fold(state, enumerate([*log[:7], log[0], *log[7:]], 1))
    assert _contents(state) == _contents(fold(ClusterState("prod"), enumerate(log[:7], 1)))
