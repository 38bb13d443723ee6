"""Measures the bridge with many Nodes: ``python -m tests.kubernetes.measure [NODES]``; some minutes.

The API server is the one of KUBEBUILDER_ASSETS, or else the tests' own, in this process; the bridge has a
process of its own, so that its memory and CPU time are its own. Nodes are as large as real ones (8 KB: images,
conditions, labels).
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.bridge import Bridge
from tests.kubernetes.apiserver import KEPT, ApiServer
from tests.kubernetes.real import ASSETS, serving
from tests.kubernetes.table import Table
from tests.waiting import until

NODE_BYTES = 8_000
QUIET_S, PACE_S = 3.0, 1.0
"""What comes to rest between two measurements, and between two parts of the heartbeats."""
STATUS_S = 300
"""How often a kubelet writes an unchanged status (nodeStatusReportFrequency); leases carry its heartbeat."""


def used() -> tuple[float, int]:
    """CPU seconds, and the largest resident memory in MiB, of this process so far."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime + found.ru_stime, found.ru_maxrss // 1024


async def bridge(kubeconfig: Path, nodes: int) -> None:
    """The other process: begins at once, then answers each line of its input with what it used since."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    table = Table()
    for number in range(nodes):
        table.say(f"n{number}", number)
    table.names = asyncio.Queue()
    client = await KubernetesClient.open(kubeconfig)
    made = Bridge(client, table, instance="m")
    running = asyncio.create_task(made.run())
    while line := await reader.readline():
        if line == SYNCED:
            await until(lambda: made.written >= nodes, within_s=600)
        print(json.dumps([*used(), made.written]), flush=True)
    running.cancel()
    await asyncio.wait({running})
    await client.close()


SYNCED, NOW = b"synced\n", b"now\n"
"""What the other process is asked: once all Nodes were written, or at once."""
IMAGES = [{"names": ["x" * 100], "sizeBytes": 1}] * (NODE_BYTES // 130)
Beat = Callable[[int], Awaitable[None]]


@asynccontextmanager
async def ours(folder: Path, nodes: int) -> AsyncIterator[tuple[Path, Beat]]:
    """The tests' own API server with so many Nodes: access to it, and a heartbeat."""
    server = ApiServer()
    for number in range(nodes):
        server.add(f"n{number}")["status"]["images"] = IMAGES

    async def beat(number: int) -> None:
        server.heartbeat(f"n{number}")
        if number % (KEPT // 2) == 0:
            await asyncio.sleep(PACE_S)

    async with server.serving(folder) as kubeconfig:
        yield kubeconfig, beat


@asynccontextmanager
async def real(folder: Path, nodes: int) -> AsyncIterator[tuple[Path, Beat]]:
    """The same with a real one."""
    async with serving(folder) as server:

        async def make(number: int) -> None:
            await server.add(f"n{number}")
            await patch(number, {"images": IMAGES})

        async def patch(number: int, status: dict[str, Any]) -> None:
            code, said = await server.ask(
                "PATCH", f"/api/v1/nodes/n{number}/status", {"status": status},
                kind="application/strategic-merge-patch+json",
            )  # fmt: skip
            assert code == 200, said

        async def beat(number: int) -> None:
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            await patch(
                number, {"conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": moment}]}
            )

        await many(nodes, make)
        yield server.kubeconfig(), beat


async def many(count: int, do: Beat, at_once: int = 16) -> None:
    """So many calls, some at a time."""
    numbers = iter(range(count))

    async def some() -> None:
        for number in numbers:
            await do(number)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(at_once):
            tasks.create_task(some())


async def main(nodes: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with (real if ASSETS else ours)(Path(folder), nodes) as (kubeconfig, beat):
            begin = time.monotonic()
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.kubernetes.measure", str(kubeconfig), str(nodes),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert child.stdin is not None
            assert child.stdout is not None

            async def asked(when: bytes = NOW) -> tuple[float, int, int]:
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(when)
                cpu, memory, written = json.loads(await child.stdout.readline())
                return float(cpu), int(memory), int(written)

            cpu, memory, _ = await asked(SYNCED)
            synced = time.monotonic() - begin
            print(f"{nodes:,} Nodes of {NODE_BYTES:,} bytes: listed, watched and patched in {synced:.1f} s, "
                  f"{cpu:.1f} s of CPU, {memory} MiB")  # fmt: skip
            await asyncio.sleep(QUIET_S)
            before, _, written = await asked()
            await many(nodes, beat)
            await asyncio.sleep(QUIET_S)
            after, memory, now = await asked()
            share = (after - before) / STATUS_S * 100
            print(f"{nodes:,} heartbeats: {after - before:.2f} s of CPU, {memory} MiB")
            print(f"one each {STATUS_S} s: {share:.1f} % of a core; {now - written} Nodes were written again")
            child.stdin.close()
            await child.wait()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(bridge(Path(sys.argv[1]), int(sys.argv[2])))
    else:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) == 2 else 5_000))
