"""What the pure core costs: allocation in an empty and in a full pool, memory, the fold, the invariants.

Both sides of each row are measured in this process by its CPU time, alternating, best of several rounds.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from controlplane.cluster.addressing.mac import vtep_mac
from controlplane.cluster.decide import AdvanceDrains, decide
from controlplane.cluster.evolve import HANDLERS, evolve
from controlplane.cluster.invariants import CHECKS
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.liveness import Liveness
from events.codec import decode_event
from events.protocol.commands import AppendCidr, DefineCluster, JoinNode, LeaveNode
from events.status import AgentStatus
from events.types import Event, NodeJoined, RangeAllocated

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RANGES = 65_536
CHURN_EVENTS, BLOCK = 100_000, 2_000
MEMORY_NODES = 100_000
MEMORY_LIMIT_MB = 200
ROUNDS = 11
Stored = tuple[int, tuple[str, bytes]]
"""Sequence, and type and body of an event."""


def _best(*functions: Callable[[], object], rounds: int = ROUNDS) -> list[float]:
    """CPU seconds of the fastest round of each function, in turn, so that a busy moment hits all."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for position, function in enumerate(functions):
            gc.collect()
            started = time.process_time()
            function()
            best[position] = min(best[position], time.process_time() - started)
    return best


def _row(
    name: str, ours: float, baseline: float, unit: str, target: float | None, better: str
) -> dict[str, Any]:
    ratio = ours / baseline
    met = target is None or (ratio >= target if better == "higher" else ratio <= target)
    return {
        "name": name,
        "ours": ours,
        "baseline": baseline,
        "unit": unit,
        "ratio": ratio,
        "target": target,
        "better": better,
        "ok": met,
    }


def _apply(state: ClusterState, command: Any, now: datetime = NOW) -> tuple[Event, ...]:
    decision = decide(state, command, now)
    if decision.refusal is not None:
        raise decision.refusal
    for event in decision.events:
        evolve(state, state.sequence + 1, event)
    return decision.events


def _address(number: int) -> str:
    return f"198.{18 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


def _pool(ranges: int) -> ClusterState:
    """A cluster of exactly ``ranges`` ranges, none taken."""
    state = ClusterState("bench")
    _apply(state, DefineCluster(container_cidr="10.0.0.0/10", pods_per_node=64, services=64))
    missing = ranges - state.capacity
    if missing > 0:
        _apply(state, AppendCidr(cidr=f"10.128.0.0/{32 - (missing * 64 - 1).bit_length()}"))
    return state


def _occupy(state: ClusterState, count: int) -> None:
    """Give ``count`` ranges to nodes by events, as a fold would."""
    for number in range(count):
        index = state.pool.next_free(state.pool.cursor)
        assert index is not None
        name, uid = f"node-{number}.site.example.com", f"0b5c{number:08x}-7d1e-4c5a-9b1f-{number:012x}"
        address = _address(number)
        joined = NodeJoined(
            node=name,
            uid=uid,
            kind="external",
            underlay=address,
            announced=address,
            vtep_mac=vtep_mac(uid),
            site="site",
        )
        cidr = f"10.{index >> 10}.{index >> 2 & 255}.{(index & 3) * 64}/26"
        allocated = RangeAllocated(
            cidr=cidr, index=index, node=name, uid=uid, cursor_after=(index + 1) % state.capacity
        )
        # As from the log: no string is shared between two events.
        for event in (joined, allocated):
            stored = decode_event(event.type_name(), msgspec.json.encode(event), 0)
            evolve(state, state.sequence + 1, stored)


def _full_pool() -> dict[str, Any]:
    """The decision of one more join: in an empty pool, and where 65 of 65,536 ranges are free."""
    empty, full = _pool(RANGES), _pool(RANGES)
    _occupy(full, full.capacity - full.capacity // 1000)
    join = JoinNode(node="newcomer", uid="newcomer", kind="cloud", underlay="203.0.113.9")
    # From everywhere in the ring, so that most searches cross many full chunks.
    starts = [(number * 7919) % full.capacity for number in range(1500)]

    def joins(state: ClusterState) -> None:
        for start in starts:
            state.pool.cursor = start
            if decide(state, join, NOW).refusal is not None:
                raise AssertionError("there are free ranges")

    first_s, last_s = _best(lambda: joins(empty), lambda: joins(full))
    count = len(starts)
    name = f"join in a pool of {full.capacity:,} ranges that is 99.9 % full, against an empty one"
    return _row(name, last_s / count * 1e6, first_s / count * 1e6, "µs", 3.0, "lower")


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LookupError("VmRSS")


def _memory() -> dict[str, Any]:
    """Resident memory of 100,000 members with their ranges and their agents' last reports."""
    gc.collect()
    before = _resident_mb()
    state = ClusterState("bench")
    _apply(state, DefineCluster(container_cidr="10.0.0.0/8", pods_per_node=64, services=64))
    _occupy(state, MEMORY_NODES)
    liveness = Liveness()
    for uid, name in state.by_uid.items():
        report = AgentStatus(node=name, uid=uid, applied=state.sequence, sent_at=NOW, kernel_digest="0" * 64)
        liveness.observe(msgspec.json.decode(msgspec.json.encode(report), type=AgentStatus))
    gc.collect()
    used = _resident_mb() - before
    if len(state.nodes) != MEMORY_NODES:
        raise AssertionError("not all nodes joined")
    name = f"memory for {MEMORY_NODES:,} nodes, their ranges and last reports"
    return _row(name, used, float(MEMORY_LIMIT_MB), "MB", 1.0, "lower")


def churn_history(events: int) -> list[tuple[str, bytes]]:
    """A log of joins, leaves, drains and frees among 2,000 nodes: (type, stored body) each."""
    state = ClusterState("bench")
    log = list(
        _apply(
            state, DefineCluster(container_cidr="10.0.0.0/10", pods_per_node=64, services=64, quarantine_s=5)
        )
    )
    live: deque[int] = deque()
    number, now = 0, NOW
    while len(log) < events:
        now += timedelta(seconds=0.1)
        join = JoinNode(
            node=f"n{number}", uid=f"uid-{number}", kind="cloud", underlay=_address(number % 120_000)
        )
        log += _apply(state, join, now)
        live.append(number)
        if len(live) > 2000:
            gone = live.popleft()
            log += _apply(state, LeaveNode(node=f"n{gone}", uid=f"uid-{gone}"), now)
        if number % 50 == 0:
            log += _apply(state, AdvanceDrains(applied=dict.fromkeys(state.by_uid, state.sequence)), now)
        number += 1
    return [(event.type_name(), msgspec.json.encode(event)) for event in log[:events]]


def _calmest(*functions: Callable[[], Callable[[Sequence[Stored]], None]]) -> list[float]:
    """CPU seconds of each function over the whole history: of each BLOCK of it the fastest of ROUNDS.

    A busy moment of the machine is shorter than a history; the longer of two runs would seldom miss it.
    """
    raw = list(enumerate(churn_history(CHURN_EVENTS), 1))
    blocks = [raw[start : start + BLOCK] for start in range(0, len(raw), BLOCK)]
    best = [[float("inf")] * len(blocks) for _ in functions]
    for _ in range(ROUNDS):
        for calmest, begin in zip(best, functions, strict=True):
            function = begin()
            gc.collect()
            for place, block in enumerate(blocks):
                started = time.process_time()
                function(block)
                calmest[place] = min(calmest[place], time.process_time() - started)
    return [sum(calmest) for calmest in best]


def _folds() -> list[dict[str, Any]]:
    handlers, checks = HANDLERS, CHECKS.get

    def decoder() -> Callable[[Sequence[Stored]], None]:
        def decode(events: Sequence[Stored]) -> None:
            for sequence, (name, body) in events:
                decode_event(name, body, sequence)

        return decode

    def folder() -> Callable[[Sequence[Stored]], None]:
        state = ClusterState("bench")

        def fold(events: Sequence[Stored]) -> None:
            for sequence, (name, body) in events:
                event = decode_event(name, body, sequence)
                handlers[type(event)](state, sequence, event)

        return fold

    def checker() -> Callable[[Sequence[Stored]], None]:
        state = ClusterState("bench")

        def fold_checked(events: Sequence[Stored]) -> None:
            for sequence, (name, body) in events:
                event = decode_event(name, body, sequence)
                check = checks(type(event))
                if check is not None and check(state, event) is not None:
                    raise AssertionError("an honest log")
                handlers[type(event)](state, sequence, event)

        return fold_checked

    decode_s, fold_s, checked_s = _calmest(decoder, folder, checker)
    count = CHURN_EVENTS
    return [
        _row(
            "fold of stored events, against decoding them",
            count / fold_s,
            count / decode_s,
            "events/s",
            0.3,
            "higher",
        ),
        _row(
            "fold with every invariant checked at every sequence, against the fold",
            count / checked_s,
            count / fold_s,
            "events/s",
            0.4,
            "higher",
        ),
    ]


def run() -> list[dict[str, Any]]:
    """All rows. Memory first, while the process is small."""
    return [_memory(), _full_pool(), *_folds()]
