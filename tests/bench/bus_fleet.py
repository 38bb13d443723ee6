"""Many agents' connections in a few processes: the other end of the bus benchmarks.

    python -m tests.bench.bus_fleet URL CLUSTER COUNT connected|plain|live|both|ordered

Prints ``ready`` when all are connected and level with the log. ``live`` agents read as ours do,
``both`` ones also hear plain messages on ``bench.plain``; ``ordered`` ones have nats-py's ordered
consumer each; ``plain`` ones only subscribe to the republished events, ``connected`` ones to nothing.
On a line on standard input it prints what arrived since the last:
``{"live": [[sequence, nanoseconds], …], "plain": …}`` by the system's monotonic clock, which is one
for all processes of a machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.client import Client
from nats.aio.msg import Msg

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.process import EmbeddedServer
from events.jetstream.live import LiveReader

PLAIN = "bench.plain"
AGENTS = 1000
PAUSE_S = 0.25
READY_LIMIT_S, PATIENCE_S = 300.0, 120
"""For a fleet to connect, and for one step of it, on a machine that others keep busy."""


async def main(url: str, cluster: str, count: int, kind: str) -> None:
    arrived: dict[str, list[tuple[int, int]]] = {"live": [], "plain": []}
    tasks = []
    levels = []

    async def on_plain(message: Msg) -> None:
        arrived["plain"].append((int((message.headers or {})["n"]), time.monotonic_ns()))

    async def on_ordered(message: Msg) -> None:
        arrived["live"].append((int(message.reply.split(".")[5]), time.monotonic_ns()))

    async def on_republished(message: Msg) -> None:
        arrived["live"].append((int((message.headers or {})["Nats-Sequence"]), time.monotonic_ns()))

    async def follow(client: Client, level: asyncio.Event) -> None:
        async for batch in LiveReader(client, cluster).read(follow=True):
            now = time.monotonic_ns()
            arrived["live"] += [(message.sequence, now) for message in batch.messages]
            if batch.pending == 0:
                level.set()

    for number in range(count):
        client = await connect(BusOptions(servers=(url,), connect_timeout_s=PATIENCE_S), name=f"agent-{number}")
        if kind in {"live", "both"}:
            level = asyncio.Event()
            levels.append(level)
            tasks.append(asyncio.create_task(follow(client, level)))
        if kind == "both":
            await client.subscribe(PLAIN, cb=on_plain)
        elif kind == "plain":
            await client.subscribe(subjects.live_wildcard(cluster), cb=on_republished)
        elif kind == "ordered":
            await client.jetstream(timeout=PATIENCE_S).subscribe(
                subjects.events_wildcard(cluster), ordered_consumer=True, cb=on_ordered
            )
        await client.flush(timeout=PATIENCE_S)
    for level in levels:
        await level.wait()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(arrived), flush=True)
        for each in arrived.values():
            each.clear()
    for task in tasks:
        task.cancel()


@dataclass
class Fleet:
    """The processes, from the benchmark's side."""

    server: EmbeddedServer
    processes: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def launch(self, cluster: str, kind: str, agents: int, processes: int = 4) -> None:
        """Returns when all agents are ready."""
        for _ in range(processes):
            self.processes.append(
                await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "tests.bench.bus_fleet"),
                    *(self.server.url, cluster, str(agents // processes), kind),
                    cwd=Path(__file__).parents[2],
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    limit=64 * 1024 * 1024,
                )
            )
        for process in self.processes:
            assert process.stdout is not None
            line = await asyncio.wait_for(process.stdout.readline(), READY_LIMIT_S)
            if line != b"ready\n":
                raise RuntimeError(f"a fleet's process said {line!r}")

    async def arrivals(self) -> dict[str, dict[int, list[int]]]:
        """Kind → message number → when it arrived at each agent (monotonic nanoseconds)."""
        gathered: dict[str, dict[int, list[int]]] = {"live": {}, "plain": {}}
        for process in self.processes:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"\n")
            answer = json.loads(await asyncio.wait_for(process.stdout.readline(), PATIENCE_S))
            for kind, pairs in answer.items():
                for number, moment in pairs:
                    gathered[kind].setdefault(number, []).append(moment)
        return gathered

    async def end(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                process.kill()
        for process in self.processes:
            await process.wait()
        self.processes.clear()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
