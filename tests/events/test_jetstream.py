"""What the contract cannot say: settings, lost acknowledgements, crashes, holes, and deadlines."""

from __future__ import annotations

import asyncio
import logging
import signal
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import TimeoutError as NatsTimeoutError

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.process import EmbeddedServer
from events.codec import OutgoingMessage
from events.errors import BadRequest, OutcomeUnknown, Refused, Unavailable, VerificationFailed
from events.jetstream.api import call, parse_headers
from events.jetstream.freshness import MirrorContact
from events.jetstream.log import JetStreamLog
from events.jetstream.stream import differences, event_stream_settings
from tests.contract.samples import CLUSTER, everything, fill, sealed, verified
from tests.events.lossy import LaggingClient
from tests.waiting import patient, until

pytestmark = pytest.mark.bus

STREAM = subjects.stream(CLUSTER)


# --- the stream -----------------------------------------------------------------------------------


async def test_opening_twice_accepts_its_own_settings(client: Client, log: JetStreamLog) -> None:
    again = await JetStreamLog.open(client, CLUSTER, create=True, replicas=1)
    assert await again.head() == await log.head()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("deny_delete", False),
        ("deny_purge", False),
        ("max_age", 10**15),
        ("max_msgs", 5),
        ("discard", "old"),
        ("allow_atomic", False),
        ("allow_direct", False),
        ("republish", {"src": ">", "dest": "elsewhere.>"}),
        ("subjects", ["isthmus.contract.events.node.>"]),
    ],
)
async def test_a_stream_with_other_settings_is_refused_by_name(
    client: Client, name: str, value: object
) -> None:
    settings = {**event_stream_settings(CLUSTER), name: value}
    await call(client, f"$JS.API.STREAM.CREATE.{STREAM}", settings, timeout_s=30)
    with pytest.raises(Refused, match=name) as refusal:
        await JetStreamLog.open(client, CLUSTER, create=True)
    assert refusal.value.code == "log_settings_differ"
    assert len(refusal.value.details["differences"]) == 1


async def test_the_log_is_not_compressed_and_one_of_an_earlier_release_that_is_is_taken_with_a_warning(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """A compressed one became unreadable when servers of a cluster were killed; see events.jetstream.stream."""
    await JetStreamLog.open(client, CLUSTER, create=True)
    info = await call(client, f"$JS.API.STREAM.INFO.{STREAM}", timeout_s=30)
    assert info["config"]["compression"] == "none"
    assert "compressed" not in caplog.text
    await call(client, f"$JS.API.STREAM.DELETE.{STREAM}", timeout_s=30)
    settings = {**event_stream_settings(CLUSTER), "compression": "s2"}
    await call(client, f"$JS.API.STREAM.CREATE.{STREAM}", settings, timeout_s=30)
    await JetStreamLog.open(client, CLUSTER, create=True)
    assert f"nats stream edit {STREAM} --compression none" in caplog.text


async def test_another_number_of_replicas_is_refused_with_the_command_that_changes_it(
    client: Client, log: JetStreamLog
) -> None:
    with pytest.raises(Refused, match="nats stream edit ISTHMUS_contract --replicas 3"):
        await JetStreamLog.open(client, CLUSTER, create=True, replicas=3)


def test_settings_that_the_server_omits_as_zero_do_not_differ() -> None:
    assert differences({"max_age": 0, "max_msgs": -1, "deny_purge": False}, {}) == []
    assert differences({"deny_purge": True}, {}) == ["deny_purge: found False, needed True"]


async def test_a_log_that_is_not_there_is_named(client: Client) -> None:
    with pytest.raises(Unavailable) as refusal:
        await JetStreamLog.open(client, "nowhere")
    assert refusal.value.code == "log_missing"


async def test_a_cluster_name_that_would_split_a_subject_is_refused(client: Client) -> None:
    with pytest.raises(BadRequest):
        JetStreamLog(client, "a.b")


# --- appending -----------------------------------------------------------------------------------


class DeafClient:
    """A connection whose next acknowledgements are lost: the request is sent, the answer never heard."""

    def __init__(self, client: Client, lose: int) -> None:
        self._client = client
        self.lose = lose

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def request(self, subject: str, *args: Any, **options: Any) -> Msg:
        answer = await self._client.request(subject, *args, **options)
        if subject.startswith(f"isthmus.{CLUSTER}.events.") and answer.data and self.lose:
            self.lose -= 1
            raise NatsTimeoutError
        return answer


@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("lost", [1, 2])
async def test_a_lost_acknowledgement_costs_a_question_and_nothing_else(
    client: Client, log: JetStreamLog, size: int, lost: int
) -> None:
    head = await fill(log, 3)
    messages, after = sealed(head, size)
    deaf = DeafClient(client, lost)
    assert await JetStreamLog(cast("Any", deaf), CLUSTER).append(messages, expected=3) == 3 + size
    assert deaf.lose <= 1
    assert await log.head() == after


@pytest.mark.parametrize("size", [1, 5])
async def test_when_every_acknowledgement_is_lost_the_outcome_is_unknown_and_then_learnt(
    server: EmbeddedServer, client: Client, log: JetStreamLog, size: int
) -> None:
    messages, after = sealed(await log.head(), size)

    class Silent(DeafClient):
        async def request(self, subject: str, *args: Any, **options: Any) -> Msg:
            await super().request(subject, *args, **options)
            raise NatsTimeoutError

    with pytest.raises(OutcomeUnknown):
        await JetStreamLog(cast("Any", Silent(client, 0)), CLUSTER).append(messages, expected=0, timeout_s=0.3)
    assert await log.append(messages, expected=0) == size
    assert await log.head() == after


@pytest.mark.parametrize("size", [1, 5])
async def test_without_a_server_an_append_ends_in_time_and_stores_nothing_later(
    server: EmbeddedServer, client: Client, log: JetStreamLog, size: int
) -> None:
    messages, _ = sealed(await log.head(), size)
    await server.stop()
    await until(lambda: not client.is_connected)
    async with asyncio.timeout(patient(2)):
        with pytest.raises(Unavailable) as refusal:
            await log.append(messages, expected=0, timeout_s=0.5)
    assert not isinstance(refusal.value, OutcomeUnknown)
    await server.start()
    await until(lambda: client.is_connected)
    assert (await log.head()).sequence == 0


async def test_an_append_waits_out_a_restart_of_the_server(
    server: EmbeddedServer, client: Client, log: JetStreamLog
) -> None:
    head = await fill(log, 5)
    server.signal(signal.SIGKILL)
    messages, head = sealed(head, 3)
    assert await log.append(messages, expected=5, timeout_s=15) == 8
    assert verified(await everything(log)) == head


async def test_an_event_larger_than_the_bus_carries_is_refused_before_it_is_sent(
    client: Client, log: JetStreamLog
) -> None:
    messages, _ = sealed(await log.head(), 1)
    fat = OutgoingMessage(messages[0].subject, messages[0].headers, b"x" * client.max_payload)
    wide = OutgoingMessage(
        messages[0].subject, {**messages[0].headers, "ce-actor": "y" * 2000}, b"x" * (client.max_payload - 1500)
    )
    for message in (fat, wide):
        with pytest.raises(Refused) as refusal:
            await log.append([message], expected=0)
        assert refusal.value.code == "event_too_large"
    assert client.is_connected
    assert (await log.head()).sequence == 0


async def test_a_batch_is_stored_whole_or_not_at_all_over_a_crash(
    server: EmbeddedServer, client: Client, log: JetStreamLog
) -> None:
    head, acknowledged = await log.head(), 0
    for crash in range(4):
        messages, after = sealed(head, 400)
        appending = asyncio.create_task(log.append(messages, expected=head.sequence, timeout_s=20))
        if crash % 2:
            await asyncio.sleep(0)  # one step into the batch
        server.signal(signal.SIGKILL)
        acknowledged = await appending
        assert acknowledged == after.sequence
        head = after
        await server.wait_ready()
    assert verified(await everything(log)) == head


# --- reading -------------------------------------------------------------------------------------


async def follow(log: JetStreamLog, seen: list[int], *, after: int = 0) -> None:
    async for batch in log.read(after=after, follow=True):
        seen += [message.sequence for message in batch.messages]


@pytest.mark.parametrize("how", ["killed", "paused", "stopped"])
async def test_a_follower_goes_on_where_it_was_when_the_server_returns(
    server: EmbeddedServer, client: Client, log: JetStreamLog, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "isthmus.log")
    await fill(log, 3)
    seen: list[int] = []
    following = asyncio.create_task(follow(log, seen))
    await until(lambda: seen == [1, 2, 3])
    if how == "killed":
        server.signal(signal.SIGKILL)
        await server.wait_ready()
    elif how == "paused":
        # Longer than the heartbeat's patience: the session is replaced on a connection that lives.
        server.signal(signal.SIGSTOP)
        await until(lambda: "no heartbeat" in caplog.text)
        server.signal(signal.SIGCONT)
    else:
        await server.stop()
        await server.start()
    writer = await connect(BusOptions(servers=(server.url,)), name="writer")
    await fill(JetStreamLog(writer, CLUSTER), 4)
    await until(lambda: len(seen) >= 7)
    assert seen == [1, 2, 3, 4, 5, 6, 7]
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await writer.close()


async def test_a_follower_begun_before_the_server_is_up_gets_everything(
    server: EmbeddedServer, client: Client, log: JetStreamLog
) -> None:
    await fill(log, 2)
    await server.stop()
    await until(lambda: not client.is_connected)
    seen: list[int] = []
    following = asyncio.create_task(follow(log, seen))
    await server.start()
    await until(lambda: seen == [1, 2])
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)


async def test_a_slow_reader_loses_nothing_and_buffers_little(client: Client, log: JetStreamLog) -> None:
    await fill(log, 6000)
    reader = JetStreamLog(client, CLUSTER, batch_size=50)
    position = 0
    async for batch in reader.read():
        assert len(batch.messages) <= 50
        assert batch.messages[0].sequence == position + 1
        position = batch.messages[-1].sequence
        await client.flush()  # one round trip: everything that was asked for has arrived
        buffered = sum(sub.pending_msgs for sub in client._subs.values())
        assert buffered <= 100
    assert position == 6000


async def test_readers_leave_no_consumer_behind(client: Client, log: JetStreamLog) -> None:
    await fill(log, 10)
    await everything(log)
    reading = log.read(follow=True)
    await anext(reading)
    await reading.aclose()  # type: ignore[attr-defined]

    async def none_left() -> bool:
        return (await client.jetstream().stream_info(STREAM)).state.consumer_count == 0

    await until(none_left)


async def test_a_hole_in_the_log_is_an_alarm(client: Client) -> None:
    settings = {**event_stream_settings(CLUSTER), "deny_delete": False}
    await call(client, f"$JS.API.STREAM.CREATE.{STREAM}", settings, timeout_s=30)
    log = JetStreamLog(client, CLUSTER)
    await fill(log, 10)
    await call(client, f"$JS.API.STREAM.MSG.DELETE.{STREAM}", {"seq": 4}, timeout_s=30)
    with pytest.raises(VerificationFailed, match="event 4 is missing") as alarm:
        await everything(log)
    assert alarm.value.code == "sequence_gap"
    assert [m.sequence for m in await everything(log, after=4)] == [5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("follow", [False, True])
async def test_a_hole_of_one_replica_is_none_of_the_log(
    client: Client, log: JetStreamLog, follow: bool
) -> None:
    """Seen in an hour of faults: one that caught up after its disk was full lacked 28 events for a while."""
    await fill(log, 6)
    lagging = LaggingClient(client, 3, times=3)
    seen: list[int] = []
    async for batch in JetStreamLog(cast("Any", lagging), CLUSTER).read(follow=follow):
        seen += [message.sequence for message in batch.messages]
        if seen[-1:] == [6]:
            break
    assert seen == [1, 2, 3, 4, 5, 6]
    assert lagging.times == 0


async def test_a_log_that_ends_before_the_readers_position_is_an_alarm(
    client: Client, log: JetStreamLog
) -> None:
    await fill(log, 2)
    with pytest.raises(VerificationFailed, match="replaced or restored") as alarm:
        await anext(JetStreamLog(client, CLUSTER, patience_s=0.3).read(after=5, follow=True))
    assert (alarm.value.details["expected"], alarm.value.details["found"]) == (5, 2)


async def test_a_log_that_lags_behind_the_readers_position_is_waited_for(
    client: Client, log: JetStreamLog
) -> None:
    await fill(log, 2)
    following = asyncio.ensure_future(anext(log.read(after=5, follow=True)))
    await fill(log, 4)
    async with asyncio.timeout(60):
        assert [message.sequence for message in (await following).messages] in ([], [6])


async def test_a_log_that_lags_behind_an_append_is_waited_for(log: JetStreamLog) -> None:
    head = await fill(log, 2)
    others, further = sealed(head, 3, salt="others-")
    mine, end = sealed(further, 2, salt="mine-")
    appending = asyncio.ensure_future(log.append(mine, expected=further.sequence, timeout_s=10))
    await asyncio.wait({appending}, timeout=0.2)
    await log.append(others, expected=head.sequence)
    assert await appending == end.sequence
    assert await log.head() == end


async def test_an_event_written_past_the_controller_is_named(client: Client, log: JetStreamLog) -> None:
    await client.jetstream().publish(subjects.event(CLUSTER, "node", "x", "joined"), b"{}")
    with pytest.raises(VerificationFailed, match="past the controller") as alarm:
        await log.head()
    assert alarm.value.code == "chain_broken"


async def test_a_read_that_does_not_follow_ends_in_time_without_a_server(
    server: EmbeddedServer, client: Client, log: JetStreamLog
) -> None:
    await server.stop()
    async with asyncio.timeout(patient(3)):
        with pytest.raises(Unavailable):
            await everything(JetStreamLog(client, CLUSTER, patience_s=0.5))


def test_a_header_block_is_read_as_the_server_writes_it() -> None:
    assert parse_headers(b"NATS/1.0\r\nA: 1\r\nB:two: three\r\nA: 4\r\n\r\n") == {"A": "1", "B": "two: three"}


@pytest.mark.parametrize("step_s", [-3600.0, -4.5, 0.0, 3600.0])
def test_a_mirrors_last_contact_grows_older_whatever_its_servers_clock_does(step_s: float) -> None:
    def info(contact_s: float, now_s: float) -> dict[str, Any]:
        stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"ts": stamp, "mirror": {"active": round((now_s - contact_s) * 1e9)}}

    contact, begin_s = MirrorContact(), 1.7e9
    assert contact.unchanged_s({"ts": "2026-03-02T14:00:00Z"}, 0.0) == 0.0, "no mirror"
    for second in range(3):  # while it is in contact
        assert contact.unchanged_s(info(begin_s + second, begin_s + second + 0.2), float(second)) == 0.0
    for second in range(3, 4000):  # cut off, and its server's clock is set
        read = info(begin_s + 2, begin_s + second + 0.2 + (step_s if second > 5 else 0.0))
        assert contact.unchanged_s(read, float(second)) == second - 2
    assert contact.unchanged_s(info(begin_s + 9000, begin_s + 9000.2), 4000.0) == 0.0
