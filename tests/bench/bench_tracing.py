"""What telemetry costs the command path: the same joins with telemetry as shipped, and with none.

One controller in this process, on a real bus, takes many short blocks of joins from a load generator in
another process; in turn they are observed by telemetry that is off (``OTEL_SDK_DISABLED``), as shipped (the
default sampler, the built-in store, the metrics), and by one that traces every command.

What is judged is which share of this process's CPU time goes into telemetry: the time of every call into it, of
every step of its tasks and of its threads, over that of the whole block, the read model included. Switched off
it has such a share, too, and what is compared is what is left of the time beside it. Whole blocks compared with
one another, printed as well, differ by a fifth on a machine whose other programs slow this one down, and both
parts of a share are slowed alike. What telemetry's objects cost the garbage collector is in no share. The
sampler's ceiling, so many traces a second, counts by CPU time: by the clock a machine that is slowed down would
record more of as many joins.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

from controlplane.changes import Changes
from controlplane.cli.serving import run as run_as_shipped
from controlplane.controller.agents.agent_history.recorder import Recorder
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
from events.telemetry.spans import Outbox

T = TypeVar("T")
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


THREADS = ("recent-traces", "what-the-agents-reported")
"""How the names of the threads begin in which telemetry's stores are written."""
TASKS = {Outbox.run.__qualname__, Observability._follow.__qualname__, Recorder.run.__qualname__}


class Block(NamedTuple):
    """CPU microseconds of the controller's process for a join, telemetry's share, and joins per second."""

    cpu_us: float
    share: float
    rate: float


class Watch:
    """The CPU seconds that go into telemetry."""

    def __init__(self) -> None:
        self._spent_s = 0.0

    def spent_s(self) -> float:
        """So far, in this thread and in its own."""
        own = [one.native_id for one in threading.enumerate() if one.name.startswith(THREADS)]
        stats = [Path(f"/proc/self/task/{number}/schedstat").read_text() for number in own]
        return self._spent_s + sum(int(text.split()[0]) for text in stats) / 1e9

    def call(self, function: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """Call into telemetry."""
        began = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            self._spent_s += time.thread_time() - began

    @types.coroutine
    def steps(self, work: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """One of telemetry's tasks, of which each step counts."""
        step = partial(work.send, None)
        while True:
            try:
                waits = self.call(step)
            except StopIteration as done:
                return cast("T", done.value)
            try:
                step = partial(work.send, (yield waits))
            except BaseException as error:
                step = partial(work.throw, error)

    def task(self, loop: asyncio.AbstractEventLoop, work: Any, **named: Any) -> asyncio.Task[Any]:
        """A factory of tasks that watches those of telemetry."""
        watched = getattr(work, "__qualname__", "") in TASKS
        return asyncio.Task(self.steps(work) if watched else work, loop=loop, **named)


class Switch(Observer):
    """Hands everything on to one of several observers."""

    def __init__(self, watch: Watch) -> None:
        self.to = Observer()
        self._call = watch.call

    def received(self, request: Request) -> TraceContext | None:
        return self._call(self.to.received, request)

    def decided(self, commands: Sequence[DecidedCommand]) -> None:
        self._call(self.to.decided, commands)

    def appended(self, requests: Sequence[Request], *, first: int, last: int, took_s: float) -> None:
        self._call(self.to.appended, requests, first=first, last=last, took_s=took_s)

    def answered(self, commands: Sequence[AnsweredCommand], *, sequence: int) -> None:
        self._call(self.to.answered, commands, sequence=sequence)

    def projected(self, *, last: int, count: int, took_s: float) -> None:
        self._call(self.to.projected, last=last, count=count, took_s=took_s)

    def alarmed(self, name: str, error: IsthmusError) -> None:
        self.to.alarmed(name, error)


class Rig:
    """A leading controller with one observability a kind, of which one is told."""

    def __init__(self, server: EmbeddedServer, controller: Controller, switch: Switch, watch: Watch) -> None:
        self.server = server
        self._watch = watch
        self.controller = controller
        self._switch = switch
        self._kinds: dict[str, tuple[Observability, Changes]] = {}
        self._told = Changes()
        self._joined = 0

    async def add(self, stack: AsyncExitStack, kind: str, directory: Path) -> None:
        """Open the observability of a kind until the stack is left."""
        one = await stack.enter_async_context(Observability.open(CLUSTER, kind, directory, environ=KINDS[kind]))
        # It is called by the loop, and so by nobody who is watched.
        one.metrics._record_group = partial(self._watch.call, one.metrics._record_group)  # type: ignore[method-assign]
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
        before, spent_before = time.process_time(), self._watch.spent_s()
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
        spent, into_it = time.process_time() - before, self._watch.spent_s() - spent_before
        return Block(spent / JOINS * 1e6, into_it / spent, float(json.loads(out)["joins_per_s"]))


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
        watch = Watch()
        asyncio.get_running_loop().set_task_factory(watch.task)
        switch = Switch(watch)
        controller = await Controller.start(options, observer=switch)
        running = asyncio.create_task(controller.run())
        stack.push_async_callback(controller.stop)
        await controller.ready(leading=True)
        client = await connect(options.bus, name="bench")
        stack.push_async_callback(client.close)
        await ControllerClient(client, CLUSTER, actor="bench").send(
            DefineCluster(container_cidr="10.0.0.0/8", pods_per_node=64, services=4096)
        )
        rig = Rig(server, controller, switch, watch)
        for kind in KINDS:
            await rig.add(stack, kind, base / kind)
        following = asyncio.create_task(rig.follow())
        stack.push_async_callback(end, [following])
        for turn in range(-WARM, PAIRS):
            kind = "default" if turn < PAIRS * 7 // 8 else "all"  # last: its spans are shipped for a while
            order = (kind, "off") if turn % 2 else ("off", kind)
            blocks = {each: await rig.block(each) for each in order}
            if turn >= 0:
                found[kind].append((blocks[kind], blocks["off"]))
                print(kind, *found[kind][-1], file=sys.stderr)
            if running.done():
                running.result()
    return found


def run() -> list[dict[str, Any]]:
    """By its share, by CPU time and by the clock, as shipped and with every command traced, against none."""
    found = run_as_shipped(_run())
    none = statistics.median(off.share for _, off in found["default"])
    rows: list[dict[str, Any]] = []
    for kind, what, target in (
        ("default", "telemetry as shipped", 0.97),
        ("all", "every command traced", None),
    ):
        pairs = found[kind]
        # Beside blocks in which all is traced, those without telemetry ship the others' spans.
        beside = none if kind == "all" else None
        by_share = [(1 - with_.share) / (1 - (beside or off.share)) for with_, off in pairs]
        by_cpu = [off.cpu_us / with_.cpu_us for with_, off in pairs]
        by_clock = [with_.rate / off.rate for with_, off in pairs]
        for measure, unit, judged, field, ratios in (
            ("its share of the CPU time", "share", target, "share", by_share),
            ("CPU time, noisy", "µs/join", None, "cpu_us", by_cpu),
            ("the clock, noisy", "joins/s", None, "rate", by_clock),
        ):
            quartiles = " ".join(f"{part:.3f}" for part in statistics.quantiles(ratios, n=4))
            print(f"{what}: quartiles of {len(pairs)} pairs by {measure}: {quartiles}", file=sys.stderr)
            with_it, without = (
                statistics.median(getattr(block, field) for block in blocks)
                for blocks in zip(*pairs, strict=True)
            )
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
