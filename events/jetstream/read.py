"""Reading the event stream: a pull loop of our own, whose position belongs to the reader.

Each session is one ephemeral consumer without acknowledgements that starts at a position. Whatever
goes wrong (reconnect, silence, a lost message, a lost consumer) ends the session, and the next one
starts at the reader's position. nats-py's ordered consumer and ``fetch`` are not used: the first
drops messages silently and restarts at sequence 1, the second reaches a third of the rate.

A message missing inside a session is the transport's loss and only costs a new session; a message
missing at the start of one is a hole in the log, and an alarm, if the stream's leader lacks it, too: the
consumer may be kept by a replica that is still catching up.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator
from itertools import islice

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from events import subjects
from events.bus.nats_fastpath import inline
from events.bus.retry import happened, jittered_s, pauses, raise_if_cancelled
from events.chain import CHAIN_HEADER, Head, genesis
from events.codec import StoredMessage
from events.codes.extras import our_version
from events.errors import IsthmusError, Unavailable, VerificationFailed
from events.ids import new_id
from events.jetstream.api import STREAM_NOT_FOUND, ApiError, call, ensure_alive, last_message
from events.jetstream.freshness import only_behind
from events.log import ReadBatch

log = logging.getLogger("isthmus.log")

_NS = 1_000_000_000
_EXPIRES_S = 30
_HEARTBEAT_S = 1
_SILENCE_S = 2.5
"""Without a message or heartbeat for so long, the session is dead (two heartbeats and some)."""
_TICK_S = 0.25
_INACTIVE_S = 60
"""The server removes the consumer of a vanished reader after this."""
_BYTES_MAX = 8 * 1024 * 1024
READER, VERSION_KEY = "r-", "isthmus.version"
"""What a reader's consumer begins with, and by what it says its release: those before 0.3 do not."""
LAGGING_S = 0.5
"""Pause before a replica that lacked an event is asked again."""

_encode = msgspec.json.Encoder().encode


class SessionLost(Exception):
    """The session must be replaced; never leaves this package."""


class PullReader:
    """Reads one stream. ``batch_size`` bounds what one pull asks for; at most twice that is buffered."""

    def __init__(
        self, client: Client, prefix: str, cluster: str, *, batch_size: int = 1000, patience_s: float = 10.0
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._stream = subjects.stream(cluster)
        self._wildcard = subjects.events_wildcard(cluster)
        self._batch_size = batch_size
        self._patience_s = patience_s

    async def read(self, after: int, until: int | None, *, follow: bool) -> AsyncIterator[ReadBatch]:
        """See :meth:`events.log.LogReader.read`. Raises Unavailable(log_unavailable).

        Cancelled, its subscription is taken back.
        """
        position = after
        end = await self._end(patient=follow)
        if follow:
            stop = until
            if end < position:
                await self._reach(position)
                end = position
            if end <= position and (until is None or position < until):
                yield ReadBatch((), 0)
        else:
            stop = end if until is None else min(until, end)
        loop = asyncio.get_running_loop()
        moved_at = loop.time()
        while stop is None or position < stop:
            raise_if_cancelled()
            session = await self._begin(position, patient=follow)
            try:
                async for batch in session.batches(stop):
                    position = batch.messages[-1].sequence
                    yield batch
                    moved_at = loop.time()
            except (SessionLost, VerificationFailed) as reason:
                lags = isinstance(reason, VerificationFailed)
                if isinstance(reason, VerificationFailed) and not await only_behind(
                    self._client, self._prefix, self._stream, reason
                ):
                    raise
                if not follow and loop.time() - moved_at > self._patience_s:
                    raise Unavailable(
                        "log_unavailable",
                        f"stream {self._stream} gave nothing behind event {position} for "
                        f"{self._patience_s:g} s, though it says that it holds {stop}: {reason}",
                    ) from None
                log.info("stream %s: reading begins anew at %d: %s", self._stream, position + 1, reason)
                if lags:
                    await asyncio.sleep(jittered_s(LAGGING_S))
                await ensure_alive(self._client)
            finally:
                await session.close()

    async def _end(self, *, patient: bool) -> int:
        """The last sequence, asked of the leader; tried for ever when ``patient``, else for ``patience_s``."""
        level = logging.WARNING
        while True:
            raise_if_cancelled()
            try:
                found = await patient_head(
                    self._client, self._prefix, self._stream, self._wildcard, patience_s=self._patience_s
                )
            except Unavailable as error:
                if not patient or self._client.is_closed:
                    raise
                log.log(level, "stream %s: still unreadable: %s", self._stream, error)
                level = logging.DEBUG  # said once, until it can be read again
                await asyncio.sleep(jittered_s(0.6))
            else:
                return found[0] if found is not None else 0

    async def _reach(self, position: int) -> None:
        """Wait until the log holds the reader's position: a mirror may lag, but not for ever.

        Raises VerificationFailed(sequence_gap): the reader's past is not this log's.
        """
        end = 0
        async for _ in pauses(asyncio.get_running_loop().time() + self._patience_s):
            end = await self._end(patient=True)
            if end >= position:
                return
        raise VerificationFailed(
            "sequence_gap",
            f"this reader is at event {position}, but stream {self._stream} ends with event {end}: "
            f"the log was replaced or restored from an older copy, or this mirror is far behind",
            expected=position,
            found=end,
        )

    async def _begin(self, position: int, *, patient: bool) -> _Session:
        """A session at ``position``; tried for ever when ``patient``, else for ``patience_s``."""
        loop = asyncio.get_running_loop()
        last: IsthmusError | None = None
        level = logging.WARNING
        while True:
            raise_if_cancelled()
            async for left_s in pauses(loop.time() + self._patience_s):
                session = _Session(self._client, self._prefix, self._stream, position, self._batch_size)
                try:
                    await session.open(min(3.0, left_s))
                except (ApiError, NatsError, Unavailable) as error:
                    await session.close()
                    last = _as_unavailable(error, self._stream)
                    if self._client.is_closed or (last.code == "log_missing" and not patient):
                        raise last from error
                    continue
                return session
            if not patient:
                raise last or Unavailable("log_unavailable", f"stream {self._stream} does not answer")
            log.log(level, "stream %s: still unreadable: %s", self._stream, last)
            level = logging.DEBUG  # said once, until it can be read again


class _Session:
    """One ephemeral consumer and what it has delivered."""

    def __init__(self, client: Client, prefix: str, stream: str, position: int, batch_size: int) -> None:
        self._client = client
        self._prefix = prefix
        self._stream = stream
        self._name = f"{READER}{new_id()}"
        self._position = position
        self._batch_size = batch_size
        self._buffer: deque[StoredMessage] = deque()
        self._pending = 0
        self._asked = 0  # messages that open pull requests may still deliver
        self._arrived = asyncio.Event()
        self._lost: SessionLost | VerificationFailed | None = None
        self._received = position
        self._heard_at = 0.0
        self._reconnects = client.stats["reconnects"]
        self._subscription: Subscription | None = None
        self._inbox = client.new_inbox()

    async def open(self, timeout_s: float) -> None:
        """Raises ApiError, NatsError or Unavailable."""
        if not self._client.is_connected:
            raise Unavailable("bus_unreachable", "the connection to the bus is down; it is being restored")
        self._subscription = inline(
            await self._client.subscribe(
                # The bound on what is buffered is what we ask for, never a silent drop by the client.
                self._inbox,
                cb=self._on_message,
                pending_msgs_limit=0,
                pending_bytes_limit=0,
            )
        )
        await call(
            self._client,
            f"{self._prefix}.CONSUMER.CREATE.{self._stream}.{self._name}",
            {
                "stream_name": self._stream,
                "action": "create",
                "config": {
                    "name": self._name,
                    "deliver_policy": "by_start_sequence",
                    "opt_start_seq": self._position + 1,
                    "ack_policy": "none",
                    "replay_policy": "instant",
                    "mem_storage": True,
                    "num_replicas": 1,
                    "inactive_threshold": _INACTIVE_S * _NS,
                    "metadata": {VERSION_KEY: our_version()},
                },
            },
            timeout_s=timeout_s,
        )

    async def close(self) -> None:
        """Release everything; asks nobody and waits for nothing, so that it also works when cancelled."""
        if self._subscription is None:
            return
        with contextlib.suppress(NatsError, OSError):
            await self._subscription.unsubscribe()
        if self._client.is_connected:
            with contextlib.suppress(NatsError, OSError):
                await self._client.publish(f"{self._prefix}.CONSUMER.DELETE.{self._stream}.{self._name}")
        self._subscription = None

    async def batches(self, stop: int | None) -> AsyncIterator[ReadBatch]:
        """Yield what arrives, up to ``stop``. Raises SessionLost, VerificationFailed(sequence_gap)."""
        while stop is None or self._position < stop:
            raise_if_cancelled()
            if not self._buffer:
                # What arrived in order is still good; only then does a loss count.
                if self._lost is not None:
                    raise self._lost
                await self._pull(stop)
                await self._wait()
                continue
            chunk = list(islice(self._buffer, self._batch_size))
            if len(chunk) == len(self._buffer):
                self._buffer.clear()
                self._arrived.clear()
            else:
                for _ in chunk:
                    self._buffer.popleft()
            if stop is not None and chunk[-1].sequence > stop:
                chunk = chunk[: stop - self._position]
            self._position = chunk[-1].sequence
            pending = self._received - self._position + self._pending
            if stop is not None:
                pending = min(pending, stop - self._position)
            await self._pull(stop)
            yield ReadBatch(chunk, pending)

    async def _pull(self, stop: int | None) -> None:
        """Keep one to two batches on their way."""
        if (
            self._lost is not None
            or self._asked > self._batch_size // 2
            or len(self._buffer) > self._batch_size
        ):
            return
        count = self._batch_size
        if stop is not None:
            count = min(count, stop - self._received - self._asked)
        if count <= 0:
            return
        request = {
            "batch": count,
            "max_bytes": _BYTES_MAX,
            "expires": _EXPIRES_S * _NS,
            "idle_heartbeat": _HEARTBEAT_S * _NS,
        }
        self._asked += count
        try:
            await self._client.publish(
                f"{self._prefix}.CONSUMER.MSG.NEXT.{self._stream}.{self._name}",
                _encode(request),
                reply=self._inbox,
            )
        except NatsError as error:
            raise SessionLost(str(error)) from error

    async def _wait(self) -> None:
        """Until something arrives. Raises SessionLost when nothing can."""
        loop = asyncio.get_running_loop()
        self._heard_at = loop.time()
        while not self._buffer and self._lost is None:
            self._arrived.clear()
            await happened(self._arrived, within_s=_TICK_S)
            if self._buffer or self._lost is not None:
                return
            if self._client.is_closed:
                raise Unavailable("bus_unreachable", "the connection to the bus was closed")
            if self._client.stats["reconnects"] != self._reconnects and self._client.is_connected:
                raise SessionLost("the connection was restored")
            if self._client.is_connected and loop.time() - self._heard_at > _SILENCE_S:
                raise SessionLost(f"no heartbeat for {_SILENCE_S:g} s")
            if self._asked == 0:
                return

    async def _on_message(self, message: Msg) -> None:
        reply = message.reply
        if not reply.startswith("$JS.ACK."):
            self._on_status(message)
            return
        # $JS.ACK.<stream>.<consumer>.<tries>.<sequence>.<n>.<time>.<pending>, or with <domain>.<account>
        # behind ACK and more at the end (ADR-15).
        fields = reply.split(".")
        first = 5 if len(fields) == 9 else 7
        sequence = int(fields[first])
        if sequence != self._received + 1:
            self._on_jump(sequence)
            return
        if self._lost is not None:
            return
        self._received = sequence
        self._asked -= 1
        self._pending = int(fields[first + 3])
        self._buffer.append(
            StoredMessage(
                sequence, message.subject, message.headers or {}, message.data, int(fields[first + 2])
            )
        )
        self._arrived.set()

    def _on_jump(self, sequence: int) -> None:
        if self._lost is not None:
            return
        if self._received > self._position or self._buffer:
            self._lose(SessionLost(f"event {sequence} came after event {self._received}"))
        elif sequence > self._received + 1:
            self._lost = VerificationFailed(
                "sequence_gap",
                f"event {self._received + 1} is missing: stream {self._stream} continues with event {sequence}",
                expected=self._received + 1,
                found=sequence,
            )
        else:
            self._lost = VerificationFailed(
                "sequence_gap",
                f"this reader is at event {self._received}, but stream {self._stream} offers event {sequence} "
                f"as its newest: the log was replaced or restored from an older copy",
                expected=self._received + 1,
                found=sequence,
            )
        self._arrived.set()

    def _on_status(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status", "")
        self._heard_at = asyncio.get_running_loop().time()
        if status == "100":
            return
        what = headers.get("Description", "")
        self._asked = max(0, self._asked - int(headers.get("Nats-Pending-Messages", "0")))
        if status in {"404", "408"} or (
            status == "409" and what in {"Batch Completed", "Message Size Exceeds MaxBytes"}
        ):
            self._arrived.set()  # the request is used up; the loop makes the next
            return
        self._lose(SessionLost(f"{status} {what}".strip()))

    def _lose(self, reason: SessionLost) -> None:
        self._lost = reason
        self._arrived.set()


async def log_head(client: Client, cluster: str, *, prefix: str, patience_s: float) -> Head:
    """The cluster's log's end and its digest; genesis when empty.

    Raises Unavailable, and VerificationFailed(chain_broken) for a last event without a digest. Cancelled, it
    leaves nothing behind.
    """
    found = await patient_head(
        client, prefix, subjects.stream(cluster), subjects.events_wildcard(cluster), patience_s=patience_s
    )
    if found is None:
        return genesis(cluster)
    sequence, headers = found
    try:
        return Head(sequence, bytes.fromhex(headers[CHAIN_HEADER]))
    except (KeyError, ValueError):
        raise VerificationFailed(
            "chain_broken",
            f"event {sequence} carries no chain digest: somebody wrote past the controller",
            sequence=sequence,
        ) from None


async def patient_head(
    client: Client, prefix: str, stream: str, wildcard: str, *, patience_s: float
) -> tuple[int, dict[str, str]] | None:
    """Sequence and headers of the newest event, asked of the leader; tried for ``patience_s``.

    Raises Unavailable(log_missing, log_unavailable or bus_unreachable). Cancelled, it leaves nothing behind.
    """
    last: IsthmusError | None = None
    async for left_s in pauses(asyncio.get_running_loop().time() + patience_s):
        try:
            return await last_message(client, prefix, stream, wildcard, timeout_s=min(2.0, left_s))
        except (ApiError, Unavailable) as error:
            last = _as_unavailable(error, stream)
            if client.is_closed or last.code == "log_missing":
                raise last from error
    raise last or Unavailable("log_unavailable", f"stream {stream} did not answer within {patience_s:g} s")


def _as_unavailable(error: ApiError | NatsError | Unavailable, stream: str) -> Unavailable:
    if isinstance(error, Unavailable):
        return error
    if isinstance(error, ApiError) and error.err_code == STREAM_NOT_FOUND:
        return Unavailable(
            "log_missing",
            f"the bus has no stream {stream}: check --cluster; a controller makes it at its start",
            stream=stream,
        )
    return Unavailable("log_unavailable", f"stream {stream}: {error}", stream=stream)
