"""Joins through the whole service, against the bare atomic batches that they end in.

Baseline: the very messages that the service stored, published again into a second stream on the
same server by the log's own append in full batches of 1,000, from one process that does nothing
else. Ours: concurrent clients in another process, each waiting for its own answer; the controller
in a third, with its read model, chain verification and everything else switched on. Each ratio is the median
of several, each compared with the baseline that follows it: a single one says more about the machine.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.codec import OutgoingMessage
from events.jetstream.log import JetStreamLog
from events.protocol.commands import DefineCluster, ImportNodes
from tests.bench.processes import cpu_s
from tests.bench.service_load import join

JOINS = 12_000
CONCURRENCY = 1024
IMPORTED = 10_000
LINES = 250
"""Nodes per import request: two of them fill one append of 1,000 events."""
PIPELINE = 8
"""Requests on their way at once."""
ROUNDS = {"joins": 5, "bulk": 7}
"""Each into a cluster of its own, and each followed by its baseline."""
CLUSTERS = {kind: [f"{kind}{n}" for n in range(rounds)] for kind, rounds in ROUNDS.items()}
CIDRS = {name: f"10.{16 * place}.0.0/12" for place, name in enumerate([*CLUSTERS["joins"], *CLUSTERS["bulk"]])}


class Service(NamedTuple):
    """A controller with a defined cluster: a client of it, and its process."""

    client: ControllerClient
    pid: int


class Compared(NamedTuple):
    """Joins or an import, and their baseline: messages per second, and CPU seconds of all who took part but the
    clients."""

    ours: float
    raw: float
    ours_cpu_s: float
    raw_cpu_s: float


@asynccontextmanager
async def service(server: EmbeddedServer, cluster: str, data: Path) -> AsyncIterator[Service]:
    """A controller process."""
    program = Path(sys.executable).parent / "isthmus"
    command = [str(program), "controller", "--bus", server.url, "--cluster", cluster, "--data", str(data)]
    child = await asyncio.create_subprocess_exec(
        *command, "--json", "--log-level", "error", stdout=subprocess.PIPE
    )
    client = await connect(BusOptions(servers=(server.url,)), name="bench")
    try:
        assert child.stdout is not None
        await child.stdout.readline()
        controller = ControllerClient(client, cluster, actor="bench")
        await controller.send(DefineCluster(container_cidr=CIDRS[cluster], pods_per_node=64, services=4096))
        yield Service(controller, child.pid)
    finally:
        await client.close()
        child.terminate()
        await child.wait()


async def stored(server: EmbeddedServer, cluster: str) -> list[OutgoingMessage]:
    """What the service wrote, without what the server added."""
    client = await connect(BusOptions(servers=(server.url,)), name="bench")
    try:
        log = await JetStreamLog.open(client, cluster)
        return [
            OutgoingMessage(
                message.subject,
                {k: v for k, v in message.headers.items() if not k.startswith(("Nats-Batch", "Nats-Expected"))},
                message.body,
            )
            async for batch in log.read()
            for message in batch.messages
        ]
    finally:
        await client.close()


async def raw(server: EmbeddedServer, cluster: str, source: str, messages: list[OutgoingMessage]) -> float:
    """Messages per second of the same messages in full atomic batches, in a stream of their own.

    The last batch may be smaller, as the service's own.
    """
    client = await connect(BusOptions(servers=(server.url,)), name="bench-raw")
    try:
        log = await JetStreamLog.open(client, cluster, create=True)
        same = [m._replace(subject=m.subject.replace(f".{source}.", f".{cluster}.", 1)) for m in messages]
        started = time.perf_counter()
        for at in range(0, len(same), 1000):
            batch = same[at : at + 1000]
            await log.append(batch, expected=at, timeout_s=30)
        return len(same) / (time.perf_counter() - started)
    finally:
        await client.close()


async def joins(server: EmbeddedServer, cluster: str, data: Path) -> Compared:
    """Joins by many clients, and their messages again in raw batches. Prints the load generator's report."""
    assert server.pid is not None
    async with service(server, cluster, data) as (_, pid):
        before = cpu_s(pid) + cpu_s(server.pid)
        command = [sys.executable, "-m", "tests.bench.service_load", server.url, cluster]
        child = await asyncio.create_subprocess_exec(
            *command, str(JOINS), str(CONCURRENCY), stdout=subprocess.PIPE
        )
        out, _ = await child.communicate()
        if child.returncode:
            raise RuntimeError("the load generator failed")
        ours_cpu_s = cpu_s(pid) + cpu_s(server.pid) - before
    report = json.loads(out)
    print(report, file=sys.stderr)
    messages = await stored(server, cluster)
    before = time.process_time() + cpu_s(server.pid)
    baseline = await raw(server, f"raw-{cluster}", cluster, messages)
    spent = time.process_time() + cpu_s(server.pid) - before
    return Compared(report["joins_per_s"] * 2, baseline, ours_cpu_s, spent)


async def imported(server: EmbeddedServer, cluster: str, data: Path) -> Compared:
    """An import of 10,000 nodes, and at once its messages again in raw batches."""
    assert server.pid is not None
    async with service(server, cluster, data) as (controller, pid):
        parts = [
            ImportNodes(nodes=tuple(join(n) for n in range(start, min(start + LINES, IMPORTED))))
            for start in range(0, IMPORTED, LINES)
        ]
        window = asyncio.Semaphore(PIPELINE)

        async def one(part: ImportNodes) -> None:
            async with window:
                await controller.send(part, timeout_s=60, try_timeout_s=30)

        before, started = cpu_s(pid) + cpu_s(server.pid), time.perf_counter()
        await asyncio.gather(*[one(part) for part in parts])
        ours = IMPORTED * 2 / (time.perf_counter() - started)
        ours_cpu_s = cpu_s(pid) + cpu_s(server.pid) - before
    messages = await stored(server, cluster)
    before = time.process_time() + cpu_s(server.pid)
    baseline = await raw(server, f"raw-{cluster}", cluster, messages)
    return Compared(ours, baseline, ours_cpu_s, time.process_time() + cpu_s(server.pid) - before)


def rows(name: str, written: int, rounds: list[Compared], target: float) -> list[dict[str, Any]]:
    """Two lines of the table for ``written`` messages a round: by the clock, and by CPU time.

    Another program on the machine slows a round and its baseline alike, so each pair is compared by itself.
    """

    def line(
        what: str, unit: str, ours: list[float], baseline: list[float], target: float | None
    ) -> dict[str, Any]:
        ratio = statistics.median(one / other for one, other in zip(ours, baseline, strict=True))
        return {
            "name": what,
            "ours": statistics.median(ours),
            "baseline": statistics.median(baseline),
            "unit": unit,
            "ratio": ratio,
            "target": target,
            "better": "higher",
            "ok": target is None or ratio >= target,
        }

    return [
        line(name, "messages/s", [each.ours for each in rounds], [each.raw for each in rounds], target),
        line(
            f"{name}, by CPU time of controller and bus",
            "messages/CPU s",
            [written / each.ours_cpu_s for each in rounds],
            [written / each.raw_cpu_s for each in rounds],
            None,
        ),
    ]


async def _run() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as directory:
        base = Path(directory)
        (base / "jetstream").mkdir()
        async with EmbeddedServer(ServerOptions(store_dir=base / "jetstream")) as server:
            joined = [await joins(server, name, base / name) for name in CLUSTERS["joins"]]
            imports = [await imported(server, name, base / name) for name in CLUSTERS["bulk"]]
    print(*joined, *imports, sep="\n", file=sys.stderr)
    through = f"joins through the service ({CONCURRENCY} clients), stored"
    return [
        *rows(through, JOINS * 2, joined, 0.5),
        *rows(f"bulk import of {IMPORTED:,} nodes, stored", IMPORTED * 2, imports, 0.65),
    ]


def run() -> list[dict[str, Any]]:
    """Joins and imports."""
    return asyncio.run(_run())
