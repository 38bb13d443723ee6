"""One event → its rows. The projection's whole knowledge of what events mean.

Written independently of :mod:`controlplane.evolve`, so that comparing the two digests says
something. Runs in the database's thread, on its connection; no clock, no other I/O.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from controlplane.readmodel.schema import OPEN
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

_json = msgspec.json.Encoder().encode

# Partial indices are used only for a literal, hence the constant in the text.
_CLOSE_NODE = f"UPDATE node SET valid_to = ?, to_us = ? WHERE name = ? AND valid_to = {OPEN}"  # noqa: S608
_CLOSE_RANGE = f"UPDATE range SET valid_to = ?, to_us = ? WHERE idx = ? AND valid_to = {OPEN}"  # noqa: S608
_CLOSE_FACT = (
    f"UPDATE fact SET valid_to = ?, to_us = ? WHERE kind = ? AND key = ? AND part = ? AND valid_to = {OPEN}"  # noqa: S608
)
_CLOSE_REFUSALS = (
    f"UPDATE fact SET valid_to = ?, to_us = ? WHERE kind = 'refusal' AND key = ? AND valid_to = {OPEN}"  # noqa: S608
)
_OPEN_NODE = (
    "INSERT INTO node (name, uid, kind, underlay, announced, vtep_mac, site, joined, changed, valid_from,"
    " from_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_OPEN_RANGE = (
    "INSERT INTO range (idx, cidr, phase, node, uid, epoch, cursor_after, valid_from, from_us)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_OPEN_FACT = "INSERT INTO fact (kind, key, part, value, valid_from, from_us) VALUES (?, ?, ?, ?, ?, ?)"
# The row that was just closed is copied with what changed: its valid_to is this event's sequence.
_NODE_AT_NEW_ADDRESS = (
    "INSERT INTO node (name, uid, kind, underlay, announced, vtep_mac, site, joined, changed, unreachable,"
    " last_seen_us, valid_from, from_us) SELECT name, uid, kind, ?, ?, vtep_mac, site, joined, ?, unreachable,"
    " last_seen_us, ?, ? FROM node WHERE name = ? AND valid_to = ?"
)
_NODE_REACHED = (
    "INSERT INTO node (name, uid, kind, underlay, announced, vtep_mac, site, joined, changed, unreachable,"
    " last_seen_us, valid_from, from_us) SELECT name, uid, kind, underlay, announced, vtep_mac, site, joined,"
    " changed, ?, ?, ?, ? FROM node WHERE name = ? AND valid_to = ?"
)
_RANGE_QUARANTINED = (
    "INSERT INTO range (idx, cidr, phase, node, uid, epoch, until_us, watermark, valid_from, from_us)"
    " SELECT idx, cidr, 'quarantined', node, uid, epoch, ?, ?, ?, ? FROM range WHERE idx = ? AND valid_to = ?"
)

_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


def microseconds(moment: datetime) -> int:
    """Unix microseconds, exactly (a float would round)."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


class Contradiction(Exception):
    """An event that does not fit the rows; the text says why."""


class Rows:
    """Applies events to one connection. ``execute`` is the connection's, bound once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany

    def apply(self, events: Sequence[Recorded]) -> None:
        """Write the rows of consecutive events. Raises Contradiction or VerificationFailed(event_unknown)."""
        handlers = _HANDLERS
        index: list[tuple[int, int, str, str]] = []
        commands: dict[str, list[Any]] = {}
        for sequence, envelope, event, _ in events:
            time_us = microseconds(envelope.time)
            handler = handlers.get(type(event))
            if handler is None:
                raise _unknown(sequence, event)
            handler(self, sequence, time_us, event)
            index.append((sequence, time_us, envelope.type, event.entity))
            known = commands.get(envelope.command_id)
            if known is None:
                commands[envelope.command_id] = [
                    envelope.command_id, sequence, sequence, envelope.actor, time_us
                ]  # fmt: skip
            else:
                known[2] = sequence
        self._executemany("INSERT INTO event (sequence, time_us, type, entity) VALUES (?, ?, ?, ?)", index)
        self._executemany(
            "INSERT INTO command (command_id, first, last, actor, time_us) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (command_id) DO UPDATE SET last = excluded.last",
            commands.values(),
        )

    # --- tables ---------------------------------------------------------------------------------------

    def close_node(self, sequence: int, time_us: int, name: str) -> None:
        if self._execute(_CLOSE_NODE, (sequence, time_us, name)).rowcount != 1:
            raise Contradiction(f"{name} is no member")

    def close_range(self, sequence: int, time_us: int, index: int) -> None:
        if self._execute(_CLOSE_RANGE, (sequence, time_us, index)).rowcount != 1:
            raise Contradiction(f"range {index} is free")

    def fact(  # noqa: PLR0917  an event, and a row of the table
        self, sequence: int, time_us: int, kind: str, key: str, part: str, value: Any
    ) -> None:
        """A fact becomes true; one that was under the same key ends."""
        self._execute(_CLOSE_FACT, (sequence, time_us, kind, key, part))
        self._execute(_OPEN_FACT, (kind, key, part, _json(value).decode(), sequence, time_us))

    def unfact(self, sequence: int, time_us: int, kind: str, key: str) -> None:
        if self._execute(_CLOSE_FACT, (sequence, time_us, kind, key, "")).rowcount != 1:
            raise Contradiction(f"there is no {kind} {key}")

    def cleared(self, sequence: int, time_us: int, asker: str) -> None:
        """The asker got what it was refused before: its recorded refusals end."""
        self._execute(_CLOSE_REFUSALS, (sequence, time_us, asker))

    def execute(self, statement: str, values: tuple[Any, ...]) -> None:
        if self._execute(statement, values).rowcount != 1:
            raise Contradiction("the row that it changes does not exist")


def _unknown(sequence: int, event: Event) -> VerificationFailed:
    name = event.type if isinstance(event, UnknownEvent) else event.type_name()
    return VerificationFailed(
        "event_unknown",
        f"event {sequence} is of type {name!r}, which this projection does not know",
        sequence=sequence,
        type=name,
    )


def _joined(rows: Rows, sequence: int, time_us: int, event: NodeJoined) -> None:
    rows.execute(
        _OPEN_NODE,
        (
            event.node, event.uid, event.kind, event.underlay, event.announced, event.vtep_mac, event.site,
            sequence, sequence, sequence, time_us,
        ),
    )  # fmt: skip
    rows.cleared(sequence, time_us, f"node/{event.node}")


def _out(rows: Rows, sequence: int, time_us: int, event: NodeLeft) -> None:
    rows.close_node(sequence, time_us, event.node)


def _fenced(rows: Rows, sequence: int, time_us: int, event: NodeFenced) -> None:
    rows.close_node(sequence, time_us, event.node)
    rows.fact(sequence, time_us, "fenced", event.uid, "", event)


def _underlay_changed(rows: Rows, sequence: int, time_us: int, event: NodeUnderlayChanged) -> None:
    rows.close_node(sequence, time_us, event.node)
    rows.execute(
        _NODE_AT_NEW_ADDRESS,
        (event.underlay, event.announced, sequence, sequence, time_us, event.node, sequence),
    )
    rows.cleared(sequence, time_us, f"node/{event.node}")


def _unreachable(rows: Rows, sequence: int, time_us: int, event: NodeUnreachable) -> None:
    seen_us = None if event.last_seen is None else microseconds(event.last_seen)
    rows.close_node(sequence, time_us, event.node)
    rows.execute(_NODE_REACHED, (1, seen_us, sequence, time_us, event.node, sequence))


def _recovered(rows: Rows, sequence: int, time_us: int, event: NodeRecovered) -> None:
    rows.close_node(sequence, time_us, event.node)
    rows.execute(_NODE_REACHED, (0, None, sequence, time_us, event.node, sequence))


def _allocated(rows: Rows, sequence: int, time_us: int, event: RangeAllocated) -> None:
    rows.execute(
        _OPEN_RANGE,
        (
            event.index, event.cidr, "allocated", event.node, event.uid, sequence, event.cursor_after,
            sequence, time_us,
        ),
    )  # fmt: skip


def _draining(rows: Rows, sequence: int, time_us: int, event: RangeDraining) -> None:
    rows.close_range(sequence, time_us, event.index)
    rows.execute(
        _OPEN_RANGE,
        (event.index, event.cidr, "draining", event.node, event.uid, event.epoch, None, sequence, time_us),
    )


def _quarantined(rows: Rows, sequence: int, time_us: int, event: RangeQuarantined) -> None:
    rows.close_range(sequence, time_us, event.index)
    until_us = microseconds(event.until)
    rows.execute(_RANGE_QUARANTINED, (until_us, event.watermark, sequence, time_us, event.index, sequence))


def _freed(rows: Rows, sequence: int, time_us: int, event: RangeFreed) -> None:
    rows.close_range(sequence, time_us, event.index)


def _defined(rows: Rows, sequence: int, time_us: int, event: ClusterDefined) -> None:
    rows.fact(sequence, time_us, "definition", event.cluster, "", event)
    for network in event.networks:
        rows.fact(sequence, time_us, "network", network.cidr, "", network)


def _deleted(rows: Rows, sequence: int, time_us: int, event: ClusterDeleted) -> None:
    rows.fact(sequence, time_us, "deleted", event.cluster, "", event)


def _appended(rows: Rows, sequence: int, time_us: int, event: CidrAppended) -> None:
    rows.fact(sequence, time_us, "cidr", event.cidr, "", event)
    rows.cleared(sequence, time_us, "command/append-cidr")


def _declared(rows: Rows, sequence: int, time_us: int, event: NetworkDeclared) -> None:
    rows.fact(sequence, time_us, "network", event.network.cidr, "", event.network)
    rows.cleared(sequence, time_us, "command/declare-network")


def _withdrawn(rows: Rows, sequence: int, time_us: int, event: NetworkWithdrawn) -> None:
    rows.unfact(sequence, time_us, "network", event.cidr)


def _overridden(rows: Rows, sequence: int, time_us: int, event: ConflictOverridden) -> None:
    rows.fact(sequence, time_us, "override", event.code, f"{event.ours} {event.theirs}", event)


def _reserved(rows: Rows, sequence: int, time_us: int, event: ClbReserved) -> None:
    rows.fact(sequence, time_us, "clb", event.name, "", event)
    rows.cleared(sequence, time_us, f"clb/{event.name}")


def _released(rows: Rows, sequence: int, time_us: int, event: ClbReleased) -> None:
    rows.unfact(sequence, time_us, "clb", event.name)


def _allocation_refused(rows: Rows, sequence: int, time_us: int, event: AllocationRefused) -> None:
    rows.fact(sequence, time_us, "refusal", f"node/{event.node}", event.code, event)


def _clb_refused(rows: Rows, sequence: int, time_us: int, event: ClbRefused) -> None:
    rows.fact(sequence, time_us, "refusal", f"clb/{event.name}", event.code, event)


def _conflict_refused(rows: Rows, sequence: int, time_us: int, event: ConflictRefused) -> None:
    rows.fact(sequence, time_us, "refusal", f"command/{event.command}", event.code, event)


def _token_used(rows: Rows, sequence: int, time_us: int, event: JoinTokenUsed) -> None:
    rows.fact(sequence, time_us, "token", event.token, event.node, event)


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
}
