"""A real server per test (a start takes about 50 ms), and a log on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.log import JetStreamLog
from tests.contract.samples import CLUSTER


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path / "bus")) as server:
        yield server


@pytest.fixture
async def client(server: EmbeddedServer) -> AsyncIterator[Client]:
    client = await connect(BusOptions(servers=(server.url,)), name="test")
    yield client
    await client.close()


@pytest.fixture
async def log(client: Client) -> JetStreamLog:
    return await JetStreamLog.open(client, CLUSTER, create=True)
