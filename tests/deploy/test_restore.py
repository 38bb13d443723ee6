"""The log is lost with its server and restored from an archive: agents go on where they were.

An agent decides by the log's head (sequence and chain digest) and its own position whether its rows
still stand; so that is what must be equal, and nothing must be delivered to it again.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from controlplane.controller.controller import Controller, ControllerOptions
from deploy.credentials.prepare import SecureSite, prepare
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.live import LiveReader
from events.protocol.commands import DefineCluster, JoinNode

pytestmark = pytest.mark.bus

CLUSTER = "prod"


async def isthmus(*arguments: str, options: BusOptions) -> None:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "isthmus"), *arguments,
        "--bus", options.servers[0], "--cluster", CLUSTER, "--creds", options.credentials, "--ca", options.ca,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, said.decode()


@asynccontextmanager
async def controller(files: SecureSite, server: EmbeddedServer, data: Path) -> AsyncIterator[ControllerClient]:
    bus = files.options(files.controllers[0], server.url)
    running = await Controller.start(ControllerOptions(cluster=CLUSTER, data=data, bus=bus, name="one"))
    task = asyncio.create_task(running.run())
    try:
        await running.ready(leading=True)
        client = await connect(files.options(files.operator, server.url), name="ops")
        try:
            yield ControllerClient(client, CLUSTER, actor="ops")
        finally:
            await client.close()
    finally:
        await running.stop()
        await task


def join(number: int) -> JoinNode:
    return JoinNode(node=f"n{number}", uid=f"u{number}", kind="cloud", underlay=f"192.0.2.{number}")


async def test_agents_go_on_after_a_restore(tmp_path: Path) -> None:
    files = prepare(tmp_path / "authority", cluster=CLUSTER, nodes=["n1"], hosts=["127.0.0.1"])
    archive = tmp_path / "prod.isthmus"
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path / "old", extra=files.server_extra)) as old:
        async with controller(files, old, tmp_path / "c1") as operator:
            await operator.send(DefineCluster(container_cidr="10.200.0.0/16"))
            first = [(await operator.send(join(number))).result["cidr"] for number in (1, 2)]
            agent = await connect(files.options(files.nodes["n1"], old.url), name="n1")
            known = await LiveReader(agent, CLUSTER).head()
            await agent.close()
        await isthmus("replay", "export", str(archive), options=files.options(files.audit, old.url))
    async with AsyncExitStack() as stack:
        server = EmbeddedServer(ServerOptions(store_dir=tmp_path / "new", extra=files.server_extra))
        new = await stack.enter_async_context(server)
        await isthmus(
            "replay", "import", "--archive", str(archive), options=files.options(files.controllers[0], new.url)
        )
        operator = await stack.enter_async_context(controller(files, new, tmp_path / "c2"))
        agent = await connect(files.options(files.nodes["n1"], new.url), name="n1")
        stack.push_async_callback(agent.close)
        reader = LiveReader(agent, CLUSTER)
        assert await reader.head() == known
        assert [m async for batch in reader.read(after=known.sequence) for m in batch.messages] == []
        again = await operator.send(join(1))
        assert (again.result["cidr"], again.events) == (first[0], ())
        third = await operator.send(join(3))
        assert third.result["cidr"] not in first
        news = [m async for batch in reader.read(after=known.sequence) for m in batch.messages]
        assert [m.headers["ce-type"] for m in news] == ["node.joined.v1", "range.allocated.v1"]
        assert news[0].sequence == known.sequence + 1
