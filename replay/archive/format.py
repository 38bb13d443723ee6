"""The archive's bytes: segments, their descriptions, the tail. See ``replay/ARCHIVE.md``.

A file is a row of *segments*. Each is a zstd skippable frame that holds a description (JSON) and,
behind it, one ordinary zstd frame of JSON lines. ``zstd -dc FILE`` therefore prints the whole content
as JSON lines, and a program can hop from description to description without decompressing anything.

This module never opens a file and never looks into an event.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Literal

import msgspec

from events.errors import VerificationFailed

VERSION = 1
SKIPPABLE_MAGIC = 0x184D2A55
"""One of the sixteen magic numbers that RFC 8878 §3.1.2 reserves for skippable frames."""

TAIL_MARK = b"ISTHMUS\n"
EVENTS_PER_SEGMENT = 2048
INDEX_EVERY = 64
"""Event segments that one run of index segments covers (131,072 events)."""

DESCRIPTION_LIMIT = 64 * 1024
SEGMENT_LIMIT = 512 * 1024 * 1024
"""Most bytes that one segment may decompress to; more is damage or malice."""

Kind = Literal["header", "events", "index", "notes", "manifest", "tail"]

_HEAD = struct.Struct("<II")
_END = struct.Struct("<I8s")


class Segment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a segment says of itself. ``offset`` is where its description starts (bytes; known by place).

    ``length`` and ``sha256`` are of the compressed data, ``size`` of the decompressed. ``first`` …
    ``last`` are sequences, ``from_ns`` … ``to_ns`` the server's times of these two (Unix nanoseconds) and
    ``low_ns`` the earliest of all (0 where release 0.2 did not say; times may run backwards), ``head`` the
    chain digest behind the last event (hex), and ``keys`` the first and the last key of an index segment.
    """

    kind: Kind
    length: int
    size: int
    sha256: str
    first: int = 0
    last: int = 0
    count: int = 0
    from_ns: int = 0
    to_ns: int = 0
    low_ns: int = 0
    head: str = ""
    keys: tuple[str, str] = ("", "")
    offset: int = -1
    data: int = -1
    """Where the compressed data starts; known by place, like ``offset``."""


class ArchiveHeader(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of the file: whose log, from where, and how to read the rest.

    ``after`` and ``after_head`` are the sequence and the chain digest that the first event follows
    (0 and the genesis digest for a whole log); an incremental archive starts later.
    """

    isthmus_archive: int
    cluster: str
    after: int
    after_head: str
    created: str
    source: str
    documentation: str = (
        "zstd frames of JSON lines; event lines have type, seq, recorded_ns, subject, headers, body. "
        "digest(n) = SHA-256(digest(n-1) || frame(n)), in the header ce-chain: see ARCHIVE.md"
    )


class EventLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One stored event, exactly. ``body64`` (base64) replaces ``body`` when the body is no plain JSON."""

    type: str
    seq: int
    recorded_ns: int
    subject: str
    headers: dict[str, str]
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    body64: str = ""


class IndexLine(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One key (``node/idc-7``, ``range/10.3.7.0/26``) and the sequences of its events, ascending."""

    key: str
    sequences: list[int]


class Note(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a notes segment: something that came along. ``note`` names what ``content`` is.

    ``state``: the canonical text of the state before the first event (a string); ``checkpoint``:
    a signed checkpoint; ``status``: an agent's report; ``capsule``: what a capsule is about.
    """

    note: str
    content: msgspec.Raw


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The table of contents: every segment before it, with its place."""

    cluster: str
    after: int
    after_head: str
    first: int
    last: int
    head: str
    count: int
    segments: list[Segment]


class Tail(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last bytes of a finished file: where the manifest is, its hash, and who vouches for it.

    ``signature`` is Ed25519 (hex) over ``b"isthmus-archive\\n" + root``; ``key`` the public key (hex).
    """

    kind: Literal["tail"] = "tail"
    manifest: int
    root: str
    key: str = ""
    signature: str = ""


_description = msgspec.json.Decoder(Segment)
_encode = msgspec.json.Encoder().encode


def damaged(path: str, what: str, offset: int, **details: object) -> VerificationFailed:
    """The error for a file that is not what it should be at ``offset``."""
    return VerificationFailed(
        "archive_damaged", f"archive {path}: {what} at byte {offset:,}", path=path, offset=offset, **details
    )


def skippable(payload: bytes) -> bytes:
    """A skippable frame."""
    return _HEAD.pack(SKIPPABLE_MAGIC, len(payload)) + payload


def pack(segment: Segment, data: bytes) -> bytes:
    """The bytes of a segment: its description, then its data."""
    return skippable(_encode(segment)) + data


def describe(kind: Kind, data: bytes, size: int, **rest: object) -> Segment:
    """The description of compressed ``data`` that holds ``size`` bytes."""
    return Segment(kind=kind, length=len(data), size=size, sha256=sha256(data).hexdigest(), **rest)  # type: ignore[arg-type]


def begun(data: bytes) -> bool:
    """Whether a file that begins so may have been begun by a writer of archives."""
    mark = _HEAD.pack(SKIPPABLE_MAGIC, 0)[:4]
    return bool(data) and data[:4] == mark[: len(data)]


def parse_head(head: bytes) -> int | None:
    """The length of the skippable payload that ``head`` (8 bytes) announces, or None if it is no such frame."""
    if len(head) < _HEAD.size:
        return None
    magic, length = _HEAD.unpack_from(head)
    return int(length) if magic == SKIPPABLE_MAGIC and length <= DESCRIPTION_LIMIT else None


HEAD_SIZE = _HEAD.size


def parse_description(payload: bytes, offset: int) -> Segment | None:
    """The segment described by ``payload`` which starts at ``offset``; None when it describes none."""
    try:
        segment = _description.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if segment.length < 0 or not 0 <= segment.size <= SEGMENT_LIMIT:
        return None
    return msgspec.structs.replace(segment, offset=offset, data=offset + HEAD_SIZE + len(payload))


def pack_tail(tail: Tail) -> bytes:
    """The closing frame: its payload ends with its own length and a mark, to be found from the end."""
    payload = _encode(tail)
    return skippable(payload + _END.pack(len(payload) + _END.size, TAIL_MARK))


TAIL_END = _END.size


def parse_tail(end: bytes) -> tuple[Tail, int] | None:
    """The tail out of the last bytes of a file and its whole length in bytes; None when there is none."""
    if len(end) < TAIL_END:
        return None
    length, mark = _END.unpack_from(end, len(end) - TAIL_END)
    if mark != TAIL_MARK or length + HEAD_SIZE > len(end) or length < TAIL_END:
        return None
    start = len(end) - length
    if parse_head(end[start - HEAD_SIZE : start]) != length:
        return None
    try:
        tail = msgspec.json.decode(end[start : len(end) - TAIL_END], type=Tail)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return tail, length + HEAD_SIZE


def signed_text(root: str) -> bytes:
    """What an archive's signature is made over."""
    return b"isthmus-archive\n" + root.encode()
