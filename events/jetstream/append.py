"""Appending to the event stream: all or nothing, behind an expected sequence, safe to repeat.

One event is published plainly; several go as one atomic batch (ADR-50), which costs one disk sync.
The first message carries ``Nats-Expected-Last-Sequence``. ``Nats-Expected-Last-Msg-Id`` must never
be sent: on three replicas a mismatch wedges the stream for good (nats-server 2.15.1).

The answers to a repeated append differ between one replica (10071: the condition is judged before
the id) and three (``duplicate``), and for batches (10201). All three lead to the same question,
asked of the log itself: do exactly these ids stand behind the expected sequence?
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeoutError

from events import subjects
from events.bus.nats_fastpath import Outgoing, publish_all
from events.bus.retry import pauses
from events.chain import CHAIN_HEADER
from events.codec import OutgoingMessage
from events.errors import IsthmusError, OutcomeUnknown, Refused, Unavailable
from events.jetstream.api import (
    DUPLICATE_IN_BATCH,
    PAYLOAD_TOO_LARGE,
    PING_S,
    WRONG_LAST_SEQUENCE,
    WRONG_LAST_SEQUENCE_IN_FLIGHT,
    ApiError,
    ensure_alive,
    error_in,
    last_message,
    message_at,
)
from events.log import FORGOTTEN_S, check_count

_EXPECTED = "Nats-Expected-Last-Sequence"
_HEADER_ROOM_BYTES = 256
"""For the protocol line and the headers that an append adds."""
_TRY_S = 2.0
"""How long one try waits for its acknowledgement; an election of a new leader takes a few of them."""

_TICK_S = 0.1
_REPEATED_MAX = 4
"""Answers "known id" with a free place after which the ids count as stored elsewhere."""

_decode = msgspec.json.Decoder().decode
_new = tuple.__new__  # a named tuple's own constructor is a Python function


class Ahead(NamedTuple):
    """A batch of which the first ``sent`` messages were sent: all but its last one, which commits it.

    ``reconnects`` is the client's count then, ``at_s`` the steady clock when it was begun.
    """

    messages: Sequence[OutgoingMessage]
    expected: int
    batch_id: str
    reconnects: int
    at_s: float
    sent: int

    def begins(self, client: Client, messages: Sequence[OutgoingMessage], expected: int) -> bool:
        """Whether it is part of this, sent on this connection and not too long ago."""
        return (
            messages is self.messages
            and expected == self.expected
            and client.stats["reconnects"] == self.reconnects
            and time.monotonic() - self.at_s < FORGOTTEN_S / 2
        )


async def send_ahead(
    client: Client, messages: Sequence[OutgoingMessage], *, expected: int, before: Ahead | None = None
) -> Ahead | None:
    """See :meth:`events.log.SendsAhead.send_ahead`; ``before`` is what its last call returned.

    Cancelled, some of the messages may be on their way.
    """
    if len(messages) < 2 or not client.is_connected:
        return None
    if before is None or not before.begins(client, messages, expected):
        before = Ahead(messages, expected, uuid4().hex, client.stats["reconnects"], time.monotonic(), 0)
    try:
        check_sizes(messages[before.sent :], client.max_payload)
        await _send_but_last(client, messages, before.batch_id, expected, sent=before.sent)
    except (IsthmusError, NatsError):  # the append will meet it, too, and tell
        return None
    return before._replace(sent=len(messages) - 1)


async def _send_but_last(
    client: Client, messages: Sequence[OutgoingMessage], batch_id: str, expected: int, *, sent: int = 0
) -> None:
    """Send a batch, behind what was ``sent`` of it, without the message that commits it.

    No answer to the first one is asked for: it would cost a round trip, and what it could say makes the commit
    fail too (10176, and the append is tried again).
    """
    batch = f"Nats-Batch-Id: {batch_id}\r\nNats-Batch-Sequence:"
    more = "" if sent else f"{_EXPECTED}: {expected}\r\n"  # of the first one
    outgoing = []
    for place, (subject, given, body, lines, _, _, _) in enumerate(messages[sent:-1], sent + 1):
        outgoing.append(_new(Outgoing, (subject, body, given, f"{lines}{batch} {place}\r\n{more}")))
        more = ""
    await publish_all(client, outgoing)


async def append(
    client: Client,
    prefix: str,
    cluster: str,
    messages: Sequence[OutgoingMessage],
    *,
    expected: int,
    timeout_s: float,
    lag_s: float,
    ahead: Ahead | None = None,
) -> int:
    """See :meth:`events.log.EventLog.append`.

    What was sent ``ahead`` the first try only commits, if it serves. A log that answers with a sequence before
    ``expected`` is asked again for ``lag_s``: a server that was cut off takes itself for the leader until it
    hears the others, and answers for the log as it was. Cancelled, the messages may be stored: read the log, or
    append again with the same ids.
    """
    check_sizes(messages, client.max_payload)
    if ahead is not None and not ahead.begins(client, messages, expected):
        ahead = None
    asker = _Append(client, prefix, cluster, messages, expected=expected, lag_s=lag_s, ahead=ahead)
    return await asker.run(timeout_s)


def check_sizes(messages: Sequence[OutgoingMessage], max_payload_bytes: int) -> None:
    """Raise Refused(event_too_large) for what the server would refuse, or would break the connection over."""
    check_count(messages)
    for message in messages:
        size = len(message.body) + _HEADER_ROOM_BYTES
        if size + 2048 > max_payload_bytes:  # count headers only when it could matter
            size += sum(len(name) + len(value) + 4 for name, value in message.headers.items())
        if size > max_payload_bytes:
            raise Refused(
                "event_too_large",
                f"event {message.headers.get('ce-type', '?')} takes {size} bytes; "
                f"the bus carries at most {max_payload_bytes}",
                size=size,
                limit=max_payload_bytes,
            )


class _Append:
    """One append over all its tries."""

    def __init__(
        self,
        client: Client,
        prefix: str,
        cluster: str,
        messages: Sequence[OutgoingMessage],
        *,
        expected: int,
        lag_s: float,
        ahead: Ahead | None = None,
    ) -> None:
        """``ahead`` is what the server has of this batch, if anything."""
        self._client = client
        self._prefix = prefix
        self._stream = subjects.stream(cluster)
        self._wildcard = subjects.events_wildcard(cluster)
        self._messages = messages
        self._expected = expected
        self._end = expected + len(messages)
        self._condition = {_EXPECTED: str(expected)}
        self._ahead = ahead
        self._maybe_stored = False
        self._repeated = 0
        self._lag_s = lag_s
        self._lags_since: float | None = None

    async def run(self, timeout_s: float) -> int:
        deadline = asyncio.get_running_loop().time() + timeout_s
        last: IsthmusError | None = None
        async for left_s in pauses(deadline):
            try:
                if await self._or_reconnect(self._try(min(_TRY_S, left_s))):
                    return self._end
            except (NatsTimeoutError, TimeoutError):
                self._maybe_stored = True
                last = None
                rest_s = deadline - asyncio.get_running_loop().time()
                if rest_s > 0:
                    await ensure_alive(self._client, timeout_s=min(PING_S, rest_s))
            except NoRespondersError:
                last = self._unavailable("nobody takes messages for it (no leader, or the server is starting)")
            except ApiError as error:
                if error.err_code == PAYLOAD_TOO_LARGE:
                    raise Refused("event_too_large", f"the server refuses the size: {error}") from error
                if not error.passing:
                    raise self._unavailable(str(error)) from error
                last = self._unavailable(str(error))
            except Unavailable as error:
                last = error
            except NatsError as error:
                last = Unavailable("bus_unreachable", f"the bus connection failed: {error}")
        if self._maybe_stored or last is None:
            raise OutcomeUnknown(
                "outcome_unknown",
                f"stream {self._stream} did not acknowledge {len(self._messages)} event(s) behind sequence "
                f"{self._expected} within {timeout_s:g} s: they may be stored",
                expected=self._expected,
                count=len(self._messages),
            )
        raise last

    async def _or_reconnect(self, trying: Coroutine[Any, Any, bool]) -> bool:
        """Give a try up as unanswered once the connection was replaced: its answer cannot come any more."""
        reconnects = self._client.stats["reconnects"]
        task = asyncio.ensure_future(trying)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=_TICK_S)
                if not task.done() and self._client.stats["reconnects"] != reconnects:
                    raise NatsTimeoutError
            return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _try(self, timeout_s: float) -> bool:
        """Send once; True when stored as asked, False when another try may help."""
        if not self._client.is_connected:
            # nats-py would keep the message and send it at some later time, unasked.
            raise Unavailable("bus_unreachable", "the connection to the bus is down; it is being restored")
        if not self._messages:
            return await self._settle(timeout_s)
        answer = await (self._batch(timeout_s) if len(self._messages) > 1 else self._single(timeout_s))
        error = error_in(answer)
        if error is None and not answer.get("duplicate"):
            if int(answer["seq"]) != self._end:
                raise Refused(
                    "internal",
                    f"stream {self._stream} stored up to {answer['seq']} where {self._end} was asked for",
                )
            return True
        if error is None or error.err_code == DUPLICATE_IN_BATCH:
            return await self._settle(timeout_s, repeated=True)
        if error.err_code in {WRONG_LAST_SEQUENCE, WRONG_LAST_SEQUENCE_IN_FLIGHT}:
            return await self._settle(timeout_s)
        raise error

    async def _settle(self, timeout_s: float, *, repeated: bool = False) -> bool:
        """Ask the log: are we in it (True), is the place still free (False), or is it taken (raises)?

        ``repeated`` says that the server knows an id of ours already.
        """
        head = await last_message(self._client, self._prefix, self._stream, self._wildcard, timeout_s=timeout_s)
        actual = head[0] if head is not None else 0
        if actual == self._expected:
            # The place is free: nothing was to be stored, or something in flight has yet to land or
            # came to nothing. An id that the server keeps calling known stands further up.
            self._repeated += repeated
            if self._repeated < _REPEATED_MAX:
                return not self._messages
            raise Refused(
                "wrong_last_sequence",
                f"events with these ids are already stored at or before sequence {self._expected}",
                expected=self._expected,
                actual=actual,
                repeated=True,
            )
        if actual >= self._end and self._messages:
            stands = await self._stands(timeout_s)
            if stands is None:
                return False  # the log goes that far, yet this replica does not show it: ask again
            if stands:
                return True
        if actual < self._expected and self._may_lag():
            return False
        raise Refused(
            "wrong_last_sequence",
            f"the decision was made on sequence {self._expected}, the log is at {actual}",
            expected=self._expected,
            actual=actual,
        )

    def _may_lag(self) -> bool:
        """Whether a log that ends before the expected sequence may be a replica's that was cut off.

        Then the real leader may have heard the same message and have stored it.
        """
        now = asyncio.get_running_loop().time()
        if self._lags_since is None:
            self._lags_since = now
        self._maybe_stored = self._maybe_stored or bool(self._messages)
        return now - self._lags_since < self._lag_s

    async def _stands(self, timeout_s: float) -> bool | None:
        """Whether our last message stands at its place, and with it (by its chain digest) all before it.

        None when the answering replica has nothing at that place.

        The id alone would not do: another controller that decides the same command at the same place
        gives its events the same ids, and other contents.
        """
        found = await message_at(self._client, self._prefix, self._stream, self._end, timeout_s=timeout_s)
        if found is None:
            return None
        wanted = self._messages[-1]
        return all(found[1].get(name) == wanted.headers.get(name) for name in ("ce-id", CHAIN_HEADER))

    async def _single(self, timeout_s: float) -> dict[str, Any]:
        message = self._messages[0]
        headers = {**message.headers, **self._condition}
        reply = await self._client.request(message.subject, message.body, timeout=timeout_s, headers=headers)
        answer: dict[str, Any] = _decode(reply.data)
        return answer

    async def _batch(self, timeout_s: float) -> dict[str, Any]:
        """Send all, unless that was done ahead of the first try, and ask for the commit."""
        ahead, self._ahead = self._ahead, None
        batch_id, sent = (ahead.batch_id, ahead.sent) if ahead is not None else (uuid4().hex, 0)
        await _send_but_last(self._client, self._messages, batch_id, self._expected, sent=sent)
        last = self._messages[-1]
        headers = {
            **last.headers,
            "Nats-Batch-Id": batch_id,
            "Nats-Batch-Sequence": str(len(self._messages)),
            "Nats-Batch-Commit": "1",
        }
        reply = await self._client.request(last.subject, last.body, timeout=timeout_s, headers=headers)
        answer: dict[str, Any] = _decode(reply.data)
        return answer

    def _unavailable(self, why: str) -> Unavailable:
        return Unavailable("log_unavailable", f"stream {self._stream}: {why}", stream=self._stream)
