"""Answers about traces over the bus, for ``isthmus trace``.

A trace is asked for by whatever a person has at hand: an event's sequence, a command's id, a node's
name, or the trace's own id.
"""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from controlplane.controller.answers import decoded
from controlplane.controller.observability.span_store import SpanStore, TraceSummary
from controlplane.controller.observability.waterfall import Waterfall, waterfall
from controlplane.controller.replication.replica import Replica
from events.codec import Recorded, decode
from events.errors import Refused
from events.log import LogReader
from events.protocol.queries import Query

ROWS_MAX = 500
"""Rows of one answer: with the spans' attributes under the bus's largest message."""
_TRACE_ID = re.compile(r"[0-9a-f]{32}")
_PREFIX = re.compile(r"[0-9a-f]{8,31}")
_COMMAND_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[a-z]+-[0-9a-f-]{36}")


class TraceQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``reference`` is a sequence, a command's id, a node's name or a trace id; ``limit`` the most traces."""

    name: ClassVar[str] = "trace"

    reference: str
    limit: int = 1


class TracesQuery(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The latest traces, newest first."""

    name: ClassVar[str] = "traces"

    limit: int = 20
    errors: bool = False
    node: str = ""


class TraceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The traces that were found, newest first."""

    traces: list[Waterfall]


class TracesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One line per trace."""

    traces: list[TraceSummary]


_trace = msgspec.json.Decoder(TraceQuery)
_traces = msgspec.json.Decoder(TracesQuery)


class TraceAnswers:
    """Answers from the built-in store, and from the log where it says which trace wrote an event.

    A cancellation leaves nothing behind.
    """

    def __init__(self, log: LogReader, replica: Replica, spans: SpanStore) -> None:
        self._log = log
        self._replica = replica
        self._spans = spans

    async def trace(self, body: bytes) -> bytes:
        """Answer a :class:`TraceQuery`. Raises BadRequest(bad_request) and Refused(trace_unknown)."""
        query = decoded(_trace, "trace", body)
        found = await self.find(query.reference, limit=max(1, min(query.limit, 10)))
        pictures: list[Waterfall] = []
        left = ROWS_MAX
        for trace_id in found:
            picture = waterfall(trace_id, await self._spans.trace(trace_id), limit=ROWS_MAX)
            if picture.rows and left > 0:
                cut = len(picture.rows) > left
                pictures.append(
                    msgspec.structs.replace(
                        picture, rows=picture.rows[:left], truncated=picture.truncated or cut
                    )
                )
                left -= len(picture.rows)
        if not pictures:
            raise Refused(
                "trace_unknown",
                f"no span of {query.reference[:80]!r} is kept: it was not sampled, is too old for the built-in "
                f"store ({self._spans.count:,} spans), or was never written",
                reference=query.reference[:80],
            )
        return msgspec.json.encode(TraceAnswer(traces=pictures))

    async def traces(self, body: bytes) -> bytes:
        """Answer a :class:`TracesQuery`. Raises BadRequest(bad_request)."""
        query = decoded(_traces, "traces", body)
        found = await self._spans.recent(
            limit=max(1, min(query.limit, 500)), errors=query.errors, node=query.node
        )
        return msgspec.json.encode(TracesAnswer(traces=found))

    async def find(self, reference: str, *, limit: int) -> list[str]:
        """Ids of the traces that belong to what ``reference`` names, newest first.

        A trace's id may be cut to its first eight digits or more. Raises Refused(trace_unknown).
        """
        if _TRACE_ID.fullmatch(reference):
            return [reference]
        if reference.isdigit():
            sequence = int(reference)
            head = self._replica.state.sequence
            if sequence > head:
                raise Refused("trace_unknown", f"there is no event {sequence}; the log ends at {head}")
            recorded = await self._event(sequence)
            written = recorded.envelope.traceparent.split("-") if recorded else []
            if len(written) == 4:
                return [written[1]]
            return await self._spans.find("sequence", reference, limit=limit)
        if _COMMAND_ID.fullmatch(reference):
            return await self._spans.find("command", reference, limit=limit)
        found = await self._spans.find("node", reference, limit=limit)
        if not found and _PREFIX.fullmatch(reference):
            found = await self._spans.beginning(reference, limit=limit)
        return found

    async def _event(self, sequence: int) -> Recorded | None:
        async for batch in self._log.read(after=sequence - 1, until=sequence):
            for message in batch.messages:
                return decode(message)
        return None
