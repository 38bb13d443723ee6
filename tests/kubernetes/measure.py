"""Measures the bridge with many Nodes: ``python -m tests.kubernetes.measure [NODES]``; some minutes.

The API server is the tests' own, in this process; the bridge has a process of its own, so that its memory and
CPU time are its own. Nodes are as large as real ones (8 KB: images, conditions, labels).
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.bridge import Bridge
from tests.kubernetes.apiserver import KEPT, ApiServer
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
    running = asyncio.create_task(Bridge(client, table, instance="m").run())
    while await reader.readline():
        print(json.dumps(used()), flush=True)
    running.cancel()
    await asyncio.wait({running})
    await client.close()


async def main(nodes: int) -> None:
    server = ApiServer()
    for number in range(nodes):
        node = server.add(f"n{number}")
        node["status"]["images"] = [{"names": ["x" * 100], "sizeBytes": 1}] * (NODE_BYTES // 130)
    with tempfile.TemporaryDirectory() as folder:
        async with server.serving(Path(folder)) as kubeconfig:
            begin = time.monotonic()
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.kubernetes.measure", str(kubeconfig), str(nodes),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert child.stdin is not None
            assert child.stdout is not None

            async def asked() -> tuple[float, int]:
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(b"\n")
                cpu, memory = json.loads(await child.stdout.readline())
                return float(cpu), int(memory)

            def done() -> bool:
                return all(server.network(name) == ("False", "IsthmusIsUp") for name in server.nodes)

            await until(done, within_s=600)
            synced = time.monotonic() - begin
            cpu, memory = await asked()
            print(f"{nodes:,} Nodes of {NODE_BYTES:,} bytes: listed, watched and patched in {synced:.1f} s, "
                  f"{cpu:.1f} s of CPU, {memory} MiB")  # fmt: skip
            await asyncio.sleep(QUIET_S)
            before, _ = await asked()
            for first in range(0, nodes, KEPT // 2):
                for number in range(first, min(nodes, first + KEPT // 2)):
                    server.heartbeat(f"n{number}")
                await asyncio.sleep(PACE_S)
            patches = len(server.patches)
            await asyncio.sleep(QUIET_S)
            after, memory = await asked()
            share = (after - before) / STATUS_S * 100
            followed = len(server.patches) - patches
            print(f"{nodes:,} heartbeats: {after - before:.2f} s of CPU, {memory} MiB")
            print(f"one each {STATUS_S} s: {share:.1f} % of a core; {followed} patches followed")
            child.stdin.close()
            await child.wait()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(bridge(Path(sys.argv[1]), int(sys.argv[2])))
    else:
        asyncio.run(main(int(sys.argv[1]) if len(sys.argv) == 2 else 5_000))
