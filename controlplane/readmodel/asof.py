"""Rows → the cluster's state at any sequence up to the checkpoint.

What comes out equals the fold of the log to that sequence, digest and all; so an as-of question can
be asked of the same pure queries as the present, and a controller can start without folding a
million events. Parked events have no rows, as they are no part of the fold.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from controlplane.cluster.addressing.addresses import network
from controlplane.cluster.decisions.gateways import SETTINGS
from controlplane.cluster.state import FURTHER, Cidr, ClusterState, Fenced, Node, Range, Refusal
from controlplane.readmodel.rows import as_moment, microseconds
from controlplane.readmodel.schema import LONG, LONGER, OPEN
from events import types
from events.errors import Refused
from events.protocol.clb import Backend, BackendKey, Holder

DAMAGE = (sqlite3.Error, msgspec.MsgspecError, ValueError, LookupError, TypeError, AttributeError)
"""What a state cannot be read with from a file that is not what was written."""


class _Resting(NamedTuple):
    """A range that is draining or quarantined, beside its row."""

    idx: int
    phase: str
    since: int
    until_us: int | None
    watermark: int


_decode_nodes = msgspec.json.Decoder(list[Node]).decode
_decode_unreachable = msgspec.json.Decoder(list[tuple[str, int | None]]).decode
_decode_ranges = msgspec.json.Decoder(list[Range]).decode
_decode_resting = msgspec.json.Decoder(list[_Resting]).decode
_decode_fenced = msgspec.json.Decoder(dict[str, Fenced]).decode


def moment(us: int | None) -> datetime | None:
    """The moment of so many Unix microseconds."""
    return None if us is None else as_moment(us)


def sequence_at(connection: sqlite3.Connection, when: datetime) -> int:
    """The last sequence that was decided at or before ``when``; 0 when none was.

    Last by sequence, also in a log whose times run backwards. One at or before ``when`` is found by the
    index; what lies behind it is looked through. O(log n + events behind).
    """
    when_us = microseconds(when)
    row = connection.execute(
        "SELECT sequence FROM event WHERE time_us <= ? ORDER BY time_us DESC, sequence DESC LIMIT 1", (when_us,)
    ).fetchone()
    if row is None:
        return 0
    # The sign keeps SQLite from the index over time, which knows no order by sequence.
    row = connection.execute(
        "SELECT sequence FROM event WHERE sequence >= ? AND +time_us <= ? ORDER BY sequence DESC LIMIT 1",
        (row[0], when_us),
    ).fetchone()
    return int(row[0])


def load_state(connection: sqlite3.Connection, at: int | None = None) -> ClusterState:
    """The state as of sequence ``at`` (None: the checkpoint). One consistent read.

    Raises Refused(bad_request) for a sequence beyond the checkpoint.
    """
    own_transaction = not connection.in_transaction
    if own_transaction:
        connection.execute("BEGIN")
    try:
        return _load(connection, at)
    finally:
        if own_transaction:
            connection.execute("COMMIT")


def _load(connection: sqlite3.Connection, at: int | None) -> ClusterState:
    (checkpoint,) = connection.execute("SELECT sequence FROM checkpoint").fetchone()
    sequence = checkpoint if at is None else at
    if sequence > checkpoint or sequence < 0:
        raise Refused(
            "bad_request",
            f"sequence {sequence} lies outside the read model (0 … {checkpoint})",
            asked=sequence,
            checkpoint=checkpoint,
        )
    (cluster,) = connection.execute("SELECT value FROM meta WHERE key = 'cluster'").fetchone()
    facts = _facts(connection, sequence)
    nodes, unreachable = _nodes(connection, sequence)
    ranges, draining, quarantined = _ranges(connection, sequence)
    gateways, backends, holders = _gateways(connection, nodes, sequence)
    return ClusterState.from_parts(
        cluster,
        sequence=sequence,
        deleted=facts.deleted,
        definition=facts.definition,
        cidrs=facts.cidrs,
        cursor=_cursor(connection, sequence),
        networks=facts.networks,
        overrides=facts.overrides,
        nodes=nodes,
        ranges=ranges,
        draining=draining,
        quarantined=quarantined,
        unreachable=unreachable,
        fenced=_fenced(connection, sequence),
        clb=facts.clb,
        refusals=facts.refusals,
        gateways=gateways,
        backends=backends,
        holders=holders,
        parked=parked_rows(connection, sequence),
        **_further(connection, nodes, sequence),
    )


def parked_rows(connection: sqlite3.Connection, at: int) -> frozenset[int]:
    """The events up to ``at`` that were left out."""
    return frozenset(n for (n,) in connection.execute("SELECT sequence FROM parked WHERE sequence <= ?", (at,)))


def _alive(table: str, columns: str) -> str:
    """The query for aggregates of the rows of a temporal table that were true at ``:at``, in no order: open,
    short, long, and longer ones."""
    return (
        f"SELECT {columns} FROM ("  # noqa: S608  constants
        f"SELECT rowid FROM {table} WHERE valid_to = {OPEN} AND valid_from <= :at "
        f"UNION ALL SELECT rowid FROM {table} INDEXED BY {table}_span WHERE valid_to > :at"
        f" AND valid_to <= :at + {LONG} AND valid_from <= :at AND valid_to - valid_from <= {LONG} "
        f"UNION ALL SELECT rowid FROM {table} INDEXED BY {table}_long WHERE valid_to > :at"
        f" AND valid_to <= :at + {LONGER} AND valid_from <= :at"
        f" AND valid_to - valid_from > {LONG} AND valid_to - valid_from <= {LONGER} "
        f"UNION ALL SELECT rowid FROM {table} INDEXED BY {table}_longer WHERE valid_to < {OPEN}"
        f" AND valid_to - valid_from > {LONGER} AND valid_to > :at AND valid_from <= :at"
        f") AS alive CROSS JOIN {table} ON {table}.rowid = alive.rowid"
    )


def _joined(texts: str) -> str:
    """One JSON text of the texts of many rows; those that are NULL are left out."""
    return f"'[' || coalesce(group_concat({texts}), '') || ']'"


_NODES_ALIVE = _alive(
    "node", f"{_joined('row')}, {_joined('CASE WHEN unreachable THEN json_array(name, last_seen_us) END')}"
)
_RESTING = (
    "CASE WHEN phase <> 'allocated' THEN json_array(idx, phase, range.valid_from, until_us, watermark) END"
)
_RANGES_ALIVE = _alive("range", f"{_joined('row')}, {_joined(_RESTING)}")


class _Facts(msgspec.Struct):
    """What is rare, as of a sequence."""

    definition: types.ClusterDefined | None = None
    deleted: int = 0
    cidrs: tuple[Cidr, ...] = ()
    networks: dict[str, types.Network] = {}
    overrides: dict[tuple[str, str, str], types.ConflictOverridden] = {}
    clb: dict[str, types.ClbReserved] = {}
    refusals: dict[str, dict[str, Refusal]] = {}


def _facts(connection: sqlite3.Connection, at: int) -> _Facts:
    rows = connection.execute(
        "SELECT kind, key, part, value, valid_from FROM fact INDEXED BY fact_span"
        " WHERE valid_from <= ? AND valid_to > ? ORDER BY valid_from, rowid",
        (at, at),
    ).fetchall()
    parts: dict[str, list[tuple[str, str, Any, int]]] = {}
    for kind, key, part, value, since in rows:
        parts.setdefault(kind, []).append((key, part, value, since))

    def each(kind: str, shape: Any) -> list[tuple[str, str, Any, int]]:
        decoder = msgspec.json.Decoder(shape)
        return [(key, part, decoder.decode(value), since) for key, part, value, since in parts.get(kind, [])]

    facts = _Facts()
    for _, _, definition, since in each("definition", types.ClusterDefined):
        facts.definition = definition
        first = network(definition.container_cidr).first
        facts.cidrs = (Cidr(definition.container_cidr, 0, definition.capacity, first, since),)
    for _, _, cidr, since in each("cidr", types.CidrAppended):
        first = network(cidr.cidr).first
        facts.cidrs = (*facts.cidrs, Cidr(cidr.cidr, cidr.first_index, cidr.capacity, first, since))
    for _, _, _, since in each("deleted", dict[str, Any]):
        facts.deleted = since
    facts.networks = {key: item for key, _, item, _ in each("network", types.Network)}
    for _, _, event, _ in each("override", types.ConflictOverridden):
        facts.overrides[event.code, event.ours, event.theirs] = event
    facts.clb = {name: event for name, _, event, _ in each("clb", types.ClbReserved)}
    for asker, code, event, since in each("refusal", dict[str, Any]):
        facts.refusals.setdefault(asker, {})[code] = Refusal(since, code, event["message"])
    return facts


def _fenced(connection: sqlite3.Connection, at: int) -> dict[str, Fenced]:
    """Fenced uids, of which a long history has thousands."""
    (text,) = connection.execute(
        "SELECT '{' || coalesce(group_concat(row), '') || '}' FROM fenced INDEXED BY fenced_span"
        " WHERE valid_from <= ? AND valid_to > ?",
        (at, at),
    ).fetchone()
    return _decode_fenced(text)


def _further(connection: sqlite3.Connection, nodes: Mapping[str, Node], at: int) -> dict[str, dict[Any, Any]]:
    """After nodes: what is known of members ends with the membership."""
    found: dict[str, dict[Any, Any]] = {field: {} for field in FURTHER}
    marks = ", ".join("?" * len(FURTHER))
    for field, name, value, since in connection.execute(
        "SELECT kind, key, value, valid_from FROM fact INDEXED BY fact_span"  # noqa: S608  marks
        f" WHERE valid_from <= ? AND valid_to > ? AND kind IN ({marks})",
        (at, at, *FURTHER),
    ):
        kind = FURTHER[field]
        if kind.of_member and (name not in nodes or nodes[name].joined >= since):
            continue
        event = msgspec.json.decode(value, type=kind.event)
        found[field][name if kind.key is None else kind.key(event)] = kind.keeps(event, since)
    return found


def _gateways(
    connection: sqlite3.Connection, nodes: Mapping[str, Node], at: int
) -> tuple[dict[str, int], dict[BackendKey, Backend], dict[str, Holder]]:
    """After nodes and facts: marks end with memberships, backends with reservations."""
    kinds: dict[str, list[tuple[str, str, str, int]]] = {}
    reserved: dict[str, int] = {}
    backends: dict[BackendKey, Backend] = {}
    holders: dict[str, Holder] = {}
    for kind, key, part, value, since in connection.execute(
        "SELECT kind, key, part, value, valid_from FROM fact INDEXED BY fact_span"
        " WHERE valid_from <= ? AND valid_to > ?"
        " AND kind IN ('gateway', 'holder', 'backend', 'health', 'clb') ORDER BY valid_from, rowid",
        (at, at),
    ):
        if kind == "clb":
            reserved[key] = since
        kinds.setdefault(kind, []).append((key, part, value, since))
    gateways = {
        name: since
        for name, _, _, since in kinds.get("gateway", ())
        if name in nodes and nodes[name].joined < since
    }
    for address, _, value, since in kinds.get("holder", ()):
        held = msgspec.json.decode(value, type=types.ClbHolderAssigned)
        holders[address] = Holder(held.name, held.purpose, address, held.node, held.uid, since)
    health = {
        (name, part): (msgspec.json.decode(value, type=types.ClbBackendHealthChanged), since)
        for name, part, value, since in kinds.get("health", ())
        if since > reserved.get(name, at)
    }
    for name, part, value, since in kinds.get("backend", ()):
        if since <= reserved.get(name, at):
            continue  # of an earlier reservation of that name
        event = msgspec.json.decode(value, type=types.ClbBackendAdded)
        said, changed = health.get((name, part), (None, 0))
        settings = {field: getattr(event, field) for field in SETTINGS}
        backends[BackendKey.of(event)] = Backend(
            **settings,
            added=since,
            healthy=said.healthy if said else True,
            changed=changed,
            changed_at=said.at if said else None,
            reason=said.reason if said else "",
        )
    return gateways, backends, holders


def _nodes(connection: sqlite3.Connection, at: int) -> tuple[dict[str, Node], dict[str, datetime | None]]:
    """Members in the order in which they joined, and when the unreachable ones were last seen."""
    rows, unreachable = connection.execute(_NODES_ALIVE, {"at": at}).fetchone()
    nodes = {node.name: node for node in sorted(_decode_nodes(rows), key=attrgetter("joined"))}
    return nodes, {name: moment(us) for name, us in _decode_unreachable(unreachable)}


def _ranges(
    connection: sqlite3.Connection, at: int
) -> tuple[dict[int, Range], dict[int, int], dict[int, types.RangeQuarantined]]:
    """Ranges that are not free, since when they drain, and the quarantined ones, each in order."""
    rows, others = connection.execute(_RANGES_ALIVE, {"at": at}).fetchone()
    resting = {one.idx: one for one in sorted(_decode_resting(others), key=attrgetter("since"))}
    ranges = {held.index: held for held in sorted(_decode_ranges(rows), key=attrgetter("epoch"))}
    draining: dict[int, int] = {}
    quarantined: dict[int, types.RangeQuarantined] = {}
    for index, phase, since, until_us, watermark in resting.values():
        if phase == "draining":
            draining[index] = since
        else:
            held, until = ranges[index], as_moment(until_us or 0)
            quarantined[index] = types.RangeQuarantined(
                cidr=held.cidr, index=index, epoch=held.epoch, watermark=watermark, until=until
            )
    return ranges, draining, quarantined


def _cursor(connection: sqlite3.Connection, at: int) -> int:
    row = connection.execute(
        "SELECT cursor_after FROM range WHERE cursor_after IS NOT NULL AND valid_from <= ?"
        " ORDER BY valid_from DESC LIMIT 1",
        (at,),
    ).fetchone()
    return row[0] if row else 0
