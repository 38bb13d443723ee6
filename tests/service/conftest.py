"""A real bus for the tests that need one, and controllers on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    store = tmp_path / "jetstream"
    store.mkdir()
    async with EmbeddedServer(ServerOptions(store_dir=store)) as running:
        yield running


@pytest.fixture
def bus(server: EmbeddedServer) -> BusOptions:
    return BusOptions(servers=(server.url,))
