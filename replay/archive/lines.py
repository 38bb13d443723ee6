"""A stored message ⇄ a line of an archive, and the fast way from lines to events.

Three ways to read the same lines, by what is needed:

* :func:`messages`: everything, exactly as stored (import, log, contract with the live stream);
* :func:`facts`: sequence, time and typed event only. One call into msgspec decodes a whole segment:
  each type has its own line struct, and ``type`` is the tag;
* :class:`ChainLine`: what the hash chain needs (verification).

This module never judges content: a body that does not fit its type is reported by the reader above.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, Union

import msgspec

from events.chain import CHAINED_HEADERS
from events.codec import SkippedEvent, StoredMessage, event_of
from events.types import EVENT_TYPES, Event, RangeFreed
from replay.archive.format import EventLine

_encode_lines = msgspec.json.Encoder().encode_lines
_decode_raw = msgspec.json.Decoder(msgspec.Raw).decode
_decode_lines = msgspec.json.Decoder(EventLine).decode_lines


class Fact(Protocol):
    """One event in its place, without its envelope: what a fold needs."""

    @property
    def seq(self) -> int: ...

    @property
    def recorded_ns(self) -> int: ...

    @property
    def body(self) -> Event: ...


class OwnTime(msgspec.Struct, frozen=True, gc=False):
    """The one header that a fact may carry."""

    time: datetime = msgspec.field(name="ce-time")


class PlainFact(msgspec.Struct, frozen=True, gc=False):
    """A Fact made by hand: from the live stream, or where the fast path does not apply."""

    seq: int
    recorded_ns: int
    body: Event
    headers: OwnTime | None = None


def own_time(fact: object) -> datetime | None:
    """The event's own time, where the fact carries it (a range's freeing)."""
    headers: OwnTime | None = getattr(fact, "headers", None)
    return headers.time if headers is not None else None


_FACT_TYPES = tuple(
    msgspec.defstruct(
        f"Fact{cls.__name__}",
        # The end of a quarantine is judged by the event's own time; no other fold needs it.
        [
            ("seq", int),
            ("recorded_ns", int),
            ("body", cls),
            *([("headers", OwnTime)] if cls is RangeFreed else []),
        ],
        tag_field="type",
        tag=cls.type_name(),
        frozen=True,
        gc=False,
    )
    for cls in EVENT_TYPES
)
_decode_facts: Any = msgspec.json.Decoder(Union[_FACT_TYPES]).decode_lines  # noqa: UP007  built at run time

_HEADER_NAMES = (*CHAINED_HEADERS, "ce-chain", "Nats-Msg-Id")


class ChainLine(Protocol):
    """A line for verification: the chained headers in hashing order, the body's bytes untouched."""

    type: str
    seq: int
    recorded_ns: int
    subject: str
    headers: Any
    body: msgspec.Raw | msgspec.UnsetType
    body64: str


def chain_line(known: Mapping[str, Any]) -> Any:
    """The type of a :class:`ChainLine` whose headers of these names must be there and of these types."""
    headers = msgspec.defstruct(
        "ChainHeaders",
        [
            (f"h{i}", known[name]) if name in known else (f"h{i}", str, "")
            for i, name in enumerate(_HEADER_NAMES)
        ],
        rename={f"h{i}": name for i, name in enumerate(_HEADER_NAMES)},
        kw_only=True,
        gc=False,
    )
    return msgspec.defstruct(
        "ChainLine",
        [
            ("type", known.get("ce-type", str)),
            ("seq", int),
            ("recorded_ns", int),
            ("subject", str),
            ("headers", headers),
            ("body", msgspec.Raw | msgspec.UnsetType, msgspec.UNSET),
            ("body64", str, ""),
        ],
        frozen=True,
        gc=False,
    )


_decode_chain_lines = msgspec.json.Decoder(chain_line({})).decode_lines


def decode_chain_lines(data: bytes) -> Sequence[ChainLine]:
    """All lines, whatever their headers say. Raises msgspec.MsgspecError for what is no line."""
    found: Sequence[ChainLine] = _decode_chain_lines(data)
    return found


def is_plain_json(body: bytes) -> bool:
    """Whether ``body`` may stand in a JSON line as it is and will come back byte for byte."""
    if b"\n" in body or b"\r" in body or body != body.strip(b" \t"):
        return False
    try:
        if not body.isascii():
            body.decode()
        _decode_raw(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return True


def to_line(message: StoredMessage) -> EventLine:
    """The line that holds a stored message."""
    plain = is_plain_json(message.body)
    return EventLine(
        type=message.headers.get("ce-type", ""),
        seq=message.sequence,
        recorded_ns=message.recorded_ns,
        subject=message.subject,
        headers=dict(message.headers),
        body=msgspec.Raw(message.body) if plain else msgspec.UNSET,
        body64="" if plain else b64encode(message.body).decode(),
    )


def encode_messages(batch: Iterable[StoredMessage]) -> bytes:
    """Many messages as lines, each ended by a line feed."""
    encoded = _encode_lines([to_line(message) for message in batch])
    return encoded if encoded.endswith(b"\n") or not encoded else encoded + b"\n"


def line_body(line: EventLine | ChainLine) -> bytes:
    """The body as stored."""
    if line.body is msgspec.UNSET:
        return b64decode(line.body64)
    return bytes(line.body)


def messages(data: bytes) -> list[StoredMessage]:
    """All lines of an event segment as stored messages. Raises msgspec.MsgspecError on damage."""
    return [
        StoredMessage(line.seq, line.subject, line.headers, line_body(line), line.recorded_ns)
        for line in _decode_lines(data)
    ]


def facts(data: bytes, parked: frozenset[int] = frozenset()) -> Sequence[Fact]:
    """All lines of an event segment as typed events; those of ``parked`` sequences as skipped events.

    Old or unknown types and unusual bodies take a slower path through :func:`events.codec.decode_event`.
    Raises VerificationFailed(event_malformed) when a body does not fit its type, and
    msgspec.MsgspecError when a line is no line.
    """
    try:
        fast: Sequence[Fact] = _decode_facts(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return [
            PlainFact(line.seq, line.recorded_ns, event_of(line.type, line_body(line), line.seq, parked))
            for line in _decode_lines(data)
        ]
    return without(fast, parked)


def without(found: Sequence[Fact], parked: frozenset[int]) -> Sequence[Fact]:
    """The same facts, with skipped events in the place of parked ones."""
    if not parked or not any(fact.seq in parked for fact in found):
        return found
    return [_left_out(fact) if fact.seq in parked else fact for fact in found]


def _left_out(fact: Fact) -> PlainFact:
    return PlainFact(fact.seq, fact.recorded_ns, SkippedEvent(type=fact.body.type_name(), body=b""))


def facts_of(batch: Iterable[StoredMessage], parked: frozenset[int] = frozenset()) -> list[PlainFact]:
    """Stored messages of any source as facts. Raises VerificationFailed(event_malformed)."""
    return [
        PlainFact(m.sequence, m.recorded_ns, event_of(m.headers.get("ce-type", ""), m.body, m.sequence, parked))
        for m in batch
    ]
