"""What `isthmus deploy nats` writes is started by real servers, and lets in who should get in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from deploy.cli import deploy
from deploy.credentials.authority import Authority
from deploy.credentials.certificates import create_authority
from deploy.credentials.push import push_accounts
from deploy.nats.mirrors import make_mirrors, wait_caught_up
from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.chain import genesis
from events.codec import Cause, seal
from events.errors import Refused, Unavailable
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from events.jetstream.snapshots import SnapshotBucket
from events.types import NodeLeft
from tests.ports import free_ports

pytestmark = pytest.mark.bus


def render(store: Path, to: Path, *arguments: str) -> Path:
    """Run the command as an operator does; the folder that it wrote."""
    result = CliRunner().invoke(
        deploy,
        ["nats", *arguments, "--store", str(store), "--host", "127.0.0.1", "--listen", "127.0.0.1",
         "--at", str(to), "--data", str(to / "data"), "--monitor", "127.0.0.1:-1", "--to", str(to)],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return to


def variables(folder: Path) -> dict[str, str]:
    lines = (folder / "nats.env").read_text().splitlines()
    return {name: value[1:-1] for name, _, value in (line.partition("=") for line in lines)}


def server(folder: Path) -> EmbeddedServer:
    """The rendered configuration as it is, in a real server."""
    return EmbeddedServer(
        ServerOptions(store_dir=folder / "data", name=folder.name),
        config=folder / "nats-server.conf",
        environment=variables(folder),
    )


class Made:
    def __init__(self, folder: Path) -> None:
        self.store = folder
        self.authority = Authority.create(folder)
        create_authority(folder / "tls")
        self.creds = {
            role: self.authority.issue(self.authority.add(role, "", role))
            for role in ("system", "controller", "issuer", "site")
        }
        self.node = self.authority.add("node", "prod", "idc-1")
        self.node_creds = self.authority.issue(self.node)

    def options(self, creds: Path, *urls: str) -> BusOptions:
        return BusOptions(servers=urls, credentials=str(creds), ca=str(self.store / "tls" / "ca.pem"))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def prove(made: Made, stack: AsyncExitStack, urls: list[str], *, replicas: int, push: bool) -> None:
    """A controller makes the log; a node reads it and may not write; a stranger gets nowhere."""
    if push:
        accounts = [made.node.account]
        assert await push_accounts(
            made.options(made.creds["system"], *urls), made.authority.store, accounts
        ) == len(urls)
    control = await connect(made.options(made.creds["controller"], *urls), name="controller")
    stack.push_async_callback(control.close)
    await JetStreamLog.open(control, "prod", create=True, replicas=replicas)
    agent = await connect(made.options(made.node_creds, *urls), name="agent")
    stack.push_async_callback(agent.close)
    head = await JetStreamLog(agent, "prod").head()
    assert head.sequence == 0
    with pytest.raises(Exception, match="timeout"):
        await agent.request(subjects.event("prod", "node", "idc-1", "left"), b"{}", timeout=0.3)
    with pytest.raises((Refused, Unavailable)):
        await connect(BusOptions(servers=(urls[0],), ca=made.options(Path(), "").ca), name="stranger")


@pytest.mark.parametrize("form", ["jwt", "plain"])
async def test_single(form: str, tmp_path: Path, stack: AsyncExitStack) -> None:
    made = Made(tmp_path / "store")
    ports = free_ports(2, "127.0.0.1")
    folder = render(
        made.store, tmp_path / "bus", "single", "--name", "bus-1", "--form", form,
        "--port", str(ports[0]), "--leaf-port", str(ports[1]),
    )  # fmt: skip
    one = await stack.enter_async_context(server(folder))
    await prove(made, stack, [one.url], replicas=1, push=form == "jwt")
    text = (folder / "nats-server.conf").read_text() + (folder / "auth.conf").read_text()
    assert "sync_interval: always" in text
    assert made.authority.store.key("operator").seed not in text


async def test_cluster(tmp_path: Path, stack: AsyncExitStack) -> None:
    made = Made(tmp_path / "store")
    ports = free_ports(9, "127.0.0.1")
    peers = [f"127.0.0.1:{port}" for port in ports[3:6]]
    servers = []
    for index in range(3):
        folder = render(
            made.store, tmp_path / f"bus-{index}", "cluster", "--name", f"bus-{index}",
            "--port", str(ports[index]), "--cluster-port", str(ports[3 + index]),
            "--leaf-port", str(ports[6 + index]),
            *(item for peer in peers for item in ("--peer", peer)),
        )  # fmt: skip
        servers.append(server(folder))
    async with asyncio.timeout(60):
        await asyncio.gather(*(stack.enter_async_context(one) for one in servers))
        await prove(made, stack, [one.url for one in servers], replicas=3, push=True)
    # An account that was pushed is known to a server that was away.
    late = made.authority.add("node", "prod", "idc-2")
    await servers[2].stop()
    await push_accounts(
        made.options(made.creds["system"], servers[0].url), made.authority.store, [late.account]
    )
    await servers[2].start()
    client = await connect(made.options(made.authority.issue(late), servers[2].url), name="late")
    stack.push_async_callback(client.close)


@pytest.mark.parametrize("form", ["jwt", "plain"])
async def test_site(form: str, tmp_path: Path, stack: AsyncExitStack) -> None:
    """A node at a site: commands and status reach the hub, events come back, nothing else goes through."""
    made = Made(tmp_path / "store")
    ports = free_ports(3, "127.0.0.1")
    hub = await stack.enter_async_context(
        server(
            render(
                made.store, tmp_path / "hub", "single", "--name", "hub-1", "--form", form,
                "--port", str(ports[0]), "--leaf-port", str(ports[1]),
            )
        )
    )  # fmt: skip
    leaf = await stack.enter_async_context(
        server(
            render(
                made.store, tmp_path / "leaf", "site", "--name", "site-bus", "--site", "site",
                "--hub", f"127.0.0.1:{ports[1]}", "--port", str(ports[2]), "--form", form,
            )
        )
    )  # fmt: skip
    if form == "jwt":  # each server by itself: accounts do not travel over the leaf connection
        for url in (hub.url, leaf.url):
            system = made.options(made.creds["system"], url)
            assert await push_accounts(system, made.authority.store, [made.node.account]) == 1
    control = await connect(made.options(made.creds["controller"], hub.url), name="controller")
    stack.push_async_callback(control.close)
    log = await JetStreamLog.open(control, "prod", create=True)
    await SnapshotBucket(control, "prod").ensure()
    there = await connect(made.options(made.creds["controller"], leaf.url), name="site-init")
    stack.push_async_callback(there.close)
    await make_mirrors(there, "prod", hub_domain="hub")
    await wait_caught_up(there, "prod", timeout_s=20)

    async def answer(message: Msg) -> None:
        await message.respond(b'{"sequence": 7}')

    await control.subscribe("isthmus.prod.command.>", cb=answer)
    reported = await control.subscribe(subjects.status_wildcard("prod"))
    await control.flush()
    agent = await connect(made.options(made.node_creds, leaf.url), name="agent")
    stack.push_async_callback(agent.close)
    reader = LiveReader(agent, "prod").read(follow=True)

    async def first() -> int:
        async for batch in reader:
            if batch.messages:
                return batch.messages[0].sequence
        return 0

    reading = asyncio.create_task(first())
    async with asyncio.timeout(60):
        while True:
            try:
                reply = await agent.request(subjects.node_command("prod", "idc-1", "join"), b"{}", timeout=1)
                break
            except (NoRespondersError, NatsTimeoutError):  # the leaf has just connected
                continue
        assert reply.data == b'{"sequence": 7}'
        await agent.publish(subjects.status("prod", "idc-1"), b"{}")
        assert (await reported.next_msg(timeout=30)).subject == subjects.status("prod", "idc-1")
        cause = Cause(command_id="c", actor="a", time=datetime.now(UTC), source="test")
        event = NodeLeft(node="idc-1", uid="u")
        messages, _ = seal("prod", genesis("prod"), [(cause, [event])])
        await log.append(messages, expected=0)
        assert await reading == 1
    for subject in (
        subjects.event("prod", "node", "idc-1", "left"),
        subjects.node_command("prod", "idc-2", "join"),
    ):
        with pytest.raises((NoRespondersError, NatsTimeoutError)):
            await agent.request(subject, b"{}", timeout=0.3)
    assert (await log.head()).sequence == 1


def test_a_cluster_of_two_and_a_site_without_a_hub_are_refused(tmp_path: Path) -> None:
    made = Made(tmp_path / "store")
    for arguments, said in (
        (["cluster", "--peer", "a", "--peer", "b"], "three members"),
        (["site"], "--site NAME and --hub"),
    ):
        result = CliRunner().invoke(
            deploy,
            [
                "nats",
                *arguments,
                "--name",
                "x",
                "--host",
                "h",
                "--store",
                str(made.store),
                "--to",
                str(tmp_path / "o"),
            ],
        )
        assert said in str(result.exception)
