"""Histories under faults keep every promise; and the simulation does find defects that are planted."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from controlplane.cluster.decisions import time as time_rules
from controlplane.controller.agents.report_intake import ReportIntake
from controlplane.controller.clocks import Watch
from controlplane.controller.commands import planner
from controlplane.controller.commands.pending_replies import PendingReplies
from controlplane.controller.commands.ticker import Ticker
from controlplane.controller.replication.read_barrier import ReadBarrier
from events.memory import MemoryLog
from tests.simulation import virtual
from tests.simulation.faults import Fault, shrink
from tests.simulation.world import explain, live

SEEDS = 160


@pytest.mark.parametrize("first", range(0, SEEDS, 20))
def test_every_promise_is_kept_under_every_schedule(first: int) -> None:
    for seed in range(first, first + 20):
        outcome = live(seed)
        assert not outcome.wrong, explain(seed)
        assert outcome.commands > 4


def test_a_seed_is_one_history_whatever_the_hash_seed() -> None:
    program = "from tests.simulation.world import live; print(live(11))"
    told = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert told == {f"{live(11)}\n"}


def _believe_every_report(_original: Callable[..., Any]) -> Callable[..., Any]:
    def take(self: ReportIntake, status: Any, *, age_s: float = 0.0) -> bool:
        self._liveness.observe(status, age_s=age_s)
        return True

    return take


async def _no_memory(self: PendingReplies, group: list[Any]) -> list[Any]:
    return group


def _believe_anybody(state: Any, applied: Any) -> int:
    return int(state.sequence)


def _unconditional(original: Callable[..., Any]) -> Callable[..., Any]:
    async def append(self: MemoryLog, messages: Any, *, expected: int, timeout_s: float = 5.0) -> int:
        return int(await original(self, messages, expected=(await self.head()).sequence))

    return append


def _stale(original: Callable[..., Any]) -> Callable[..., Any]:
    """Decides every command of a group on the state before the group."""

    def decide(state: Any, *rest: Any) -> Any:
        base = getattr(state.nodes, "_base", None)
        if base is None:
            return original(state, *rest)
        older = type(state).__new__(type(state))
        for name in type(state).__slots__:
            value = getattr(state, name)
            setattr(older, name, getattr(value, "_base", value))
        return original(older, *rest)

    return decide


def _by_the_wall_clock(self: Watch) -> datetime:
    return self._wall()


def _nobody_watched(self: Ticker) -> None:
    return None


@pytest.mark.parametrize(
    ("target", "name", "defect"),
    [
        (PendingReplies, "repeat_known", lambda _: _no_memory),
        (time_rules, "watermark", lambda _: _believe_anybody),
        (MemoryLog, "append", _unconditional),
        (planner, "decide", _stale),
        (Watch, "now", lambda _: _by_the_wall_clock),
        (Ticker, "_rested_s", lambda _: _nobody_watched),
        (ReportIntake, "take", _believe_every_report),
    ],
    ids=[
        "no idempotency",
        "reuse without confirmation",
        "append without condition",
        "group decided at once",
        "silence by the wall clock",
        "rest by the deadline alone",
        "a report in another's name counts",
    ],
)
def test_a_planted_defect_is_found(
    monkeypatch: pytest.MonkeyPatch, target: Any, name: str, defect: Callable[..., Any]
) -> None:
    monkeypatch.setattr(target, name, defect(getattr(target, name)))
    assert any(live(seed).wrong for seed in range(150))


PAUSES = (
    Fault("pause", "a", 1.0, 3.4, 1.0),
    Fault("pause", "b", 5.0, 3.4, 1.0),
    Fault("pause", "a", 9.0, 3.0, 1.0),
)
"""Each in turn stands still for longer than its term lasts, and goes on when the other leads."""


async def _at_once(self: ReadBarrier) -> None:
    """Answers from the state that is there."""


def test_a_leader_that_stood_still_answers_nothing_old_and_one_that_does_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for seed in range(6):
        assert not live(seed, PAUSES).wrong, seed
    monkeypatch.setattr(ReadBarrier, "passed", _at_once)
    assert any(live(seed, PAUSES).wrong for seed in range(20))


def test_a_schedule_shrinks_to_the_faults_that_matter() -> None:
    faults = [Fault("crash", name, float(at), 1.0, 1.0) for at, name in enumerate("abcdef")]
    needed = shrink(faults, lambda left: {"b", "e"} <= {fault.target for fault in left})
    assert [fault.target for fault in needed] == ["b", "e"]


def test_virtual_time_passes_only_by_waiting_and_a_dead_end_is_named() -> None:
    async def sleep() -> float:
        loop = asyncio.get_running_loop()
        await asyncio.gather(asyncio.sleep(3600), asyncio.sleep(7200))
        return loop.time()

    assert 7200 <= virtual.run(sleep()) < 7200.001
    with pytest.raises(virtual.Deadlock):
        virtual.run(asyncio.Event().wait())
