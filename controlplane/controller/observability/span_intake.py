"""Other roles' spans, off the bus and into the built-in store: limited per source and in all.

What a node's credentials let it publish is its own subject, so a span is filed under the node that
the subject names, whatever the span says about itself. Whoever floods loses spans; nobody waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from controlplane.controller.observability.span_store import SpanStore
from controlplane.controller.source_limit import SourceLimit
from controlplane.controller.tasks import end
from events import subjects
from events.printable import printable
from events.telemetry.spans import (
    BATCH_LIMIT,
    LINK_LIMIT,
    TEXT_LIMIT,
    SpanRecord,
    decode_spans,
    plain,
)

log = logging.getLogger("isthmus.spans")

PER_SOURCE_S = 64.0
ALL_S = 2000.0
BURST_S = 4.0
AGENT_S = 512.0
"""Twice what an agent sends at most; who sends more is named. What is kept of each is less."""
WAITING_MAX = 8192
FLUSH_S = 0.25
BODY_LIMIT_BYTES = 512 * 1024
_HEX = frozenset("0123456789abcdef")


class SpanIntake:
    """Subscribes to everybody's spans. :meth:`open`, then :meth:`close`."""

    def __init__(
        self,
        client: Client,
        cluster: str,
        store: SpanStore,
        *,
        exceeded: Callable[[str, str], None] = lambda _node, _what: None,
    ) -> None:
        """``exceeded`` is called with a node that sends more than an agent does, and with what."""
        self._exceeded = exceeded
        self._agents = SourceLimit(AGENT_S, burst=AGENT_S * BURST_S)
        self._nats = client
        self._cluster = cluster
        self._store = store
        self._prefix = subjects.spans_wildcard(cluster).removesuffix("*")
        self._per_source = SourceLimit(PER_SOURCE_S, burst=PER_SOURCE_S * BURST_S)
        self._all = SourceLimit(ALL_S, burst=ALL_S * BURST_S)
        self._waiting: deque[SpanRecord] = deque(maxlen=WAITING_MAX)
        self._wake = asyncio.Event()
        self._subscription: Subscription | None = None
        self._writing: asyncio.Task[None] | None = None
        self.refused = 0

    async def open(self) -> None:
        """Subscribe and start writing. Cancelled, :meth:`close` takes back what was subscribed."""
        self._subscription = await self._nats.subscribe(
            subjects.spans_wildcard(self._cluster), cb=self._on_spans
        )
        self._writing = asyncio.create_task(self._write(), name="span-intake")

    async def close(self) -> None:
        """Stop, and keep what was taken. Cancelled, spans that wait may be lost."""
        if self._subscription is not None:
            with suppress(NatsError):
                await self._subscription.unsubscribe()
        if self._writing is not None:
            await end([self._writing])
        await self._store.add(list(self._waiting))

    async def _on_spans(self, message: Msg) -> None:
        self.take(message.subject, message.data)

    def take(self, subject: str, body: bytes) -> None:
        """File one message's spans; what is malformed or too much is counted and dropped."""
        source = subject.removeprefix(self._prefix)
        node = "" if source.startswith("_") else subjects.node_from_token(source)
        if len(body) > BODY_LIMIT_BYTES:
            self.refused += 1
            return
        try:
            records = decode_spans(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self.refused += 1
            return
        wanted = min(len(records), BATCH_LIMIT)
        if node and self._agents.take(source, len(records)) < len(records):
            self._exceeded(node, "spans")
        granted = self._per_source.take(source, wanted)
        granted = self._all.take("", granted)
        self.refused += len(records) - granted
        for record in records[:granted]:
            if not _sound(record):
                self.refused += 1
                continue
            self._waiting.append(
                msgspec.structs.replace(
                    record,
                    instance=node or printable(record.instance, TEXT_LIMIT),
                    service="isthmus-agent" if node else printable(record.service, TEXT_LIMIT),
                    name=printable(record.name, TEXT_LIMIT),
                    kind=printable(record.kind, 32),
                    status=printable(record.status, 32),
                    message=printable(record.message, TEXT_LIMIT),
                    attributes={
                        printable(k, TEXT_LIMIT): _clean(v)
                        for k, v in list(record.attributes.items())[:LINK_LIMIT]
                    },
                    links=record.links[:LINK_LIMIT],
                )
            )
        self._wake.set()

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            batch = list(self._waiting)
            self._waiting.clear()
            try:
                await self._store.add(batch)
            except Exception:  # spans are expendable; a full disk must not end the controller
                log.exception("%d spans could not be stored", len(batch))
            await asyncio.sleep(FLUSH_S)


def _clean(value: object) -> object:
    """An attribute's value within its bounds: texts printable, numbers as JSON and SQLite can hold them."""
    kept = plain(value)
    if isinstance(kept, list):
        return [_clean(item) for item in kept]
    if isinstance(kept, str):
        return printable(kept, TEXT_LIMIT)
    if isinstance(kept, int | float) and not -(2**63) <= kept < 2**63:
        return "out of bounds"  # an infinite or endless number, too
    return kept


def _sound(record: SpanRecord) -> bool:
    """Whether the ids are ids and the times fit SQLite's integers."""
    ids = (record.trace_id, 32), (record.span_id, 16), (record.parent_id or "0" * 16, 16)
    return all(len(text) == length and _HEX.issuperset(text) for text, length in ids) and (
        0 <= record.start_ns <= record.end_ns < 2**63
    )
