"""One log, live or archived, with what every question about the past needs from it.

* facts in bulk, by the fastest path the source has;
* single events, and all events about one node, range or reservation, by the source's own index
  (an archive's index segments, the server's subject index, else one pass over the log);
* a WHEN resolved to a sequence.

A history has a fixed end, taken when it is opened: answers about a growing log are of one piece.
This module folds nothing and decides nothing.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Self

import msgspec

from events import subjects
from events.chain import Head
from events.codec import Recorded, StoredMessage, decode
from events.errors import Refused, VerificationFailed
from events.log import LogReader
from events.parking import parked_in
from events.status import AgentStatus
from replay.archive.lines import Fact, facts_of
from replay.archive.postings import keys_of
from replay.archive.reader import ArchiveLog
from replay.when import When, from_ns

if TYPE_CHECKING:
    from replay.live_lookup import LiveLookup

Progress = Callable[[int], None]
"""Called now and then with the last sequence that was worked on."""

OnHole = Callable[[int, int], None]
"""Called with the first and the last sequence that are missing."""

NAMES_LIMIT = 20_000
"""Events, or index entries, that are looked through for names to suggest."""


class Point(msgspec.Struct, frozen=True):
    """A place in the log. ``recorded_at`` is the server's time of that event; None before the first.

    ``asked`` is the WHEN as it was written, ``moment`` what it was read as (UTC) if it was a time.
    """

    sequence: int
    recorded_at: datetime | None
    asked: str
    moment: datetime | None = None


class History:
    """The log up to its end as it was when this was opened. Use :meth:`open`."""

    def __init__(self, log: LogReader, head: Head, parked: frozenset[int] = frozenset()) -> None:
        self.log = log
        self.head = head
        self.parked = parked
        """Sequences that the log says are parked: no part of any state."""
        self._archive = log if isinstance(log, ArchiveLog) else None
        self._live = _lookup(log)
        if self._archive is not None:
            self._archive.parked = parked

    @classmethod
    async def open(cls, log: LogReader) -> Self:
        """Take the log as it is now. Raises Unavailable.

        A last event that states no digest (somebody wrote past the controller) is the end all the
        same: its head has a digest of zeros.
        """
        try:
            head = await log.head()
        except VerificationFailed as error:
            sequence = error.details.get("sequence")
            if error.code != "chain_broken" or not isinstance(sequence, int):
                raise
            head = Head(sequence, bytes(32))
        return cls(log, head, await _parked(log))

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
        return self._archive.after if self._archive else 0

    @property
    def base(self) -> bytes | None:
        """The canonical text of the state before the first event, if the archive carries it (a capsule)."""
        return self._archive.base_state() if self._archive else None

    @property
    def source(self) -> str:
        """Where the log comes from, for people."""
        if self._archive:
            return ", ".join(file.path for file in self._archive.files)
        return f"stream {subjects.stream(self.cluster)}"

    async def facts(
        self, *, after: int = 0, until: int | None = None, progress: Progress | None = None
    ) -> AsyncIterator[Sequence[Fact]]:
        """Typed events of ``(after, until]`` in batches. Raises VerificationFailed, Unavailable."""
        stop = self.end if until is None else min(until, self.end)
        if self._archive is not None:
            for place in self._archive.places_between(after, stop):
                batch = self._archive.facts(place)
                if place.segment.first <= after or place.segment.last > stop:
                    batch = [fact for fact in batch if after < fact.seq <= stop]
                if batch:
                    yield batch
                    if progress:
                        progress(batch[-1].seq)
                await asyncio.sleep(0)  # all of this is CPU: let Ctrl-C in
            return
        async for read in self.log.read(after=after, until=stop):
            if read.messages:
                yield facts_of(read.messages, self.parked)
                if progress:
                    progress(read.messages[-1].sequence)

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
        Raises Unavailable; VerificationFailed(sequence_gap) at a hole without ``on_hole``, and where the
        log offers nothing to go on with.
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
        if self._live is not None:
            return await self._live.statuses()
        if self._archive is not None:
            return [msgspec.json.decode(text, type=AgentStatus) for text in self._archive.notes("status")]
        return []

    async def message(self, sequence: int) -> StoredMessage:
        """The event at ``sequence``. Raises Refused(not_in_history)."""
        if self.start < sequence <= self.end:
            if self._archive is not None:
                return self._picked(self._archive, sequence)
            if self._live is not None:
                found = await self._live.at(sequence)
                if found is not None:
                    return found
            else:
                async for batch in self.log.read(after=sequence - 1, until=sequence):
                    for message in batch.messages:
                        return message
        raise self._outside(f"event {sequence}")

    def _outside(self, what: str) -> Refused:
        return Refused(
            "not_in_history",
            f"{self.source} holds no {what}: it has events {self.start + 1} to {self.end}",
            first=self.start + 1,
            last=self.end,
        )

    # --- moments ------------------------------------------------------------------------------------

    async def resolve(self, when: When) -> Point:
        """The state that was current then: the last event recorded at or before the moment.

        Zero is the beginning of what there is. Raises Refused(not_in_history) for a sequence outside of it.
        """
        if when.sequence is not None:
            sequence = when.sequence or self.start
            if not self.start <= sequence <= self.end:
                raise self._outside(f"event {sequence}")
        elif when.moment is None:
            sequence = self.end
        else:
            sequence = await self._before(when.moment)
        if sequence <= self.start:
            return Point(sequence, None, when.text, when.moment)
        return Point(sequence, from_ns((await self.message(sequence)).recorded_ns), when.text, when.moment)

    async def _before(self, moment: datetime) -> int:
        """The number of the last event recorded at or before ``moment``."""
        if self._archive is not None:
            places = self._archive.places
            at = bisect_right(places, moment, key=lambda place: from_ns(place.segment.to_ns))
            if at == len(places):
                return self.end
            batch = self._archive.cached_facts(places[at])
            before = bisect_right(batch, moment, key=lambda fact: from_ns(fact.recorded_ns))
            return batch[0].seq - 1 + before
        low, high = self.start, self.end
        while low < high:
            middle = (low + high + 1) // 2
            if from_ns((await self.message(middle)).recorded_ns) <= moment:
                low = middle
            else:
                high = middle - 1
        return low

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

        For a node that includes the allocation and the draining of its ranges; for an address the
        events that gave it to a node or a balancer (or changed it).
        """
        stop = self.end if until is None else until
        if self._archive is not None:
            wanted = [s for s in self._archive.sequences(f"{kind}/{name}") if after < s <= stop]
            for sequence in reversed(wanted) if newest_first else wanted:
                yield decode(self._picked(self._archive, sequence))
            return
        if self._live is not None and kind in ("node", "range", "clb", "cluster"):
            found = await self._matching(kind, name, after, stop)
        else:
            key = f"{kind}/{name}"
            found = [
                message
                async for batch in self.messages(after=after, until=stop)
                for message in batch
                if key in keys_of(message)
            ]
        for message in reversed(found) if newest_first else found:
            yield decode(message)

    async def last_about_node(self, name: str) -> Recorded | None:
        """The node's newest event of its own (joined, left, unreachable …); None when there is none."""
        if self._live is not None:
            found = await self._live.last(subjects.event(self.cluster, "node", name, "*"))
            return None if found is None or found.sequence > self.end else decode(found)
        async for recorded in self.about("node", name, newest_first=True):
            if recorded.event.aggregate == "node":
                return recorded
        return None

    async def names(self, kind: str) -> list[str]:
        """Names of ``node`` or ``clb`` that the log speaks of, to suggest one: of very many not all."""
        if self._archive is not None:
            keys = self._archive.keys(f"{kind}/", limit=NAMES_LIMIT)
        else:
            after = max(self.start, self.end - NAMES_LIMIT)
            keys = {
                key
                async for batch in self.messages(after=after, on_hole=_unheard)
                for m in batch
                for key in keys_of(m)
            }
        return sorted(key.removeprefix(f"{kind}/") for key in keys if key.startswith(f"{kind}/"))

    def _picked(self, archive: ArchiveLog, sequence: int) -> StoredMessage:
        place = archive.place_of(sequence)
        if place is None:
            raise self._outside(f"event {sequence}")
        return archive.pick(place, [sequence])[0]

    async def _matching(self, kind: str, name: str, after: int, stop: int) -> list[StoredMessage]:
        live = self._live
        if live is None:
            return []
        subject = subjects.event(self.cluster, kind, name, ">")
        found = {m.sequence: m for m in await live.matching(subject, after=after) if m.sequence <= stop}
        if kind == "node":
            refused = subjects.event(self.cluster, "allocation", name, ">")
            found |= {m.sequence: m for m in await live.matching(refused, after=after) if m.sequence <= stop}
            # A node's ranges are given and taken in the transactions of its own joining and leaving.
            for message in list(found.values()):
                first = message.sequence - int(message.headers.get("ce-txindex", "0"))
                for sequence in range(first, first + int(message.headers.get("ce-txcount", "1"))):
                    if sequence not in found and after < sequence <= stop:
                        sibling = await self.message(sequence)
                        if f"node/{name}" in keys_of(sibling):
                            found[sequence] = sibling
        return [found[sequence] for sequence in sorted(found)]


def _unheard(first: int, last: int) -> None:
    """Holes do not matter to a suggestion."""


async def _parked(log: LogReader) -> frozenset[int]:
    """What is parked. A damaged log says nothing reliable: its readers find the damage where it is."""
    try:
        return await parked_in(log)
    except VerificationFailed:
        return frozenset()


def _lookup(log: LogReader) -> LiveLookup | None:
    """The server's index, for a log on a server."""
    if type(log).__module__ != "events.jetstream.log":
        return None
    from replay.live_lookup import LiveLookup

    return LiveLookup(log)  # type: ignore[arg-type]  # the module says that it is a JetStreamLog
