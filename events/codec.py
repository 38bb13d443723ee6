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
from events.envelope import Envelope, from_headers, own_headers, shared_headers
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


_NOTHING: Mapping[str, str] = {}


class OutgoingMessage(NamedTuple):
    """One message ready to append; its chain digest is right only directly behind the head it was sealed on.

    ``shared`` are headers that the other events of its transaction have, too, as one and the same mapping;
    ``own`` those that are its alone.
    """

    subject: str
    shared: Mapping[str, str]
    body: bytes
    own: Mapping[str, str] = _NOTHING

    @property
    def headers(self) -> dict[str, str]:
        """All headers, in a new dict."""
        return {**self.shared, **self.own}

    @property
    def id(self) -> str:
        """The event's id, by which a repeated append is recognised."""
        return self.own.get("ce-id") or self.shared["ce-id"]


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


def shared_envelope(cause: Cause, count: int) -> Envelope:
    """What the ``count`` events of a transaction have in common, with places for what they do not."""
    return Envelope(
        id="",
        type="",
        source=cause.source,
        time=cause.time,
        actor=cause.actor,
        command_id=cause.command_id,
        correlation_id=cause.correlation_id,
        causation_id=cause.causation_id,
        tx_count=count,
        traceparent=cause.traceparent,
        tracestate=cause.tracestate,
    )


def seal(
    cluster: str, head: Head, transactions: Iterable[tuple[Cause, Sequence[Event]]]
) -> tuple[list[OutgoingMessage], Head]:
    """Turn decided events into messages that follow ``head``, and say the head after them.

    Each transaction is what one command caused: its events share the command id and know their
    place among each other.
    """
    sequence, digest = head
    messages: list[OutgoingMessage] = []
    types: dict[type[Event], tuple[str, str, str]] = {}
    for cause, events in transactions:
        shared = shared_headers(shared_envelope(cause, len(events)))
        chained = Linker(shared).link
        for index, event in enumerate(events):
            sequence += 1
            known = types.get(type(event))
            if known is None:
                known = types[type(event)] = (event.type_name(), event.aggregate, event.verb)
            type_name, aggregate, verb = known
            name, place = event_id(cause.command_id, index), str(index)
            subject = subjects.event(cluster, aggregate, event.entity, verb)
            body = _encode(event)
            digest = chained(digest, sequence, subject, name, type_name, place, body)
            own = own_headers(name, type_name, place, digest.hex())
            messages.append(_new(OutgoingMessage, (subject, shared, body, own)))
    return messages, Head(sequence, digest)
