"""A SQLite file beside the read model that the controller can do without: recent traces, what the agents said.

It must never stop the controller. A damaged file is set aside and begun anew, when it is opened or whenever
the damage shows; where no file can be written (a read-only or full disk) the record is kept in memory. What
happened is said as a condition. Everything is done in one thread: the event loop pays one hop for a batch.

Why not by aiosqlite: :mod:`controlplane.readmodel.store`.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

from controlplane.readmodel.store import is_damage
from events.errors import Unavailable
from events.protocol.queries import Condition

log = logging.getLogger("isthmus.controller")

T = TypeVar("T")
IN_MEMORY = ":memory:"


class SideDatabase:
    """The open file. Made by :meth:`open`. ``what`` it records is named in its condition."""

    def __init__(self, path: str, schema: str, what: str, thread: ThreadPoolExecutor) -> None:
        self._path = path
        self._schema = schema
        self._what = what
        self._thread = thread
        self._fault = ""
        self._failing = ""
        self.connection: sqlite3.Connection
        """For work in :meth:`run` only."""

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path | str, schema: str, *, what: str) -> AsyncIterator[SideDatabase]:
        """Open or create the file; ``schema`` is safe to repeat. Raises nothing that a disk can cause.

        A cancellation inside of the block closes it, too.
        """
        with ThreadPoolExecutor(1, thread_name_prefix=what.replace(" ", "-")) as thread:
            self = cls(str(path), schema, what, thread)
            hop = asyncio.get_running_loop().run_in_executor
            await hop(thread, self._connect)
            try:
                yield self
            finally:
                await hop(thread, self.connection.close)

    def conditions(self) -> list[Condition]:
        """That the record began anew, is kept in memory only, or cannot be written now."""
        message = self._failing or self._fault
        return [Condition(code="record_incomplete", severity="warning", message=message)] if message else []

    async def run(self, work: Callable[[], T]) -> T:
        """Do it in the thread; once more on a new file when this one turns out to be damaged.

        Raises Unavailable(record_unavailable) when it cannot be done (a full disk). Cancelled, the work goes on
        in the thread, to its end.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._attempt, work)

    def _attempt(self, work: Callable[[], T]) -> T:
        try:
            found = work()
        except sqlite3.Error as error:
            if not is_damage(error):
                raise self._failed(error) from error
            self._begin_anew(error)
            try:
                found = work()
            except sqlite3.Error as again:
                raise self._failed(again) from again
        self._failing = ""
        return found

    def _failed(self, error: sqlite3.Error) -> Unavailable:
        self._failing = f"{self._what}: {self._path} cannot be used now ({error}); make room or mend the disk"
        return Unavailable("record_unavailable", self._failing, file=self._path)

    def _connect(self) -> None:
        try:
            self.connection = self._opened(self._path)
        except sqlite3.Error as error:
            if is_damage(error):
                self._set_aside(error)
            else:
                self._fall_back(error)

    def _begin_anew(self, error: sqlite3.Error) -> None:
        with suppress(sqlite3.Error):
            self.connection.close()
        self._set_aside(error)

    def _set_aside(self, error: sqlite3.Error) -> None:
        aside = f"{self._path}.damaged"
        try:
            for suffix in ("-wal", "-shm"):
                Path(f"{self._path}{suffix}").unlink(missing_ok=True)
            Path(self._path).replace(aside)
            self.connection = self._opened(self._path)
        except (OSError, sqlite3.Error) as further:
            self._fall_back(further)
            return
        self._fault = (
            f"{self._what}: {self._path} was unreadable ({error}) and is set aside as {aside}; the record "
            f"begins anew. Delete that file when nobody needs it; this is said until the controller restarts"
        )
        log.warning("%s", self._fault)

    def _fall_back(self, error: Exception) -> None:
        self._fault = (
            f"{self._what}: {self._path} cannot be written ({error}), so the record is kept in memory and ends "
            "with the controller. Make the directory writable or make room, then restart the controller"
        )
        log.warning("%s", self._fault)
        self.connection = self._opened(IN_MEMORY)

    def _opened(self, path: str) -> sqlite3.Connection:
        database = sqlite3.connect(path, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=OFF")
            database.execute("PRAGMA foreign_keys=ON")
            database.executescript(self._schema)
        except sqlite3.Error:
            database.close()
            raise
        return database
