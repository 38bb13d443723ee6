"""Questions to the read model that the API asks: which events, and the log in buckets. Pure SQL and shapes."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from controlplane.console.schemas import TimelineBucket
from controlplane.readmodel.asof import moment

READ_OVER = 64

_TIMELINE = """
SELECT max(sequence), max(time_us),
  sum(type LIKE 'node.joined.%'), sum(type LIKE 'node.left.%' OR type LIKE 'node.fenced.%'),
  sum(type LIKE '%.refused.%' OR type LIKE '%-refused.%'), count(*)
FROM event GROUP BY (sequence - 1) * ?1 / ?2 ORDER BY 1
"""


def timeline(connection: sqlite3.Connection, buckets: int) -> list[TimelineBucket]:
    """The log from its beginning to the checkpoint, evenly cut by sequence."""
    (last,) = connection.execute("SELECT max(sequence) FROM event").fetchone()
    if not last:
        return []
    found = []
    for sequence, time_us, joins, leaves, refusals, total in connection.execute(
        _TIMELINE, (min(buckets, last), last)
    ):
        at = moment(time_us)
        if at is not None:
            others = total - joins - leaves - refusals
            found.append(
                TimelineBucket(
                    sequence=sequence, at=at, joins=joins, leaves=leaves, refusals=refusals, others=others
                )
            )
    return found


def first_time(connection: sqlite3.Connection, after: int) -> int | None:
    """When the event after a sequence was decided, Unix microseconds; None when there is none yet."""
    row = connection.execute("SELECT time_us FROM event WHERE sequence = ?", (after + 1,)).fetchone()
    return row[0] if row else None


def command_of(connection: sqlite3.Connection, sequence: int) -> tuple[int, int] | None:
    """The first and the last event of the command that an event belongs to; None when none is known."""
    row = connection.execute(
        "SELECT first, last FROM command WHERE first <= ? ORDER BY first DESC LIMIT 1", (sequence,)
    ).fetchone()
    return (row[0], row[1]) if row and row[1] >= sequence else None


def of_kind(connection: sqlite3.Connection, entity: str, prefix: str, until: int, limit: int) -> list[int]:
    """Sequences of the newest events of an entity whose type begins with ``prefix``, ascending."""
    rows = connection.execute(
        "SELECT sequence FROM event WHERE entity = ? AND sequence <= ? AND type >= ? AND type < ? "
        "ORDER BY sequence DESC LIMIT ?",
        (entity, until, prefix, f"{prefix}\U0010ffff", limit),
    ).fetchall()
    return [row[0] for row in reversed(rows)]


def matching(connection: sqlite3.Connection, before: int, limit: int, entity: str, aggregate: str) -> list[int]:
    """Sequences of the newest events below ``before`` that match, ascending."""
    conditions = ["sequence < ?"]
    values: list[object] = [before]
    if aggregate:
        conditions.append("type >= ? AND type < ?")
        values += [f"{aggregate}.", f"{aggregate}/"]
    if entity:
        # A node's history includes its ranges': they name it, but are events of the range.
        # So do the losses of its paths and their ends.
        paths = "FROM fact WHERE kind = 'lost_paths' AND (key IN (?, ?) OR part = ?)"
        conditions.append(
            "(entity = ? OR sequence IN (SELECT valid_from FROM range WHERE node = ?"  # noqa: S608
            f" UNION ALL SELECT valid_from {paths} UNION ALL SELECT valid_to {paths}))"
        )
        ends = (f"node {entity}", f"pair {entity}", entity)
        values += [entity, entity, *ends, *ends]
    rows = connection.execute(
        f"SELECT sequence FROM event WHERE {' AND '.join(conditions)} ORDER BY sequence DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    ).fetchall()
    return [row[0] for row in reversed(rows)]


def runs(sequences: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending sequences as stretches that are read at once; small gaps are read over."""
    found: list[tuple[int, int]] = []
    for sequence in sequences:
        if found and sequence - found[-1][1] <= READ_OVER:
            found[-1] = (found[-1][0], sequence)
        else:
            found.append((sequence, sequence))
    return found
