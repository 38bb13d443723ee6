"""Finding in an archive by its index segments and by what its event segments say of themselves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Sequence

from events.codec import StoredMessage, decode
from events.status import AgentStatus
from replay.archive.lines import Fact
from replay.archive.reader import ArchiveLog
from replay.history import History
from replay.log_index import NAMES_LIMIT


async def archive_history(archive: ArchiveLog) -> History:
    """The history in opened archive files; whoever opened them closes them. Raises VerificationFailed.

    Cancelled, it leaves nothing behind.
    """
    return await History.open(archive, ArchiveIndex(archive))


class ArchiveIndex:
    """A :class:`replay.log_index.LogIndex` on opened archive files."""

    def __init__(self, archive: ArchiveLog) -> None:
        self.archive = archive
        self.source = ", ".join(file.path for file in archive.files)
        self.start = archive.after
        self.start_digest = archive.files[0].header.after_head
        self.base_state = archive.base_state

    @property
    def parked(self) -> frozenset[int]:
        return self.archive.parked

    @parked.setter
    def parked(self, parked: frozenset[int]) -> None:
        self.archive.parked = parked

    async def facts(self, after: int, until: int) -> AsyncIterator[Sequence[Fact]]:
        for place in self.archive.places_between(after, until):
            batch = self.archive.facts(place)
            if place.segment.first <= after or place.segment.last > until:
                batch = [fact for fact in batch if after < fact.seq <= until]
            if batch:
                yield batch
            await asyncio.sleep(0)  # all of this is CPU: let Ctrl-C in

    async def at(self, sequence: int) -> StoredMessage | None:
        place = self.archive.place_of(sequence)
        return None if place is None else self.archive.pick(place, [sequence])[0]

    async def recorded_by(self, moment_ns: int, end: int) -> int:
        """From the newest segment back to the first that holds an event of that time or before.

        A segment that says so is skipped when all of it is later; one of release 0.2 says only when its first
        and last event were recorded, and is looked through. Cancelled, it leaves nothing behind.
        """
        for place in reversed(self.archive.places_between(self.start, end)):
            segment = place.segment
            if segment.low_ns > moment_ns:
                continue
            for fact in reversed(self.archive.cached_facts(place)):
                if fact.recorded_ns <= moment_ns and fact.seq <= end:
                    return fact.seq
            await asyncio.sleep(0)
        return self.start

    async def about(
        self, kind: str, name: str, *, after: int, until: int, newest_first: bool
    ) -> AsyncIterator[StoredMessage]:
        wanted = [s for s in self.archive.sequences(f"{kind}/{name}") if after < s <= until]
        for sequence in reversed(wanted) if newest_first else wanted:
            found = await self.at(sequence)
            if found is not None:
                yield found

    async def last_of_node(self, name: str, end: int) -> StoredMessage | None:
        async for message in self.about("node", name, after=self.start, until=end, newest_first=True):
            if decode(message, self.parked).event.aggregate == "node":
                return message
        return None

    async def names(self, kind: str, end: int) -> Collection[str]:  # noqa: ARG002  the archive ends there
        return self.archive.keys(f"{kind}/", limit=NAMES_LIMIT)

    async def reports(self) -> list[AgentStatus]:
        return self.archive.decoded_notes("status", AgentStatus)
