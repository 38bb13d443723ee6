"""The log's reading port on archive files: everything that works on the live stream works here.

Several files that continue one another (a base and its increments) read as one log. Segments are
decompressed one at a time; a few stay cached for neighbouring questions.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from events.chain import Head
from events.codec import StoredMessage
from events.errors import Refused
from events.log import BATCH_LIMIT, ReadBatch
from replay.archive import lines
from replay.archive.directory import ArchiveFile, check_unbroken
from replay.archive.format import Note, Segment, damaged
from replay.archive.postings import PARKINGS, find, keys_of, names_in

T = TypeVar("T")

_decode_notes = msgspec.json.Decoder(Note).decode_lines

_CACHED_SEGMENTS = 4
_FOLLOW_POLL_S = 1.0


class SegmentPlace(NamedTuple):
    """One segment of events in one of the files."""

    file: ArchiveFile
    segment: Segment


class ArchiveLog:
    """A LogReader over one archive file, or over several that continue one another.

    Raises Refused(archive_foreign) for a file that is no archive, Refused(archive_mismatch) for
    files of different clusters or that do not join.
    """

    def __init__(self, *paths: str | Path, by_manifest: bool = True) -> None:
        """With ``by_manifest`` False the segments are found one by one, whatever the manifest says."""
        self._paths = paths
        self._by_manifest = by_manifest
        self._open()

    def _open(self) -> None:
        files: list[ArchiveFile] = []
        try:
            files.extend(ArchiveFile(path, by_manifest=self._by_manifest) for path in self._paths)
            files.sort(key=lambda file: file.header.after)
            _check_joints(files)
        except BaseException:
            for file in files:
                file.close()
            raise
        self.files = files
        self.places = [SegmentPlace(file, segment) for file in files for segment in file.events]
        self._lasts = [place.segment.last for place in self.places]
        self._rows: OrderedDict[tuple[str, int], list[bytes]] = OrderedDict()
        self._cache: OrderedDict[tuple[str, int], Sequence[lines.Fact]] = OrderedDict()
        self.parked: frozenset[int] = frozenset()
        """The sequences whose facts are skipped; see :meth:`parkings`."""

    @property
    def cluster(self) -> str:
        return self.files[0].header.cluster

    @property
    def after(self) -> int:
        """The sequence that the first event follows: 0 for a whole log."""
        return self.files[0].header.after

    @property
    def last(self) -> int:
        """The last sequence."""
        return self.files[-1].last

    @property
    def finished(self) -> bool:
        """Whether every file was closed properly; an unfinished one is a readable prefix."""
        return all(file.tail is not None for file in self.files)

    def close(self) -> None:
        """Release the files."""
        for file in self.files:
            file.close()

    async def head(self) -> Head:
        return Head(self.last, bytes.fromhex(self.files[-1].head))

    async def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        position = max(after, self.after)
        end = self.last if until is None else until
        told = False
        while True:
            for place in self.places_between(position, end):
                found = [m for m in self.messages(place) if position < m.sequence <= end]
                for start in range(0, len(found), BATCH_LIMIT):
                    batch = found[start : start + BATCH_LIMIT]
                    position = batch[-1].sequence
                    yield ReadBatch(batch, max(0, min(end, self.last) - position))
                    told = position >= self.last
                await asyncio.sleep(0)  # decompression is all CPU: give Ctrl-C and others their turn
            if not follow or (until is not None and position >= until):
                return
            if not told:
                told = True
                yield ReadBatch((), 0)
            await asyncio.sleep(_FOLLOW_POLL_S)
            self._reopen_if_grown()
            end = self.last if until is None else until

    def _reopen_if_grown(self) -> None:
        """An export may be continuing the file: look again when its size changed."""
        newest = self.files[-1]
        if Path(newest.path).stat().st_size != newest.file_size:
            self.close()
            self._open()

    def places_between(self, after: int, until: int) -> list[SegmentPlace]:
        """The segments that hold any sequence in ``(after, until]``."""
        start = bisect_right(self._lasts, after)
        return [
            place
            for place in self.places[start : bisect_left(self._lasts, until) + 1]
            if place.segment.first <= until
        ]

    def messages(self, place: SegmentPlace) -> list[StoredMessage]:
        """The stored messages of a segment. Raises VerificationFailed."""
        with _readable(place):
            found = lines.messages(place.file.data(place.segment))
        _check(place, found[0].sequence if found else 0, found[-1].sequence if found else 0, len(found))
        return found

    def facts(self, place: SegmentPlace) -> Sequence[lines.Fact]:
        """The typed events of a segment, by the fast path. Raises VerificationFailed."""
        with _readable(place):
            found = lines.facts(place.file.data(place.segment), self.parked)
        _check(place, found[0].seq if found else 0, found[-1].seq if found else 0, len(found))
        return found

    def cached_facts(self, place: SegmentPlace) -> Sequence[lines.Fact]:
        """Like :meth:`facts`, for questions that come back to the same neighbourhood."""
        key = (place.file.path, place.segment.offset)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        found = self._cache[key] = self.facts(place)
        while len(self._cache) > _CACHED_SEGMENTS:
            self._cache.popitem(last=False)
        return found

    def pick(self, place: SegmentPlace, sequences: Sequence[int]) -> list[StoredMessage]:
        """A few messages of a segment, without decoding the rest. Raises VerificationFailed."""
        key = (place.file.path, place.segment.offset)
        rows = self._rows.get(key)
        if rows is None:
            rows = self._rows[key] = place.file.data(place.segment).split(b"\n")
            while len(self._rows) > _CACHED_SEGMENTS:
                self._rows.popitem(last=False)
        first = place.segment.first
        with _readable(place):
            found = lines.messages(b"\n".join([rows[sequence - first] for sequence in sequences]))
        if [message.sequence for message in found] != list(sequences):
            raise damaged(place.file.path, "the lines are not in order", place.segment.offset)
        return found

    def place_of(self, sequence: int) -> SegmentPlace | None:
        """The segment that holds ``sequence``."""
        found = self.places_between(sequence - 1, sequence)
        return found[0] if found else None

    def sequences(self, key: str) -> list[int]:
        """All sequences whose events speak of ``key`` (``node/…``, ``range/…``), ascending, by the index."""
        found: list[int] = []
        for file in self.files:
            indexed = file.header.after
            for segment in file.index:
                indexed = max(indexed, segment.last)
                if segment.keys[0] <= key <= segment.keys[1]:
                    found.extend(_search(file, segment, key))
            for segment in file.events:
                if segment.last > indexed:
                    place = SegmentPlace(file, segment)
                    found.extend(m.sequence for m in self.messages(place) if key in keys_of(m))
        return found

    def keys(self, prefix: str, *, limit: int) -> set[str]:
        """Keys of the index that begin with ``prefix``, from the newest part back, about ``limit`` at most."""
        found: set[str] = set()
        for file in reversed(self.files):
            indexed = file.index[-1].last if file.index else file.header.after
            for segment in file.events:
                if segment.last > indexed:
                    place = SegmentPlace(file, segment)
                    found.update(
                        key for m in self.messages(place) for key in keys_of(m) if key.startswith(prefix)
                    )
            for segment in reversed(file.index):
                if len(found) >= limit:
                    return found
                low, high = segment.keys
                if low < prefix + "\U0010ffff" and high >= prefix:
                    found.update(names_in(file.data(segment), prefix))
        return found

    async def parkings(self) -> list[StoredMessage]:
        """See :class:`events.parking.Indexed`; by the index.

        It never suspends: no cancellation comes inside of it.
        """
        found: list[StoredMessage] = []
        for sequence in self.sequences(PARKINGS):
            place = self.place_of(sequence)
            found.extend(self.pick(place, [sequence]) if place is not None else [])
        return found

    def notes(self, kind: str) -> list[bytes]:
        """The contents (JSON) of all notes of one kind, in order. Raises VerificationFailed."""
        found: list[bytes] = []
        for file in self.files:
            for segment in file.segments:
                if segment.kind == "notes":
                    try:
                        notes = _decode_notes(file.data(segment, check=True))
                    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                        raise damaged(file.path, f"a note is unreadable ({error})", segment.offset) from error
                    found.extend(bytes(note.content) for note in notes if note.note == kind)
        return found

    def decoded_notes(self, kind: str, shape: type[T]) -> list[T]:
        """All notes of one kind as values. Raises VerificationFailed(archive_damaged) for another shape."""
        try:
            return [msgspec.json.decode(text, type=shape) for text in self.notes(kind)]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise damaged(self.files[0].path, f"a note of kind {kind!r} is unreadable ({error})", 0) from error

    def base_state(self) -> bytes | None:
        """The canonical text of the state before the first event, if the first file carries it."""
        found = self.decoded_notes("state", str)
        return found[0].encode() if found else None


@contextmanager
def _readable(place: SegmentPlace) -> Iterator[None]:
    """Raises VerificationFailed(archive_damaged) where the block meets a line that is none."""
    try:
        yield
    except (msgspec.MsgspecError, ValueError, LookupError, RecursionError) as error:
        raise damaged(
            place.file.path, f"an event line is unreadable ({error})", place.segment.offset
        ) from error


def _search(file: ArchiveFile, segment: Segment, key: str) -> list[int]:
    try:
        return find(file.data(segment), key)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise damaged(file.path, f"an index line is unreadable ({error})", segment.offset) from error


def _check(place: SegmentPlace, first: int, last: int, count: int) -> None:
    check_unbroken(place.file.path, place.segment, count, first, last)


def _check_joints(files: Sequence[ArchiveFile]) -> None:
    if not files:
        raise Refused("archive_foreign", "no archive file was given")
    for earlier, later in pairwise(files):
        if earlier.header.cluster != later.header.cluster:
            raise Refused(
                "archive_mismatch",
                f"{earlier.path} is of cluster {earlier.header.cluster!r}, "
                f"{later.path} of {later.header.cluster!r}",
            )
        if (earlier.last, earlier.head) != (later.header.after, later.header.after_head):
            raise Refused(
                "archive_mismatch",
                f"{later.path} continues event {later.header.after} ({later.header.after_head[:12]}…), "
                f"but {earlier.path} ends with event {earlier.last} ({earlier.head[:12]}…)",
                expected=later.header.after,
                actual=earlier.last,
            )
