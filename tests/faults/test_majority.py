"""Three servers: one gone is nothing, two gone is said in time, and nothing said to be stored is lost."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from controlplane.controller.agents import status_stream
from controlplane.controller.leadership import lease as lease_module
from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server import process as server_module
from events.chain import Head
from events.errors import OutcomeUnknown, Refused, Unavailable
from events.jetstream import stream as streams
from events.jetstream.api import call
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from tests.contract.samples import CLUSTER, everything, fill, sealed, verified
from tests.events.following import Following
from tests.events.server_cluster import ServerCluster
from tests.waiting import until

pytestmark = [pytest.mark.bus, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _restarts_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RESTARTS_MAX", 10**6)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[ServerCluster]:
    async with ServerCluster(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: ServerCluster) -> AsyncIterator[Client]:
    client = await connect(BusOptions(servers=cluster.urls), name="majority")
    yield client
    await client.close()


@pytest.fixture
async def log(client: Client) -> JetStreamLog:
    return await JetStreamLog.open(client, CLUSTER, create=True, replicas=3)


async def append_until(stop: asyncio.Event, log: JetStreamLog, head: Head, acknowledged: list[Head]) -> None:
    """Single events and batches, each decided on the head; an unknown outcome is learnt, never guessed."""
    number = 0
    while not stop.is_set():
        number += 1
        messages, after = sealed(head, 1 + number % 4)
        while True:
            try:
                await log.append(messages, expected=head.sequence, timeout_s=20)
            except OutcomeUnknown:
                continue
            break
        acknowledged.append(after)
        head = after


async def test_each_server_in_turn_is_killed_under_load_and_nothing_acknowledged_is_lost(
    cluster: ServerCluster, client: Client, log: JetStreamLog
) -> None:
    acknowledged: list[Head] = [await log.head()]
    followers = [Following(LiveReader(client, CLUSTER, check_s=1.0)) for _ in range(3)]
    stop = asyncio.Event()
    appending = asyncio.create_task(append_until(stop, log, acknowledged[0], acknowledged))
    async with asyncio.timeout(90):
        for server in cluster.servers:
            server.signal(signal.SIGKILL)
            before = len(acknowledged)
            while len(acknowledged) < before + 50:  # goes on, on the other two
                assert not appending.done(), appending.result()
                await asyncio.sleep(0.01)
            await server.wait_ready(30)
    stop.set()
    await asyncio.wait_for(appending, 30)
    stored = await everything(log)
    end = verified(stored)
    assert end == acknowledged[-1]
    chains = {message.sequence: message.headers["ce-chain"] for message in stored}
    assert all(chains[head.sequence] == head.hex for head in acknowledged[1:])
    for follower in followers:
        await follower.reaches(end.sequence, within_s=30)
        assert follower.head == end
        await follower.end()


async def test_without_a_majority_writing_and_asking_end_in_time_and_resume_with_it(
    cluster: ServerCluster, log: JetStreamLog, client: Client
) -> None:
    head = await fill(log, 10)
    # The client is left with a server that lives: the others are what is gone.
    assert client.connected_url is not None
    ours = client.connected_url.netloc
    alive = next(server for server in cluster.servers if ours.endswith(f":{server.port}"))
    gone = [server for server in cluster.servers if server is not alive]
    for server in gone:
        server.signal(signal.SIGSTOP)
    try:
        messages, after = sealed(head, 3)
        async with asyncio.timeout(60):  # it ends by itself, and not by this
            with pytest.raises(Unavailable):
                await log.append(messages, expected=10, timeout_s=3)
        # A leader that lost its majority notices after a while; from then on it says so.
        await until(lambda: _says_unavailable(client), within_s=30)
    finally:
        for server in gone:
            server.signal(signal.SIGCONT)
    async with asyncio.timeout(40):
        while True:
            try:
                assert await log.append(messages, expected=10, timeout_s=10) == 13
                break
            except Unavailable:
                continue
            except Refused as refusal:
                pytest.fail(f"the same events were refused: {refusal}")
    assert await log.head() == after
    assert verified(await everything(log)) == after


async def _says_unavailable(client: Client) -> bool:
    try:
        await JetStreamLog(client, CLUSTER, patience_s=1.0).head()
    except Unavailable as error:
        return error.code in {"log_unavailable", "bus_unreachable"}
    return False


async def test_a_lease_whose_stream_has_lost_its_leader_for_good_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LEADERLESS_S", 1.0)
    async with ServerCluster(tmp_path) as cluster:
        nats = await connect(BusOptions(servers=cluster.urls), name="test")
        try:
            lease = lease_module.BusLease(nats, "prod", "a", replicas=2)

            async def acquired() -> bool:
                try:
                    return await lease.acquire()
                except Unavailable:
                    return False

            await until(acquired, "the lease is made")
            stream = f"$JS.API.STREAM.INFO.{lease_module.lease_stream('prod')}"
            info = await call(nats, stream, timeout_s=30.0)
            lost = info["cluster"]["replicas"][0]["name"]  # two copies: without one there is no majority
            await next(server for server in cluster.servers if server.options.name == lost).stop()
            await until(acquired, "the lease is taken on the two servers that are left")
        finally:
            await nats.close()


async def test_the_agents_reports_are_taken_again_when_their_stream_has_lost_its_leader_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "LEADERLESS_S", 1.0)
    monkeypatch.setattr(status_stream, "LOOK_AGAIN_S", 0.2)
    async with ServerCluster(tmp_path) as cluster:
        nats = await connect(BusOptions(servers=cluster.urls), name="test")
        keeping = asyncio.create_task(status_stream.StatusStreamMaintainer(nats, "prod", replicas=2).run())
        try:

            async def taken() -> bool:
                try:
                    return bool((await nats.jetstream(timeout=1.0).publish("isthmus.prod.status.n1", b"")).seq)
                except (NatsError, TimeoutError):
                    return False

            await until(taken, "reports are taken")
            info = await call(nats, f"$JS.API.STREAM.INFO.{subjects.status_stream('prod')}", timeout_s=30.0)
            lost = info["cluster"]["replicas"][0]["name"]
            await next(server for server in cluster.servers if server.options.name == lost).stop()
            await until(taken, "reports are taken on the two servers that are left")
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await nats.close()
