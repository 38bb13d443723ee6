"""Judging event lines in bulk: the fast answer to "is anything at all unusual here?".

Nearly every line of nearly every log is as the controller wrote it. So a stretch of lines is first
judged as a whole, column by column, in loops that run inside the interpreter's C code. The answer
is yes or no: at *yes* nothing can be wrong with any of the lines, and at *no* the careful judge
(:mod:`replay.verification.full_check`) looks at each of them and says what. A property test holds
the two together: whatever the careful judge would complain of must be unusual here.

A stretch is short enough that its strings are still in the processor's cache when the last column
is looked at; longer ones are slower.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import sha1, sha256
from itertools import compress, repeat
from operator import itemgetter, le, ne
from typing import Any, Literal, NamedTuple

import msgspec

from events.chain import CHAINED_HEADERS
from events.ids import EVENT_NAMESPACE
from events.log import BATCH_LIMIT
from events.subjects import token
from events.types import EVENT_TYPES
from replay.archive.lines import ChainLine, chain_line
from replay.verification import fold_payload
from replay.verification.index_digest import INDEX_KEYS, IndexKeys, index_lines

FAR_FUTURE_NS = 2**63
"""Later than any recorded time."""

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
_NUMBERS = {str(number): number for number in range(BATCH_LIMIT + 1)}


_KNOWN: dict[str, Any] = {
    "ce-specversion": Literal["1.0"],
    "ce-type": Literal[tuple(cls.type_name() for cls in EVENT_TYPES)],
    "ce-datacontenttype": Literal["application/json"],
    "ce-txindex": Literal[tuple(_NUMBERS)],
    "ce-txcount": Literal[tuple(_NUMBERS)],
}
"""Headers of few values. Named beforehand, they are no new string in each line; another one is unusual."""

_decode_lines: Any = msgspec.json.Decoder(chain_line(_KNOWN)).decode_lines
_astuple: Any = msgspec.structs.astuple
_minute: Any = itemgetter(slice(len("2026-03-02T08:00")))


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
    transaction and ``closing`` the last line's (None before the first); ``begun`` has eight bytes for
    each transaction's first event (:func:`short_id`); ``last_ns`` is the latest server time so far
    and ``low_ns`` the earliest.
    ``index_text`` collects what the events speak of (:mod:`replay.verification.index_digest`), or is None when
    nobody wants to know; ``payload`` collects what the fold needs
    (:mod:`replay.verification.fold_payload`), or is None when nobody wants it or some line is unusual.
    """

    __slots__ = (
        "begun",
        "closing",
        "digest",
        "index_text",
        "last_ns",
        "low_ns",
        "opening",
        "payload",
        "sequence",
    )

    def __init__(
        self, digest: bytes, sequence: int, *, with_index: bool = False, with_payload: bool = False
    ) -> None:
        self.digest = digest
        self.sequence = sequence
        self.last_ns = 0
        self.low_ns = FAR_FUTURE_NS
        self.opening: Transaction | None = None
        self.closing: Transaction | None = None
        self.begun = bytearray()
        self.index_text: list[str] | None = [] if with_index else None
        self.payload: list[bytes] | None = [] if with_payload else None


def plain(data: bytes, cluster: str, position: Position) -> list[ChainLine] | None:
    """Whether each line of ``data`` is exactly as it must be behind ``position``.

    If so, moves ``position`` behind them and returns the lines whose clocks are to be compared (the first
    of each minute, and so the first of all); otherwise None, and ``position`` is as it was.
    """
    try:
        return _plain(data, _decode_lines(data), cluster, position)
    except (TypeError, ValueError, KeyError, RecursionError, msgspec.MsgspecError):
        # A body that is no JSON or not of its type, a digest, time or number that is none, an unknown type.
        return None


def _plain(data: bytes, lines: Sequence[ChainLine], cluster: str, position: Position) -> list[ChainLine] | None:
    count = len(lines)
    kinds, seqs, recorded, subjects, headers, raws, _ = zip(*map(_astuple, lines), strict=True)
    columns = tuple(zip(*map(_astuple, headers), strict=True))
    _, ids, types, source, times, _, actor, commands = columns[:8]
    places, sizes = columns[10:12]
    stated, copies = columns[_COUNT:]
    if not (
        seqs == tuple(range(position.sequence + 1, position.sequence + 1 + count))
        and kinds == types
        and copies in (ids, ("",) * count)
        and all(source)
        and all(actor)
        and all(commands)
        and recorded[0] >= position.last_ns
        and all(map(le, recorded, recorded[1:]))
    ):
        return None
    starts = _transactions(position.closing, commands, places, sizes)
    if starts is None or not _are_times(times):
        return None
    hashed = _ids(commands, places)
    if not _are_ids(ids, hashed):
        return None

    bodies = list(map(bytes, raws))
    forms = list(map(_forms(cluster).__getitem__, types))
    events = [form.decode(body) for form, body in zip(forms, bodies, strict=True)]
    names = [form.entity(event) for form, event in zip(forms, events, strict=True)]
    if subjects != _subjects(forms, names):
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
    if [sha256(text).digest() for text in texts] != digests or "".join(stated) != b"".join(digests).hex():
        return None

    if position.opening is None:
        position.opening = Transaction(commands[0], int(places[0]), int(sizes[0]))
    position.closing = Transaction(commands[-1], int(places[-1]), int(sizes[-1]))
    position.begun += _short_ids(hashed, starts)
    if position.index_text is not None:
        position.index_text.append(index_lines([form.rule for form in forms], events, names, data))
    if position.payload is not None:
        position.payload.append(fold_payload.encode(types, bodies, times))
    position.low_ns = min(position.low_ns, recorded[0])
    position.digest, position.sequence, position.last_ns = digests[-1], seqs[-1], recorded[-1]
    minutes = list(map(_minute, times))
    return [lines[minutes.index(minute)] for minute in dict.fromkeys(minutes)]


_Place = tuple[str, str]


class _Successors(dict[_Place, _Place | None]):
    """SegmentPlace and size of an event → those of the next, or None where its transaction ends.

    Raises KeyError for a number that is not written as one, ValueError for a place beyond the size.
    """

    def __missing__(self, pair: _Place) -> _Place | None:
        place, size = map(_NUMBERS.__getitem__, pair)
        if place >= size:
            raise ValueError(pair)
        behind = (str(place + 1), pair[1]) if place + 1 < size else None
        self[pair] = behind
        return behind


_behind = _Successors().__getitem__


def _transactions(
    closing: Transaction | None, commands: tuple[str, ...], places: tuple[str, ...], sizes: tuple[str, ...]
) -> list[bool] | None:
    """For each line, whether a transaction begins with it; None when one is torn or mixed."""
    pairs = list(zip(places, sizes, strict=True))
    starts = list(map("0".__eq__, places))
    first = Transaction(commands[0], int(places[0]), int(sizes[0]))
    inside = [None if start else pair for start, pair in zip(starts, pairs, strict=True)]
    *behind, _ = map(_behind, pairs)
    if behind != inside[1:] or list(map(ne, commands, commands[1:])) != starts[1:]:
        return None
    if closing is not None and closing.left:
        return starts if first == closing._replace(place=closing.place + 1) else None
    return starts if closing is None or starts[0] else None


def _ids(commands: tuple[str, ...], places: tuple[str, ...]) -> bytearray:
    """The UUIDv5 of each command and place, 16 bytes each (:func:`events.ids.event_id`, for many)."""
    space = _NAMESPACE
    hashed = bytearray().join(
        [
            sha1(space + f"{command}/{place}".encode()).digest()[:16]  # noqa: S324  UUIDv5 is SHA-1
            for command, place in zip(commands, places, strict=True)
        ]
    )
    hashed[6::16] = hashed[6::16].translate(_VERSION_5)
    hashed[8::16] = hashed[8::16].translate(_VARIANT)
    return hashed


def _are_ids(ids: tuple[str, ...], hashed: bytearray) -> bool:
    """Whether the texts are these UUIDs."""
    text, dashes = "".join(ids), "-" * len(ids)
    return (
        set(map(len, ids)) == {_ID_LENGTH}
        and all(text[at::_ID_LENGTH] == dashes for at in _DASHES)
        and text.replace("-", "") == hashed.hex()
    )


def short_id(text: str) -> bytes:
    """Eight bytes of an event's id, to find repeated ones in little memory; of any text."""
    try:
        return bytes.fromhex(text.replace("-", "")[:16]).ljust(8)
    except ValueError:
        return sha256(text.encode()).digest()[:8]


def _short_ids(hashed: bytearray, wanted: list[bool]) -> bytes:
    """:func:`short_id` of those ids that are wanted."""
    halves = memoryview(hashed).cast("Q")[::2]
    return array("Q", compress(halves, wanted)).tobytes()


def _are_times(times: tuple[str, ...]) -> bool:
    """Whether all are RFC 3339 in UTC with microseconds. Raises ValueError for what is no time at all."""
    ends = "".join(times)[_TIME_LENGTH - 1 :: _TIME_LENGTH]
    if set(map(len, times)) != {_TIME_LENGTH} or ends != "Z" * len(times):
        return False
    for _ in map(datetime.fromisoformat, times):
        pass
    return True


class _Form(NamedTuple):
    """What is known of a type: its decoder, the getter of its entity, the subject around the entity."""

    decode: Any
    entity: Any
    before: str
    behind: str
    rule: IndexKeys


def _subjects(forms: Sequence[_Form], names: Sequence[str]) -> tuple[str, ...]:
    """The subjects on which events with these entities belong."""
    tokens = token("\n".join(names)).split("\n")
    return tuple([form.before + name + form.behind for form, name in zip(forms, tokens, strict=True)])


@lru_cache(maxsize=8)
def _forms(cluster: str) -> Mapping[str, _Form]:
    """By type name; a KeyError is an unknown type."""
    return {
        cls.type_name(): _Form(
            msgspec.json.Decoder(cls).decode,
            cls.entity.fget,  # type: ignore[attr-defined]  # a property, read without the descriptor
            f"isthmus.{cluster}.events.{cls.aggregate}.",
            f".{cls.verb}",
            INDEX_KEYS[cls],
        )
        for cls in EVENT_TYPES
    }
