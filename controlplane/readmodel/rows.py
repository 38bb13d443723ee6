"""Events → rows: a batch at a time, by the handlers that know what each event means.

Runs in the database's thread, on its connection; no clock, no other I/O. What events mean is in
:mod:`controlplane.readmodel.cluster_rows` and :mod:`controlplane.readmodel.gateway_rows`.

A batch is first worked out in memory (a row that begins and ends within it is written once, ended)
and then written with few statements of many rows each. That matters less for speed than for
company: each statement gives up the interpreter's lock, and beside a busy event loop getting it
back takes milliseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec

from controlplane.readmodel.schema import OPEN
from controlplane.readmodel.tables import Contradiction, Fact, Fenced, Node, Range, Table, bulk
from events.codec import Recorded, SkippedEvent, UnknownEvent
from events.errors import VerificationFailed
from events.parking import events_followed
from events.types import Event, EventsParked, RangeQuarantined

__all__ = ["Contradiction", "Handlers", "Rows", "as_moment", "json_text", "microseconds"]

_json = msgspec.json.Encoder().encode
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def microseconds(moment: datetime) -> int:
    """Unix microseconds, exactly (a float would round)."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def as_moment(us: int) -> datetime:
    """The moment of so many Unix microseconds."""
    return _EPOCH + timedelta(microseconds=us)


def json_text(value: Any) -> str:
    """The JSON of a value, as SQLite keeps it."""
    return _json(value).decode()


class Rows:
    """Applies events to one connection, inside the caller's transaction, each by its handler."""

    def __init__(self, connection: sqlite3.Connection, handlers: Handlers) -> None:
        self._execute = connection.execute
        self._handlers = handlers
        self.nodes: Table[str] = Table(connection, Node)
        self.ranges: Table[int] = Table(connection, Range)
        self.fenced: Table[str] = Table(connection, Fenced)
        self.facts: Table[tuple[str, str, str]] = Table(connection, Fact)
        self._refused: set[str] = set()
        self._refused_known = False

    def apply(self, events: Sequence[Recorded]) -> None:
        """Write the rows of consecutive events. Raises Contradiction or VerificationFailed(event_unknown)."""
        tables = (self.nodes, self.ranges, self.fenced, self.facts)
        try:
            self._work_out(events)
            for table in tables:
                table.write()
        finally:
            for table in tables:
                table.clear()
            self._refused_known = False

    def _work_out(self, events: Sequence[Recorded]) -> None:
        handlers = self._handlers
        index: list[tuple[Any, ...]] = []
        commands: dict[str, list[Any]] = {}
        time, time_us = _EPOCH, 0
        self.ranges.prefetch(r.event.index for r in events if isinstance(r.event, RangeQuarantined))
        for sequence, envelope, event, _ in events:
            if envelope.time is not time:  # a whole append has one
                time = envelope.time
                time_us = microseconds(time)
            handler = handlers.get(type(event))
            if handler is None:
                raise _unknown(sequence, event)
            handler(self, sequence, time_us, event)
            index.append((sequence, time_us, envelope.type, event.entity))
            if type(event) is SkippedEvent:
                continue  # its command has not happened
            command_id = envelope.command_id
            known = commands.get(command_id)
            if known is None:
                commands[command_id] = [command_id, sequence, sequence, envelope.actor, time_us]
            else:
                known[2] = sequence
        bulk(self._execute, "INSERT INTO event (sequence, time_us, type, entity) VALUES ", 4, "", index)
        bulk(
            self._execute,
            "INSERT INTO command (command_id, first, last, actor, time_us) VALUES ",
            5,
            " ON CONFLICT (command_id) DO UPDATE SET last = excluded.last",
            commands.values(),
        )

    def fact(self, sequence: int, time_us: int, key: tuple[str, str, str], value: Any) -> None:
        """A fact becomes true; one that was under the same key ends."""
        if self.facts.is_open(key):
            self.facts.close(key, sequence, time_us)
        self.facts.open(key, [*key, json_text(value)], sequence, time_us)

    def skip(self, sequence: int, time_us: int, event: SkippedEvent) -> None:
        """Take note of a parked event."""
        self._execute(
            "INSERT INTO parked (sequence, type, entity, error, time_us) VALUES (?, ?, ?, '', ?)",
            (sequence, event.type, event.entity, time_us),
        )

    def parked(self, sequence: int, event: EventsParked) -> None:
        """Say why they are parked. Raises VerificationFailed(events_parked) when their rows were written."""
        told = self._execute(
            "UPDATE parked SET error = ? WHERE sequence BETWEEN ? AND ?",
            (event.reason, event.first, event.last),
        )
        if told.rowcount != event.last - event.first + 1:
            raise events_followed(sequence, event)

    def refusal(self, sequence: int, time_us: int, asker: str, code: str, event: Event) -> None:
        self._refusals().add(asker)
        self.fact(sequence, time_us, ("refusal", asker, code), event)

    def cleared(self, sequence: int, time_us: int, asker: str) -> None:
        """The asker got what it was refused before: its recorded refusals end."""
        if asker not in self._refusals():
            return
        self._refused.discard(asker)
        for (code,) in self._execute(
            f"SELECT part FROM fact WHERE kind = 'refusal' AND key = ? AND valid_to = {OPEN}",  # noqa: S608
            (asker,),
        ).fetchall():
            if self.facts.is_open(("refusal", asker, code)):
                self.facts.close(("refusal", asker, code), sequence, time_us)
        for key in self.facts.opened_keys():
            if key[:2] == ("refusal", asker):
                self.facts.close(key, sequence, time_us)

    def _refusals(self) -> set[str]:
        """Who has open refusals: few, read once per batch, so that a join need not ask."""
        if not self._refused_known:
            self._refused = {
                key
                for (key,) in self._execute(
                    f"SELECT DISTINCT key FROM fact WHERE kind = 'refusal' AND valid_to = {OPEN}"  # noqa: S608
                )
            }
            self._refused_known = True
        return self._refused


def _unknown(sequence: int, event: Event) -> VerificationFailed:
    name = event.type if isinstance(event, UnknownEvent) else event.type_name()
    return VerificationFailed(
        "event_unknown",
        f"event {sequence} is of type {name!r}, which this projection does not know",
        sequence=sequence,
        type=name,
    )


Handlers = Mapping[type[Event], Callable[[Rows, int, int, Any], None]]
"""Type of event → what writes its rows, given the rows, the sequence, the time in Unix µs and the event."""
