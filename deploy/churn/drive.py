"""Sends a recording's joins and leaves to a controller and stands in for the agents of its nodes.

Every change is a real command over the bus. A simulated node does the one thing that the control plane
needs of an agent: it reports the sequence that it has applied, so that drained ranges return to the pool.
At most `window` commands are under way, in the order of the recording; a node's leave waits for its join.
It must never report for a node that no replay made (their uids tell).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from deploy.churn.trace import simulated_uid
from events import subjects
from events.bus.retry import happened
from events.errors import Refused, foremost
from events.protocol.commands import JoinNode, LeaveNode
from events.status import AgentStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from nats.aio.client import Client

    from deploy.churn.trace import ChurnStep, Instance
    from events.bus.client import ControllerClient
    from events.log import LogReader

HEARTBEAT_S = 5.0
REPORT_PAUSE_S = 0.1
"""Reports are coalesced: at most one per node in this time, however fast the log grows."""

NO_RANGE_PATIENCE_S = 120.0
"""How long a node keeps asking while the pool is empty; longer than the default quarantine."""


@dataclass(slots=True)
class Tally:
    """What has been done so far."""

    joins: int = 0
    leaves: int = 0
    waits: int = 0  # joins that met an empty pool and asked again
    latencies_s: list[float] = field(default_factory=list)
    sites: Counter[str] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        return self.joins + self.leaves

    def latency_s(self, share: float) -> float:
        """The latency that `share` (0 … 1) of the commands did not exceed; 0 without any."""
        ordered = sorted(self.latencies_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class Fleet:
    """The simulated nodes: follows the log like an agent and reports for each live one of its own.

    Cancelled, it leaves nothing behind.
    """

    def __init__(self, bus: Client, reader: LogReader, live: Mapping[str, str]) -> None:
        """`live` is node → uid of the cluster's members; an earlier replay's among them are adopted."""
        self._bus = bus
        self._reader = reader
        self.live = {node: uid for node, uid in live.items() if uid == simulated_uid(node)}
        self.applied = 0
        self._moved = asyncio.Event()
        self._freed = asyncio.Event()

    async def run(self, after: int) -> None:
        """Follows and reports until cancelled."""
        self.applied = after
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow(after), name="fleet: follow the log")
            group.create_task(self._report(), name="fleet: report")

    async def range_freed(self, timeout_s: float) -> None:
        """Returns when a range went back to the pool, or after `timeout_s`."""
        self._freed.clear()
        await happened(self._freed, within_s=timeout_s)

    async def _follow(self, after: int) -> None:
        async for batch in self._reader.read(after=after, follow=True):
            for message in batch.messages:
                self.applied = message.sequence
                if message.headers.get("ce-type", "").startswith("range.freed."):
                    self._freed.set()
            if batch.messages:
                self._moved.set()

    async def _report(self) -> None:
        while True:
            await happened(self._moved, within_s=HEARTBEAT_S)
            self._moved.clear()
            applied, now = self.applied, datetime.now(UTC)
            for node, uid in list(self.live.items()):
                status = AgentStatus(
                    node=node,
                    uid=uid,
                    applied=applied,
                    sent_at=now,
                    peers=len(self.live) - 1,
                    agent_version="churn",
                    interval_s=HEARTBEAT_S,
                )
                # With the bus away the client buffers; what it drops, the next round repeats.
                with suppress(Exception):
                    await self._bus.publish(
                        subjects.status(self._reader.cluster, node), msgspec.json.encode(status)
                    )
            await asyncio.sleep(REPORT_PAUSE_S)


@dataclass(eq=False)
class Driver:
    """Plays changes against a controller. `patience_s` is how long one command may wait for a controller."""

    controller: ControllerClient
    fleet: Fleet
    window: int = 64
    patience_s: float = 30.0
    progress: Callable[[Tally], None] | None = None

    def __post_init__(self) -> None:
        self.tally = Tally()

    async def play(self, changes: Iterable[ChurnStep]) -> Tally:
        """Returns when every change was answered; the first refusal that time does not cure ends it.

        Raises the controller's error, or Unavailable when it stayed away longer than the patience. Cancelled,
        what was sent may take effect.
        """
        joined: dict[str, asyncio.Task[None]] = {}
        slots = asyncio.Semaphore(self.window)
        try:
            async with asyncio.TaskGroup() as group:
                for change in changes:
                    await slots.acquire()
                    name = change.instance.name
                    if change.joins:
                        task = group.create_task(self._join(change.instance), name=f"join {name}")
                        joined[name] = task
                    else:
                        task = group.create_task(
                            self._leave(change.instance, joined.pop(name)), name=f"leave {name}"
                        )
                    task.add_done_callback(lambda _: slots.release())
        except BaseExceptionGroup as failed:
            raise foremost(failed) from failed
        return self.tally

    async def _join(self, instance: Instance) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + NO_RANGE_PATIENCE_S
        command = JoinNode(
            node=instance.name,
            uid=instance.uid,
            kind=instance.kind,
            underlay=instance.underlay,
            site=instance.site,
        )
        while True:
            started = loop.time()
            try:
                await self.controller.send(command, timeout_s=self.patience_s)
            except Refused as refusal:
                if refusal.code != "no_free_range" or loop.time() >= deadline:
                    raise
                self.tally.waits += 1
                await self.fleet.range_freed(timeout_s=1.0)
                continue
            break
        self.fleet.live[instance.name] = instance.uid
        self.tally.joins += 1
        self.tally.sites[instance.site] += 1
        self._count(loop.time() - started)

    async def _leave(self, instance: Instance, joined: asyncio.Task[None]) -> None:
        await asyncio.wait([joined])
        loop = asyncio.get_running_loop()
        started = loop.time()
        command = LeaveNode(node=instance.name, uid=instance.uid, reason="instance reclaimed")
        try:
            await self.controller.send(command, timeout_s=self.patience_s)
        finally:
            self.fleet.live.pop(instance.name, None)
        self.tally.leaves += 1
        self.tally.sites[instance.site] -= 1
        self._count(loop.time() - started)

    def _count(self, latency_s: float) -> None:
        self.tally.latencies_s.append(latency_s)
        if self.progress is not None:
            self.progress(self.tally)
