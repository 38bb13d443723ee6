"""A stored message ⇄ an event.

Decoding has two steps: the ``ce-type`` header names the type, then that type's decoder reads the
body. A type that this program does not know (a newer release wrote it) comes back as
:class:`UnknownEvent`, and what to do about it is the reader's explicit decision.

Old versions are lifted to the newest by :mod:`events.types.upcasters` at decoding; stored bytes never change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from events import subjects
from events.chain import CHAIN_HEADER, Head, Linker
from events.envelope import Envelope, format_time, from_headers, quoted, quoted_source, read_lines
from events.errors import VerificationFailed
from events.ids import event_id
from events.types import EVENT_TYPES, Event
from events.types.upcasters import UPCASTERS


class StoredMessage(NamedTuple):
    """One message of a log, undecoded. ``recorded_ns`` is the server's clock, Unix nanoseconds."""

    sequence: int
    subject: str
    headers: Mapping[str, str]
    body: bytes
    recorded_ns: int


class OutgoingMessage(NamedTuple):
    """One message ready to append; its chain digest is right only directly behind the head it was sealed on.

    One that was sealed here has its headers as ``lines`` (printable ASCII, as they go over the wire), and what
    of these is asked for once more: the event's id, its type's name and its chain digest in hexadecimal. One
    that was read has them as ``given``.
    """

    subject: str
    given: Mapping[str, str]
    body: bytes
    lines: str = ""
    event_id: str = ""
    type_name: str = ""
    chain: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """All headers, in a new dict."""
        return {**self.given, **read_lines(self.lines)}

    @property
    def id(self) -> str:
        """The event's id, by which a repeated append is recognised."""
        return self.event_id or self.given["ce-id"]


class UnknownEvent(Event, frozen=True, kw_only=True, gc=False):
    """An event of a type or version that this program does not know."""

    aggregate = "unknown"
    verb = "unknown"
    type: str
    body: bytes

    @property
    def entity(self) -> str:
        return self.type


class SkippedEvent(UnknownEvent, frozen=True, kw_only=True, gc=False):
    """An event that the log says is parked: it stands in its place in the chain, and means nothing."""


class Recorded(NamedTuple):
    """A decoded event with its place in the log."""

    sequence: int
    envelope: Envelope
    event: Event
    recorded_at: datetime


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """What a command hands down to each of its events."""

    command_id: str
    actor: str
    time: datetime
    source: str
    correlation_id: str = ""
    causation_id: str = ""
    traceparent: str = ""
    tracestate: str = ""


_DECODERS: dict[str, Callable[[bytes], Event]] = {
    **{cls.type_name(): msgspec.json.Decoder(cls).decode for cls in EVENT_TYPES},
    **UPCASTERS,
}
_encode = msgspec.json.Encoder().encode
_NOTHING: Mapping[str, str] = {}
SPEC, CONTENT = "1.0", "application/json"
_new = tuple.__new__  # a named tuple's own constructor is a Python function


def decode_event(type_name: str, body: bytes, sequence: int) -> Event:
    """Decode a body of the named type.

    Returns an UnknownEvent for a type that is not known here. Raises
    VerificationFailed(event_malformed) when the body does not fit its type.
    """
    decoder = _DECODERS.get(type_name)
    if decoder is None:
        return UnknownEvent(type=type_name, body=body)
    try:
        return decoder(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationFailed(
            "event_malformed",
            f"event {sequence}: its body is no {type_name} ({error})",
            sequence=sequence,
            type=type_name,
        ) from error


def skipped(message: StoredMessage) -> Recorded:
    """A parked message: whatever is in it, it is no event and cannot be unreadable."""
    recorded_at = datetime.fromtimestamp(message.recorded_ns / 1e9, UTC)
    try:
        envelope = from_headers(message.headers, message.sequence)
    except VerificationFailed:
        envelope = Envelope(
            id=message.headers.get("ce-id", ""),
            type=message.headers.get("ce-type", ""),
            source="",
            time=recorded_at,
            actor="",
            command_id="",
            chain=message.headers.get(CHAIN_HEADER, ""),
        )
    event = SkippedEvent(type=envelope.type, body=message.body)
    return Recorded(message.sequence, envelope, event, recorded_at)


def event_of(type_name: str, body: bytes, sequence: int, parked: frozenset[int]) -> Event:
    """:func:`decode_event`, but a skipped event for a parked sequence."""
    if sequence in parked:
        return SkippedEvent(type=type_name, body=body)
    return decode_event(type_name, body, sequence)


def decode(message: StoredMessage, parked: frozenset[int] = frozenset()) -> Recorded:
    """Decode envelope and event of a stored message; those of ``parked`` sequences are skipped events.

    Raises VerificationFailed(event_malformed).
    """
    if message.sequence in parked:
        return skipped(message)
    envelope = from_headers(message.headers, message.sequence)
    return Recorded(
        message.sequence,
        envelope,
        decode_event(envelope.type, message.body, message.sequence),
        datetime.fromtimestamp(message.recorded_ns / 1e9, UTC),
    )


def envelope_of(cause: Cause, message: OutgoingMessage, index: int, count: int) -> Envelope:
    """The envelope of ``message``, the one at ``index`` of the ``count`` that ``cause`` was sealed to."""
    return Envelope(
        id=message.event_id,
        type=message.type_name,
        source=cause.source,
        time=cause.time,
        actor=cause.actor,
        command_id=cause.command_id,
        correlation_id=cause.correlation_id,
        causation_id=cause.causation_id,
        tx_index=index,
        tx_count=count,
        traceparent=cause.traceparent,
        tracestate=cause.tracestate,
        chain=message.chain,
    )


def _shared(cause: Cause, count: int) -> tuple[str, Linker]:
    """The header lines that all ``count`` events of a transaction have, and what links these events."""
    source, time = quoted_source(cause.source), format_time(cause.time)
    actor, command_id = quoted(cause.actor), quoted(cause.command_id)
    lines = (
        f"ce-specversion: {SPEC}\r\nce-source: {source}\r\nce-time: {time}\r\n"
        f"ce-datacontenttype: {CONTENT}\r\nce-actor: {actor}\r\nce-commandid: {command_id}\r\n"
        f"ce-txcount: {count}\r\n"
    )
    correlation, causation, parent, trace = "", "", "", ""
    if cause.correlation_id:
        correlation = quoted(cause.correlation_id)
        lines = f"{lines}ce-correlationid: {correlation}\r\n"
    if cause.causation_id:
        causation = quoted(cause.causation_id)
        lines = f"{lines}ce-causationid: {causation}\r\n"
    if cause.traceparent:
        parent = quoted(cause.traceparent)
        lines = f"{lines}traceparent: {parent}\r\n"
    if cause.tracestate:
        trace = quoted(cause.tracestate)
        lines = f"{lines}tracestate: {trace}\r\n"
    before = f"{source}\n{time}\n{CONTENT}\n{actor}\n{command_id}\n{correlation}\n{causation}"
    return lines, Linker(SPEC, before, f"{count}\n{parent}\n{trace}")


def seal(
    cluster: str, head: Head, transactions: Iterable[tuple[Cause, Sequence[Event]]]
) -> tuple[list[OutgoingMessage], Head]:
    """Turn decided events into messages that follow ``head``, and say the head after them.

    Each transaction is what one command caused: its events share the command id and know their
    place among each other.
    """
    sequence, digest = head
    messages: list[OutgoingMessage] = []
    types: dict[type[Event], tuple[str, str, str]] = {}  # name, and the subject before and behind the entity
    for cause, events in transactions:
        lines, linker = _shared(cause, len(events))
        chained = linker.link
        for index, event in enumerate(events):
            sequence += 1
            known = types.get(type(event))
            if known is None:
                around = subjects.event(cluster, event.aggregate, "", event.verb).split("..")
                known = types[type(event)] = (event.type_name(), f"{around[0]}.", f".{around[1]}")
            type_name, before, behind = known
            name = event_id(cause.command_id, index)
            subject = f"{before}{subjects.token(event.entity)}{behind}"
            body = _encode(event)
            digest = chained(digest, sequence, subject, name, type_name, index, body)
            chain = digest.hex()
            own = (
                f"{lines}Nats-Msg-Id: {name}\r\nce-id: {name}\r\nce-type: {type_name}\r\n"
                f"ce-txindex: {index}\r\n{CHAIN_HEADER}: {chain}\r\n"
            )
            messages.append(_new(OutgoingMessage, (subject, _NOTHING, body, own, name, type_name, chain)))
    return messages, Head(sequence, digest)
