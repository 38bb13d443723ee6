"""Finding the segments of an archive file, finished or not.

A finished file is opened by its tail and manifest. A file without a tail (an export that was
interrupted, a truncated copy) is recovered by hopping from description to description; it says so.

This module never decides whether the content is right: that is :mod:`replay.verification.verify`'s work.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Self

import msgspec
import zstandard

from events.errors import Refused, VerificationFailed
from replay.archive.format import (
    DESCRIPTION_LIMIT,
    HEAD_SIZE,
    SEGMENT_LIMIT,
    VERSION,
    ArchiveHeader,
    Manifest,
    Segment,
    Tail,
    begun,
    damaged,
    parse_description,
    parse_head,
    parse_tail,
)

_KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_MARKS = (
    (b"\xef\xbb\xbf", "text with a byte order mark (UTF-8)"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd, without an archive's descriptions"),
    (b"{", "JSON, perhaps an archive that was decompressed"),
)


def half_made(path: str | Path) -> bool:
    """Whether the file is what is left of an archive that died before its first event: nothing is lost with it.

    An empty file, or one cut inside or behind the header. False for everything else, and where nothing is.
    """
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            begin, size = file.read(HEAD_SIZE), os.fstat(file.fileno()).st_size
    except OSError:
        return False
    if not size:
        return True
    if not begun(begin) or size > DESCRIPTION_LIMIT:
        return False
    try:
        with ArchiveFile(path) as archive:
            return archive.tail is None and len(archive.segments) == 1
    except Refused:  # no whole header
        return True
    except VerificationFailed:  # the header is damaged: whether anything was written behind it
        return begin[:4] not in Path(path).read_bytes()[4:]


class ArchiveFile:
    """One open archive file: its header, its segments, and the data of each.

    ``tail`` is None when the file is unfinished; ``end`` is the offset behind the last whole segment
    that holds events or index (where an export continues). Raises Refused(archive_foreign) for
    a file that is no archive and VerificationFailed(archive_damaged) for a broken one.
    """

    def __init__(self, path: str | Path, *, by_manifest: bool = True) -> None:
        self.path = str(path)
        try:
            mode = Path(self.path).stat().st_mode
            if not stat.S_ISREG(mode):  # opening a FIFO would wait for a writer
                kind = next((word for is_kind, word in _KINDS if is_kind(mode)), "no regular file")
                raise Refused("archive_foreign", f"archive {self.path} is {kind}, not a file", path=self.path)
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise Refused(
                "archive_foreign", f"cannot open archive {self.path!r}: {why}", path=self.path
            ) from error
        try:
            self.file_size = os.fstat(self._fd).st_size
            self.tail: Tail | None = None
            self.tail_offset = self.file_size
            found = parse_tail(self._pread(max(0, self.file_size - DESCRIPTION_LIMIT), DESCRIPTION_LIMIT))
            if found is not None:
                self.tail, length = found
                self.tail_offset = self.file_size - length
            self.header = self._read_header()
            self.segments = self._from_manifest(self.tail) if by_manifest and self.tail else list(self.hop())
        except BaseException:
            os.close(self._fd)
            raise
        self.events = [segment for segment in self.segments if segment.kind == "events"]
        self.index = [segment for segment in self.segments if segment.kind == "index"]
        content = [segment for segment in self.segments if segment.kind != "manifest"]
        self.end = content[-1].data + content[-1].length if content else 0

    def close(self) -> None:
        """Release the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def last(self) -> int:
        """The last sequence in the file (the one that it follows, when it is empty)."""
        return self.events[-1].last if self.events else self.header.after

    @property
    def head(self) -> str:
        """The chain digest (hex) behind the last event."""
        return self.events[-1].head if self.events else self.header.after_head

    def _pread(self, offset: int, length: int) -> bytes:
        return os.pread(self._fd, length, offset)

    def raw(self, segment: Segment) -> bytes:
        """The compressed bytes of a segment. Raises VerificationFailed(archive_damaged) when cut short."""
        data = self._pread(segment.data, segment.length)
        if len(data) != segment.length:
            raise damaged(self.path, "the file ends inside a segment", segment.offset)
        return data

    def data(self, segment: Segment, *, check: bool = False) -> bytes:
        """The lines of a segment; with ``check`` its SHA-256 is compared first.

        Raises VerificationFailed(archive_damaged).
        """
        data = self.raw(segment)
        if check and sha256(data).hexdigest() != segment.sha256:
            raise damaged(
                self.path,
                f"the {segment.kind} segment has another SHA-256 than it states",
                segment.offset,
                first=segment.first,
                last=segment.last,
            )
        return decompress(self.path, segment, data)

    def _read_header(self) -> ArchiveHeader:
        first = next(self.hop(), None)
        if first is None or first.kind != "header":
            raise Refused(
                "archive_foreign",
                f"{self.path} is no Isthmus archive: {self._what_it_is()}",
                path=self.path,
            )
        try:
            header = msgspec.json.decode(self.data(first), type=ArchiveHeader)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise damaged(self.path, f"the header is unreadable ({error})", 0) from error
        if header.isthmus_archive != VERSION:
            raise Refused(
                "archive_foreign",
                f"{self.path} is an archive of format {header.isthmus_archive}, this program reads {VERSION}",
                path=self.path,
            )
        return header

    def _what_it_is(self) -> str:
        begin = self._pread(0, HEAD_SIZE)
        if not self.file_size:
            return "it is empty"
        if begun(begin):
            return f"it was cut inside its header, after {self.file_size:,} bytes, and holds no event"
        for mark, name in _MARKS:
            if begin.startswith(mark):
                return f"it is {name}"
        return "it does not begin with an archive header"

    def _from_manifest(self, tail: Tail) -> list[Segment]:
        segment = self._describe(tail.manifest)
        if segment is None or segment.kind != "manifest":
            return list(self.hop())
        data = self.data(segment)
        if sha256(data).hexdigest() != tail.root:
            raise damaged(self.path, "the manifest has another hash than the tail states", segment.offset)
        try:
            manifest = msgspec.json.decode(data, type=Manifest)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise damaged(self.path, f"the manifest is unreadable ({error})", segment.offset) from error
        return [*manifest.segments, segment]

    def _describe(self, offset: int) -> Segment | None:
        length = parse_head(self._pread(offset, HEAD_SIZE))
        if length is None:
            return None
        return parse_description(self._pread(offset + HEAD_SIZE, length), offset)

    def hop(self) -> Iterator[Segment]:
        """Every whole segment in the order of the file, from the descriptions alone.

        Ends at the tail, at the first thing that is no segment, or where the file was cut.
        """
        offset = 0
        while offset < self.tail_offset:
            segment = self._describe(offset)
            if segment is None or segment.data + segment.length > self.tail_offset:
                return
            yield segment
            offset = segment.data + segment.length


def decompress(path: str, segment: Segment, data: bytes) -> bytes:
    """The lines in the compressed ``data`` of ``segment``; never more than it states.

    Raises VerificationFailed(archive_damaged).
    """
    try:
        parameters = zstandard.get_frame_parameters(data)
        if parameters.content_size != segment.size or segment.size > SEGMENT_LIMIT:
            raise damaged(
                path, f"the {segment.kind} segment is not {segment.size:,} bytes long", segment.offset
            )
        return zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise damaged(
            path,
            f"the {segment.kind} segment does not decompress ({error})",
            segment.offset,
            first=segment.first,
            last=segment.last,
        ) from error


def check_unbroken(path: str, segment: Segment, count: int, first: int, last: int) -> None:
    """Raise VerificationFailed(sequence_gap) when the lines are not the sequences that were described."""
    if (count, first, last) != (segment.count, segment.first, segment.last) or last - first + 1 != count:
        raise VerificationFailed(
            "sequence_gap",
            f"archive {path}: the segment at byte {segment.offset:,} should hold events "
            f"{segment.first}…{segment.last} ({segment.count}); it holds {count}, {first}…{last}",
            first=segment.first,
            last=segment.last,
        )
