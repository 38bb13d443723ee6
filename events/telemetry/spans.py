"""Finished spans as plain records, and their way over the bus to the controllers' built-in store.

An :class:`Outbox` is a span processor: it collects finished spans in a bounded queue, and an
asynchronous task carries them away in small batches at a limited rate. Nothing ever waits for it; what
does not fit is dropped and counted.

In a large cluster every agent applies every event. So that the store keeps a picture and not a
flood, an agent ships a trace only if :func:`chosen` says so (about :data:`REPORTERS` agents for
each trace, another set for each), or when the span is an error or slow.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor

QUEUE_LIMIT = 2048
BATCH_LIMIT = 128
"""Spans in one message on the bus: with the attribute limits below well under the server's 1 MiB."""
BATCHES_PER_S = 2.0
REPORTERS = 32
SLOW_S = 1.0
TEXT_LIMIT = 300
"""Longest attribute text, in characters; the rest is cut."""
LINK_LIMIT = 64


class SpanLink(msgspec.Struct, frozen=True):
    """A link to another span, as lower-case hexadecimal ids."""

    trace_id: str
    span_id: str


class SpanRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One finished span. Times are Unix nanoseconds; ids lower-case hexadecimal (32 and 16 digits).

    Attributes are texts, numbers, truth values, or lists of these (:func:`plain` makes them so).
    """

    trace_id: str
    span_id: str
    parent_id: str = ""
    name: str
    kind: str = "INTERNAL"
    service: str
    instance: str = ""
    start_ns: int
    end_ns: int
    status: str = "UNSET"
    message: str = ""
    attributes: dict[str, Any] = {}
    links: list[SpanLink] = []


encode_spans = msgspec.json.Encoder().encode
decode_spans = msgspec.json.Decoder(list[SpanRecord]).decode


def to_record(span: ReadableSpan) -> SpanRecord:
    """A finished span of the SDK as a record; texts are cut at :data:`TEXT_LIMIT`. Raises ValueError."""
    context = span.get_span_context()
    if context is None or span.start_time is None or span.end_time is None:
        raise ValueError("the span has not ended")
    resource = span.resource.attributes
    return SpanRecord(
        trace_id=f"{context.trace_id:032x}",
        span_id=f"{context.span_id:016x}",
        parent_id=f"{span.parent.span_id:016x}" if span.parent else "",
        name=span.name[:TEXT_LIMIT],
        kind=span.kind.name,
        service=str(resource.get("service.name", "")),
        instance=str(resource.get("service.instance.id", "")),
        start_ns=span.start_time,
        end_ns=span.end_time,
        status=span.status.status_code.name,
        message=(span.status.description or "")[:TEXT_LIMIT],
        attributes={key: plain(value) for key, value in (span.attributes or {}).items()},
        links=[
            SpanLink(f"{link.context.trace_id:032x}", f"{link.context.span_id:016x}")
            for link in span.links[:LINK_LIMIT]
        ],
    )


def plain(value: Any) -> Any:
    """An attribute's value, cut to what a record may hold; whatever else it is becomes text."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [
            item if isinstance(item, (bool, int, float)) else str(item)[:TEXT_LIMIT]
            for item in value[:LINK_LIMIT]
        ]
    return str(value)[:TEXT_LIMIT]


def chosen(trace_id: int, instance: str, population: int) -> bool:
    """Whether this instance reports the trace: about :data:`REPORTERS` of ``population`` do, by hash."""
    if population <= REPORTERS:
        return True
    digest = blake2b(f"{trace_id:032x}/{instance}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * population < REPORTERS << 64


class Outbox(SpanProcessor):
    """Collects finished spans; :meth:`run` ships them.

    ``population`` is asked for the number of agents that see the same events (None: everything is
    shipped). At most :data:`QUEUE_LIMIT` spans wait; the oldest give way and are counted in ``dropped``.
    """

    def __init__(self, *, instance: str = "", population: Callable[[], int] | None = None) -> None:
        self._instance = instance
        self.population = population
        self._waiting: deque[ReadableSpan] = deque(maxlen=QUEUE_LIMIT)
        self.dropped = 0
        self.shipped = 0

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do before a span has ended."""

    def on_end(self, span: ReadableSpan) -> None:
        """Keep the span for the next batch; called wherever a span ends, so it only appends."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        if self.population is not None and not self._keep(span, context.trace_id):
            return
        if len(self._waiting) == QUEUE_LIMIT:
            self.dropped += 1
        self._waiting.append(span)

    def _keep(self, span: ReadableSpan, trace_id: int) -> bool:
        if not span.status.is_ok and not span.status.is_unset:
            return True
        if span.start_time and span.end_time and span.end_time - span.start_time >= SLOW_S * 1e9:
            return True
        return chosen(trace_id, self._instance, self.population() if self.population else 0)

    def shutdown(self) -> None:
        """The last spans are shipped by :meth:`run` when it is cancelled."""

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002  the processor's signature
        return True

    def take(self) -> list[SpanRecord]:
        """Up to :data:`BATCH_LIMIT` waiting spans, oldest first."""
        batch: list[SpanRecord] = []
        while self._waiting and len(batch) < BATCH_LIMIT:
            batch.append(to_record(self._waiting.popleft()))
        return batch

    async def run(self, ship: Callable[[Sequence[SpanRecord]], Awaitable[None]]) -> None:
        """Ship batches until cancelled, at most :data:`BATCHES_PER_S`; then ship what is left, once.

        A batch whose shipping fails is dropped and counted: telemetry must never hold anything up.
        """
        pause_s = 1 / BATCHES_PER_S
        try:
            while True:
                await asyncio.sleep(pause_s)
                await self._ship(ship)
        finally:
            deadline = time.monotonic() + 1.0
            while self._waiting and time.monotonic() < deadline:
                await self._ship(ship)

    async def _ship(self, ship: Callable[[Sequence[SpanRecord]], Awaitable[None]]) -> None:
        batch = self.take()
        if not batch:
            return
        try:
            # Not wait_for: before Python 3.12 it can lose a cancellation, and this task would never end.
            async with asyncio.timeout(1.0):
                await ship(batch)
            self.shipped += len(batch)
        except Exception:  # any failure of the bus or the store: spans are expendable
            self.dropped += len(batch)
