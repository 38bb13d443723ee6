"""Controllers and clients on a real bus, for the length of a block."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from controlplane.controller.controller import Controller, ControllerOptions
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from tests.waiting import until

CLUSTER = "prod"


@asynccontextmanager
async def controller(
    bus: BusOptions, data: Path, name: str = "a", *, leads: bool = False, **options: Any
) -> AsyncIterator[Controller]:
    """A running controller (with ``leads`` only once it does), stopped cleanly behind the block.

    Its failure fails the test.
    """
    running = await Controller.start(
        ControllerOptions(cluster=CLUSTER, data=data, bus=bus, name=name, **options)
    )
    async with run_controller(running, leads=leads):
        yield running


@asynccontextmanager
async def run_controller(running: Controller, *, leads: bool = False) -> AsyncIterator[None]:
    """The same for one that was started already."""
    task = asyncio.create_task(running.run())
    try:
        await until(lambda: running.replica.live or task.done())
        if task.done():
            task.result()
        await until(lambda: running.leadership.serving or not leads)
        yield
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
