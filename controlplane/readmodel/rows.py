"""One event → its rows. The projection's whole knowledge of what events mean.

Written independently of :mod:`controlplane.evolve`, so that comparing the two digests says
something. Runs in the database's thread, on its connection; no clock, no other I/O.

A batch is first worked out in memory (a row that begins and ends within it is written once, ended)
and then written with few statements of many rows each. That matters less for speed than for
company: each statement gives up the interpreter's lock, and beside a busy event loop getting it
back takes milliseconds.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from controlplane.readmodel import gateway_rows
from controlplane.readmodel.schema import OPEN
from controlplane.readmodel.tables import Contradiction, Fact, Node, Range, Table, bulk
from events.codec import Recorded, UnknownEvent
from events.errors import VerificationFailed
from events.types import (
    AllocationRefused,
    CidrAppended,
    ClbRefused,
    ClbReleased,
    ClbReserved,
    ClusterDefined,
    ClusterDeleted,
    ConflictOverridden,
    ConflictRefused,
    Event,
    JoinTokenUsed,
    NetworkDeclared,
    NetworkWithdrawn,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeUnderlayChanged,
    NodeUnreachable,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)

__all__ = ["Contradiction", "Rows", "microseconds"]

_json = msgspec.json.Encoder().encode
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def microseconds(moment: datetime) -> int:
    """Unix microseconds, exactly (a float would round)."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


class Rows:
    """Applies events to one connection, inside the caller's transaction."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self.nodes: Table[str] = Table(connection, Node)
        self.ranges: Table[int] = Table(connection, Range)
        self.facts: Table[tuple[str, str, str]] = Table(connection, Fact)
        self._refused: set[str] = set()
        self._refused_known = False

    def apply(self, events: Sequence[Recorded]) -> None:
        """Write the rows of consecutive events. Raises Contradiction or VerificationFailed(event_unknown)."""
        tables = (self.nodes, self.ranges, self.facts)
        try:
            self._work_out(events)
            for table in tables:
                table.write()
        finally:
            for table in tables:
                table.clear()
            self._refused_known = False

    def _work_out(self, events: Sequence[Recorded]) -> None:
        handlers = _HANDLERS
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
        self.facts.open(key, [*key, _json(value).decode()], sequence, time_us)

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


def _joined(rows: Rows, sequence: int, time_us: int, event: NodeJoined) -> None:
    name = event.node
    rows.nodes.open(
        name,
        [
            name, event.uid, event.kind, event.underlay, event.announced, event.vtep_mac, event.site,
            sequence, sequence, 0, None,
        ],
        sequence,
        time_us,
    )  # fmt: skip
    rows.cleared(sequence, time_us, f"node/{name}")


def _out(rows: Rows, sequence: int, time_us: int, event: NodeLeft) -> None:
    rows.nodes.close(event.node, sequence, time_us)


def _fenced(rows: Rows, sequence: int, time_us: int, event: NodeFenced) -> None:
    rows.nodes.close(event.node, sequence, time_us)
    rows.fact(sequence, time_us, ("fenced", event.uid, ""), event)


def _underlay_changed(rows: Rows, sequence: int, time_us: int, event: NodeUnderlayChanged) -> None:
    new = rows.nodes.current(event.node)
    new[3:5] = event.underlay, event.announced
    new[8] = sequence
    rows.nodes.replace(event.node, new, sequence, time_us)
    rows.cleared(sequence, time_us, f"node/{event.node}")


def _unreachable(rows: Rows, sequence: int, time_us: int, event: NodeUnreachable) -> None:
    new = rows.nodes.current(event.node)
    new[9:11] = 1, None if event.last_seen is None else microseconds(event.last_seen)
    rows.nodes.replace(event.node, new, sequence, time_us)


def _recovered(rows: Rows, sequence: int, time_us: int, event: NodeRecovered) -> None:
    new = rows.nodes.current(event.node)
    new[9:11] = 0, None
    rows.nodes.replace(event.node, new, sequence, time_us)


def _allocated(rows: Rows, sequence: int, time_us: int, event: RangeAllocated) -> None:
    index = event.index
    row = [index, event.cidr, "allocated", event.node, event.uid, sequence, None, 0, event.cursor_after]
    rows.ranges.open(index, row, sequence, time_us)


def _draining(rows: Rows, sequence: int, time_us: int, event: RangeDraining) -> None:
    index = event.index
    row = [index, event.cidr, "draining", event.node, event.uid, event.epoch, None, 0, None]
    rows.ranges.replace(index, row, sequence, time_us)


def _quarantined(rows: Rows, sequence: int, time_us: int, event: RangeQuarantined) -> None:
    new = rows.ranges.current(event.index)
    new[2] = "quarantined"
    new[6:9] = microseconds(event.until), event.watermark, None
    rows.ranges.replace(event.index, new, sequence, time_us)


def _freed(rows: Rows, sequence: int, time_us: int, event: RangeFreed) -> None:
    rows.ranges.close(event.index, sequence, time_us)


def _defined(rows: Rows, sequence: int, time_us: int, event: ClusterDefined) -> None:
    rows.fact(sequence, time_us, ("definition", event.cluster, ""), event)
    for network in event.networks:
        rows.fact(sequence, time_us, ("network", network.cidr, ""), network)


def _deleted(rows: Rows, sequence: int, time_us: int, event: ClusterDeleted) -> None:
    rows.fact(sequence, time_us, ("deleted", event.cluster, ""), event)


def _appended(rows: Rows, sequence: int, time_us: int, event: CidrAppended) -> None:
    rows.fact(sequence, time_us, ("cidr", event.cidr, ""), event)
    rows.cleared(sequence, time_us, "command/append-cidr")


def _declared(rows: Rows, sequence: int, time_us: int, event: NetworkDeclared) -> None:
    rows.fact(sequence, time_us, ("network", event.network.cidr, ""), event.network)
    rows.cleared(sequence, time_us, "command/declare-network")


def _withdrawn(rows: Rows, sequence: int, time_us: int, event: NetworkWithdrawn) -> None:
    rows.facts.close(("network", event.cidr, ""), sequence, time_us)


def _overridden(rows: Rows, sequence: int, time_us: int, event: ConflictOverridden) -> None:
    rows.fact(sequence, time_us, ("override", event.code, f"{event.ours} {event.theirs}"), event)


def _reserved(rows: Rows, sequence: int, time_us: int, event: ClbReserved) -> None:
    rows.fact(sequence, time_us, ("clb", event.name, ""), event)
    rows.cleared(sequence, time_us, f"clb/{event.name}")


def _released(rows: Rows, sequence: int, time_us: int, event: ClbReleased) -> None:
    rows.facts.close(("clb", event.name, ""), sequence, time_us)


def _allocation_refused(rows: Rows, sequence: int, time_us: int, event: AllocationRefused) -> None:
    rows.refusal(sequence, time_us, f"node/{event.node}", event.code, event)


def _clb_refused(rows: Rows, sequence: int, time_us: int, event: ClbRefused) -> None:
    rows.refusal(sequence, time_us, f"clb/{event.name}", event.code, event)


def _conflict_refused(rows: Rows, sequence: int, time_us: int, event: ConflictRefused) -> None:
    rows.refusal(sequence, time_us, f"command/{event.command}", event.code, event)


def _token_used(rows: Rows, sequence: int, time_us: int, event: JoinTokenUsed) -> None:
    rows.fact(sequence, time_us, ("token", event.token, event.node), event)


_HANDLERS: dict[type[Event], Callable[[Rows, int, int, Any], None]] = {
    NodeJoined: _joined,
    NodeLeft: _out,
    NodeFenced: _fenced,
    NodeUnderlayChanged: _underlay_changed,
    NodeUnreachable: _unreachable,
    NodeRecovered: _recovered,
    RangeAllocated: _allocated,
    RangeDraining: _draining,
    RangeQuarantined: _quarantined,
    RangeFreed: _freed,
    ClusterDefined: _defined,
    ClusterDeleted: _deleted,
    CidrAppended: _appended,
    NetworkDeclared: _declared,
    NetworkWithdrawn: _withdrawn,
    ConflictOverridden: _overridden,
    ConflictRefused: _conflict_refused,
    ClbReserved: _reserved,
    ClbReleased: _released,
    ClbRefused: _clb_refused,
    AllocationRefused: _allocation_refused,
    JoinTokenUsed: _token_used,
    **gateway_rows.HANDLERS,
}
