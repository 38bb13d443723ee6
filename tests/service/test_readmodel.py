"""The read model equals the fold of the log, at every sequence; it survives poison and rebuilds."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from controlplane.changes import CHANGES_LIMIT, Changes
from controlplane.cluster.decide import decide
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.controller.replication.command_dedup import CommandDedup
from controlplane.controller.replication.restore import restore
from controlplane.readmodel import projector as projector_module
from controlplane.readmodel.asof import load_state, sequence_at
from controlplane.readmodel.projector import Projector
from controlplane.readmodel.rebuild import rebuild
from controlplane.readmodel.store import SequenceSpan, Store, current_generation
from events.codec import Cause, Recorded, decode, seal
from events.errors import VerificationFailed
from events.log import ReadBatch
from events.memory import MemoryLog
from events.protocol.commands import DeclareNetwork, ImportNodes, WithdrawNetwork
from events.types import (
    EVENT_TYPES,
    CidrAppended,
    ClbReserved,
    ClusterDefined,
    ConflictOverridden,
    ConflictRefused,
    EventsParked,
    Network,
    NetworkDeclared,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeUnreachable,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)
from tests.controlplane.every_kind import SURROUNDINGS, commands
from tests.controlplane.world import START
from tests.service.histories import lived_in, projecting
from tests.service.rig import CLUSTER, DEFINE, Rig, join, rig, running
from tests.waiting import until

COMMON = {
    CidrAppended, ClbReserved, ClusterDefined, ConflictOverridden, ConflictRefused, NetworkDeclared, NodeFenced,
    NodeJoined, NodeLeft, NodeRecovered, NodeUnreachable, RangeAllocated, RangeDraining, RangeFreed,
    RangeQuarantined,
}  # fmt: skip
"""What every lived-in history holds; the history of every kind below holds the rest."""


@pytest.mark.parametrize("seed", range(4))
async def test_the_rows_say_at_every_sequence_what_the_fold_says(tmp_path: Path, seed: int) -> None:
    async with rig() as it, projecting(it, tmp_path) as projector:
        await lived_in(it, 150, seed)
        head = it.replica.head.sequence
        await projector.reached(head)
        store = await projector.open()
        assert store.checkpoint == it.replica.head
        assert state_digest(await store.run(load_state)) == state_digest(it.replica.state)

        state, types = ClusterState(CLUSTER), set()
        moments = {}
        async for batch in it.log.read():
            for message in batch.messages:
                recorded = decode(message)
                evolve(state, recorded.sequence, recorded.event)
                types.add(type(recorded.event))
                moments[recorded.envelope.time] = recorded.sequence
                at = recorded.sequence
                assert state_digest(await store.run(lambda c, at=at: load_state(c, at))) == state_digest(state)
        for moment, sequence in moments.items():
            assert await store.run(lambda c, moment=moment: sequence_at(c, moment)) == sequence
        assert types >= COMMON


async def test_the_rows_say_what_the_fold_says_of_every_kind_of_event(tmp_path: Path) -> None:
    log, decided, state = MemoryLog(CLUSTER), ClusterState(CLUSTER), ClusterState(CLUSTER)
    head = await log.head()
    for number, command in enumerate(commands()):
        now = START + timedelta(seconds=number)
        events = decide(decided, command, now, SURROUNDINGS).events
        for event in events:
            evolve(decided, decided.sequence + 1, event)
        if events:
            cause = Cause(command_id=f"c{number}", actor="tester", time=now, source="isthmus/test")
            messages, after = seal(CLUSTER, head, [(cause, events)])
            await log.append(messages, expected=head.sequence)
            head = after
    async with running(Rig(log)) as it, projecting(it, tmp_path) as projector:
        await projector.reached(head.sequence)
        store = await projector.open()
        types = set()
        async for batch in log.read():
            for message in batch.messages:
                recorded = decode(message)
                evolve(state, recorded.sequence, recorded.event)
                types.add(type(recorded.event))
                at = recorded.sequence
                assert state_digest(await store.run(lambda c, at=at: load_state(c, at))) == state_digest(state)
    # Parking is no decision; tests/service/test_parking.py holds the read model to it.
    assert types == set(EVENT_TYPES) - {EventsParked}


async def test_a_burst_waits_for_its_end_unless_somebody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projector_module, "GATHER_S", 300.0)
    monkeypatch.setattr(projector_module, "GAP_S", 300.0)
    async with rig() as it, projecting(it, tmp_path) as projector:
        await it.send(join(0))
        await projector.reached(3)
        await it.send(ImportNodes(nodes=tuple(join(number) for number in range(1, 300))))
        await it.send(join(300))  # no burst, but it comes behind one
        for _ in range(100):
            await asyncio.sleep(0)
        assert projector.sequence == 3
        await projector.reached(it.replica.head.sequence, timeout_s=30)
        assert (await projector.open()).checkpoint == it.replica.head


async def test_a_burst_that_comes_while_one_is_written_is_not_read_from_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading it again and verifying it would take from the very commands that are in a hurry."""
    written, behind = asyncio.Event(), CHANGES_LIMIT + 2
    apply = Store.apply

    async def slow(self: Store, events: Sequence[Recorded]) -> None:
        await written.wait()
        await apply(self, events)

    async with rig() as it, projecting(it, tmp_path) as projector:
        await projector.reached(1)
        reads = 0
        read = it.log.read

        def counted(**options: Any) -> AsyncIterator[ReadBatch]:
            nonlocal reads
            reads += 1
            return read(**options)

        monkeypatch.setattr(it.log, "read", counted)
        monkeypatch.setattr(Store, "apply", slow)
        office = Network(cidr="10.0.0.0/24", kind="idc")
        declare, withdraw = DeclareNetwork(network=office), WithdrawNetwork(cidr=office.cidr)
        for _ in range(0, behind, 1000):
            await asyncio.gather(*[it.send(one) for _ in range(500) for one in (declare, withdraw)])
        written.set()
        await projector.reached(it.replica.head.sequence, timeout_s=30)
        assert it.replica.head.sequence > behind
        assert not reads


async def test_a_restored_replica_goes_on_exactly_as_the_one_that_folded_everything(tmp_path: Path) -> None:
    async with rig() as it:
        async with projecting(it, tmp_path) as projector:
            await lived_in(it, 200, 7)
            await projector.reached(it.replica.head.sequence)
        restored = await restore(it.log, tmp_path, changes=Changes(), dedup=CommandDedup())
        assert restored.head == it.replica.head
        assert restored.last_time == it.replica.last_time
        await lived_in(it, 100, 8)
        task = asyncio.create_task(restored.follow())
        await restored.reached(it.replica.head.sequence, timeout_s=30)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert state_digest(restored.state) == state_digest(it.replica.state)


async def test_a_read_model_of_another_log_is_refused_at_start(tmp_path: Path) -> None:
    async with rig() as it, projecting(it, tmp_path) as projector:
        await it.send(join(1))
        await projector.reached(3)
    async with rig() as other:
        await other.send(join(2))
        with pytest.raises(VerificationFailed) as refusal:
            await restore(other.log, tmp_path, changes=Changes(), dedup=CommandDedup())
        assert refusal.value.code == "chain_broken"


async def poisoned() -> MemoryLog:
    """A log whose 4th event frees a range that is allocated, and whose 5th is fine again."""
    log = MemoryLog(CLUSTER)
    async with rig(log) as it:
        await it.send(join(1))
        head, now = it.replica.head, it.clock()
    cause = Cause(command_id="poison", actor="somebody", time=now, source="past the controller")
    freed = RangeFreed(cidr="172.16.40.0/26", index=160, epoch=3)
    other = await donor_events(5)
    messages, _ = seal(CLUSTER, head, [(cause, [freed, *other])])
    await log.append(messages, expected=3)
    return log


async def donor_events(number: int) -> list[Any]:
    async with rig() as donor:
        await donor.send(join(number))
        return [decode(message).event async for batch in donor.log.read(after=1) for message in batch.messages][
            :1
        ]


async def test_a_poison_event_stops_the_projection_before_it_and_names_it(tmp_path: Path) -> None:
    log = await poisoned()
    it = Rig(log)
    async with projecting(it, tmp_path) as projector:
        await until(lambda: projector.stalled is not None)
        assert projector.stalled is not None
        assert projector.stalled.details["sequence"] == 4
        assert "range.freed.v1" in projector.stalled.message
        assert projector.sequence == 3
        with pytest.raises(VerificationFailed):
            await projector.reached(4)


async def park(log: MemoryLog, first: int, last: int) -> None:
    """What a controller with that policy writes; see tests/service/test_parking.py for the real one."""
    head = await log.head()
    cause = Cause(command_id="park", actor="controller/a", time=datetime(2026, 1, 2, tzinfo=UTC), source="test")
    event = EventsParked(
        first=first, last=last, poison=first, poison_id="x", poison_type="y", code="z", reason="no such range"
    )
    await log.append(seal(CLUSTER, head, [(cause, [event])])[0], expected=head.sequence)


async def test_a_stopped_projection_goes_on_when_the_log_says_that_the_event_is_parked(tmp_path: Path) -> None:
    log = await poisoned()
    async with projecting(Rig(log), tmp_path) as projector:
        await until(lambda: projector.stalled is not None)
    await park(log, 4, 4)
    async with projecting(Rig(log), tmp_path) as projector:
        await projector.reached(6, timeout_s=30)
        store = await projector.open()
        rows = await store.run(lambda c: c.execute("SELECT sequence, type, error FROM parked").fetchall())
        assert rows == [(4, "range.freed.v1", "no such range")]
        assert projector.stalled is None
        assert await store.spans(["poison"]) == {"poison": SequenceSpan(5, 5)}
        left_out = await fold_of(log, frozenset({4}))
        assert state_digest(await store.run(load_state)) == state_digest(left_out)
        assert (await store.run(load_state)).parked == {4}
        assert (await store.run(lambda c: load_state(c, 3))).parked == frozenset()


async def test_rows_that_were_written_of_events_parked_later_are_made_anew_without_them(tmp_path: Path) -> None:
    """Whoever could follow the event finds out at its parking."""
    log = MemoryLog(CLUSTER)
    async with rig(log) as it, projecting(it, tmp_path) as projector:
        await it.send(join(1))
        last = (await it.send(join(2))).sequence
        await projector.reached(last)
        before = (await projector.open()).path
        await park(log, last - 1, last)
        await until(lambda: it.replica.head.sequence == last + 1, within_s=30)
        assert set(it.replica.state.nodes) == {"n1"}
        await projector.reached(last + 1, timeout_s=30)
        store = await projector.open()
        assert store.path != before
        assert state_digest(await store.run(load_state)) == state_digest(it.replica.state)
        again = await it.send(join(3))  # on a state that no longer knows of the parked join
        assert again.result["index"] == 1
        report = await rebuild(log, tmp_path)
        await projector.reached(again.sequence)
        assert report.digest == state_digest(it.replica.state)


async def fold_of(log: MemoryLog, parked: frozenset[int]) -> ClusterState:
    state = ClusterState(CLUSTER)
    async for batch in log.read():
        for message in batch.messages:
            evolve(state, message.sequence, decode(message, parked).event)
    return state


async def test_a_rebuild_is_switched_in_under_a_running_projection(tmp_path: Path) -> None:
    async with rig() as it, projecting(it, tmp_path) as projector:
        await lived_in(it, 60, 3)
        await projector.reached(it.replica.head.sequence)
        before = (await projector.open()).path
        report = await rebuild(it.log, tmp_path)
        assert report.digest == state_digest(it.replica.state)
        await it.send(join(99))
        await until(lambda: projector.store is not None and projector.store.path != before)
        await projector.reached(it.replica.head.sequence)
        store = await projector.open()
        assert state_digest(await store.run(load_state)) == state_digest(it.replica.state)
        assert not before.exists()


async def test_a_rebuild_that_differs_is_not_switched_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig() as it, projecting(it, tmp_path) as projector:
        await lived_in(it, 30, 3)
        await projector.reached(it.replica.head.sequence)
        live = current_generation(tmp_path)

        class Forgetful(Store):
            async def apply(self, events: Any) -> None:
                await super().apply(events)
                await self.run(
                    lambda c: c.execute("UPDATE node SET row = json_set(row, '$.site', 'elsewhere')")
                )

        monkeypatch.setattr("controlplane.readmodel.rebuild.Store", Forgetful)
        with pytest.raises(VerificationFailed):
            await rebuild(it.log, tmp_path)
        assert current_generation(tmp_path) == live
        assert [path.name for path in tmp_path.glob("gen-*.db")] == ["gen-000001.db"]  # noqa: ASYNC240


async def test_the_checkpoint_moves_with_the_rows_or_not_at_all(tmp_path: Path) -> None:
    async with rig() as it:
        await it.send(join(1))
        recorded: list[Recorded] = [
            decode(message) async for batch in it.log.read() for message in batch.messages
        ]
    store = await Store.open(tmp_path, CLUSTER)
    await store.apply(recorded[:1])

    def cut(connection: sqlite3.Connection) -> None:
        connection.execute(
            "CREATE TRIGGER cut BEFORE UPDATE ON checkpoint BEGIN SELECT RAISE(ABORT, 'cut'); END"
        )

    await store.run(cut)
    with pytest.raises(VerificationFailed, match="cut"):
        await store.apply(recorded[1:])
    assert await store.run(lambda c: c.execute("SELECT count(*) FROM node").fetchone()) == (0,)
    await store.close()
    again = await Store.open(tmp_path, CLUSTER)
    assert again.checkpoint.sequence == 1
    await again.close()


class History:
    """The commands table of whichever projector is given later."""

    projector: Projector

    async def spans(self, command_ids: Any) -> Any:
        return await (await self.projector.open()).spans(command_ids)


async def test_old_command_ids_are_found_in_the_read_model_after_memory_forgot_them(tmp_path: Path) -> None:
    log = MemoryLog(CLUSTER)
    history = History()
    it = Rig(log, command_table=history)
    it.replica.dedup = CommandDedup(spans_limit=5, answers_limit=2)
    async with projecting(it, tmp_path, on_projected=it.replica.dedup.projected) as projector:
        history.projector = projector
        async with running(it):
            await it.send(DEFINE)
            first = [await it.send(join(number), command_id=f"c{number}") for number in range(20)]
            await projector.reached(it.replica.head.sequence)
            await it.send(join(30))
            assert not it.replica.dedup.complete
            assert it.replica.dedup.span("c0") is None
            for number in (0, 7, 19):
                again = await it.send(join(number), command_id=f"c{number}")
                assert again.duplicate
                assert again.result == first[number].result
                assert [e.sequence for e in again.events] == [e.sequence for e in first[number].events]
