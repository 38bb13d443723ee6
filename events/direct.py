"""Reading a stream without a consumer: JetStream's batched direct get (ADR-31).

One request, many answers, nothing left behind on the server; answered by any replica or mirror, so
that an answer may be a little behind. The server does not slow down for a slow reader: hence the
bounds on count and bytes.
"""

from __future__ import annotations

import asyncio
import calendar
import contextlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events.codec import StoredMessage
from events.errors import Unavailable
from events.jetstream_api import DEFAULT_PREFIX

BATCH_MAX = 500
_BYTES_MAX = 2 * 1024 * 1024

_TRANSPORT = frozenset(
    {
        "Nats-Stream",
        "Nats-Subject",
        "Nats-Sequence",
        "Nats-Time-Stamp",
        "Nats-Num-Pending",
        "Nats-Last-Sequence",
        "Nats-UpTo-Sequence",
    }
)
"""Headers that the server adds to a direct answer or a republished message (ADR-31)."""

_encode = msgspec.json.Encoder().encode


class DirectAnswer(NamedTuple):
    """Messages in the stream's order, and how many more the answering replica holds behind them."""

    messages: list[StoredMessage]
    pending: int


def recorded_ns(stamp: str) -> int:
    """RFC 3339 in UTC with up to nine decimals (Go's RFC3339Nano) as Unix nanoseconds. Raises ValueError."""
    whole = calendar.timegm(time.strptime(stamp[:19], "%Y-%m-%dT%H:%M:%S"))
    fraction = stamp[20:].rstrip("Z")
    return whole * 1_000_000_000 + int(fraction.ljust(9, "0") or 0)


def carried_message(message: Msg) -> StoredMessage | None:
    """The stored message that a direct answer or a republished message carries; None if it carries none."""
    headers = message.headers
    if not headers:
        return None
    try:
        sequence, subject = int(headers["Nats-Sequence"]), headers["Nats-Subject"]
        moment_ns = recorded_ns(headers["Nats-Time-Stamp"])
    except (KeyError, ValueError):
        return None
    # What says how it came is not part of the message: every reader gives the same one.
    own = {name: value for name, value in headers.items() if name not in _TRANSPORT}
    return StoredMessage(sequence, subject, own, message.data, moment_ns)


class DirectReader:
    """Direct gets on one stream. ``prefix`` as for :class:`events.jetstream.JetStreamLog`."""

    def __init__(self, client: Client, stream: str, *, prefix: str = DEFAULT_PREFIX) -> None:
        self._client = client
        self.stream = stream
        self._subject = f"{prefix}.DIRECT.GET.{stream}"

    async def after(
        self, sequence: int, wildcard: str, *, count: int = BATCH_MAX, timeout_s: float = 3.0
    ) -> DirectAnswer:
        """Up to ``count`` messages behind ``sequence`` on subjects that match ``wildcard``.

        Raises Unavailable when the answer does not come whole within ``timeout_s``.
        """
        request = {"seq": sequence + 1, "batch": count, "max_bytes": _BYTES_MAX, "next_by_subj": wildcard}
        return await self._ask(request, timeout_s)

    async def last(self, subject: str, *, timeout_s: float = 3.0) -> StoredMessage | None:
        """The last message on a subject or wildcard. Raises Unavailable."""
        answer = await self._ask({"last_by_subj": subject}, timeout_s)
        return answer.messages[-1] if answer.messages else None

    async def _ask(self, request: Mapping[str, Any], timeout_s: float) -> DirectAnswer:
        if not self._client.is_connected:
            raise Unavailable("bus_unreachable", "the connection to the bus is down; it is being restored")
        messages: list[StoredMessage] = []
        finished: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        single = "last_by_subj" in request

        async def on_message(message: Msg) -> None:
            if finished.done():
                return
            headers = message.headers or {}
            status = headers.get("Status", "")
            stored = None if status else carried_message(message)
            if stored is not None:
                messages.append(stored)
                if single:
                    finished.set_result(0)
            elif status == "204":
                finished.set_result(int(headers.get("Nats-Num-Pending", "0")))
            elif status == "404":
                finished.set_result(0)
            else:
                why = (
                    "nobody answers"
                    if status == "503"
                    else f"{status} {headers.get('Description', '')}".strip()
                )
                finished.set_exception(Unavailable("log_unavailable", f"stream {self.stream}: {why}"))

        inbox = self._client.new_inbox()
        try:
            subscription = await self._client.subscribe(
                inbox, cb=on_message, pending_msgs_limit=0, pending_bytes_limit=0
            )
            try:
                await self._client.publish(self._subject, _encode(request), reply=inbox)
                pending = await asyncio.wait_for(finished, timeout_s)
            finally:
                with contextlib.suppress(NatsError, OSError):
                    await subscription.unsubscribe()
        except TimeoutError:
            raise Unavailable(
                "log_unavailable", f"stream {self.stream} did not answer a direct get within {timeout_s:g} s"
            ) from None
        except NatsError as error:
            raise Unavailable("bus_unreachable", f"the bus connection failed: {error}") from error
        return DirectAnswer(messages, pending)
