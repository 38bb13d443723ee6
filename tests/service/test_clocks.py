"""Clocks that jump, stand still and disagree: nothing irreversible follows, and a person is told."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from controlplane.controller.agents.liveness import Liveness, watch_members
from controlplane.controller.agents.reports import LiveReports
from controlplane.controller.clocks import STALL_S, TOLERANCE_S, ClockCheck, LogClock, Watch
from controlplane.controller.commands.ticker import Ticker
from controlplane.controller.tasks import end
from events.memory import MemoryLog
from events.protocol.commands import RemoveNode
from events.status import AgentStatus
from tests.service.rig import CLUSTER, DEFINE, Rig, join, running

TIMED = msgspec.structs.replace(DEFINE, quarantine_s=60.0, unreachable_after_s=30.0, remove_after_s=30.0)
YEAR_S = 365 * 86_400.0


class Machine:
    """A machine's two clocks. ``pass_`` is real time; ``wall_s`` may be set to anything."""

    def __init__(self) -> None:
        self.wall_s = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
        self.monotonic_s = 1000.0

    def wall(self) -> datetime:
        return datetime.fromtimestamp(self.wall_s, UTC)

    def monotonic(self) -> float:
        return self.monotonic_s

    def pass_(self, seconds: float) -> None:
        self.wall_s += seconds
        self.monotonic_s += seconds


class Leader:
    """A controller's deciding half on a machine of its own; it leads from :meth:`tick` to :meth:`tick`."""

    def __init__(self, machine: Machine, log: MemoryLog) -> None:
        self.machine = machine
        self.rig = Rig(log, monotonic=machine.monotonic)
        self.rig.committer._now = machine.wall
        self.rig.committer._clock = LogClock(wall=machine.wall, monotonic=machine.monotonic)
        replica = self.rig.replica
        self.clocks = ClockCheck(
            wall=machine.wall, monotonic=machine.monotonic, last_event=lambda: replica.last_time
        )
        watch = Watch(monotonic=machine.monotonic, wall=machine.wall)
        self.liveness = Liveness(watch=watch, clocks=self.clocks)
        self.leads = True
        self.ticker = Ticker(
            self.rig.committer, replica, self.liveness, actor="controller/a", active=lambda: self.leads
        )

    @property
    def state(self):
        return self.rig.replica.state

    def report(self, number: int) -> None:
        self.liveness.observe(
            AgentStatus(
                node=f"n{number}",
                uid=f"uid-{number}",
                applied=self.state.sequence,
                sent_at=self.machine.wall(),
            )
        )

    async def live(self, seconds: float, *reporting: int) -> None:
        """So many seconds, with a tick in each; the nodes that are named report in each."""
        for _ in range(int(seconds)):
            self.machine.pass_(1.0)
            for number in reporting:
                self.report(number)
            await self.ticker.tick()


@asynccontextmanager
async def leader(machine: Machine, log: MemoryLog) -> AsyncIterator[Leader]:
    it = Leader(machine, log)
    async with running(it.rig):
        await it.rig.replica.caught_up(timeout_s=10)
        members = asyncio.create_task(watch_members(it.liveness, it.rig.replica.changes))
        try:
            yield it
        finally:
            await end([members])


def fenced(it: Leader) -> set[str]:
    return {found.node for found in it.state.fenced.values()} if it.state.fenced else set()


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, YEAR_S, -YEAR_S, 45.0, -45.0])
async def test_a_wall_clock_that_jumps_removes_nobody_and_hides_no_silence(jump_s: float) -> None:
    machine, log = Machine(), MemoryLog(CLUSTER)
    async with leader(machine, log) as it:
        await it.rig.send(TIMED)
        for number in range(3):
            await it.rig.send(join(number))
        await it.live(40, 0, 1, 2)
        machine.wall_s += jump_s
        await it.live(6, 0, 1, 2)
        machine.wall_s -= jump_s
        await it.live(40, 0, 1, 2)
        assert not it.state.unreachable
        assert len(it.state.nodes) == 3
        await it.live(28, 0, 1)
        assert not it.state.unreachable
        await it.live(4, 0, 1)
        assert set(it.state.unreachable) == {"n2"}, (
            "its silence is noticed in time, whatever its last report says"
        )


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
async def test_who_takes_over_watches_a_silence_from_its_beginning(jump_s: float) -> None:
    machine, log = Machine(), MemoryLog(CLUSTER)
    async with leader(machine, log) as first:
        await first.rig.send(TIMED)
        for number in range(2):
            await first.rig.send(join(number))
        await first.live(1, 0, 1)
        machine.wall_s += jump_s
        await first.live(35, 0)
        assert set(first.state.unreachable) == {"n1"}
    machine.wall_s -= jump_s
    async with leader(machine, log) as second:
        await second.live(58, 0)
        assert "n1" in second.state.nodes, "it has watched for 58 s; the rule is 60"
        for _ in range(20):
            await second.live(1, 0)
        if jump_s > 0:
            assert "n1" in second.state.nodes, "the log is an hour ahead: nobody is removed"
            assert second.clocks.ahead
        else:
            assert "n1" not in second.state.nodes


async def test_a_controller_that_was_stopped_watches_anew() -> None:
    machine, log = Machine(), MemoryLog(CLUSTER)
    async with leader(machine, log) as it:
        await it.rig.send(TIMED)
        for number in range(3):
            await it.rig.send(join(number))
        await it.live(5, 0, 1, 2)
        machine.pass_(7200)  # SIGSTOP … SIGCONT
        await it.live(29)
        assert not it.state.unreachable
        await it.live(3)
        assert len(it.state.unreachable) == 3
        assert len(it.state.nodes) == 3


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0, 30.0, -30.0])
async def test_a_range_rests_as_long_as_it_should_from_when_that_was_stored(jump_s: float) -> None:
    machine, log = Machine(), MemoryLog(CLUSTER)
    async with leader(machine, log) as it:
        await it.rig.send(TIMED)
        for number in range(2):
            await it.rig.send(join(number))
        await it.rig.send(RemoveNode(node="n0"))
        if jump_s < 0:
            machine.wall_s -= jump_s  # the deadline is set by a clock that is ahead
        await it.live(2, 1)
        assert len(it.state.quarantined) == 1
        machine.wall_s += jump_s
        await it.live(57, 1)
        assert len(it.state.quarantined) == 1, "freed early"
        await it.live(70, 1)
        assert not it.state.quarantined, "held too long"


async def test_a_rest_counts_from_storage_and_a_new_leader_counts_anew() -> None:
    machine, log = Machine(), MemoryLog(CLUSTER)
    async with leader(machine, log) as it:
        await it.rig.send(TIMED)
        for number in range(2):
            await it.rig.send(join(number))
        await it.rig.send(RemoveNode(node="n0"))
        await it.live(50, 1)
        assert len(it.state.quarantined) == 1
        it.leads = False
        await it.live(20, 1)
        it.leads = True
        await it.live(58, 1)
        assert len(it.state.quarantined) == 1
        await it.live(4, 1)
        assert not it.state.quarantined


async def test_while_clocks_disagree_nothing_irreversible_happens_and_a_condition_says_so() -> None:
    machine, log = Machine(), MemoryLog(CLUSTER)
    async with leader(machine, log) as it:
        await it.rig.send(TIMED)
        for number in range(3):
            await it.rig.send(join(number))
        await it.rig.send(RemoveNode(node="n0"))
        it.report(2)
        it.clocks.bus(machine.wall() + timedelta(seconds=3600), machine.monotonic())
        (condition,) = it.clocks.conditions()
        assert condition.code == "clocks_disagree"
        assert "the bus server's clock is 3,600 s ahead of this controller's" in condition.message
        assert LiveReports(it.liveness, machine.wall()).further == (condition,)
        await it.live(200, 1)
        assert list(it.state.quarantined) == [0]
        assert set(it.state.unreachable) == {"n2"}
        assert "n2" in it.state.nodes
        it.clocks.bus(machine.wall(), machine.monotonic())
        assert list(it.clocks.conditions()) == []
        await it.live(3, 1)
        assert 0 not in it.state.quarantined
        assert "n2" not in it.state.nodes


async def test_a_step_of_the_own_clock_shows_before_the_bus_is_asked_again() -> None:
    machine = Machine()
    clocks = ClockCheck(wall=machine.wall, monotonic=machine.monotonic)
    assert not clocks.apart
    clocks.bus(machine.wall(), machine.monotonic())
    machine.pass_(100)
    assert clocks.bus_s == pytest.approx(0, abs=1e-6)
    machine.wall_s += 3600
    assert clocks.bus_s == pytest.approx(-3600, abs=1e-6)
    assert clocks.apart


def test_agents_whose_clocks_are_off_are_named_with_numbers_and_forgotten_when_right_or_gone() -> None:
    machine = Machine()
    clocks = ClockCheck(wall=machine.wall, monotonic=machine.monotonic)
    for number in range(8):
        clocks.agent(f"n{number}", machine.wall() - timedelta(seconds=60 + number))
    clocks.agent("right", machine.wall() + timedelta(seconds=TOLERANCE_S - 1))
    (condition,) = clocks.conditions()
    assert "n7 is 67 s behind it" in condition.message
    assert re.search(r"and 3 more", condition.message)
    assert not clocks.apart, "an agent's clock holds up nothing"
    clocks.agent("n7", machine.wall())
    for number in range(7):
        clocks.forget(f"n{number}")
    assert list(clocks.conditions()) == []


def test_the_logs_time_never_runs_backwards_never_stands_still_and_is_caught_up_with() -> None:
    machine = Machine()
    clock = LogClock(wall=machine.wall, monotonic=machine.monotonic)
    last = machine.wall() + timedelta(seconds=100)
    assert clock.now(last) == last
    machine.pass_(60)
    assert clock.now(last) == last + timedelta(seconds=30)
    machine.pass_(140)
    assert clock.now(last) == machine.wall()
    assert clock.now(machine.wall()) == machine.wall()


def test_a_watch_moves_with_the_monotonic_clock_alone_and_stands_still_with_its_process() -> None:
    machine = Machine()
    watch = Watch(monotonic=machine.monotonic, wall=machine.wall)
    begun = watch.now()
    machine.wall_s += 1e6
    machine.pass_(2)
    assert watch.now() - begun == timedelta(seconds=2)
    assert watch.look()
    assert watch.wall(begun) == machine.wall() - timedelta(seconds=2)
    machine.pass_(STALL_S + 1)
    assert not watch.look()
    assert watch.now() - begun == timedelta(seconds=2 + STALL_S)


def test_a_report_from_before_this_controller_counts_by_its_age_and_not_by_anybodys_clock() -> None:
    machine = Machine()
    liveness = Liveness(watch=Watch(monotonic=machine.monotonic, wall=machine.wall))
    old = AgentStatus(node="n", uid="u", applied=1, sent_at=machine.wall() + timedelta(days=3))
    liveness.observe(old, age_s=20.0)
    assert liveness.silence_s("u") == pytest.approx(20.0)
    assert liveness.last_seen["u"] == machine.wall() - timedelta(seconds=20)
    assert not liveness.clocks.agents_s, "how old the report's own time is says nothing about the agent's clock"
