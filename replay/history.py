"""One log, live or archived, with what every question about the past needs from it.

* facts in bulk, by the fastest path the source has;
* single events, and all events about one node, range or reservation, by the source's own index
  (an archive's index segments, the server's subject index, else one pass over the log);
* a WHEN resolved to a sequence.

A history has a fixed end, taken when it is opened: answers about a growing log are of one piece.
This module folds nothing and decides nothing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Self

import msgspec

from events import subjects
from events.chain import Head
from events.codec import Recorded, StoredMessage, decode
from events.errors import Refused, VerificationFailed
from events.log import LogReader
from events.parking import parked_in
from events.status import AgentStatus
from replay.archive.lines import Fact
from replay.log_index import LogIndex, ScanIndex
from replay.when import When, from_ns

Progress = Callable[[int], None]
"""Called now and then with the last sequence that was worked on."""

OnHole = Callable[[int, int], None]
"""Called with the first and the last sequence that are missing."""

NEIGHBOURS = 1000
"""Events in front of an answer that are looked through for recorded times that run backwards."""

_UNIX = datetime(1970, 1, 1, tzinfo=UTC)


class Point(msgspec.Struct, frozen=True):
    """A place in the log. ``recorded_at`` is the server's time of that event; None before the first.

    ``asked`` is the WHEN as it was written, ``moment`` what it was read as (UTC) if it was a time.
    """

    sequence: int
    recorded_at: datetime | None
    asked: str
    moment: datetime | None = None


class History:
    """The log up to its end as it was when this was opened. Use :meth:`open`.

    Cancelled, its coroutines leave nothing behind.
    """

    def __init__(
        self, log: LogReader, head: Head, parked: frozenset[int] = frozenset(), index: LogIndex | None = None
    ) -> None:
        self.log = log
        self.head = head
        self.parked = parked
        """Sequences that the log says are parked: no part of any state."""
        self.index: LogIndex = index or ScanIndex(log, f"stream {subjects.stream(log.cluster)}")
        self.index.parked = parked

    @classmethod
    async def open(cls, log: LogReader, index: LogIndex | None = None) -> Self:
        """Take the log as it is now; without ``index`` everything is found by reading. Raises Unavailable.

        A last event that states no digest (somebody wrote past the controller) is the end all the same: its
        head has a digest of zeros.
        """
        try:
            head = await log.head()
        except VerificationFailed as error:
            sequence = error.details.get("sequence")
            if error.code != "chain_broken" or not isinstance(sequence, int):
                raise
            head = Head(sequence, bytes(32))
        return cls(log, head, await _parked(log), index)

    @property
    def cluster(self) -> str:
        return self.log.cluster

    @property
    def end(self) -> int:
        """The last sequence."""
        return self.head.sequence

    @property
    def start(self) -> int:
        """The sequence that the first event follows: 0, except for an incremental archive on its own."""
        return self.index.start

    @property
    def base(self) -> bytes | None:
        """The canonical text of the state before the first event, if the source carries it (a capsule)."""
        return self.index.base_state()

    @property
    def source(self) -> str:
        """Where the log comes from, for people."""
        return self.index.source

    async def facts(
        self, *, after: int = 0, until: int | None = None, progress: Progress | None = None
    ) -> AsyncIterator[Sequence[Fact]]:
        """Typed events of ``(after, until]`` in batches. Raises VerificationFailed, Unavailable."""
        stop = self.end if until is None else min(until, self.end)
        async for batch in self.index.facts(after, stop):
            yield batch
            if progress:
                progress(batch[-1].seq)

    async def messages(
        self,
        *,
        after: int = 0,
        until: int | None = None,
        follow: bool = False,
        on_hole: OnHole | None = None,
    ) -> AsyncIterator[Sequence[StoredMessage]]:
        """Stored messages of ``(after, until]`` in batches; with ``follow`` also what comes later.

        A live stream in which events are missing is read on behind each hole once ``on_hole`` was told of it.
        Raises Unavailable; VerificationFailed(sequence_gap) at a hole without ``on_hole``, and where the log
        offers nothing to go on with.
        """
        stop = until if follow else self.end if until is None else min(until, self.end)
        while True:
            try:
                async for batch in self.log.read(after=after, until=stop, follow=follow):
                    if batch.messages:
                        after = batch.messages[-1].sequence
                        yield batch.messages
            except VerificationFailed as error:
                found = error.details.get("found")
                if on_hole is None or error.code != "sequence_gap" or not isinstance(found, int):
                    raise
                if found <= after + 1:
                    raise  # no hole: the log was replaced under the reader
                gone = found - 1 if stop is None else min(found - 1, stop)
                on_hole(after + 1, gone)
                after = gone
                if stop is None or after < stop:
                    continue
            return

    async def reports(self) -> list[AgentStatus]:
        """The agents' last reports: of the live bus, or those that a capsule carries."""
        return await self.index.reports()

    async def message(self, sequence: int) -> StoredMessage:
        """The event at ``sequence``. Raises Refused(not_in_history)."""
        found = await self.index.at(sequence) if self.start < sequence <= self.end else None
        if found is None:
            raise self._outside(f"event {sequence}")
        return found

    def _outside(self, what: str) -> Refused:
        return Refused(
            "not_in_history",
            f"{self.source} holds no {what}: it has events {self.start + 1} to {self.end}",
            first=self.start + 1,
            last=self.end,
        )

    # --- moments ------------------------------------------------------------------------------------

    async def resolve(self, when: When) -> Point:
        """The state that was current then: behind the last event that was recorded at or before the moment.

        "Last" is by sequence, also where recorded times run backwards: what the log holds in front of an
        event that was recorded by then is part of that state.

        Zero is the beginning of what there is. Raises Refused(not_in_history) for a sequence outside of it.
        """
        if when.sequence is not None:
            sequence = when.sequence or self.start
            if not self.start <= sequence <= self.end:
                raise self._outside(f"event {sequence}")
        elif when.moment is None:
            sequence = self.end
        else:
            sequence = await self.index.recorded_by(_nanoseconds(when.moment), self.end)
        if sequence <= self.start:
            return Point(sequence, None, when.text, when.moment)
        return Point(sequence, from_ns((await self.message(sequence)).recorded_ns), when.text, when.moment)

    async def later_before(self, point: Point) -> Point | None:
        """An event shortly in front of ``point`` that was recorded after the moment asked about, if times ran
        backwards there: then more than one event could be called the last one by that moment.
        """
        if point.moment is None or point.sequence <= self.start:
            return None
        moment_ns = _nanoseconds(point.moment)
        async for batch in self.index.facts(max(self.start, point.sequence - NEIGHBOURS), point.sequence):
            for fact in batch:
                if fact.recorded_ns > moment_ns:
                    return Point(fact.seq, from_ns(fact.recorded_ns), point.asked)
        return None

    # --- things ---------------------------------------------------------------------------------------

    async def about(
        self,
        kind: str,
        name: str,
        *,
        after: int = 0,
        until: int | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[Recorded]:
        """The events of ``(after, until]`` that speak of a ``node``, ``range`` (CIDR), ``clb``, ``cluster``
        or ``address``, one by one as they are wanted.

        For a node that includes the allocation and the draining of its ranges, and what was found of its
        paths; for an address the events that
        gave it to a node or a balancer (or changed it).
        """
        stop = self.end if until is None else until
        async for message in self.index.about(kind, name, after=after, until=stop, newest_first=newest_first):
            yield decode(message)

    async def last_about_node(self, name: str) -> Recorded | None:
        """The node's newest event of its own (joined, left, unreachable …); None when there is none."""
        found = await self.index.last_of_node(name, self.end)
        return None if found is None else decode(found)

    async def names(self, kind: str) -> list[str]:
        """Names of ``node`` or ``clb`` that the log speaks of, to suggest one: of very many not all."""
        keys = await self.index.names(kind, self.end)
        return sorted(key.removeprefix(f"{kind}/") for key in keys if key.startswith(f"{kind}/"))


def _nanoseconds(moment: datetime) -> int:
    """The last nanosecond of this microsecond: a time is shown to the microsecond, and found again by it."""
    return (moment - _UNIX) // timedelta(microseconds=1) * 1000 + 999


async def _parked(log: LogReader) -> frozenset[int]:
    """What is parked. A damaged log says nothing reliable: its readers find the damage where it is."""
    try:
        return await parked_in(log)
    except VerificationFailed:
        return frozenset()
