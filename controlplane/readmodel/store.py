"""The files of the read model, and the one connection that writes them.

A directory holds generations (``gen-000001.db`` and so on, SQLite in WAL mode) and ``current``, the
name of the one in use, replaced atomically: a rebuild makes the next generation beside the live one
and switches the name. The files carry distinct names because SQLite finds a WAL by its file's name.

One transaction per batch, the checkpoint in it. ``synchronous=NORMAL``: a power cut may lose the last
transactions whole, and they are projected again.

**aiosqlite**: its public interface hops to its thread for each statement, and a batch of 1,000 events writes
thousands, which must be one transaction that no other reader's statement gets into. So a batch goes to that
thread as one function, by what aiosqlite offers only privately (offering it publicly has been declined;
``deploy/constraints.txt`` pins the version). The files that a controller can do without
(:mod:`controlplane.controller.side_database`) do without aiosqlite, too: a damaged one is closed, set aside and
begun anew within one piece of work, for which it has no word.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

import aiosqlite

from controlplane.readmodel import cluster_rows, gateway_rows
from controlplane.readmodel.rows import Contradiction, Rows, microseconds
from controlplane.readmodel.schema import SCHEMA, VERSION
from events.chain import Head, genesis
from events.codec import Recorded
from events.errors import IsthmusError, Refused, Usage, VerificationFailed
from events.input_files import read_regular

log = logging.getLogger("isthmus.controller")

T = TypeVar("T")

CURRENT = "current"
LOCK = "lock"
CACHE_KIB = 32 * 1024
_HANDLERS = {**cluster_rows.HANDLERS, **gateway_rows.HANDLERS}

_DAMAGE = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_MISMATCH = ("no such column", "no such table", "has no column named", "values were supplied")
"""Of a file with other tables than ours: another program's, or one of another release."""


def is_damage(error: sqlite3.Error) -> bool:
    """Whether a file is not what was written to it; not so for a full disk or one that does not answer."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in _DAMAGE or any(text in str(error) for text in _MISMATCH)


class SequenceSpan(NamedTuple):
    """The sequences of the first and the last event that a command caused."""

    first: int
    last: int


def generation_file(directory: Path, number: int) -> Path:
    """``gen-000007.db``."""
    return directory / f"gen-{number:06d}.db"


def current_generation(directory: Path) -> int:
    """The number in ``current``; 0 when there is none that can be read."""
    try:
        return int(read_regular(directory / CURRENT).decode().strip())
    except (OSError, ValueError):
        return 0


def switch(directory: Path, number: int) -> None:
    """Make a generation the current one, atomically and durably."""
    temporary = directory / f"{CURRENT}.new"
    with temporary.open("w") as file:
        file.write(f"{number}\n")
        file.flush()
        os.fsync(file.fileno())
    target = directory / CURRENT
    if target.is_dir() and not target.is_symlink():  # no file can take its place
        target.rename(directory / f"{CURRENT}.damaged-{number}")
    temporary.replace(target)


def prune(directory: Path, keep: int) -> None:
    """Remove all generations but ``keep``. A file that somebody still has open lives on until closed."""
    for path in directory.glob("gen-*.db*"):
        if path.name.split(".", 1)[0] != generation_file(directory, keep).stem:
            with suppress(OSError):  # gone already, or no file: then it is in nobody's way
                path.unlink()


def next_generation(directory: Path) -> int:
    """A number that no file has."""
    numbers = [int(path.name[4:10]) for path in directory.glob("gen-*.db*") if path.name[4:10].isdigit()]
    return max([current_generation(directory), *numbers]) + 1


class Store:
    """One open generation. Made by :meth:`open` or :meth:`create`; close it."""

    def __init__(self, path: Path, connection: aiosqlite.Connection, checkpoint: Head, cursor_us: int) -> None:
        self.path = path
        self.checkpoint = checkpoint
        self.time_us = cursor_us
        self._connection = connection
        self._rows: Rows | None = None

    @classmethod
    async def open(cls, directory: Path, cluster: str) -> Self:
        """The current generation, or a new empty one when there is none that fits.

        Raises Refused(data_in_use) — by :func:`lock_directory` — never here. Cancelled, a new empty file may be
        left behind; it is pruned later.
        """
        directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  once, at start
        number = current_generation(directory)
        if number and generation_file(directory, number).exists():
            store = await cls._connect(generation_file(directory, number), cluster, fresh=False)
            if store is not None:
                return store
            log.warning("read model %d is not of this log and release, or damaged; it is made anew", number)
        return await cls.renew(directory, cluster)

    @classmethod
    async def renew(cls, directory: Path, cluster: str) -> Self:
        """A new, empty current generation: everything in it follows from the log.

        Cancelled, the generation before it may still be the current one.
        """
        number = next_generation(directory)
        store = await cls.create(generation_file(directory, number), cluster)
        switch(directory, number)
        prune(directory, number)
        return store

    @classmethod
    async def create(cls, path: Path, cluster: str) -> Self:
        """A new empty generation at ``path``. Raises IsthmusError(internal).

        Cancelled, a file may be left at ``path``.
        """
        store = await cls._connect(path, cluster, fresh=True)
        if store is None:
            raise IsthmusError("internal", f"{path} could not be created as a read model")
        return store

    @classmethod
    async def _connect(cls, path: Path, cluster: str, *, fresh: bool) -> Self | None:
        """None when the file is of another version, of another cluster, or no database."""
        try:
            connection = await aiosqlite.connect(path, isolation_level=None, cached_statements=256)
        except sqlite3.DatabaseError:  # a directory of that name, for instance
            if fresh:
                raise
            return None
        try:
            found = await _hop(connection, _prepare, cluster, fresh)
        except (sqlite3.DatabaseError, TypeError, ValueError):
            if fresh:
                await connection.close()
                raise
            found = None
        except BaseException:
            await connection.close()
            raise
        if found is None:
            await connection.close()
            return None
        return cls(path, connection, Head(found[0], bytes.fromhex(found[1])), found[2])

    async def close(self) -> None:
        """Close the connection. Idempotent. Cancelled, the thread still closes it."""
        await self._connection.close()

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Run a function on the connection in its thread: one hop.

        Cancelled, the function still runs to its end in the thread.
        """
        return await _hop(self._connection, function)

    async def apply(self, events: Sequence[Recorded]) -> None:
        """Project consecutive events and move the checkpoint, in one transaction.

        At an event that cannot be applied everything before it is kept, and VerificationFailed names it. Raises
        VerificationFailed(sequence_gap) when the events do not follow the checkpoint. Cancelled, the
        transaction goes on in the thread and this object no longer knows how far it came: close it and open the
        file again.
        """
        if not events:
            return
        first = events[0].sequence
        if first != self.checkpoint.sequence + 1:
            raise VerificationFailed(
                "sequence_gap",
                f"the read model is at {self.checkpoint.sequence}, the next event offered is {first}",
                expected=self.checkpoint.sequence + 1,
                found=first,
            )

        def work(connection: sqlite3.Connection) -> tuple[int, Exception | None]:
            if self._rows is None:
                self._rows = Rows(connection, _HANDLERS)
            return _apply(connection, self._rows, events)

        applied, error = await self.run(work)
        if applied:
            last = events[applied - 1]
            self.checkpoint = Head(last.sequence, bytes.fromhex(last.envelope.chain))
            self.time_us = microseconds(last.envelope.time)
        if error is not None:
            poison = events[applied]
            raise VerificationFailed(
                error.code if isinstance(error, VerificationFailed) else "invariant_violated",
                f"the projection stops before event {poison.sequence} ({poison.envelope.type} of "
                f"{poison.event.entity}, id {poison.envelope.id}): {error}",
                sequence=poison.sequence,
                id=poison.envelope.id,
                type=poison.envelope.type,
                entity=poison.event.entity,
            ) from error

    async def spans(self, command_ids: Sequence[str]) -> dict[str, SequenceSpan]:
        """Where the events of those commands are that are known. Cancelled, the reading ends in its thread."""

        def work(connection: sqlite3.Connection) -> dict[str, SequenceSpan]:
            marks = ",".join("?" * len(command_ids))
            rows = connection.execute(
                f"SELECT command_id, first, last FROM command WHERE command_id IN ({marks})",  # noqa: S608  marks
                tuple(command_ids),
            )
            return {command_id: SequenceSpan(first, last) for command_id, first, last in rows}

        return await self.run(work)


def lock_directory(directory: Path) -> int:
    """Hold the directory for this process; the descriptor to close in the end.

    A folder in the lock's place is set aside: nobody can hold it. Raises Refused(data_in_use) when another
    process holds it, and Usage(usage) when it cannot be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = directory / LOCK
        if lock.is_dir():
            aside = tempfile.mkdtemp(prefix=f"{LOCK}.damaged-", dir=directory)
            with suppress(IsADirectoryError, NotADirectoryError, FileNotFoundError):
                lock.rename(aside)  # a folder takes a folder's place, never a file that somebody holds by now
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise Usage(
            "usage",
            f"the read model cannot be kept in {directory}: {error.strerror or error}; give --data a directory "
            "that can be written",
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise Refused(
            "data_in_use",
            f"another controller uses {directory}: give each controller a --data directory of its own",
            directory=str(directory),
        ) from None
    return descriptor


async def _hop(connection: aiosqlite.Connection, function: Callable[..., T], *arguments: Any) -> T:
    """One function in the connection's thread, with the raw connection. Cancelled, it runs to its end there."""
    raw = connection._conn  # noqa: SLF001
    result: T = await connection._execute(function, raw, *arguments)  # type: ignore[no-untyped-call]  # noqa: SLF001
    return result


def _prepare(connection: sqlite3.Connection, cluster: str, fresh: bool) -> tuple[int, str, int] | None:
    connection.executescript(
        f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=5000;"
        f"PRAGMA cache_size=-{CACHE_KIB}; PRAGMA temp_store=MEMORY;"
    )
    if fresh:
        connection.executescript("BEGIN;" + SCHEMA)
        empty = genesis(cluster)
        connection.execute("INSERT INTO checkpoint VALUES (1, ?, ?, 0)", (empty.sequence, empty.hex))
        connection.executemany(
            "INSERT INTO meta (key, value) VALUES (?, ?)",
            (("version", str(VERSION)), ("cluster", cluster)),
        )
        connection.execute("COMMIT")
    meta = dict(connection.execute("SELECT key, value FROM meta"))
    if meta.get("version") != str(VERSION) or meta.get("cluster") != cluster:
        return None
    sequence, chain, time_us = connection.execute("SELECT sequence, chain, time_us FROM checkpoint").fetchone()
    return int(sequence), bytes.fromhex(chain).hex(), int(time_us)


def _apply(
    connection: sqlite3.Connection, rows: Rows, events: Sequence[Recorded]
) -> tuple[int, Exception | None]:
    """How many events are dealt with, and what stopped it."""
    try:
        _transaction(connection, events[-1], partial(rows.apply, events))
    except (Contradiction, VerificationFailed, sqlite3.IntegrityError):
        return _apply_singly(connection, rows, events)
    return len(events), None


def _apply_singly(
    connection: sqlite3.Connection, rows: Rows, events: Sequence[Recorded]
) -> tuple[int, Exception | None]:
    """One of the events is poison: find it, keep what is before it."""
    for position, recorded in enumerate(events):
        try:
            _transaction(connection, recorded, partial(rows.apply, [recorded]))
        except (Contradiction, VerificationFailed, sqlite3.IntegrityError) as error:
            return position, error
    return len(events), None


def _transaction(connection: sqlite3.Connection, last: Recorded, write: Callable[[], object]) -> None:
    """The rows and the checkpoint at ``last``: both, or neither."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        write()
        connection.execute(
            "UPDATE checkpoint SET sequence = ?, chain = ?, time_us = ?",
            (last.sequence, last.envelope.chain, microseconds(last.envelope.time)),
        )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has rolled it back already
            connection.execute("ROLLBACK")
        raise
