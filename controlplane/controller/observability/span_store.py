"""The built-in span store: recent traces in SQLite, for people who run no tracing backend.

It is bounded (the oldest spans go first), lossy by design and never the truth about anything: that is
the log. Writing happens in one place, in batches, off the event loop; nothing waits for it.

A trace is found by its id, or by what its spans touched: a command id, an event's sequence, a node.
Spans of other traces that *link* into a trace belong to its picture and are returned with it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import msgspec

from controlplane.controller.side_database import SideDatabase
from events.errors import Unavailable
from events.telemetry.spans import SpanLink, SpanRecord

SPANS_MAX = 100_000
"""Spans kept by default: about 60 MB on disk, and at human pace several days."""
TRACE_SPANS_MAX = 2_000
"""Spans of one picture; a person reads no more, and a trace that reached every agent may hold more."""
LINK_HOPS = 2
"""How far a picture follows links: to the agent that catches up, and to the comparison that this brings."""
PRUNE_SLACK = 0.02

Reference = Literal["command", "sequence", "node"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (
  id INTEGER PRIMARY KEY, trace_id TEXT NOT NULL, span_id TEXT NOT NULL, parent_id TEXT NOT NULL,
  name TEXT NOT NULL, kind TEXT NOT NULL, service TEXT NOT NULL, instance TEXT NOT NULL,
  start_ns INTEGER NOT NULL, end_ns INTEGER NOT NULL, status TEXT NOT NULL, message TEXT NOT NULL,
  attributes TEXT NOT NULL, UNIQUE (trace_id, span_id)
) STRICT;
CREATE INDEX IF NOT EXISTS roots ON spans (id) WHERE parent_id = '';
CREATE TABLE IF NOT EXISTS links (
  span INTEGER NOT NULL REFERENCES spans (id) ON DELETE CASCADE,
  trace_id TEXT NOT NULL, span_id TEXT NOT NULL, PRIMARY KEY (span, trace_id, span_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS linked ON links (trace_id);
CREATE TABLE IF NOT EXISTS refs (
  kind TEXT NOT NULL, key TEXT NOT NULL, span INTEGER NOT NULL REFERENCES spans (id) ON DELETE CASCADE,
  PRIMARY KEY (kind, key, span)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS refs_of ON refs (span);
"""
_FIELDS = (
    *("trace_id", "span_id", "parent_id", "name", "kind", "service", "instance"),
    *("start_ns", "end_ns", "status", "message"),
)
_values = attrgetter(*_FIELDS)
_COLUMNS = f"{', '.join(_FIELDS)}, attributes"
_attributes = msgspec.json.Decoder(dict[str, Any])


class TraceSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a list of traces. ``duration_ms`` spans from its first start to its last end."""

    trace_id: str
    name: str
    service: str
    instance: str
    start_ns: int
    duration_ms: float
    spans: int
    services: int
    errors: int


class SpanStore:
    """Recent spans. Open it with :meth:`open`.

    A batch costs the event loop one hop, not one per row. What cannot be read or written raises
    Unavailable(record_unavailable); a damaged file is begun anew. What was cancelled ends in its thread.
    """

    def __init__(self, file: SideDatabase, limit: int) -> None:
        self.file = file
        self._limit = limit
        self.count = 0
        """Spans kept now."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path | str = ":memory:", *, limit: int = SPANS_MAX) -> AsyncIterator[SpanStore]:
        """Open or create the file; at most about ``limit`` spans are kept in it.

        A cancellation inside of the block closes it, too.
        """
        async with SideDatabase.open(path, _SCHEMA, what="recent traces") as file:
            store = cls(file, limit)
            with suppress(Unavailable):
                store.count = await file.run(lambda: store._rows("SELECT count(*) FROM spans")[0][0])
            yield store

    def _rows(self, query: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return self.file.connection.execute(query, values).fetchall()

    async def add(self, records: Sequence[SpanRecord]) -> None:
        """Keep the spans (a span seen twice is kept once), and let the oldest go beyond the limit.

        Cancelled, they are still written, in the thread.
        """
        if records:
            await self.file.run(lambda: self._add(records))

    def _add(self, records: Sequence[SpanRecord]) -> None:
        with self.file.connection:
            for record in records:
                self._insert(record)
            if self.count > self._limit * (1 + PRUNE_SLACK):
                self._prune()

    def _insert(self, record: SpanRecord) -> None:
        cursor = self.file.connection.execute(
            f"INSERT OR IGNORE INTO spans ({_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?)",  # noqa: S608  constants only
            (*_values(record), msgspec.json.encode(record.attributes).decode()),
        )
        if cursor.rowcount != 1:
            return
        row = cursor.lastrowid
        self.count += 1
        self.file.connection.executemany(
            "INSERT OR IGNORE INTO links VALUES (?,?,?)",
            [(row, link.trace_id, link.span_id) for link in record.links],
        )
        self.file.connection.executemany(
            "INSERT OR IGNORE INTO refs VALUES (?,?,?)", [(kind, key, row) for kind, key in _references(record)]
        )

    def _prune(self) -> None:
        boundary = self._rows("SELECT id FROM spans ORDER BY id LIMIT 1 OFFSET ?", (self.count - self._limit,))
        if boundary:
            self.count -= self.file.connection.execute("DELETE FROM spans WHERE id < ?", boundary[0]).rowcount

    async def trace(self, trace_id: str) -> list[SpanRecord]:
        """The spans of a trace and of those that link into it, oldest start first; empty when unknown.

        Links are followed for :data:`LINK_HOPS`. At most :data:`TRACE_SPANS_MAX`.
        """
        return await self.file.run(lambda: self._trace(trace_id))

    def _trace(self, trace_id: str) -> list[SpanRecord]:
        rows = self._rows(
            "WITH RECURSIVE picture (trace_id, hops) AS (VALUES (?1, 0) UNION "  # noqa: S608  constants only
            "SELECT o.trace_id, hops + 1 FROM picture p JOIN links l ON l.trace_id = p.trace_id "
            "JOIN spans o ON o.id = l.span WHERE hops < ?3) "
            f"SELECT id, {_COLUMNS} FROM spans WHERE trace_id IN (SELECT trace_id FROM picture) "
            "ORDER BY start_ns, id LIMIT ?2",
            (trace_id, TRACE_SPANS_MAX, LINK_HOPS),
        )
        links: dict[int, list[SpanLink]] = {}
        marks = ",".join("?" * len(rows))
        for span, linked_trace, linked_span in self._rows(
            f"SELECT span, trace_id, span_id FROM links WHERE span IN ({marks})",  # noqa: S608  only marks
            [row[0] for row in rows],
        ):
            links.setdefault(span, []).append(SpanLink(linked_trace, linked_span))
        return [
            SpanRecord(
                **dict(zip(_FIELDS, row[1:], strict=False)),
                attributes=_attributes.decode(row[12]),
                links=links.get(row[0], []),
            )
            for row in rows
        ]

    async def find(self, kind: Reference, key: str, *, limit: int = 20) -> list[str]:
        """Ids of the traces that touched a command, a sequence or a node, newest first."""
        query = (
            "SELECT s.trace_id FROM refs JOIN spans s ON s.id = refs.span WHERE refs.kind = ? AND key = ? "
            "GROUP BY 1 ORDER BY max(refs.span) DESC LIMIT ?"
        )
        return [row[0] for row in await self.file.run(lambda: self._rows(query, (kind, key, limit)))]

    async def beginning(self, prefix: str, *, limit: int = 20) -> list[str]:
        """Ids of the traces whose id begins with these hexadecimal digits."""
        query = "SELECT DISTINCT trace_id FROM spans WHERE trace_id >= ? AND trace_id < ? LIMIT ?"
        rows = await self.file.run(lambda: self._rows(query, (prefix, f"{prefix}g", limit)))
        return [row[0] for row in rows]

    async def recent(self, *, limit: int = 50, errors: bool = False, node: str = "") -> list[TraceSummary]:
        """The latest traces by their root span, newest first; ``errors`` and ``node`` narrow them."""
        conditions = ["parent_id = ''"]
        values: list[object] = []
        if errors:
            conditions.append(
                "EXISTS (SELECT 1 FROM spans e WHERE e.trace_id = s.trace_id AND e.status = 'ERROR')"
            )
        if node:
            conditions.append(
                "s.trace_id IN (SELECT t.trace_id FROM refs JOIN spans t ON t.id = refs.span "
                "WHERE refs.kind = 'node' AND refs.key = ?)"
            )
            values.append(node)
        query = (
            "SELECT s.trace_id, s.name, s.service, s.instance, "  # noqa: S608  constants only
            "(SELECT min(start_ns) FROM spans a WHERE a.trace_id = s.trace_id), "
            "(SELECT max(end_ns) FROM spans a WHERE a.trace_id = s.trace_id), "
            "(SELECT count(*) FROM spans a WHERE a.trace_id = s.trace_id), "
            "(SELECT count(DISTINCT service || '/' || instance) FROM spans a WHERE a.trace_id = s.trace_id), "
            "(SELECT count(*) FROM spans a WHERE a.trace_id = s.trace_id AND a.status = 'ERROR') "
            f"FROM spans s WHERE {' AND '.join(conditions)} ORDER BY s.id DESC LIMIT ?"
        )
        rows = await self.file.run(lambda: self._rows(query, (*values, limit)))
        return [
            TraceSummary(
                trace_id=row[0],
                name=row[1],
                service=row[2],
                instance=row[3],
                start_ns=row[4],
                duration_ms=(row[5] - row[4]) / 1e6,
                spans=row[6],
                services=row[7],
                errors=row[8],
            )
            for row in rows
        ]


def _references(record: SpanRecord) -> Iterable[tuple[str, str]]:
    """What a span touched, from its attributes."""
    attributes = record.attributes
    command = attributes.get("isthmus.command.id")
    if command:
        yield "command", str(command)
    first, last = attributes.get("isthmus.sequence.first"), attributes.get("isthmus.sequence.last")
    if isinstance(first, int) and isinstance(last, int):
        # A catch-up span may cover the whole log; only a transaction's own sequences identify it.
        for sequence in range(first, min(last, first + 15) + 1):
            yield "sequence", str(sequence)
    node = attributes.get("isthmus.node")
    if node:
        yield "node", str(node)
