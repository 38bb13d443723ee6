"""A committer over a log, without a bus: what most tests of the service need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from controlplane.controller.commands.committer import Committer
from controlplane.controller.replication.replica import Replica
from controlplane.controller.requests import Request
from events.ids import new_id
from events.log import EventLog
from events.memory import MemoryLog
from events.protocol.commands import Command, CommandReply, DefineCluster, JoinNode

CLUSTER = "prod"
DEFINE = DefineCluster(container_cidr="172.16.0.0/16", pods_per_node=64, services=256, quarantine_s=0.0)


class Clock:
    """A wall clock that moves when told to."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.moment

    def forward(self, seconds: float) -> None:
        self.moment += timedelta(seconds=seconds)


class Rig:
    """One controller's writing half."""

    def __init__(self, log: EventLog, **options: Any) -> None:
        self.log = log
        self.clock = Clock()
        self.replica = Replica(log)
        self.committer = Committer(log, self.replica, source="isthmus/test", now=self.clock, **options)

    async def send(self, command: Command, command_id: str = "", **extra: Any) -> CommandReply:
        return await self.committer.submit(request(command, command_id, **extra))


def request(command: Any, command_id: str = "", **extra: Any) -> Request:
    return Request(
        command=command,
        command_id=command_id or new_id(),
        actor=extra.pop("actor", "tester"),
        received_s=asyncio.get_running_loop().time(),
        **extra,
    )


def join(number: int, *, uid: str = "", **extra: Any) -> JoinNode:
    """The join of node ``n<number>`` with an address of its own."""
    return JoinNode(
        node=f"n{number}",
        uid=uid or f"uid-{number}",
        kind=extra.pop("kind", "cloud"),
        underlay=f"192.168.{number // 250}.{number % 250 + 1}",
        **extra,
    )


@asynccontextmanager
async def running(rig: Rig) -> AsyncIterator[Rig]:
    """The rig's loops, ended behind the block; a loop that failed fails the test."""
    tasks = [asyncio.create_task(rig.replica.follow()), asyncio.create_task(rig.committer.run())]
    try:
        yield rig
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, Exception):
                raise outcome


@asynccontextmanager
async def rig(log: EventLog | None = None, **options: Any) -> AsyncIterator[Rig]:
    """A running rig with a defined cluster."""
    async with running(Rig(log or MemoryLog(CLUSTER), **options)) as it:
        await it.send(DEFINE)
        yield it
