"""A real server with the real rules, once per form; the tests are its clients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
from nats.aio.client import Client

from deploy.credentials.prepare import SecureSite, prepare
from events import subjects
from events.bus.connection import connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.stream import ensure_stream, event_stream_settings, status_stream_settings

CLUSTER = "prod"
NODES = ("idc-1", "idc-2", "rack-7.idc.example")


class Site(NamedTuple):
    """A running secured server with two clusters' streams on it."""

    files: SecureSite
    server: EmbeddedServer
    open: Callable[[Path], Awaitable[Client]]

    async def node(self, name: str) -> Client:
        return await self.open(self.files.nodes[name])

    async def controller(self) -> Client:
        return await self.open(self.files.controllers[0])


@pytest.fixture(params=["jwt", "plain"])
async def site(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Site]:
    files = prepare(
        tmp_path / "authority", cluster=CLUSTER, nodes=NODES, hosts=["127.0.0.1"], form=request.param
    )
    options = ServerOptions(store_dir=tmp_path / "bus", extra=files.server_extra)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer(options))

        async def opened(credentials: Path) -> Client:
            client = await connect(files.options(credentials, server.url), name=f"test/{credentials.stem}")
            stack.push_async_callback(client.close)
            return client

        running = Site(files, server, opened)
        control = await running.controller()
        for cluster in (CLUSTER, "other"):
            await ensure_stream(control, event_stream_settings(cluster))
            await ensure_stream(control, status_stream_settings(cluster))
        yield running


async def stored(control: Client, cluster: str = CLUSTER) -> int:
    """How many events the log holds."""
    info = await control.jetstream().stream_info(subjects.stream(cluster))
    return info.state.messages
