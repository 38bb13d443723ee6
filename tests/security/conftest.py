"""A real server with the real rules, once per form; the tests are its clients."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from nats.aio.client import Client

from controlplane.controller.controller import Controller, ControllerOptions
from deploy.credentials.issuers.pods import PodIssuer
from deploy.credentials.issuers.tokens import Issuer
from deploy.credentials.prepare import SecureSite, prepare
from deploy.credentials.push import push_accounts
from deploy.credentials.tokens import make_token
from events import subjects
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.enrolment import JoinToken
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.bus.service_account import enrol
from events.jetstream.live import LiveReader
from events.jetstream.stream import ensure_stream, event_stream_settings, status_stream_settings
from events.protocol.commands import DefineCluster

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


class Place:
    """A secured bus with a leading controller and an issuer."""

    def __init__(
        self, files: SecureSite, server: EmbeddedServer, stack: AsyncExitStack, controller: Controller
    ) -> None:
        self.controller = controller
        self.files = files
        self.server = server
        self.stack = stack
        self.authority = files.authority

    def options(self, credentials: Path) -> BusOptions:
        return self.files.options(credentials, self.server.url)

    async def open(self, credentials: Path) -> Client:
        client = await connect(self.options(credentials), name="test")
        self.stack.push_async_callback(client.close)
        return client

    async def operator(self) -> ControllerClient:
        return ControllerClient(await self.open(self.files.operator), CLUSTER, actor="ops")

    async def push(self, *accounts: str) -> None:
        await push_accounts(self.options(self.files.system), self.authority.store, accounts)

    async def token(self, node: str, minutes: float = 5) -> JoinToken:
        principal = self.authority.add("node", CLUSTER, node)
        await self.push(principal.account)
        return make_token(
            self.authority,
            CLUSTER,
            node,
            servers=self.options(Path()).servers,
            ca=self.files.ca,
            minutes=minutes,
        )

    async def log(self) -> list[tuple[str, dict[str, Any]]]:
        """Types and bodies of all events, read with the auditor's credentials."""
        client = await self.open(self.files.audit)
        reader = LiveReader(client, CLUSTER, prefix=self.options(self.files.audit).api_prefix)
        found = []
        async for batch in reader.read():
            found += [(m.headers["ce-type"], msgspec.json.decode(m.body)) for m in batch.messages]
        return found


@asynccontextmanager
async def opened(tmp_path: Path) -> AsyncIterator[Place]:
    """A place in that folder, for as long as the block lasts."""
    files = prepare(tmp_path / "authority", cluster=CLUSTER, nodes=["old-1", "old-2"], hosts=["127.0.0.1"])
    async with AsyncExitStack() as stack:
        options = ServerOptions(store_dir=tmp_path / "bus", extra=files.server_extra)
        server = await stack.enter_async_context(EmbeddedServer(options))
        bus = files.options(files.controllers[0], server.url)
        controller = await Controller.start(
            ControllerOptions(cluster=CLUSTER, data=tmp_path / "data", bus=bus, name="one")
        )
        running = asyncio.create_task(controller.run())

        async def stop() -> None:
            await controller.stop()
            await running

        stack.push_async_callback(stop)
        await controller.ready(leading=True)
        here = Place(files, server, stack, controller)
        issuer = Issuer(await here.open(files.issuer), files.authority.store)
        await issuer.start()
        operator = await here.operator()
        await operator.send(DefineCluster(container_cidr="10.200.0.0/16"))
        yield here


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(tmp_path) as here:
        yield here


class Kube(NamedTuple):
    """An API server, and the issuer beside it. ``bus``: how agents without credentials reach it."""

    api: Any
    issuer: PodIssuer
    bus: BusOptions
    folder: Path

    async def enrol(self, node: str, token: str, *, to: str = "node", within_s: float = 20.0) -> bool:
        file = self.folder / "token"
        file.write_text(token)
        return await enrol(self.bus, CLUSTER, node, token_file=file, folder=self.folder / to, within_s=within_s)
