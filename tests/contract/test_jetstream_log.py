"""The contract on JetStream: one server, and three with three replicas; read by a consumer, and live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest
import pytest_asyncio

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.chain import Head, genesis
from events.codec import OutgoingMessage, StoredMessage
from events.errors import Refused
from events.jetstream.api import call
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from events.log import EventLog, LogReader, ReadBatch
from tests.contract.samples import CLUSTER, fill, sealed
from tests.contract.suite import LogContract, ReaderOver
from tests.events.server_cluster import ServerCluster

# The servers serve all tests of the module (three take seconds to elect), hence one event loop.
pytestmark = [pytest.mark.bus, pytest.mark.asyncio(loop_scope="module")]

ACCOUNTS = 200
"""More than there are tests on one server."""

EXTRA = "accounts {{\n{}}}\n".format(
    "".join(
        f"  test{n} {{ jetstream: enabled, users: [ {{ user: test{n}, password: test }} ] }}\n"
        for n in range(ACCOUNTS)
    )
)
"""Each test has an account of its own.

A stream made anew under the name of one just deleted held an event too many, once in some hundred runs on a
busy machine (the cause was not found); nobody but tests would delete one.
"""

Urls = tuple[str, ...]


def per_test(urls: Urls) -> Iterator[Urls]:
    """These servers' URLs: each taken leads to an account of its own."""
    return iter([tuple(url.replace("//", f"//test{n}:test@") for url in urls) for n in range(ACCOUNTS)])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def one_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Iterator[Urls]]:
    options = ServerOptions(store_dir=tmp_path_factory.mktemp("one"), extra=EXTRA)
    async with EmbeddedServer(options) as server:
        yield per_test((server.url,))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def three_servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Iterator[Urls]]:
    cluster = ServerCluster(tmp_path_factory.mktemp("three"))
    for server in cluster.servers:
        server.options = msgspec.structs.replace(server.options, extra=EXTRA)
    async with cluster:
        yield per_test(cluster.urls)


@asynccontextmanager
async def empty_log(urls: Urls, replicas: int) -> AsyncIterator[JetStreamLog]:
    """A log on these servers; its streams are deleted afterwards."""
    client = await connect(BusOptions(servers=urls), name="contract")
    try:
        yield await JetStreamLog.open(client, CLUSTER, create=True, replicas=replicas, lag_s=0.3)
        for stream in (subjects.stream(CLUSTER), subjects.status_stream(CLUSTER)):
            await call(client, f"$JS.API.STREAM.DELETE.{stream}", timeout_s=30)
    finally:
        await client.close()


@pytest.fixture
def reader_over(log: EventLog) -> ReaderOver:
    async def make(count: int) -> LogReader:
        await fill(log, count)
        return log

    return make


class SendsAheadContract:
    """What is sent ahead is stored by the append that asks for it, whole and once, and by nothing else."""

    async def test_what_was_sent_ahead_is_stored_by_its_append(self, log: JetStreamLog) -> None:
        first, head = sealed(genesis(CLUSTER), 3)
        second, _ = sealed(head, 4)
        await log.send_ahead(second, expected=3)  # before the first is stored, as a controller does
        assert (await log.head()).sequence == 0
        assert await log.append(first, expected=0) == 3
        await log.send_ahead(second, expected=3)
        assert (await log.head()).sequence == 3
        assert await log.append(second, expected=3) == 7
        assert await log.append(second, expected=3) == 7
        assert [m.headers["ce-id"] for m in await everything(log)] == [m.id for m in (*first, *second)]

    async def test_what_was_sent_ahead_may_grow(self, log: JetStreamLog) -> None:
        messages, head = sealed(genesis(CLUSTER), 1)
        for count in (2, 3, 1):
            await log.send_ahead(messages, expected=0)
            more, head = sealed(head, count)
            messages.extend(more)
        assert log._ahead is not None
        assert log._ahead.sent == 5  # the rest the append sends
        assert await log.append(messages, expected=0) == 7
        assert [m.headers["ce-id"] for m in await everything(log)] == [m.id for m in messages]

    async def test_what_was_sent_ahead_and_given_up_leaves_nothing(self, log: JetStreamLog) -> None:
        first, head = sealed(genesis(CLUSTER), 2)
        given_up, _ = sealed(head, 5)
        await log.append(first, expected=0)
        await log.send_ahead(given_up, expected=2)
        other, _ = sealed(head, 3)
        assert await log.append(other, expected=2) == 5
        await log.send_ahead(given_up, expected=2)
        with pytest.raises(Refused, match="the log is at 5"):
            await log.append(given_up, expected=2)
        assert [m.headers["ce-id"] for m in await everything(log)] == [m.id for m in (*first, *other)]

    async def test_what_the_server_did_not_get_is_sent_by_the_append(self, log: JetStreamLog) -> None:
        messages, _ = sealed(genesis(CLUSTER), 3)
        await log.send_ahead(messages, expected=0)
        assert log._ahead is not None
        log._ahead = log._ahead._replace(batch_id="never-sent")  # as behind a server that was restarted
        assert await log.append(messages, expected=0) == 3
        assert len(await everything(log)) == 3


async def everything(log: JetStreamLog) -> list[StoredMessage]:
    return [message async for batch in log.read() for message in batch.messages]


class LiveLog:
    """Appends as a controller does, reads as an agent does."""

    def __init__(self, written: JetStreamLog) -> None:
        self._written = written
        self._live = LiveReader(written.client, CLUSTER)
        self.cluster = CLUSTER

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        return await self._written.append(messages, expected=expected, timeout_s=timeout_s)

    def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        return self._live.read(after=after, until=until, follow=follow)

    async def head(self) -> Head:
        return await self._live.head()


class TestOneServer(LogContract, SendsAheadContract):
    """Everything in the suite."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def log(self, one_server: Iterator[Urls]) -> AsyncIterator[EventLog]:
        async with empty_log(next(one_server), 1) as log:
            yield log


class TestThreeServers(LogContract, SendsAheadContract):
    """Everything in the suite."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def log(
        self, three_servers: Iterator[Urls], monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[EventLog]:
        # An account that is new has no log: there is nothing to become certain of, once for each test.
        monkeypatch.setattr("events.jetstream.log.MISSING_S", 0.0)
        async with empty_log(next(three_servers), 3) as log:
            yield log


class TestLiveOnOneServer(LogContract):
    """Everything in the suite."""

    @pytest_asyncio.fixture(loop_scope="module")
    async def log(self, one_server: Iterator[Urls]) -> AsyncIterator[EventLog]:
        async with empty_log(next(one_server), 1) as log:
            yield LiveLog(log)
