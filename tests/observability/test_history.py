"""The record of reports: what was true when, what was not recorded, and its bound."""

from __future__ import annotations

import math
from array import array
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.controller.agents.agent_history import recorder as recording
from controlplane.controller.agents.agent_history.recorder import Recorder, convergence_record
from controlplane.controller.agents.agent_history.store import HistoryStore, as_moment
from controlplane.controller.agents.convergence import ConvergenceTracker
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.records import (
    LATENCIES_MAX,
    ConvergenceRecord,
    Observed,
    RecordBatch,
)
from controlplane.controller.clocks import Watch
from controlplane.controller.observability.setup import Observability
from events.errors import Unavailable, Usage
from events.status import AgentStatus

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A clock, agents, and their recorder."""

    def __init__(self, store: HistoryStore) -> None:
        self.at = BEGIN
        self.liveness = Liveness(watch=Watch(monotonic=self._seconds, wall=lambda: self.at, stall_s=math.inf))
        self.tracker = ConvergenceTracker()
        self.recorder = Recorder(store, self.tracker, now=self._seconds, clock=self._seconds)
        self.recorder.watch(self.liveness)
        self.liveness.listeners.append(lambda status, _age_s: self.recorder.reported(status))
        self.store = store

    def _seconds(self) -> float:
        return self.at.timestamp()

    async def pass_(self, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)
        await self.recorder.flush()

    def say(self, uid: str, applied: int, **more) -> None:
        self.liveness.observe(
            AgentStatus(node=f"node-{uid}", uid=uid, applied=applied, sent_at=self.at, **more)
        )

    async def known(self, moment: datetime, *uids: str) -> dict[str, Observed]:
        return await self.store.agents(uids, int(moment.timestamp() * 1e6))

    async def recorded(self, moment: datetime) -> bool:
        return (await self.store.coverage(int(moment.timestamp() * 1e6))).recorded


async def test_an_agent_is_found_as_it_was_at_each_moment():
    async with HistoryStore.open() as store:
        world = World(store)
        world.say("a", 1)
        await world.pass_(1)
        first = world.at
        world.say("a", 5, state="degraded", conditions=("disk full",))
        await world.pass_(1)
        second = world.at
        world.say("a", 9)
        await world.pass_(1)
        assert (await world.known(first - timedelta(seconds=0.5), "a"))["a"].applied == 1
        middle = (await world.known(second - timedelta(seconds=0.5), "a"))["a"]
        assert (middle.applied, middle.state, middle.conditions) == (5, "degraded", ("disk full",))
        assert (await world.known(world.at, "a"))["a"].state == "ready"
        assert await world.known(BEGIN - timedelta(seconds=1), "a") == {}


async def test_silence_and_leaving_are_recorded_though_nobody_says_them():
    async with HistoryStore.open() as store:
        world = World(store)
        world.say("a", 1, interval_s=10.0)
        world.say("b", 1, interval_s=10.0)
        await world.pass_(1)
        for _ in range(8):
            world.say("b", 1, interval_s=10.0)
            await world.pass_(10)
        assert (await world.known(BEGIN + timedelta(seconds=29), "a"))["a"].state == "ready"
        assert (await world.known(BEGIN + timedelta(seconds=31), "a"))["a"].state == "silent"
        assert (await world.known(world.at, "b"))["b"].state == "ready"
        world.recorder.gone("b", world.at)
        world.liveness.forget("b")
        await world.pass_(1)
        assert await world.known(world.at, "b") == {}
        assert "b" in await world.known(world.at - timedelta(seconds=2), "b")


async def test_what_nobody_watched_is_not_recorded(tmp_path):
    async with HistoryStore.open(tmp_path / "reports.db") as store:
        world = World(store)
        world.say("a", 1)
        await world.pass_(1)
        await world.pass_(5)
        ended = world.at
        assert not await world.recorded(BEGIN - timedelta(seconds=1))
        assert await world.recorded(BEGIN + timedelta(seconds=3))
    async with HistoryStore.open(tmp_path / "reports.db") as store:
        world = World(store)
        world.at = ended + timedelta(hours=1)
        await world.pass_(0)
        world.say("a", 2)
        await world.pass_(1)
        assert not await world.recorded(ended + timedelta(minutes=30))
        assert await world.recorded(ended - timedelta(seconds=1)), "the first process' record is still there"
        assert (await world.known(ended - timedelta(seconds=1), "a"))["a"].applied == 1
        assert (await world.known(world.at, "a"))["a"].applied == 2


async def test_an_unreadable_file_begins_anew(tmp_path):
    path = tmp_path / "reports.db"
    path.write_bytes(b"this is no database" * 1000)
    async with HistoryStore.open(path) as store:
        world = World(store)
        world.say("a", 1)
        await world.pass_(1)
        assert "a" in await world.known(world.at, "a")


async def test_the_record_is_bounded_and_says_from_when_it_is_whole():
    async with HistoryStore.open(limit=100) as store:
        world = World(store)
        for applied in range(1, 400):
            world.say("a", applied)
            await world.pass_(1)
        assert store.count <= 106
        coverage = await store.coverage(int(BEGIN.timestamp() * 1e6))
        assert not coverage.recorded
        assert coverage.since is not None
        assert coverage.since > BEGIN + timedelta(seconds=200)
        for back in range(0, 90, 10):
            moment = world.at - timedelta(seconds=back + 0.5)
            assert (await world.known(moment, "a"))["a"].applied == 399 - back


async def test_in_a_storm_mere_steps_wait_and_what_matters_does_not(monkeypatch):
    monkeypatch.setattr(recording, "ROWS_PER_S", 10)
    async with HistoryStore.open() as store:
        world = World(store)
        uids = [f"u{number}" for number in range(100)]
        for uid in uids:
            world.say(uid, 1)
        await world.recorder.flush(budget=10)
        assert store.count == 100, "an agent that is new matters"
        world.at += timedelta(seconds=1)
        for uid in uids:
            world.say(uid, 2)
        world.at += timedelta(seconds=1)
        world.say("u99", 2, state="degraded")
        await world.recorder.flush(budget=10)
        found = await world.known(world.at, *uids)
        assert sum(one.applied == 2 for one in found.values()) == 11
        assert found["u99"].state == "degraded"
        await world.recorder.settle(world.at)
        late = await world.known(BEGIN + timedelta(seconds=1), *uids)
        assert {one.applied for uid, one in late.items() if uid != "u99"} == {2}, (
            "written late, with the time of their arrival"
        )


async def test_alarms_are_remembered_with_their_time():
    async with HistoryStore.open() as store:
        world = World(store)
        world.recorder.alarmed("chain", Unavailable("log_unavailable", "the log does not answer"))
        await world.pass_(1)
        (alarm,) = await store.alarms(int(world.at.timestamp() * 1e6), 10)
        assert (alarm.name, alarm.code, alarm.at) == ("chain", "log_unavailable", BEGIN)
        assert await store.alarms(int(BEGIN.timestamp() * 1e6) - 1, 10) == []


async def test_hostile_words_of_an_agent_are_cut():
    async with HistoryStore.open() as store:
        world = World(store)
        world.say("a", 1, conditions=("x" * 100_000,) * 500, drift=("y" * 100_000,) * 500)
        await world.pass_(1)
        found = (await world.known(world.at, "a"))["a"]
        assert sum(map(len, (*found.conditions, *found.rows))) <= 20 * 300


async def test_a_transaction_is_written_again_when_more_agents_have_it():
    async with HistoryStore.open() as store:
        world = World(store)
        for uid in "abc":
            world.tracker.reported(uid, 0, world.at.timestamp())
        world.tracker.stored(1, 2, world.at.timestamp(), "join", BEGIN)
        for number, uid in enumerate("abc"):
            await world.pass_(1)
            world.tracker.reported(uid, 2, world.at.timestamp())
            await world.recorder.flush()
            found = await store.convergence_record(1)
            assert found is not None
            assert (found.applied, found.expected) == (number + 1, 3)
        (row,) = await store.convergence_records(2, 10)
        half = row.seen_at(int((BEGIN + timedelta(seconds=2.5)).timestamp() * 1e6))
        assert (half.applied, half.first, half.last) == (2, 1.0, None)
        done = row.seen_at(int(world.at.timestamp() * 1e6))
        assert (done.applied, done.last) == (3, 3.0)
        assert [one.node for one in done.slowest] == ["a", "b", "c"]
        assert await store.convergence_record(3) is None


@given(st.lists(st.floats(0, 100, width=32), max_size=3 * LATENCIES_MAX).map(sorted), st.floats(0, 100))
def test_a_selection_of_latencies_tells_the_same_as_all(latencies, passed):
    tracker = ConvergenceTracker()
    for number in range(len(latencies)):
        tracker.reported(f"n{number}", 0, 0.0)
    tracker.stored(1, 1, 0.0, "x")
    for number, seconds in enumerate(latencies):
        tracker.reported(f"n{number}", 1, seconds)
    (followed,) = tracker.unwritten(10)
    found = convergence_record(followed, 0).seen_at(int(passed * 1e6))
    surely = sum(seconds < passed - 1e-3 for seconds in latencies)
    perhaps = sum(seconds < passed + 1e-3 for seconds in latencies)
    slack = 0 if len(latencies) <= LATENCIES_MAX else 2 * len(latencies) / LATENCIES_MAX + 1
    assert surely - slack <= found.applied <= perhaps + slack
    assert (found.first is None) == (found.applied == 0) or len(latencies) > LATENCIES_MAX


async def test_what_an_earlier_process_measured_is_still_listed(tmp_path):
    async with Observability.open("c", "one", tmp_path, environ={}) as first:
        row = ConvergenceRecord(1, 2, 1_000_000, 0, "join", 1, 1, array("f", [0.5]), (("a", 0.5),))
        await first.history.write(RecordBatch(2_000_000, [], [], [], [row], []))
        assert first.recalled == []
    async with Observability.open("c", "two", tmp_path, environ={}) as second:
        assert [(found.last, list(found.latencies)) for found in second.recalled] == [(2, [0.5])]
    with pytest.raises(Usage, match="ISTHMUS_REPORTS_MAX"):
        async with Observability.open("c", "x", tmp_path, environ={"ISTHMUS_REPORTS_MAX": "many"}):
            pass


async def test_rows_of_many_agents_are_found_by_their_uids():
    async with HistoryStore.open() as store:
        agents = [Observed(node=f"n{i}", uid=f"u{i}", heard_us=1, applied=i) for i in range(3000)]
        record = ConvergenceRecord(1, 1, 0, 0, "", 0, 0, array("f"), ())
        await store.write(RecordBatch(10, agents, [5] * 3000, [], [record], []))
        found = await store.agents([f"u{i}" for i in range(0, 6000, 2)], 10)
        assert len(found) == 1500
        assert found["u2998"].applied == 2998
        assert as_moment(10).year == 1970
