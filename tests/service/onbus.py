"""Controllers and clients on a real bus, for the length of a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controlplane.app import Controller, ControllerOptions
from events.bus import BusOptions, connect
from events.client import ControllerClient

CLUSTER = "prod"


@asynccontextmanager
async def controller(bus: BusOptions, data: Path, name: str = "a", **options: Any) -> AsyncIterator[Controller]:
    """A running controller, stopped cleanly behind the block; its failure fails the test."""
    running = await Controller.start(
        ControllerOptions(cluster=CLUSTER, data=data, bus=bus, name=name, **options)
    )
    task = asyncio.create_task(running.run())
    try:
        await until(lambda: running.replica.live or task.done())
        if task.done():
            task.result()
        yield running
    finally:
        if not task.done():
            running.stopping()
        await task


@asynccontextmanager
async def client(bus: BusOptions, actor: str = "tester") -> AsyncIterator[ControllerClient]:
    nats = await connect(bus, name="test")
    try:
        yield ControllerClient(nats, CLUSTER, actor=actor)
    finally:
        await nats.close()


async def until(condition: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Wait for a condition that other tasks of this loop bring about."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)
