"""Status: the last word of each node is kept, and new ones come at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from nats.aio.client import Client

from events import subjects
from events.bus.server.process import EmbeddedServer
from events.jetstream.log import JetStreamLog
from events.jetstream.status_stream import StatusReader, publish
from events.status import AgentStatus
from tests.contract.samples import CLUSTER
from tests.waiting import until

pytestmark = pytest.mark.bus


def status(node: str, applied: int) -> AgentStatus:
    return AgentStatus(node=node, uid=f"uid-{node}", applied=applied, sent_at=datetime.now(UTC))


async def test_the_last_status_of_each_of_many_nodes_is_kept(client: Client, log: JetStreamLog) -> None:
    for applied in (1, 2):
        for number in range(1300):
            assert await publish(client, CLUSTER, status(f"n{number}.example", applied))
    await client.flush()
    reader = StatusReader(client, CLUSTER)

    async def all_second() -> bool:
        found = await reader.all()
        return len(found) == 1300 and {each.status.applied for each in found} == {2}

    await until(all_second)


async def test_a_follower_starts_with_what_is_kept_and_goes_on(client: Client, log: JetStreamLog) -> None:
    await publish(client, CLUSTER, status("a", 5))
    await client.flush()
    reader = StatusReader(client, CLUSTER)
    await until(lambda: _has(reader, 1))
    following = reader.follow()
    async with asyncio.timeout(60):
        assert [(each.status.node, each.status.applied) for each in await anext(following)] == [("a", 5)]
        await publish(client, CLUSTER, status("b", 6))
        await publish(client, CLUSTER, status("a", 7))
        seen: dict[str, int] = {}
        while len(seen) < 2:
            seen |= {each.status.node: each.status.applied for each in await anext(following)}
    assert seen == {"a": 7, "b": 6}
    await following.aclose()  # type: ignore[attr-defined]


async def test_a_status_in_the_name_of_another_and_a_malformed_one_are_ignored(
    client: Client, log: JetStreamLog
) -> None:
    await client.publish(subjects.status(CLUSTER, "a"), b"{")
    await publish(client, CLUSTER, status("honest", 1))
    forged = AgentStatus(node="victim", uid="u", applied=10**9, sent_at=datetime.now(UTC))
    import msgspec

    await client.publish(subjects.status(CLUSTER, "mallory"), msgspec.json.encode(forged))
    await client.flush()
    reader = StatusReader(client, CLUSTER)
    await until(lambda: _has(reader, 1))
    assert [each.status.node for each in await reader.all()] == ["honest"]


async def test_without_a_connection_it_is_not_kept_for_later(
    server: EmbeddedServer, client: Client, log: JetStreamLog
) -> None:
    await server.stop()
    await until(lambda: not client.is_connected)
    assert not await publish(client, CLUSTER, status("a", 1))


async def _has(reader: StatusReader, count: int) -> bool:
    return len(await reader.all()) >= count
