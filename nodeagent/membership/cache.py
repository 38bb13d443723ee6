"""The node's own memory of the log: a snapshot of the view and a journal of the events since.

It lets an agent start, and go on, without the bus. Nothing here is synchronised to the disk: what a
crash of the machine loses, the kernel's rows are lost with, and a killed process loses nothing. Both
files have checksums (those of releases before 0.3 have none). A damaged cache is no error: the log has
everything, and the agent starts from its beginning; what a checksum cannot see is found by comparing with
the log once the bus is there (:meth:`~nodeagent.membership.log_follower.LogFollower.run`).
"""

from __future__ import annotations

import errno
import logging
import re
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import IO, NamedTuple
from zlib import crc32

import msgspec

from events.chain import Head
from events.codec import UnknownEvent, decode_event
from events.errors import IsthmusError, VerificationFailed
from events.input_files import read_regular
from nodeagent.local_files import VIEW_LIMIT_BYTES, write_atomically
from nodeagent.membership.values import Saved
from nodeagent.membership.view import View

JOURNAL_LIMIT = 5000
"""Journal entries before the next snapshot; bounds the time that a restart takes."""

log = logging.getLogger("isthmus.agent.cache")


class Entry(NamedTuple):
    """One event in the journal: sequence, chain digest (hexadecimal), type, body, Unix time of the decision."""

    sequence: int
    chain: str
    type: str
    body: bytes
    at: float
    checksum: int = 0
    """Of the fields before it; 0 in journals of releases before 0.3."""

    def sum(self) -> int:
        """The checksum that belongs to it; never 0."""
        return crc32(self.body, crc32(f"{self.sequence} {self.chain} {self.type} {self.at!r}".encode())) or 1


_entries = msgspec.msgpack.Decoder(Entry)
_encode_entry = msgspec.msgpack.Encoder().encode
_saved = msgspec.json.Decoder(Saved)
_encode = msgspec.json.Encoder().encode
_LENGTH = struct.Struct("=I")
_SEAL = re.compile(rb',"checksum":"([0-9a-f]{32})"}$')


class Cache:
    """Files ``view.json`` and ``view.journal`` in the state directory."""

    def __init__(self, directory: Path) -> None:
        self._snapshot = directory / "view.json"
        self._journal = directory / "view.journal"
        self._file: IO[bytes] | None = None
        self._pending = 0

    def load(self, cluster: str, node: str, uid: str) -> View:
        """The view as last known; an empty one when there is none for this cluster, node and uid."""
        fresh = View(cluster, node, uid)
        try:
            view = View.restore(_saved.decode(_unsealed(read_regular(self._snapshot, VIEW_LIMIT_BYTES))))
        except FileNotFoundError:
            view = fresh
        except (OSError, ValueError, LookupError, RecursionError, IsthmusError) as error:
            log.warning("the cached view is unreadable and is made anew: %s", error)
            return fresh
        if (view.cluster, view.node, view.uid) != (cluster, node, uid):
            log.warning("the cached view belongs to %s/%s and is left aside", view.cluster, view.node)
            return fresh
        self._replay(view)
        return view

    def _replay(self, view: View) -> None:
        try:
            data = read_regular(self._journal, VIEW_LIMIT_BYTES)
        except OSError:
            return
        for frame in _frames(data):
            try:
                entry = _entries.decode(frame)
                if entry.sequence <= view.sequence:
                    continue
                if entry.sequence != view.sequence + 1:
                    break
                if entry.checksum and entry.checksum != entry.sum():
                    break  # damaged: the log continues from here
                event = decode_event(entry.type, entry.body, entry.sequence)
                head = Head(entry.sequence, bytes.fromhex(entry.chain))
            except (ValueError, VerificationFailed):
                break  # the torn end of a killed process; the log continues from here
            if isinstance(event, UnknownEvent):
                break
            view.apply(entry.sequence, event)
            view.head, view.last_event_at = head, entry.at
            self._pending += 1

    def append(self, entries: list[Entry]) -> None:
        """Remember events. Raises OSError."""
        if self._file is None:
            if self._journal.exists() and not self._journal.is_file():
                raise OSError(errno.EINVAL, f"{self._journal} is no regular file")
            self._file = self._journal.open("ab", buffering=0)
        frames = [_encode_entry(entry._replace(checksum=entry.sum())) for entry in entries]
        self._file.write(b"".join([_LENGTH.pack(len(frame)) + frame for frame in frames]))
        self._pending += len(entries)

    @property
    def full(self) -> bool:
        """Whether it is time for a snapshot."""
        return self._pending >= JOURNAL_LIMIT

    def snapshot(self, view: View) -> None:
        """Write the view and begin a new journal. Raises OSError."""
        write_atomically(self._snapshot, _sealed(_encode(view.save())))
        self.close()
        self._journal.unlink(missing_ok=True)
        self._pending = 0

    def says_fenced(self) -> bool:
        """Whether the view at rest says that its uid was fenced."""
        try:
            return _saved.decode(_unsealed(read_regular(self._snapshot, VIEW_LIMIT_BYTES))).fenced
        except (OSError, ValueError, RecursionError):
            return False

    def close(self) -> None:
        """Release the journal."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def forget(self) -> bool:
        """Remove both files: on purpose only. Whether there were any."""
        self.close()
        there = self._snapshot.exists() or self._journal.exists()
        self._snapshot.unlink(missing_ok=True)
        self._journal.unlink(missing_ok=True)
        return there


def _sealed(document: bytes) -> bytes:
    """The JSON object with its checksum as the last member, where an older release reads past it."""
    return b'%b,"checksum":"%b"}' % (document[:-1], _sum(document))


def _unsealed(content: bytes) -> bytes:
    """The JSON object without its checksum. Raises ValueError when it does not fit."""
    found = _SEAL.search(content)
    if found is None:
        return content  # of a release before 0.3
    document = content[: found.start()] + b"}"
    if _sum(document) != found[1]:
        raise ValueError("the checksum does not fit the content")
    return document


def _sum(document: bytes) -> bytes:
    return blake2b(document, digest_size=16).hexdigest().encode()


def _frames(data: bytes) -> Iterator[bytes]:
    """The journal's entries: each a length of four bytes and MessagePack. A torn last one is left out."""
    start = _LENGTH.size
    while start <= len(data):
        (length,) = _LENGTH.unpack_from(data, start - _LENGTH.size)
        if start + length > len(data):
            return
        yield data[start : start + length]
        start += length + _LENGTH.size
