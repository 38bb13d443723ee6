"""What an agent costs the server, of 1,000 agents each.

That are merely connected; that get the messages by plain subscription; that read as ours do; that have an
ordered consumer each. All get the same events at the same pace. What TCP and the delivery of the bytes cost
is the same for every design with a connection per agent, and is shown by itself; the target is for what
following the log costs beyond that. Memory is measured with an eager garbage collector (GOGC=10), so that
it is what is used and not what has yet to be collected; CPU with the default one.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.log import JetStreamLog
from tests.bench.bus_fleet import AGENTS, PAUSE_S, Fleet
from tests.bench.processes import cpu_s
from tests.contract.samples import CLUSTER, sealed

EVENTS = 150
IDLE_S = 10
ROUNDS = 3
"""In turn: of the CPU time the least counts, since others can only add."""

SETTLED_S = 35
"""After it, our readers ask for the log's end as seldom as they do for the rest of their lives."""

KINDS = ("connected", "plain", "ordered", "live")


def run() -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    return asyncio.run(_run())


def _memory_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def _run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as directory:
        spent_s = dict.fromkeys(KINDS, float("inf"))
        for turn in range(ROUNDS):
            for kind in KINDS:
                spent_s[kind] = min(spent_s[kind], await _cpu(Path(directory) / f"cpu-{kind}-{turn}", kind))
        memory = {kind: await _memory(Path(directory) / f"memory-{kind}", kind) for kind in KINDS}
    return [
        *_cost_rows("memory", "KiB/agent", {kind: size / AGENTS / 1024 for kind, size in memory.items()}),
        *_cost_rows(
            "CPU", "µs/agent/event", {kind: used / AGENTS / EVENTS * 1e6 for kind, used in spent_s.items()}
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
    """CPU seconds of the server for EVENTS events to AGENTS agents, and IDLE_S of nothing."""
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
            for number in range(1, EVENTS + 1):
                messages, head = sealed(head, 1)
                await log.append(messages, expected=number - 1)
                await asyncio.sleep(PAUSE_S / 8)
            got = 0
            while kind != "connected" and got < AGENTS * EVENTS:
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
