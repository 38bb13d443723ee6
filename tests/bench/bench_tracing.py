"""What telemetry costs the command path: the same joins with telemetry as shipped, and with none.

One controller in this process, on a real bus, takes many short blocks of joins from a load generator in
another process; in turn they are observed by telemetry that is off (``OTEL_SDK_DISABLED``), as shipped (the
default sampler, the built-in store, the metrics), and by one that traces every command. What is compared is the
CPU time of this process for each block, the read model and the shipping of spans included. Each block is
compared with the one beside it, and the median of these pairs is judged: another program on the machine slows
both of a pair, and two processes would differ by more than what is looked for, by where their memory lies. The
sampler's ceiling, so many traces a second, counts by that CPU time, too: by the clock a machine that is slowed
down would record more of as many joins. The quartiles of the pairs and the throughput are printed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

from controlplane.changes import Changes
from controlplane.cli.serving import run as run_as_shipped
from controlplane.controller.controller import Controller, ControllerOptions
from controlplane.controller.hooks import AnsweredCommand, DecidedCommand, Observer, TraceContext
from controlplane.controller.observability.live import LiveNumbers
from controlplane.controller.observability.setup import Observability
from controlplane.controller.publishing.checkpointer import SigningSchedule
from controlplane.controller.publishing.snapshots import SnapshotSchedule
from controlplane.controller.requests import Request
from controlplane.controller.tasks import end
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import IsthmusError
from events.protocol.commands import DefineCluster

CLUSTER = "traced"
JOINS = 2_000
CONCURRENCY = 512
PAIRS = 40
WARM = 2
"""Blocks of each kind before the first that counts."""
REST_S = 3600.0
SHIPPED_S = 0.5
"""After each block: what it left to be projected and shipped is its own."""
KINDS = {
    "off": {"OTEL_SDK_DISABLED": "true"},
    "default": {},
    "all": {"OTEL_TRACES_SAMPLER": "always_on"},
}


class Block(NamedTuple):
    """CPU microseconds of the controller's process for each join, and joins per second."""

    cpu_us: float
    rate: float


class Switch(Observer):
    """Hands everything on to one of several observers."""

    def __init__(self) -> None:
        self.to = Observer()

    def received(self, request: Request) -> TraceContext | None:
        return self.to.received(request)

    def decided(self, commands: Sequence[DecidedCommand]) -> None:
        self.to.decided(commands)

    def appended(self, requests: Sequence[Request], *, first: int, last: int, took_s: float) -> None:
        self.to.appended(requests, first=first, last=last, took_s=took_s)

    def answered(self, commands: Sequence[AnsweredCommand], *, sequence: int) -> None:
        self.to.answered(commands, sequence=sequence)

    def projected(self, *, last: int, count: int, took_s: float) -> None:
        self.to.projected(last=last, count=count, took_s=took_s)

    def alarmed(self, name: str, error: IsthmusError) -> None:
        self.to.alarmed(name, error)


class Rig:
    """A leading controller with one observability a kind, of which one is told."""

    def __init__(self, server: EmbeddedServer, controller: Controller, switch: Switch) -> None:
        self.server = server
        self.controller = controller
        self._switch = switch
        self._kinds: dict[str, tuple[Observability, Changes]] = {}
        self._told = Changes()
        self._joined = 0

    async def add(self, stack: AsyncExitStack, kind: str, directory: Path) -> None:
        """Open the observability of a kind until the stack is left."""
        one = await stack.enter_async_context(Observability.open(CLUSTER, kind, directory, environ=KINDS[kind]))
        here = self.controller
        live = LiveNumbers(
            here.replica, here.projector, here.liveness, one.spans, one.history, one.convergence,
            leading=lambda: here.leadership.leading, waiting=lambda: 0,
        )  # fmt: skip
        changes = Changes()
        await stack.enter_async_context(one.following(changes, here.liveness, live, None))
        self._kinds[kind] = one, changes

    async def follow(self) -> None:
        """Hand the stored events on to the kind that is told, for ever."""
        async for run in self.controller.changes.subscribe(limit=1 << 20):
            self._told.publish(run)

    async def block(self, kind: str) -> Block:
        """Some joins under that kind of telemetry."""
        observability, self._told = self._kinds[kind]
        self._switch.to = observability.observer
        sampling = observability.telemetry.sampling
        for bucket in (sampling.root, sampling.continued) if sampling is not None else ():
            if bucket is not None:  # nothing is saved up while the other kind is told
                bucket._clock, bucket._filled_at = time.process_time, time.process_time()
        before = time.process_time()
        load = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.bench.service_load", self.server.url, CLUSTER,
            str(JOINS), str(CONCURRENCY), str(self._joined), stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, _ = await load.communicate()
        if load.returncode:
            raise RuntimeError("the load generator failed")
        self._joined += JOINS
        await self.controller.projector.reached(self.controller.replica.head.sequence, timeout_s=60)
        await asyncio.sleep(SHIPPED_S)
        spent = time.process_time() - before
        return Block(spent / JOINS * 1e6, float(json.loads(out)["joins_per_s"]))


async def _run() -> dict[str, list[tuple[Block, Block]]]:
    """For each kind but "off" its blocks, each with the block without telemetry beside it."""
    found: dict[str, list[tuple[Block, Block]]] = {"default": [], "all": []}
    async with AsyncExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="isthmus-bench-")))
        (base / "jetstream").mkdir()
        server = await stack.enter_async_context(EmbeddedServer(ServerOptions(store_dir=base / "jetstream")))
        options = ControllerOptions(
            cluster=CLUSTER,
            data=base / "data",
            bus=BusOptions(servers=(server.url,)),
            # What the controller does by the clock costs by its members, not by the joins of a block.
            lease_ttl_s=60.0,  # a machine that stands still for a while ends nothing
            tick_s=REST_S,
            snapshots=SnapshotSchedule(least_s=REST_S),
            checkpoints=SigningSchedule(least_s=REST_S),
        )
        switch = Switch()
        controller = await Controller.start(options, observer=switch)
        running = asyncio.create_task(controller.run())
        stack.push_async_callback(controller.stop)
        await controller.ready(leading=True)
        client = await connect(options.bus, name="bench")
        stack.push_async_callback(client.close)
        await ControllerClient(client, CLUSTER, actor="bench").send(
            DefineCluster(container_cidr="10.0.0.0/8", pods_per_node=64, services=4096)
        )
        rig = Rig(server, controller, switch)
        for kind in KINDS:
            await rig.add(stack, kind, base / kind)
        following = asyncio.create_task(rig.follow())
        stack.push_async_callback(end, [following])
        for turn in range(-WARM, PAIRS):
            kind = "all" if turn % 8 == 7 else "default"  # it has no target
            order = (kind, "off") if turn % 2 else ("off", kind)
            blocks = {each: await rig.block(each) for each in order}
            if turn >= 0:
                found[kind].append((blocks[kind], blocks["off"]))
                print(kind, *found[kind][-1], file=sys.stderr)
            if running.done():
                running.result()
    return found


def run() -> list[dict[str, Any]]:
    """By CPU time and by the clock, as shipped and with every command traced, against none."""
    found = run_as_shipped(_run())
    rows: list[dict[str, Any]] = []
    for kind, what, target in (
        ("default", "telemetry as shipped", 0.97),
        ("all", "every command traced", None),
    ):
        pairs = found[kind]
        by_cpu = [off.cpu_us / with_.cpu_us for with_, off in pairs]
        by_clock = [with_.rate / off.rate for with_, off in pairs]
        quartiles = " ".join(f"{part:.3f}" for part in statistics.quantiles(by_cpu, n=4))
        print(f"{what}: quartiles of {len(pairs)} pairs by CPU time {quartiles}", file=sys.stderr)
        ours, none = (
            statistics.median(block.cpu_us for block in blocks) for blocks in zip(*pairs, strict=True)
        )
        fast, free = (statistics.median(block.rate for block in blocks) for blocks in zip(*pairs, strict=True))
        for measure, unit, judged, with_it, without, ratios in (
            ("controller's CPU time", "joins/CPU s", target, 1e6 / ours, 1e6 / none, by_cpu),
            ("the clock, noisy", "joins/s", None, fast, free, by_clock),
        ):
            ratio = statistics.median(ratios)
            rows.append(
                {
                    "name": f"joins with {what}, against none, by {measure}",
                    "ours": with_it,
                    "baseline": without,
                    "unit": unit,
                    "ratio": ratio,
                    "target": judged,
                    "better": "higher",
                    "ok": judged is None or ratio >= judged,
                }
            )
    return rows
