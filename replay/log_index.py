"""How a log finds events without reading all of it: the port, and the way of a log that has no index.

Implementations: :class:`ScanIndex` (any log, by reading it), :mod:`replay.stream_index` (the server's own
index) and :mod:`replay.archive_index` (an archive's index segments). ``tests/replay/test_log_index.py``
holds them to the same answers. Whoever opens a log chooses; nobody asks a log what it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from typing import Protocol

from events.codec import StoredMessage
from events.log import LogReader
from events.status import AgentStatus
from replay.archive.lines import Fact, facts_of
from replay.archive.postings import keys_of
from replay.archive.reader import ArchiveLog

NAMES_LIMIT = 20_000
"""Events, or index entries, that are looked through for names to suggest."""


class LogIndex(Protocol):
    """Finding in one log, between its start and the end that the caller gives.

    Cancelled, its coroutines leave nothing behind.
    """

    parked: frozenset[int]
    """Sequences whose facts are left out; set by the history."""

    @property
    def source(self) -> str:
        """Where the log comes from, for people."""
        ...

    @property
    def start(self) -> int:
        """The sequence that the first event follows: 0 for a whole log."""
        ...

    @property
    def start_digest(self) -> str | None:
        """The chain digest (hex) behind :attr:`start`; None for a log that begins at its genesis."""
        ...

    @property
    def archive(self) -> ArchiveLog | None:
        """The opened files, where the source is an archive: a verification checks them as files, too."""
        ...

    def base_state(self) -> bytes | None:
        """The canonical text of the state before the first event, if the source carries it (a capsule)."""
        ...

    def facts(self, after: int, until: int) -> AsyncIterator[Sequence[Fact]]:
        """Typed events of ``(after, until]`` in batches. Raises VerificationFailed, Unavailable."""
        ...

    async def at(self, sequence: int) -> StoredMessage | None:
        """The event with this number; None when there is none. Raises Unavailable, VerificationFailed."""
        ...

    async def recorded_by(self, moment_ns: int, end: int) -> int:
        """The last event up to ``end`` with a recorded time at or before ``moment_ns`` (Unix ns).

        :attr:`start` when there is none. Right also where recorded times run backwards.
        """
        ...

    def about(
        self, kind: str, name: str, *, after: int, until: int, newest_first: bool
    ) -> AsyncIterator[StoredMessage]:
        """The events of ``(after, until]`` that speak of a thing, one by one.

        What speaks of what is told at :meth:`replay.history.History.about`.
        """
        ...

    async def last_of_node(self, name: str, end: int) -> StoredMessage | None:
        """The newest event up to ``end`` of the node's own subjects; None when there is none."""
        ...

    async def names(self, kind: str, end: int) -> Collection[str]:
        """Keys ``kind/name`` that the log speaks of, for suggestions: of very many not all."""
        ...

    async def reports(self) -> list[AgentStatus]:
        """The agents' last reports, if the source has them."""
        ...


class ScanIndex:
    """Everything by reading: for a log in memory, and for any other that brings no index."""

    start = 0
    start_digest: str | None = None
    archive: ArchiveLog | None = None

    def __init__(self, log: LogReader, source: str) -> None:
        self._log = log
        self.source = source
        self.parked: frozenset[int] = frozenset()

    def base_state(self) -> bytes | None:
        return None

    async def facts(self, after: int, until: int) -> AsyncIterator[Sequence[Fact]]:
        async for read in self._log.read(after=after, until=until):
            if read.messages:
                yield facts_of(read.messages, self.parked)

    async def at(self, sequence: int) -> StoredMessage | None:
        async for batch in self._log.read(after=sequence - 1, until=sequence):
            for message in batch.messages:
                return message
        return None

    async def recorded_by(self, moment_ns: int, end: int) -> int:
        """By halves to any event of that time or before, then through all behind it.

        What lies behind is read, because times that run backwards put a later event before the moment.

        Cancelled, it leaves nothing behind.
        """
        low, high = self.start, end
        while low < high:
            middle = (low + high + 1) // 2
            message = await self.at(middle)
            if message is not None and message.recorded_ns <= moment_ns:
                low = middle
            else:
                high = middle - 1
        async for batch in self._log.read(after=low, until=end):
            for message in batch.messages:
                if message.recorded_ns <= moment_ns:
                    low = message.sequence
        return low

    async def about(
        self, kind: str, name: str, *, after: int, until: int, newest_first: bool
    ) -> AsyncIterator[StoredMessage]:
        key = f"{kind}/{name}"
        found = [
            message
            async for batch in self._log.read(after=after, until=until)
            for message in batch.messages
            if key in keys_of(message)
        ]
        for message in reversed(found) if newest_first else found:
            yield message

    async def last_of_node(self, name: str, end: int) -> StoredMessage | None:
        async for message in self.about("node", name, after=self.start, until=end, newest_first=True):
            if message.headers.get("ce-type", "").startswith("node."):
                return message
        return None

    async def names(self, kind: str, end: int) -> Collection[str]:
        after = max(self.start, end - NAMES_LIMIT)
        return {
            key
            async for batch in self._log.read(after=after, until=end)
            for message in batch.messages
            for key in keys_of(message)
            if key.startswith(f"{kind}/")
        }

    async def reports(self) -> list[AgentStatus]:
        return []
