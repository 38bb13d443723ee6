"""Looking things up in the live stream by the server's own index: one sequence, or one subject's events.

Batched direct gets (ADR-31, server 2.11): the server finds the messages of a subject filter without
reading the rest. Only reading; works with credentials that may use ``DIRECT.GET`` alone.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events import subjects
from events.codec import StoredMessage
from events.errors import Unavailable
from events.jetstream import JetStreamLog

_BATCH = 500
_SILENCE_S = 5.0
_PENDING_LIMIT = 4096
_ADDED = frozenset({"Nats-Stream", "Nats-Subject", "Nats-Sequence", "Nats-Time-Stamp"})
_COUNTS = frozenset({"Nats-Num-Pending", "Nats-Last-Sequence", "Nats-UpTo-Sequence"})


class LiveLookup:
    """Direct gets on one cluster's stream."""

    def __init__(self, log: JetStreamLog, prefix: str = "$JS.API") -> None:
        self._client: Client = log.client
        self._cluster = log.cluster
        self._subject = f"{prefix}.DIRECT.GET.{subjects.stream(log.cluster)}"

    async def at(self, sequence: int) -> StoredMessage | None:
        """The event stored at ``sequence``; None when the stream has none. Raises Unavailable."""
        found = await self._get({"seq": sequence}, limit=1)
        return found[0] if found and found[0].sequence == sequence else None

    async def matching(self, subject: str, *, after: int = 0) -> list[StoredMessage]:
        """All events on ``subject`` (wildcards allowed) after a sequence, in order. Raises Unavailable."""
        found: list[StoredMessage] = []
        while True:
            batch = await self._get({"seq": after + 1, "next_by_subj": subject, "batch": _BATCH}, limit=_BATCH)
            found.extend(batch)
            if len(batch) < _BATCH:
                return found
            after = batch[-1].sequence

    async def _get(self, request: dict[str, Any], *, limit: int) -> list[StoredMessage]:
        inbox = self._client.new_inbox()
        queue: asyncio.Queue[Msg] = asyncio.Queue(_PENDING_LIMIT)

        async def keep(message: Msg) -> None:
            queue.put_nowait(message)  # the request is bounded by its batch, well under the queue

        found: list[StoredMessage] = []
        try:
            subscription = await self._client.subscribe(inbox, cb=keep)
            try:
                await self._client.publish(self._subject, msgspec.json.encode(request), reply=inbox)
                while len(found) < limit:
                    async with asyncio.timeout(_SILENCE_S):
                        message = await queue.get()
                    headers = message.headers or {}
                    status = headers.get("Status", "")
                    if status in ("204", "404"):
                        return found
                    if status:
                        raise Unavailable(
                            "log_unavailable",
                            f"the stream answered {status} {headers.get('Description', '')}".strip(),
                        )
                    found.append(_stored(message, headers))
            finally:
                await subscription.unsubscribe()
        except TimeoutError:
            raise Unavailable(
                "log_unavailable",
                f"no answer to {self._subject} within {_SILENCE_S:g} s: no stream, no quorum or no permission",
            ) from None
        except NatsError as error:
            raise Unavailable("bus_unreachable", f"the bus connection failed: {error}") from error
        return found


def _stored(message: Msg, headers: dict[str, str]) -> StoredMessage:
    own = {name: value for name, value in headers.items() if name not in _ADDED and name not in _COUNTS}
    return StoredMessage(
        int(headers["Nats-Sequence"]),
        headers["Nats-Subject"],
        own,
        message.data,
        parse_stamp(headers["Nats-Time-Stamp"]),
    )


def parse_stamp(text: str) -> int:
    """The server's RFC 3339 time with up to nine decimals → Unix nanoseconds."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
