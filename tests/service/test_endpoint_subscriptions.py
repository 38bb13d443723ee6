"""A controller that no longer answers takes no more requests, whatever the connection does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any, cast

import pytest
from nats.errors import NoRespondersError

from controlplane.controller.commands.endpoint import Endpoint
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from tests.service.onbus import CLUSTER
from tests.waiting import until

pytestmark = pytest.mark.bus


class NothingUnderWay:
    """A committer that has nothing to decide."""

    async def drained(self, *, timeout_s: float) -> None:
        """At once."""


async def test_what_the_bus_did_not_confirm_is_not_subscribed_to_again(tmp_path: Path) -> None:
    """A controller that lost the lead while it was cut off went on taking requests, and refused them."""

    async def query(name: str, body: bytes) -> bytes:
        return b"{}"

    async with EmbeddedServer(ServerOptions(store_dir=tmp_path)) as server:
        bus = BusOptions(servers=(server.url,))
        led, asker = await connect(bus, name="led"), await connect(bus, name="asker")
        endpoint = Endpoint(led, CLUSTER, cast("Any", NothingUnderWay()), query, instance="a")
        await endpoint.open()
        server.signal(signal.SIGSTOP)
        await endpoint.close(decide=False, timeout_s=0.1)
        server.signal(signal.SIGCONT)
        await led.force_reconnect()
        await until(lambda: led.stats["reconnects"] > 0 and led.is_connected)
        await led.flush()
        for subject in ("query.cluster", "command.node.n1.node-join"):
            with pytest.raises(NoRespondersError):
                await asker.request(f"isthmus.{CLUSTER}.{subject}", timeout=10)
        await led.close()
        await asker.close()
