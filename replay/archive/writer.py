"""Writing an archive: streaming, in bounded memory, resumable at any point.

Events are buffered to segments; an index follows every run of segments; a manifest and a tail close
the file. Whatever moment the writer dies at, the file is a readable prefix, and
:meth:`ArchiveWriter.resume` continues it. This module never judges what it is given: a damaged log
must be exportable as evidence.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Protocol

import msgspec
import zstandard

from events.chain import CHAIN_HEADER, Head
from events.codec import StoredMessage
from events.envelope import format_time
from events.errors import Refused, VerificationFailed
from events.reading import stated_head
from replay.archive import lines
from replay.archive.directory import ArchiveFile, half_made
from replay.archive.format import (
    EVENTS_PER_SEGMENT,
    INDEX_EVERY,
    VERSION,
    ArchiveHeader,
    Kind,
    Manifest,
    Note,
    Segment,
    Tail,
    describe,
    pack,
    pack_tail,
    signed_text,
)
from replay.archive.postings import Postings
from replay.output_files import cannot_write

_LEVEL = 6
"""zstd level: events compress 6 to 8 times, at several times the speed at which a bus delivers them."""

_encode = msgspec.json.Encoder().encode


class Signer(Protocol):
    """Something that signs (:mod:`controlplane.controller.publishing.checkpoints` has one for Ed25519 keys)."""

    @property
    def public_hex(self) -> str: ...

    def sign(self, text: bytes) -> bytes: ...


class ArchiveWriter:
    """Appends events to a file. ``position`` is the head behind what was given to it so far."""

    def __init__(self, file: BinaryIO, header: ArchiveHeader, position: Head, segments: list[Segment]) -> None:
        self._file = file
        self.header = header
        self.position = position
        self._segments = segments
        self._buffer: list[StoredMessage] = []
        self._postings = Postings()
        self._unindexed: list[Segment] = []
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, write_content_size=True)

    @classmethod
    def create(cls, path: str | Path, cluster: str, after: Head, *, source: str) -> ArchiveWriter:
        """Start a new file that continues ``after``. Raises Refused(archive_exists) rather than overwrite.

        What an attempt left that died before its first event (on a full disk) is no archive, and replaced.
        """
        try:
            if half_made(path):
                Path(path).unlink()
            file = Path(path).open("xb")  # noqa: SIM115  closed by finish() or close()
        except FileExistsError as error:
            raise Refused(
                "archive_exists", f"{path} exists; choose another name or continue it", path=str(path)
            ) from error
        except OSError as error:
            raise cannot_write(path, error) from error
        header = ArchiveHeader(
            isthmus_archive=VERSION,
            cluster=cluster,
            after=after.sequence,
            after_head=after.hex,
            created=format_time(datetime.now(UTC)),
            source=source,
        )
        writer = cls(file, header, after, [])
        try:
            writer._put("header", _encode(header) + b"\n", after.sequence, after.sequence)
            file.flush()
        except OSError as error:
            with suppress(OSError):
                file.close()
            Path(path).unlink(missing_ok=True)
            raise cannot_write(path, error) from error
        return writer

    @classmethod
    def resume(cls, path: str | Path) -> ArchiveWriter:
        """Continue a file, finished or interrupted: behind its last whole segment of events.

        What an interrupted writer left of a segment (a machine that lost its power leaves zeros) is cut off.
        Raises VerificationFailed(archive_damaged) when the last segment of a finished file is not as stated.
        """
        with ArchiveFile(path) as archive:
            segments = _whole(archive)
            events = [segment for segment in segments if segment.kind == "events"]
            index = [segment for segment in segments if segment.kind == "index"]
            indexed = index[-1].last if index else archive.header.after
            waiting = [segment for segment in events if segment.last > indexed]
            found = [(segment, lines.messages(archive.data(segment))) for segment in waiting]
            header, end = archive.header, segments[-1].data + segments[-1].length
            last, head = (events[-1].last, events[-1].head) if events else (header.after, header.after_head)
            position = Head(last, bytes.fromhex(head))
        file = Path(path).open("r+b")  # noqa: SIM115  closed by finish() or close()
        file.truncate(end)
        file.seek(end)
        writer = cls(file, header, position, segments)
        for segment, batch in found:
            writer._unindexed.append(segment)
            writer._postings.add(batch)
        return writer

    def note(self, notes: Sequence[Note]) -> None:
        """Put notes into the file, behind the events given so far."""
        if notes:
            self._flush(len(self._buffer))
            text = b"".join(_encode(note) + b"\n" for note in notes)
            self._put("notes", text, self.position.sequence, self.position.sequence, count=len(notes))

    def add(self, messages: Sequence[StoredMessage]) -> None:
        """Take some events, in order."""
        if not messages:
            return
        self._buffer.extend(messages)
        last = messages[-1]
        self.position = stated_head(last)
        while len(self._buffer) >= EVENTS_PER_SEGMENT:
            self._flush(EVENTS_PER_SEGMENT)

    def finish(self, signer: Signer | None = None) -> Manifest:
        """Write what is buffered, the index, the manifest and the tail; close the file on disk."""
        self._flush(len(self._buffer))
        self._write_index()
        events = [segment for segment in self._segments if segment.kind == "events"]
        manifest = Manifest(
            cluster=self.header.cluster,
            after=self.header.after,
            after_head=self.header.after_head,
            first=events[0].first if events else 0,
            last=events[-1].last if events else self.header.after,
            head=events[-1].head if events else self.header.after_head,
            count=sum(segment.count for segment in events),
            segments=list(self._segments),
        )
        text = _encode(manifest) + b"\n"
        place = self._put("manifest", text, manifest.first, manifest.last)
        root = sha256(text).hexdigest()
        self._file.write(
            pack_tail(
                Tail(
                    manifest=place.offset,
                    root=root,
                    key=signer.public_hex if signer else "",
                    signature=signer.sign(signed_text(root)).hex() if signer else "",
                )
            )
        )
        self._sync_and_close()
        return manifest

    def close(self) -> None:
        """Stop here: what was given is on disk, the file stays unfinished and can be resumed."""
        if self._file.closed:
            return
        self._flush(len(self._buffer))
        self._sync_and_close()

    def abandon(self) -> None:
        """Stop here after an error, as far as the disk allows: the file is a readable prefix, to be resumed."""
        with suppress(OSError):
            self.close()
        if not self._file.closed:
            with suppress(OSError):  # what is still buffered for a full disk
                os.close(self._file.fileno())
            with suppress(OSError):
                self._file.close()

    def _sync_and_close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _put(self, kind: Kind, text: bytes, first: int, last: int, **rest: object) -> Segment:
        data = self._compressor.compress(text)
        offset = self._file.tell()
        segment = describe(kind, data, len(text), first=first, last=last, **rest)
        packed = pack(segment, data)
        self._file.write(packed)
        place = msgspec.structs.replace(segment, offset=offset, data=offset + len(packed) - len(data))
        if kind != "manifest":
            self._segments.append(place)
        return place

    def _flush(self, count: int) -> None:
        if not count:
            return
        batch, self._buffer = self._buffer[:count], self._buffer[count:]
        segment = self._put(
            "events",
            lines.encode_messages(batch),
            batch[0].sequence,
            batch[-1].sequence,
            count=len(batch),
            from_ns=batch[0].recorded_ns,
            to_ns=batch[-1].recorded_ns,
            low_ns=min(message.recorded_ns for message in batch),
            head=batch[-1].headers.get(CHAIN_HEADER, ""),
        )
        self._unindexed.append(segment)
        self._postings.add(batch)
        if len(self._unindexed) >= INDEX_EVERY:
            self._write_index()

    def _write_index(self) -> None:
        if not self._unindexed:
            return
        first, last = self._unindexed[0].first, self._unindexed[-1].last
        for low, high, text in self._postings.blocks():
            self._put("index", text, first, last, keys=(low, high))
        self._unindexed.clear()


def _whole(archive: ArchiveFile) -> list[Segment]:
    """The segments to go on behind. Of an unfinished file without its last ones that did not reach the disk."""
    segments = [segment for segment in archive.segments if segment.kind != "manifest"]
    while len(segments) > 1:
        try:
            archive.data(segments[-1], check=True)
            break
        except VerificationFailed:
            if archive.tail is not None:
                raise
            segments.pop()
    return segments
