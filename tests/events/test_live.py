"""Following without a consumer: whatever plain NATS does to the messages, each event comes once, in order."""

from __future__ import annotations

import asyncio
import random
import signal
from typing import Any, cast

import pytest
from nats.aio.client import Client

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.process import EmbeddedServer
from events.chain import CHAIN_HEADER
from events.errors import Unavailable, VerificationFailed
from events.jetstream.api import call
from events.jetstream.direct import recorded_ns
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from events.jetstream.stream import event_stream_settings
from events.log import ReadBatch
from tests.contract.samples import CLUSTER, everything, fill, sealed
from tests.events.following import Following
from tests.events.lossy import LaggingClient, LossyClient

pytestmark = pytest.mark.bus

LIVE = subjects.live_wildcard(CLUSTER)[:-1]


@pytest.mark.parametrize("seed", range(6))
async def test_lost_repeated_late_and_reordered_messages_are_harmless(
    client: Client, log: JetStreamLog, seed: int
) -> None:
    lossy = LossyClient(client, LIVE, seed)
    reader = LiveReader(cast("Any", lossy), CLUSTER, check_s=0.2, gap_wait_s=0.005)
    following = Following(reader)
    await asyncio.wait_for(following.live.wait(), 60)
    head = await log.head()
    for size in (1, 2, 40, 1, 1, 7, 300, 1, 1, 1, 3, 1):
        messages, head = sealed(head, size)
        await log.append(messages, expected=head.sequence - size)
    await following.reaches(head.sequence)
    assert following.seen == list(range(1, head.sequence + 1))
    assert following.head == head
    assert lossy.lost > 0
    await following.end()


@pytest.mark.parametrize("lacks", [1, 3])
async def test_a_hole_of_one_replica_is_none_of_the_log(client: Client, log: JetStreamLog, lacks: int) -> None:
    await fill(log, 6)
    lagging = LaggingClient(client, lacks, times=3)
    following = Following(LiveReader(cast("Any", lagging), CLUSTER, check_s=0.1))
    await following.reaches(6)
    assert following.seen == [1, 2, 3, 4, 5, 6]
    assert lagging.times == 0
    await following.end()


async def test_a_hole_of_the_log_itself_ends_a_follower(client: Client) -> None:
    settings = {**event_stream_settings(CLUSTER), "deny_delete": False}
    await call(client, f"$JS.API.STREAM.CREATE.{subjects.stream(CLUSTER)}", settings, timeout_s=30)
    await fill(JetStreamLog(client, CLUSTER), 6)
    await call(client, f"$JS.API.STREAM.MSG.DELETE.{subjects.stream(CLUSTER)}", {"seq": 4}, timeout_s=30)
    following = Following(LiveReader(client, CLUSTER, check_s=0.1))
    with pytest.raises(VerificationFailed, match="event 4 is missing"):
        await following.reaches(6)


async def test_a_lost_last_message_is_found_by_asking(client: Client, log: JetStreamLog) -> None:
    deaf = LossyClient(client, LIVE, 1, lose=1.0)
    following = Following(LiveReader(cast("Any", deaf), CLUSTER, check_s=0.1))
    await asyncio.wait_for(following.live.wait(), 60)
    await fill(log, 1)
    await following.reaches(1)
    assert following.seen == [1]
    await following.end()


async def test_a_message_lost_before_the_servers_knew_of_the_subscription_is_found_soon(
    client: Client, log: JetStreamLog
) -> None:
    """At a site's leaf the last event before a silence was missed for up to a minute and a half."""
    deaf = LossyClient(client, LIVE, 1, lose=1.0)
    following = Following(LiveReader(cast("Any", deaf), CLUSTER, check_s=3600))
    await asyncio.wait_for(following.live.wait(), 60)
    await fill(log, 1)
    await following.reaches(1)
    await following.end()


async def test_who_hears_how_far_the_log_has_come_looks_for_it(client: Client, log: JetStreamLog) -> None:
    deaf = LossyClient(client, LIVE, 1, lose=1.0)
    reader = LiveReader(cast("Any", deaf), CLUSTER, check_s=3600)
    reader.heard_of(2)
    following = Following(reader)
    await fill(log, 2)
    await following.reaches(2)
    assert reader.statistics.gaps > 0
    reader.heard_of(5)
    await fill(log, 3)
    await following.reaches(5)
    await following.end()


async def test_a_message_that_never_was_in_the_log_cannot_confuse_it(client: Client, log: JetStreamLog) -> None:
    await fill(log, 3)
    following = Following(LiveReader(client, CLUSTER, gap_wait_s=0.005))
    await following.reaches(3)
    subject = subjects.live_wildcard(CLUSTER).replace(">", "range.x.allocated")
    await client.publish(subject, b"no headers")
    await client.publish(subject, b"nonsense", headers={"Nats-Sequence": "four", "Nats-Subject": "x"})
    await client.publish(
        subject,
        b"from the past",
        headers={"Nats-Sequence": "2", "Nats-Subject": "x", "Nats-Time-Stamp": "2026-01-01T00:00:00Z"},
    )
    await client.publish(
        subject,
        b"from a far future: the stream is asked, and does not have it",
        headers={"Nats-Sequence": "900", "Nats-Subject": "x", "Nats-Time-Stamp": "2026-01-01T00:00:00Z"},
    )
    await fill(log, 20)
    await following.reaches(23)
    assert following.seen == list(range(1, 24))
    assert following.head == await log.head()
    await following.end()


async def test_it_goes_on_over_a_crash_of_the_server(
    server: EmbeddedServer, client: Client, log: JetStreamLog
) -> None:
    head = await fill(log, 10)
    following = Following(LiveReader(client, CLUSTER))
    await following.reaches(10)
    server.signal(signal.SIGKILL)
    await server.wait_ready()
    # Written while the follower may still be disconnected: it has to notice by itself.
    other = await connect(BusOptions(servers=(server.url,)), name="writer")
    messages, head = sealed(head, 5)
    await JetStreamLog(other, CLUSTER).append(messages, expected=10)
    await following.reaches(15)
    assert following.head == head
    await following.end()
    await other.close()


async def test_it_leaves_no_consumer_on_the_server(client: Client, log: JetStreamLog) -> None:
    await fill(log, 1500)
    followers = [Following(LiveReader(client, CLUSTER)) for _ in range(5)]
    for each in followers:
        await each.reaches(1500)
    info = await client.jetstream().stream_info(subjects.stream(CLUSTER))
    assert info.state.consumer_count == 0
    assert info.state.messages == 1500
    for each in followers:
        await each.end()
    assert client.stats["errors_received"] == 0


async def test_a_read_that_does_not_follow_ends_with_an_error_when_the_log_is_away(
    server: EmbeddedServer, client: Client, log: JetStreamLog
) -> None:
    await fill(log, 1)
    await server.stop()
    with pytest.raises(Unavailable):
        await everything(LiveReader(client, CLUSTER, patience_s=0.3))


async def test_a_position_ahead_of_the_log_waits_for_its_future(client: Client, log: JetStreamLog) -> None:
    await fill(log, 2)
    following = Following(LiveReader(client, CLUSTER, check_s=0.05), after=4)
    await fill(log, 4)
    await following.reaches(6)
    assert following.seen == [5, 6]
    await following.end()


async def test_a_follower_hears_from_time_to_time_that_it_misses_nothing(
    client: Client, log: JetStreamLog
) -> None:
    await fill(log, 2)
    reading = LiveReader(client, CLUSTER, check_s=0.05).read(follow=True)
    async with asyncio.timeout(30):
        first = await anext(reading)
        heard = [await anext(reading) for _ in range(3)]
    await reading.aclose()  # type: ignore[attr-defined]
    assert [message.sequence for message in first.messages] == [1, 2]
    assert heard == [ReadBatch((), 0)] * 3


async def test_every_reader_gives_the_same_message(client: Client, log: JetStreamLog) -> None:
    await fill(log, 3)
    by_consumer = await everything(log)
    by_direct_get = await everything(LiveReader(client, CLUSTER))
    assert by_consumer == by_direct_get
    following = LiveReader(client, CLUSTER).read(after=3, follow=True)
    await anext(following)
    await fill(log, 1)
    live = (await anext(following)).messages[0]
    await following.aclose()  # type: ignore[attr-defined]
    assert live == (await everything(log))[3]
    assert CHAIN_HEADER in live.headers


@pytest.mark.parametrize("seed", range(3))
async def test_a_follower_ends_whenever_it_is_cancelled(client: Client, log: JetStreamLog, seed: int) -> None:
    await fill(log, 700)
    moments = random.Random(seed)
    for _ in range(40):
        follower = Following(LiveReader(client, CLUSTER, check_s=0.002, gap_wait_s=0.001))
        await asyncio.wait({follower.task}, timeout=moments.uniform(0, 0.05))
        await follower.end()


@pytest.mark.parametrize(
    ("stamp", "expected"),
    [
        ("2026-11-23T15:12:06.073627559Z", 1795446726073627559),
        ("2026-11-23T15:12:06.07Z", 1795446726070000000),
        ("2026-11-23T15:12:06Z", 1795446726000000000),
    ],
)
def test_the_servers_stamps_keep_their_nanoseconds(stamp: str, expected: int) -> None:
    assert recorded_ns(stamp) == expected
