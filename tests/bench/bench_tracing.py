"""What tracing costs the command path: the same joins with telemetry as shipped, and with none.

One server, one load generator, fresh controllers in turn: telemetry off (``OTEL_SDK_DISABLED``), as
shipped (the default sampler, the built-in store, the metrics), and every command traced. Throughput on
a shared machine is noisy by more than what is looked for, so the kinds are interleaved, and what is judged
is how many joins the controller does in a second of its own CPU time: the mean of the three cheapest of many
short rounds of each kind, since another program can only take away. The throughput is shown beside it, as the
median of the rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.protocol.commands import DefineCluster
from tests.bench.processes import cpu_s

JOINS = 6_000
CONCURRENCY = 512
ROUNDS = 14
CHEAPEST = 3
KINDS = {
    "off": {"OTEL_SDK_DISABLED": "true"},
    "default": {},
    "all": {"OTEL_TRACES_SAMPLER": "always_on"},
}
PROGRAM = Path(sys.executable).parent / "isthmus"


async def measure(
    server: EmbeddedServer, cluster: str, cidr: str, data: Path, kind: str
) -> tuple[float, float]:
    """Joins per second, and the controller's CPU microseconds for each."""
    environment = {**os.environ, **KINDS[kind]}
    controller = await asyncio.create_subprocess_exec(
        str(PROGRAM), "controller", "--bus", server.url, "--cluster", cluster, "--data", str(data),
        "--json", "--log-level", "error", "--http", "off", stdout=subprocess.PIPE, env=environment,
    )  # fmt: skip
    try:
        assert controller.stdout is not None
        await controller.stdout.readline()
        client = await connect(BusOptions(servers=(server.url,)), name="bench")
        await ControllerClient(client, cluster, actor="bench").send(
            DefineCluster(container_cidr=cidr, pods_per_node=64, services=4096)
        )
        await client.close()
        before = cpu_s(controller.pid)
        command = [sys.executable, "-m", "tests.bench.service_load", server.url, cluster]
        load = await asyncio.create_subprocess_exec(
            *command, str(JOINS), str(CONCURRENCY), stdout=subprocess.PIPE
        )
        out, _ = await load.communicate()
        if load.returncode:
            raise RuntimeError("the load generator failed")
        spent = cpu_s(controller.pid) - before
    finally:
        controller.terminate()
        await controller.wait()
    return json.loads(out)["joins_per_s"], spent / JOINS * 1e6


async def _run() -> dict[str, list[tuple[float, float]]]:
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="isthmus-bench-") as directory:
        base = Path(directory)
        (base / "jetstream").mkdir()
        async with EmbeddedServer(ServerOptions(store_dir=base / "jetstream")) as server:
            number = 0
            for turn in range(ROUNDS):
                kinds = [kind for kind in KINDS if kind != "all" or turn < 2]  # which has no target
                order = kinds if turn % 2 == 0 else kinds[::-1]
                for kind in order:
                    cidr = f"10.{number * 8}.0.0/13"  # there are thirty-two
                    found[kind].append(await measure(server, f"c{number}", cidr, base / f"{number}", kind))
                    print(kind, found[kind][-1], file=sys.stderr)
                    number += 1
    return found


def run() -> list[dict[str, Any]]:
    """By CPU time and by the clock, as shipped and with every command traced, against none."""
    found = asyncio.run(_run())
    rate = {kind: statistics.median(rate for rate, _ in rounds) for kind, rounds in found.items()}
    by_cpu = {
        kind: 1e6 / statistics.mean(sorted(cpu for _, cpu in rounds)[:CHEAPEST])
        for kind, rounds in found.items()
    }
    rows: list[dict[str, Any]] = []
    for kind, what, target in (
        ("default", "telemetry as shipped", 0.97),
        ("all", "every command traced", None),
    ):
        for measure, unit, judged, speed in (
            ("controller's CPU time", "joins/CPU s", target, by_cpu),
            ("the clock, noisy", "joins/s", None, rate),
        ):
            ratio = speed[kind] / speed["off"]
            rows.append(
                {
                    "name": f"joins with {what}, against none, by {measure}",
                    "ours": speed[kind],
                    "baseline": speed["off"],
                    "unit": unit,
                    "ratio": ratio,
                    "target": judged,
                    "better": "higher",
                    "ok": judged is None or ratio >= judged,
                }
            )
    return rows
