"""One list of facts: the state's fields, the digest, the temporal tables and the decoder know the same ones."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from controlplane.cluster.decide import decide
from controlplane.cluster.digest import canonical
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import INDICES, Cidr, ClusterState
from controlplane.cluster.state_decoder import decode_state
from controlplane.controller.agents.attestation import Attestor
from controlplane.readmodel.asof import load_state
from events.codec import Recorded, decode
from events.memory import MemoryLog
from events.protocol.commands import Command, DefineCluster, JoinNode, LeaveNode
from events.types import Event
from tests.service.histories import lived_in, projecting
from tests.service.rig import CLUSTER, Rig, rig

FACTS = tuple(inspect.signature(ClusterState.from_parts).parameters)
NOT_IN_THE_DIGEST = {"parked"}
"""What was left out is said by the log itself; the digest of a state without it must stay what it was."""


def facts_of(state: ClusterState) -> dict[str, Any]:
    found = {fact: getattr(state, fact) for fact in FACTS if fact != "cursor"}
    return {fact: dict(v) if hasattr(v, "items") else v for fact, v in found.items()} | {
        "cursor": state.pool.cursor
    }


def everything(state: ClusterState) -> dict[str, Any]:
    """Every field, the indices included, and the orders that decisions rely on."""
    fields = facts_of(state)
    # What the fold remembers of deadlines past only makes it scan more; the rows know those that are there.
    for index in INDICES - {"quarantine_last", "quarantine_ordered"}:
        value = getattr(state, index)
        fields[index] = dict(value) if hasattr(value, "items") else value
    pool = state.pool
    fields["pool"] = (pool.capacity, pool.free, pool.cursor)
    fields["taken"] = [pool.next_free(n) for n in range(pool.capacity)]
    fields["order"] = [list(state.draining), list(state.quarantined)]
    return fields


def test_every_field_of_the_state_is_a_fact_or_an_index() -> None:
    as_fields = {"pool" if fact == "cursor" else fact for fact in FACTS}
    assert as_fields | INDICES == set(ClusterState.__slots__)
    assert not as_fields & INDICES


async def _history() -> tuple[MemoryLog, list[Recorded]]:
    log = MemoryLog(CLUSTER)
    async with rig(log) as it:
        await lived_in(it, 400, seed=5)
    return log, [decode(message) async for batch in log.read() for message in batch.messages]


def _folds(events: list[Recorded], every: int) -> Iterator[ClusterState]:
    state = ClusterState(CLUSTER)
    for recorded in events:
        evolve(state, recorded.sequence, recorded.event)
        if recorded.sequence % every == 0:
            yield state


async def test_the_rows_and_the_canonical_text_give_back_every_field(tmp_path: Path) -> None:
    log, events = await _history()
    seen: set[str] = set()
    it = Rig(log)
    async with projecting(it, tmp_path) as projector:
        await projector.reached(len(events), timeout_s=60.0)
        store = await projector.open()
        for state in _folds(events, every=11):
            wanted, at = everything(state), state.sequence
            assert everything(await store.run(lambda c, at=at: load_state(c, at))) == wanted
            decoded = everything(decode_state(canonical(state)))
            assert {name: decoded[name] for name in wanted if name != "order"} == {
                name: wanted[name] for name in wanted if name != "order"
            }
            seen |= {fact for fact, value in facts_of(state).items() if value}
    assert set(FACTS) - seen <= {"deleted", "parked", "refusals", "overrides"}


async def test_a_fact_that_changes_changes_the_digest() -> None:
    _, events = await _history()
    *_, state = _folds(events, every=1)
    more = Cidr("10.250.0.0/24", state.capacity, 4, 0, 1)
    other: dict[str, Any] = {
        "name": "elsewhere",
        "sequence": 10**6,
        "deleted": 7,
        "cursor": state.pool.cursor + 1,
        "cidrs": (*state.cidrs, more),
        "parked": frozenset({3}),
    }
    for fact in FACTS:
        value = facts_of(state)[fact]
        if fact not in other and not value:
            continue  # nothing of it at the end of this history
        changed = other.get(fact, None if fact == "definition" else type(value)())
        facts = facts_of(state) | ({"behind_nat": {}} if fact == "nodes" else {})  # only who is there can be it
        varied = ClusterState.from_parts(**(facts | {fact: changed}))
        same = canonical(varied) == canonical(ClusterState.from_parts(**facts))
        assert same == (fact in NOT_IN_THE_DIGEST), fact


@pytest.mark.parametrize("fact", FACTS)
def test_no_fact_has_a_default_that_hides_a_forgotten_caller(fact: str) -> None:
    default = inspect.signature(ClusterState.from_parts).parameters[fact].default
    assert default is inspect.Parameter.empty


def test_a_controller_that_starts_inside_of_a_leaving_judges_what_follows() -> None:
    """Its read model ends between the leaving and the draining: the owner of a range is no member any more."""
    state = ClusterState("prod")

    def decided(command: Command) -> list[Event]:
        return list(decide(state, command, datetime(2026, 1, 1, tzinfo=UTC)).events)

    def fold(events: Iterable[Event]) -> None:
        for event in events:
            evolve(state, state.sequence + 1, event)

    fold(decided(DefineCluster(container_cidr="10.0.0.0/16")))
    for number in range(2):
        fold(
            decided(
                JoinNode(node=f"n{number}", uid=f"u{number}", kind="cloud", underlay=f"192.0.2.{number + 1}")
            )
        )
    left, draining = decided(LeaveNode(node="n0", uid="u0"))
    fold([left])
    cut, whole = Attestor(), Attestor()
    cut.load(state)
    at = state.sequence + 1
    fold([draining])
    whole.load(state)
    recorded = Recorded(at, cast("Any", None), draining, datetime(2026, 1, 1, tzinfo=UTC))
    cut.fold([recorded])
    assert cut._sum.total() == whole._sum.total()
    assert cut._from == at
