"""The file of the record: SQLite in a thread of its own, bounded, lossy by design.

A row of ``report`` was true from ``at_us`` until before ``until_us``. ``watched`` says from when to
when somebody recorded at all: outside of it nothing is known, which is not the same as silence.
Beyond the limits the oldest rows go, and ``floor`` says from when on the record is whole.
"""

from __future__ import annotations

from array import array
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from controlplane.controller.agents.records import Alarm, ConvergenceRecord, Observed, RecordBatch
from controlplane.controller.side_database import SideDatabase
from controlplane.readmodel.rows import as_moment, microseconds

REPORTS_MAX = 1_000_000
"""Rows of agents kept by default: about 120 MB on disk. Five nodes at human pace fill it in years."""
RECORDS_MAX = 10_000
ALARMS_MAX = 1_000
SLACK = 0.05
OPEN = 9223372036854775807

_SCHEMA = """
CREATE TABLE IF NOT EXISTS agent (id INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, node TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS report (
  agent INTEGER NOT NULL, at_us INTEGER NOT NULL, until_us INTEGER NOT NULL,
  applied INTEGER NOT NULL, state TEXT NOT NULL, kernel TEXT NOT NULL, kernel_at INTEGER NOT NULL,
  peers INTEGER NOT NULL, more TEXT NOT NULL, PRIMARY KEY (agent, at_us)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS report_until ON report (until_us);
CREATE TABLE IF NOT EXISTS transit (
  first INTEGER PRIMARY KEY, last INTEGER NOT NULL, stored_us INTEGER NOT NULL, decided_us INTEGER NOT NULL,
  summary TEXT NOT NULL, expected INTEGER NOT NULL, applied INTEGER NOT NULL, spread BLOB NOT NULL,
  slowest TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS alarm (
  id INTEGER PRIMARY KEY, at_us INTEGER NOT NULL, name TEXT NOT NULL, code TEXT NOT NULL, message TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS watched (from_us INTEGER PRIMARY KEY, until_us INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS floor (one INTEGER PRIMARY KEY CHECK (one = 1), at_us INTEGER NOT NULL) STRICT;
INSERT OR IGNORE INTO floor VALUES (1, 0);
"""


class Coverage(NamedTuple):
    """Whether anything was recorded at a moment; ``since`` is where the record begins (None: no record)."""

    recorded: bool
    since: datetime | None


class _More(msgspec.Struct, omit_defaults=True):
    """What is rare or constant of an :class:`Observed`."""

    digest: str = ""
    rows: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    version: str = ""
    interval_s: float = 10.0
    gateway: bool = False
    mtu: int = 0
    path_mtu: int = 0
    fast_path: str = ""


_COLUMNS = attrgetter("applied", "state", "kernel", "kernel_at", "peers")
_encode = msgspec.json.Encoder().encode
_more = msgspec.json.Decoder(_More).decode
_slowest = msgspec.json.Decoder(tuple[tuple[str, float], ...]).decode


class HistoryStore:
    """The open file. Made by :meth:`open`; everything is done in its thread, where a cancelled call ends.

    Raises Unavailable(record_unavailable) for what cannot be read or written.
    """

    def __init__(self, file: SideDatabase, limit: int) -> None:
        self.file = file
        self._limit = limit
        self._session = 0
        self._ids: dict[str, int] = {}
        self.count = 0
        """Rows of agents kept now."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path | str = ":memory:", *, limit: int = REPORTS_MAX
    ) -> AsyncIterator[HistoryStore]:
        """Open or create the file; one that cannot be read is put aside: it is a record, not the truth.

        A cancellation inside of the block closes it, too.
        """
        async with SideDatabase.open(path, _SCHEMA, what="what the agents reported") as file:
            yield cls(file, limit)

    # --- writing -------------------------------------------------------------------------------------

    async def write(self, batch: RecordBatch) -> None:
        """Write all of it in one transaction. Raises Unavailable (a full disk).

        Cancelled, the transaction goes on in its thread: it is written whole or not at all.
        """
        await self.file.run(lambda: self._write(batch))

    def _write(self, batch: RecordBatch) -> None:
        execute = self.file.connection.execute
        with self.file.connection:
            self._watch(batch.now_us)
            for observed, since_us in zip(batch.agents, batch.since_us, strict=True):
                self._report(observed, since_us)
            for uid, at_us in batch.gone:
                execute(
                    "UPDATE report SET until_us = ? WHERE agent = ? AND until_us = ? AND at_us < ?",
                    (at_us, self._id(uid, ""), OPEN, at_us),
                )
            self.file.connection.executemany(
                "INSERT OR REPLACE INTO transit VALUES (?,?,?,?,?,?,?,?,?)",
                [
                    (*record[:7], record.latencies.tobytes(), _encode(record.slowest).decode())
                    for record in batch.records
                ],
            )
            self.file.connection.executemany(
                "INSERT INTO alarm (at_us, name, code, message) VALUES (?,?,?,?)",
                [(microseconds(a.at), a.name, a.code, a.message) for a in batch.alarms],
            )
            self._prune(batch)

    def _watch(self, now_us: int) -> None:
        execute = self.file.connection.execute
        if not self._session:
            # Whatever is open was left by a process that ended: it is known as long as that one watched.
            last = execute("SELECT max(until_us) FROM watched").fetchone()[0] or 0
            execute("UPDATE report SET until_us = max(at_us + 1, ?) WHERE until_us = ?", (last + 1, OPEN))
            execute("INSERT OR IGNORE INTO watched VALUES (?, ?)", (now_us, now_us))
            (self.count,) = execute("SELECT count(*) FROM report").fetchone()
            self._session = now_us
        execute("UPDATE watched SET until_us = ? WHERE from_us = ?", (now_us, self._session))

    def _id(self, uid: str, node: str) -> int:
        known = self._ids.get(uid)
        if known is None:
            self.file.connection.execute("INSERT OR IGNORE INTO agent (uid, node) VALUES (?, ?)", (uid, node))
            known = self.file.connection.execute("SELECT id FROM agent WHERE uid = ?", (uid,)).fetchone()[0]
            self._ids[uid] = known
        return known

    def _report(self, observed: Observed, since_us: int) -> None:
        agent = self._id(observed.uid, observed.node)
        self.file.connection.execute(
            "UPDATE report SET until_us = max(at_us + 1, ?) WHERE agent = ? AND until_us = ?",
            (since_us, agent, OPEN),
        )
        more = msgspec.convert(observed, _More, from_attributes=True)
        cursor = self.file.connection.execute(
            "INSERT OR REPLACE INTO report VALUES (?,?,?,?,?,?,?,?,?)",
            (agent, since_us, OPEN, *_COLUMNS(observed), _encode(more).decode()),
        )
        self.count += cursor.rowcount

    def _prune(self, batch: RecordBatch) -> None:
        execute = self.file.connection.execute
        if batch.records:
            execute(
                "DELETE FROM transit WHERE first <= "
                "(SELECT first FROM transit ORDER BY first DESC LIMIT 1 OFFSET ?)",
                (RECORDS_MAX,),
            )
        if batch.alarms:
            execute(
                "DELETE FROM alarm WHERE id <= (SELECT id FROM alarm ORDER BY id DESC LIMIT 1 OFFSET ?)",
                (ALARMS_MAX,),
            )
        if self.count <= self._limit * (1 + SLACK):
            return
        (self.count,) = execute("SELECT count(*) FROM report").fetchone()
        row = execute(
            "SELECT until_us FROM report WHERE until_us < ? ORDER BY until_us LIMIT 1 OFFSET ?",
            (OPEN, max(0, self.count - self._limit)),
        ).fetchone()
        if row is None:
            return  # only agents of the present: their number is bounded elsewhere
        self.count -= execute("DELETE FROM report WHERE until_us <= ?", row).rowcount
        execute("UPDATE floor SET at_us = ?", row)
        execute("DELETE FROM watched WHERE until_us <= ?", row)
        execute("DELETE FROM agent WHERE id NOT IN (SELECT DISTINCT agent FROM report)")
        self._ids.clear()

    # --- reading -------------------------------------------------------------------------------------

    async def coverage(self, moment_us: int) -> Coverage:
        """Whether somebody recorded at that moment."""

        def work() -> Coverage:
            (floor,) = self.file.connection.execute("SELECT at_us FROM floor").fetchone()
            (first,) = self.file.connection.execute("SELECT min(from_us) FROM watched").fetchone()
            if first is None:
                return Coverage(recorded=False, since=None)
            inside = self.file.connection.execute(
                "SELECT 1 FROM watched WHERE from_us <= ?1 AND until_us >= ?1", (moment_us,)
            ).fetchone()
            since = max(floor, first)
            return Coverage(inside is not None and moment_us >= since, as_moment(since))

        return await self.file.run(work)

    async def agents(self, uids: Iterable[str], moment_us: int) -> dict[str, Observed]:
        """Those agents as they were known then; who is not in it had not been heard of."""
        wanted = _encode(list(uids)).decode()

        def work() -> dict[str, Observed]:
            rows = self.file.connection.execute(
                "SELECT a.uid, a.node, r.at_us, r.applied, r.state, r.kernel, r.kernel_at, r.peers, r.more "
                "FROM json_each(?1) w JOIN agent a ON a.uid = w.value JOIN report r ON r.agent = a.id "
                "AND r.at_us = (SELECT max(at_us) FROM report WHERE agent = a.id AND at_us <= ?2) "
                "AND r.until_us > ?2",
                (wanted, moment_us),
            )
            return {row[0]: _observed(row) for row in rows}

        return await self.file.run(work)

    async def convergence_records(self, until_sequence: int, limit: int) -> list[ConvergenceRecord]:
        """The latest recorded transactions that end at or before a sequence, newest first."""
        query = "SELECT * FROM transit WHERE last <= ? ORDER BY first DESC LIMIT ?"
        return await self.file.run(
            lambda: [_record(row) for row in self.file.connection.execute(query, (until_sequence, limit))]
        )

    async def convergence_record(self, sequence: int) -> ConvergenceRecord | None:
        """The transaction that contains a sequence."""
        query = "SELECT * FROM transit WHERE first <= ? ORDER BY first DESC LIMIT 1"

        def work() -> ConvergenceRecord | None:
            row = self.file.connection.execute(query, (sequence,)).fetchone()
            found = _record(row) if row else None
            return found if found and found.last >= sequence else None

        return await self.file.run(work)

    async def alarms(self, moment_us: int, limit: int) -> list[Alarm]:
        """The latest alarms up to a moment, newest first."""
        query = "SELECT name, code, message, at_us FROM alarm WHERE at_us <= ? ORDER BY id DESC LIMIT ?"
        return await self.file.run(
            lambda: [
                Alarm(name=name, code=code, message=message, at=as_moment(at_us))
                for name, code, message, at_us in self.file.connection.execute(query, (moment_us, limit))
            ]
        )


def _observed(row: Sequence[Any]) -> Observed:
    uid, node, at_us, applied, state, kernel, kernel_at, peers, text = row
    more = _more(text)
    return Observed(
        node=node,
        uid=uid,
        heard_us=at_us,
        applied=applied,
        state=state,
        kernel=kernel,
        kernel_at=kernel_at,
        peers=peers,
        **msgspec.structs.asdict(more),
    )


def _record(row: Sequence[Any]) -> ConvergenceRecord:
    latencies = array("f")
    latencies.frombytes(row[7])
    first, last, stored_us, decided_us, summary, expected, applied = row[:7]
    return ConvergenceRecord(
        first, last, stored_us, decided_us, summary, expected, applied, latencies, _slowest(row[8])
    )
