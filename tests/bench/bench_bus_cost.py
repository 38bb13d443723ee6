"""What an agent costs the server, of 1,000 agents each.

That are merely connected; that get the messages by plain subscription; that read as ours do; that have an
ordered consumer each. Each kind has a server of its own, and all are there at the same time: in each round
they get the same events at the same pace, kind by kind, and then all are left alone. What TCP and the delivery
of the bytes cost is the same for every design with a connection per agent, and is shown by itself; the target
is for what following the log costs beyond that.

Memory is what the server's Go runtime has in use (objects and stacks) behind a garbage collection that is
asked for, so that it is what is used and not what has yet to be collected. CPU time is the server process's.
That of an event is what a round's events took beyond what the same time of nothing takes; heartbeats and
questions are counted for PACE_S of nothing an event, whatever the clock said: a machine that others slow down
counts no more of them. Of the rounds' ratios the median counts.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.log import JetStreamLog
from tests.bench.bus_fleet import AGENTS, PATIENCE_S, Fleet
from tests.bench.processes import cpu_s
from tests.contract.samples import CLUSTER, sealed
from tests.ports import free_ports

ROUNDS = 7
EVENTS = 20
"""Of one round, to each kind."""

PAUSE_S = 0.03
PACE_S = 0.1
"""An event every so many seconds: a large cluster in which nodes come and go."""

IDLE_S = 5.0
SETTLED_S = 35
"""After it, our readers ask for the log's end as seldom as they do for the rest of their lives."""

ARRIVAL_LIMIT_S = 120.0
KINDS = ("connected", "plain", "ordered", "live")


class Side:
    """One kind: its server, its log, its agents."""

    def __init__(self, kind: str, server: EmbeddedServer, profile_port: int) -> None:
        self.kind, self.server, self.fleet = kind, server, Fleet(server)
        self._profile = f"http://127.0.0.1:{profile_port}/debug/pprof/heap?gc=1&debug=1"

    async def open(self, stack: AsyncExitStack) -> None:
        """Begin the log, and launch the agents; both end with ``stack``."""
        self.client = await connect(BusOptions(servers=(self.server.url,)), name="bench")
        stack.push_async_callback(self.client.close)
        self.log = await JetStreamLog.open(self.client, CLUSTER, create=True)
        self.head = await self.log.head()
        before = await self._memory_bytes()
        stack.push_async_callback(self.fleet.end)
        await self.fleet.launch(CLUSTER, self.kind, AGENTS)
        self.memory = await self._memory_bytes() - before

    async def _memory_bytes(self) -> float:
        """Objects and stacks in use behind a garbage collection; the second frees what the first found."""
        for _ in range(2):
            text = await asyncio.to_thread(
                lambda: urllib.request.urlopen(self._profile, timeout=PATIENCE_S).read()
            )
        found = [re.search(pattern, text) for pattern in (rb"# HeapAlloc = (\d+)", rb"# Stack = (\d+) /")]
        return float(sum(int(match[1]) for match in found if match))

    def cpu_s(self) -> float:
        """CPU seconds of the server so far."""
        return cpu_s(self.server.pid)

    async def events(self) -> None:
        """EVENTS events, until every agent has them. Raises RuntimeError when some do not come."""
        for _ in range(EVENTS):
            before = self.head.sequence
            messages, self.head = sealed(self.head, 1)
            await self.log.append(messages, expected=before, timeout_s=PATIENCE_S)
            await asyncio.sleep(PAUSE_S)
        wanted, got = 0 if self.kind == "connected" else AGENTS * EVENTS, 0
        deadline = time.monotonic() + ARRIVAL_LIMIT_S
        while got < wanted:
            got += sum(len(moments) for moments in (await self.fleet.arrivals())["live"].values())
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"{self.kind}: {got} of {wanted} messages arrived within {ARRIVAL_LIMIT_S:g} s"
                )

    async def check(self) -> None:
        """Raises RuntimeError when the server does not have the consumers that belong to the kind."""
        info = await self.client.jetstream(timeout=PATIENCE_S).stream_info(subjects.stream(CLUSTER))
        expected = AGENTS if self.kind == "ordered" else 0
        if info.state.consumer_count != expected:
            raise RuntimeError(f"{self.kind}: {info.state.consumer_count} consumers, not {expected}")


class Spent(NamedTuple):
    """One round of one kind: microseconds of CPU time per agent, of one event and of a second of nothing."""

    event: float
    idle: float

    @property
    def both(self) -> float:
        """Of an event and the time until the next one."""
        return self.event + PACE_S * self.idle


def run() -> list[dict[str, Any]]:
    """The rows of this benchmark."""
    return asyncio.run(_run())


async def _run() -> list[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides = []
        for kind, port in zip(KINDS, free_ports(len(KINDS)), strict=True):
            options = ServerOptions(
                store_dir=directory / kind,
                extra=f'prof_port: {port}\nwrite_deadline: "{ARRIVAL_LIMIT_S:.0f}s"',
            )
            side = Side(kind, await stack.enter_async_context(EmbeddedServer(options)), port)
            await side.open(stack)
            sides.append(side)
        await asyncio.sleep(SETTLED_S)
        spent: dict[str, list[Spent]] = {kind: [] for kind in KINDS}
        for number in range(ROUNDS):
            for kind, one in (await _round(sides[number % 4 :] + sides[: number % 4])).items():
                spent[kind].append(one)
        for side in sides:
            await side.check()
        memory = {side.kind: [side.memory / AGENTS / 1024] for side in sides}
    return [
        *_cost_rows("memory", "KiB/agent", memory, 0.2),
        *_cost_rows(
            "CPU", "µs/agent/event", {kind: [one.both for one in rounds] for kind, rounds in spent.items()}, 0.2
        ),
        *_cost_rows(
            "idle CPU",
            "µs/agent/s",
            {kind: [one.idle for one in rounds] for kind, rounds in spent.items()},
            None,
        ),
    ]


async def _round(sides: Sequence[Side]) -> dict[str, Spent]:
    """Events to each kind in turn, then nothing."""
    busy: dict[str, tuple[float, float]] = {}
    for side in sides:
        started, before_s = time.monotonic(), side.cpu_s()
        await side.events()
        busy[side.kind] = side.cpu_s() - before_s, time.monotonic() - started
    started, before = time.monotonic(), [side.cpu_s() for side in sides]
    await asyncio.sleep(IDLE_S)
    lasted_s = time.monotonic() - started
    found = {}
    for side, before_s in zip(sides, before, strict=True):
        idle = (side.cpu_s() - before_s) / lasted_s
        used_s, took_s = busy[side.kind]
        found[side.kind] = Spent((used_s - idle * took_s) / AGENTS / EVENTS * 1e6, idle / AGENTS * 1e6)
    return found


def _cost_rows(
    what: str, unit: str, cost: dict[str, list[float]], target: float | None
) -> list[dict[str, Any]]:
    """``cost`` of each kind, round by round."""
    zeros = [0.0] * len(cost["plain"])
    rows = (
        ("beyond a plain subscription", cost["live"], cost["plain"], cost["plain"], target),
        ("in all, with connection and delivery", cost["live"], zeros, zeros, None),
        ("of the connection and delivery alone", cost["plain"], zeros, zeros, None),
        ("of the idle connection alone", cost["connected"], zeros, zeros, None),
    )
    found = []
    for part, ours, less, theirs_less, bound in rows:
        mine = [max(0.0, one - other) for one, other in zip(ours, less, strict=True)]
        theirs = [one - other for one, other in zip(cost["ordered"], theirs_less, strict=True)]
        ratio = statistics.median(one / other for one, other in zip(mine, theirs, strict=True))
        found.append({
            "name": f"bus: server {what} per agent {part}, against an ordered consumer",
            "ours": statistics.median(mine),
            "baseline": statistics.median(theirs),
            "unit": unit,
            "ratio": ratio,
            "target": bound,
            "better": "lower",
            "ok": bound is None or ratio <= bound,
        })  # fmt: skip
    return found
