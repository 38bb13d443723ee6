"""The agents' reports are kept again after the bus was killed under a controller that lives on."""

from __future__ import annotations

import asyncio
import signal
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.process import EmbeddedServer
from events.errors import Unavailable
from events.jetstream.status_stream import StatusReader
from events.status import AgentStatus
from tests.service.onbus import CLUSTER, controller

pytestmark = pytest.mark.bus


async def test_reports_are_kept_again_after_sigkill_of_the_bus(
    bus: BusOptions, server: EmbeddedServer, tmp_path: Path
) -> None:
    report = msgspec.json.encode(AgentStatus(node="n1", uid="u1", applied=7, sent_at=datetime.now(UTC)))

    async with controller(bus, tmp_path / "a", leads=True):
        agent = await connect(bus, name="agent")
        try:
            reader = StatusReader(agent, CLUSTER)

            async def kept() -> list[int]:
                async with asyncio.timeout(60):
                    while True:
                        try:
                            await agent.publish(subjects.status(CLUSTER, "n1"), report)
                            if found := await reader.all():
                                return [reported.status.applied for reported in found]
                        except Unavailable:
                            await asyncio.sleep(0.05)  # the bus is away; the deadline above ends this

            assert await kept() == [7]
            server.signal(signal.SIGKILL)
            await server.wait_ready()
            assert await kept() == [7]
        finally:
            await agent.close()
