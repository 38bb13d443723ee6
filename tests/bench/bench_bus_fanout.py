"""One event to 1,000 connected agents, and what an agent costs the server.

Fan-out: the same bytes go out as an event (stored, synced, republished, put in order by each
agent's reader) and as a plain NATS message, turn by turn, to the same processes, in several rounds of which the
median ratio counts: another program that runs for a second decides a round's p99. Cost, of 1,000
agents each: that are merely connected; that get the messages by plain subscription; that read as
ours do; that have an ordered consumer each. All get the same events at the same pace. What TCP and
the delivery of the bytes cost is the same for every design with a connection per agent, and is shown
by itself; the target is for what following the log costs beyond that. Memory is measured with an
eager garbage collector (GOGC=10), so that it is what is used and not what has yet to be collected;
CPU with the default one.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.log import JetStreamLog
from tests.bench.bus_fleet import PLAIN, Fleet
from tests.bench.processes import cpu_s
from tests.contract.samples import CLUSTER, sealed

AGENTS = 1000
EVENTS = 40
COST_EVENTS = 150
IDLE_S = 10
ROUNDS = 3
"""Of the fan-out, and of the CPU's cost, in turn: of that the least counts, since others can only add."""

SETTLED_S = 35
"""After it, our readers ask for the log's end as seldom as they do for the rest of their lives."""

KINDS = ("connected", "plain", "ordered", "live")
PAUSE_S = 0.25


class Delays(NamedTuple):
    """After how many milliseconds an event of the log and a plain message had come."""

    live_ms: float
    plain_ms: float


def run() -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    return asyncio.run(_run())


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def _memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        rounds = [await _fan_out(Path(directory) / f"fan-out-{turn}") for turn in range(ROUNDS)]
        print(rounds, file=sys.stderr)
        spent_s = dict.fromkeys(KINDS, float("inf"))
        for turn in range(ROUNDS):
            for kind in KINDS:
                spent_s[kind] = min(spent_s[kind], await _cpu(Path(directory) / f"cpu-{kind}-{turn}", kind))
        memory = {kind: await _memory(Path(directory) / f"memory-{kind}", kind) for kind in KINDS}
    return [
        *_fan_out_rows(rounds),
        *_cost_rows("memory", "KiB/agent", {kind: size / AGENTS / 1024 for kind, size in memory.items()}),
        *_cost_rows(
            "CPU", "µs/agent/event", {kind: used / AGENTS / COST_EVENTS * 1e6 for kind, used in spent_s.items()}
        ),
    ]


def _cost_rows(what: str, unit: str, cost: dict[str, float]) -> list[dict[str, Any]]:
    ordered, plain = cost["ordered"], cost["plain"]
    rows = (
        ("beyond a plain subscription", max(0.0, cost["live"] - plain), ordered - plain, 0.2),
        ("in all, with connection and delivery", cost["live"], ordered, None),
        ("of the connection and delivery alone", plain, ordered, None),
        ("of the idle connection alone", cost["connected"], ordered, None),
    )
    return [
        {
            "name": f"bus: server {what} per agent {part}, against an ordered consumer",
            "ours": ours,
            "baseline": theirs,
            "unit": unit,
            "ratio": ours / theirs,
            "target": target,
            "better": "lower",
            "ok": target is None or ours / theirs <= target,
        }
        for part, ours, theirs, target in rows
    ]


def _fan_out_rows(rounds: list[dict[float, Delays]]) -> list[dict[str, Any]]:
    """The round in the middle, by ratio."""
    rows = []
    for share, target in ((0.99, 1.3), (0.5, None)):
        delays = sorted((each[share] for each in rounds), key=lambda found: found.live_ms / found.plain_ms)
        live_ms, plain_ms = delays[len(delays) // 2]
        rows.append(
            {
                "name": f"bus: one event to {AGENTS} agents, p{share * 100:g}, against plain NATS fan-out",
                "ours": live_ms,
                "baseline": plain_ms,
                "unit": "ms",
                "ratio": live_ms / plain_ms,
                "target": target,
                "better": "lower",
                "ok": target is None or live_ms / plain_ms <= target,
            }
        )
    return rows


async def _fan_out(directory: Path) -> dict[float, Delays]:
    """Of one round: share of the arrivals → after how long they had come."""
    async with EmbeddedServer(ServerOptions(store_dir=directory)) as server:
        client = await connect(BusOptions(servers=(server.url,)), name="bench")
        log = await JetStreamLog.open(client, CLUSTER, create=True)
        head = await log.head()
        fleet = Fleet(server)
        try:
            await fleet.launch(CLUSTER, "both", AGENTS)
            sent: dict[str, dict[int, int]] = {"live": {}, "plain": {}}
            for number in range(1, EVENTS + 1):
                messages, head = sealed(head, 1)
                sent["live"][number] = time.monotonic_ns()
                await log.append(messages, expected=number - 1)
                await asyncio.sleep(PAUSE_S)
                headers = {**messages[0].headers, "n": str(number)}
                sent["plain"][number] = time.monotonic_ns()
                await client.publish(PLAIN, messages[0].body, headers=headers)
                await client.flush()
                await asyncio.sleep(PAUSE_S)
            arrivals = await _all_arrivals(fleet)
        finally:
            await fleet.end()
            await client.close()
    delays: dict[str, list[float]] = {}
    for kind, by_number in arrivals.items():
        delays[kind] = [
            (moment - sent[kind][number]) / 1e6
            for number, moments in by_number.items()
            if number > 5  # the first ones warm everything up
            for moment in moments
        ]
    return {
        share: Delays(_percentile(delays["live"], share), _percentile(delays["plain"], share))
        for share in (0.99, 0.5)
    }


async def _all_arrivals(fleet: Fleet) -> dict[str, dict[int, list[int]]]:
    """Wait until every message has come to every agent, once."""
    gathered: dict[str, dict[int, list[int]]] = {"live": {}, "plain": {}}
    async with asyncio.timeout(60):
        while True:
            for kind, by_number in (await fleet.arrivals()).items():
                for number, moments in by_number.items():
                    gathered[kind].setdefault(number, []).extend(moments)
            counts = {len(moments) for by_number in gathered.values() for moments in by_number.values()}
            if counts == {AGENTS} and all(len(by_number) == EVENTS for by_number in gathered.values()):
                return gathered
            if max(counts) > AGENTS:
                raise RuntimeError(f"a message came {max(counts)} times to {AGENTS} agents")
            await asyncio.sleep(PAUSE_S)


async def _memory(directory: Path, kind: str) -> float:
    """Bytes that the server grew by for AGENTS agents."""
    options = ServerOptions(store_dir=directory)
    async with EmbeddedServer(options, environment={"GOGC": "10"}) as server:
        client = await connect(BusOptions(servers=(server.url,)), name="bench")
        await JetStreamLog.open(client, CLUSTER, create=True)
        before = _memory_bytes(server.pid)
        fleet = Fleet(server)
        try:
            await fleet.launch(CLUSTER, kind, AGENTS)
            return float(_memory_bytes(server.pid) - before)
        finally:
            await fleet.end()
            await client.close()


async def _cpu(directory: Path, kind: str) -> float:
    """CPU seconds of the server for COST_EVENTS events to AGENTS agents, and IDLE_S of nothing."""
    async with EmbeddedServer(ServerOptions(store_dir=directory)) as server:
        client = await connect(BusOptions(servers=(server.url,)), name="bench")
        log = await JetStreamLog.open(client, CLUSTER, create=True)
        head = await log.head()
        fleet = Fleet(server)
        try:
            await fleet.launch(CLUSTER, kind, AGENTS)
            if kind == "live":
                await asyncio.sleep(SETTLED_S)
            before_s = cpu_s(server.pid)
            for number in range(1, COST_EVENTS + 1):
                messages, head = sealed(head, 1)
                await log.append(messages, expected=number - 1)
                await asyncio.sleep(PAUSE_S / 8)
            got = 0
            while kind != "connected" and got < AGENTS * COST_EVENTS:
                got += sum(len(moments) for moments in (await fleet.arrivals())["live"].values())
            await asyncio.sleep(IDLE_S)  # heartbeats and checks cost too
            info = await client.jetstream().stream_info(subjects.stream(CLUSTER))
            expected = AGENTS if kind == "ordered" else 0
            if info.state.consumer_count != expected:
                raise RuntimeError(f"{kind}: {info.state.consumer_count} consumers, not {expected}")
            return cpu_s(server.pid) - before_s
        finally:
            await fleet.end()
            await client.close()
