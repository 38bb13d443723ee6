"""Judging event lines in bulk: the fast answer to "is anything at all unusual here?".

Nearly every line of nearly every log is as the controller wrote it. So a stretch of lines is first
judged as a whole, column by column, in loops that run inside the interpreter's C code. The answer
is yes or no: at *yes* nothing can be wrong with any of the lines, and at *no* the careful judge
(:mod:`replay.verification.lines_check`) looks at each of them and says what. A property test holds
the two together: whatever the careful judge would complain of must be unusual here.

A stretch is short enough that its strings are still in the processor's cache when the last column
is looked at; longer ones are slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import sha1, sha256
from itertools import repeat
from operator import le, methodcaller
from typing import Any, NamedTuple

import msgspec

from events.chain import CHAINED_HEADERS
from events.ids import EVENT_NAMESPACE
from events.log import BATCH_LIMIT
from events.subjects import token
from events.types import EVENT_TYPES
from replay.archive.lines import ChainLine

STRETCH = 128 * 1024
"""Bytes of lines that are judged together."""

_COUNT = len(CHAINED_HEADERS)
_FRAME_BREAKS = _COUNT + 2
_NAMESPACE = EVENT_NAMESPACE.bytes
_TIME_LENGTH = len("2026-03-02T08:00:00.000000Z")
_ID_LENGTH = 36
_DASHES = (8, 13, 18, 23)
_VERSION_5 = bytes(value & 0x0F | 0x50 for value in range(256))
_VARIANT = bytes(value & 0x3F | 0x80 for value in range(256))
_PLACES = tuple(str(place) for place in range(BATCH_LIMIT))
_SIZES = {str(size): size for size in range(1, BATCH_LIMIT + 1)}

_astuple: Any = msgspec.structs.astuple
_digest_of: Any = methodcaller("digest")


class Transaction(NamedTuple):
    """Where a transaction stands at the edge of some lines: the event at ``place`` of ``size``."""

    command: str
    place: int
    size: int

    @property
    def left(self) -> int:
        """How many of its events are still to come."""
        return self.size - self.place - 1


class Position:
    """What the judges carry from line to line.

    ``digest`` is what the last line states (32 bytes); ``opening`` is the first line's place in its
    transaction and ``closing`` the last line's (None before the first); ``begun`` has the id of each
    transaction's first event; ``last_ns`` is the latest server time so far.
    """

    __slots__ = ("begun", "closing", "digest", "last_ns", "opening", "sequence")

    def __init__(self, digest: bytes, sequence: int) -> None:
        self.digest = digest
        self.sequence = sequence
        self.last_ns = 0
        self.opening: Transaction | None = None
        self.closing: Transaction | None = None
        self.begun: list[str] = []


def plain(data: bytes, lines: Sequence[ChainLine], cluster: str, position: Position) -> list[int] | None:
    """Whether each of ``lines`` (the decoded ``data``) is exactly as it must be behind ``position``.

    If so, moves ``position`` behind them and returns the indices of the lines whose clocks are to be
    compared (the first of each minute); otherwise None, and ``position`` is as it was.
    """
    try:
        return _plain(data, lines, cluster, position)
    except (TypeError, ValueError, KeyError, RecursionError, msgspec.MsgspecError):
        # A body that is no JSON or not of its type, a digest, time or number that is none, an unknown type.
        return None


def _plain(data: bytes, lines: Sequence[ChainLine], cluster: str, position: Position) -> list[int] | None:
    count = len(lines)
    kinds, seqs, recorded, subjects, headers, raws, _ = zip(*map(_astuple, lines), strict=True)
    columns = tuple(zip(*map(_astuple, headers), strict=True))
    spec, ids, types, source, times, content, actor, commands = columns[:8]
    places, sizes = columns[10:12]
    stated, copies = columns[_COUNT:]
    if not (
        seqs == tuple(range(position.sequence + 1, position.sequence + 1 + count))
        and kinds == types
        and copies in (ids, ("",) * count)
        and set(spec) == {"1.0"}
        and all(content)
        and all(source)
        and all(actor)
        and all(commands)
        and recorded[0] >= position.last_ns
        and all(map(le, recorded, recorded[1:]))
    ):
        return None
    begun = _transactions(position.closing, commands, places, sizes, ids)
    if begun is None or not _ids_follow(ids, commands, places) or not _are_times(times):
        return None

    bodies = list(map(bytes, raws))
    if subjects != _subjects(_forms(cluster), types, bodies):
        return None

    lengths = map(str, map(len, bodies))
    frames: Iterable[str] = map(
        "\n".join, zip(map(str, seqs), subjects, *columns[:_COUNT], lengths, strict=True)
    )
    if b"\\" in data:  # else no value can hold a line break: in JSON it is an escape
        frames = list(frames)
        if any(frame.count("\n") != _FRAME_BREAKS for frame in frames):
            return None
    digests = list(map(bytes.fromhex, stated))
    before = [position.digest, *digests[:-1]]
    texts = map(b"".join, zip(before, map(str.encode, frames), repeat(b"\n"), bodies))
    if list(map(_digest_of, map(sha256, texts))) != digests or "".join(stated) != b"".join(digests).hex():
        return None

    if position.opening is None:
        position.opening = Transaction(commands[0], int(places[0]), int(sizes[0]))
    position.closing = Transaction(commands[-1], int(places[-1]), int(sizes[-1]))
    position.begun.extend(begun)
    position.digest, position.sequence, position.last_ns = digests[-1], seqs[-1], recorded[-1]
    minutes = [time[:16] for time in times]
    return [minutes.index(minute) for minute in dict.fromkeys(minutes)]


def _transactions(
    closing: Transaction | None,
    commands: tuple[str, ...],
    places: tuple[str, ...],
    sizes: tuple[str, ...],
    ids: tuple[str, ...],
) -> list[str] | None:
    """The ids of the first events of the transactions that begin here; None when one is torn or mixed."""
    begun: list[str] = []
    at = 0
    if closing is None or closing.left:
        # The lines begin inside a transaction, or with one; after it, whole ones follow.
        if closing is None:
            this = Transaction(commands[0], int(places[0]), int(sizes[0]))
        else:
            this = Transaction(closing.command, closing.place + 1, closing.size)
        stop = this.size - this.place
        wanted = _PLACES[this.place : this.size][: len(places)]
        if (
            stop < 1
            or places[:stop] != wanted
            or set(commands[:stop]) != {this.command}
            or set(sizes[:stop]) != {str(this.size)}
        ):
            return None
        if not this.place:
            begun.append(ids[0])
        at = stop
    end = len(places)
    while at < end:
        begun.append(ids[at])
        size = sizes[at]
        if size == "1":
            if places[at] != "0":
                return None
            at += 1
            continue
        stop = at + _SIZES[size]
        if (
            places[at:stop] != _PLACES[: min(stop, end) - at]
            or set(commands[at:stop]) != {commands[at]}
            or set(sizes[at:stop]) != {size}
        ):
            return None
        at = stop
    return begun


def _ids_follow(ids: tuple[str, ...], commands: tuple[str, ...], places: tuple[str, ...]) -> bool:
    """Whether each id is the UUIDv5 of its command and place (:func:`events.ids.event_id`, for many)."""
    hashed = bytearray(
        b"".join(
            [
                sha1(_NAMESPACE + f"{command}/{place}".encode()).digest()[:16]  # noqa: S324  UUIDv5 is SHA-1
                for command, place in zip(commands, places, strict=True)
            ]
        )
    )
    hashed[6::16] = hashed[6::16].translate(_VERSION_5)
    hashed[8::16] = hashed[8::16].translate(_VARIANT)
    text, dashes = "".join(ids), "-" * len(ids)
    return (
        set(map(len, ids)) == {_ID_LENGTH}
        and all(text[at::_ID_LENGTH] == dashes for at in _DASHES)
        and text.replace("-", "") == hashed.hex()
    )


def _are_times(times: tuple[str, ...]) -> bool:
    """Whether all are RFC 3339 in UTC with microseconds. Raises ValueError for what is no time at all."""
    ends = "".join(times)[_TIME_LENGTH - 1 :: _TIME_LENGTH]
    if set(map(len, times)) != {_TIME_LENGTH} or ends != "Z" * len(times):
        return False
    for _ in map(datetime.fromisoformat, times):
        pass
    return True


def _subjects(
    forms: Mapping[str, tuple[Any, Any, str, str]], types: tuple[str, ...], bodies: list[bytes]
) -> tuple[str, ...]:
    """The subjects on which the bodies belong. Raises KeyError for an unknown type, msgspec.MsgspecError."""
    found = [forms[name] for name in types]
    names = [entity(decode(body)) for (decode, entity, _, _), body in zip(found, bodies, strict=True)]
    tokens = token("\n".join(names)).split("\n")
    return tuple([before + name + behind for (_, _, before, behind), name in zip(found, tokens, strict=True)])


@lru_cache(maxsize=8)
def _forms(cluster: str) -> Mapping[str, tuple[Any, Any, str, str]]:
    """Type name → its decoder, the getter of its entity, and the subject before and behind the entity."""
    return {
        cls.type_name(): (
            msgspec.json.Decoder(cls).decode,
            cls.entity.fget,  # type: ignore[attr-defined]  # a property, read without the descriptor
            f"isthmus.{cluster}.events.{cls.aggregate}.",
            f".{cls.verb}",
        )
        for cls in EVENT_TYPES
    }
