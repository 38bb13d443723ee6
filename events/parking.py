"""Which events of a log are parked: left out by everybody, because one of them cannot be followed.

Parking is itself an event (:class:`events.types.EventsParked`), written behind what it parks. So it is the log
that says what counts, not a setting of one reader: controllers, read models, agents and the replay tool leave
out the same events and come to the same state, whether or not each of them could have followed what is parked.
The parked events keep their place in the hash chain, which is whole.

A reader looks the parked events up when it meets one that it cannot follow, and when it meets the parking of
events that it has followed; then it begins anew without them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from events import subjects
from events.codec import StoredMessage, decode_event
from events.errors import VerificationFailed
from events.log import BATCH_LIMIT, LogReader
from events.types import EventsParked


@runtime_checkable
class Indexed(Protocol):
    """A log that finds its parking events without reading everything."""

    async def parkings(self) -> Sequence[StoredMessage]:
        """All events on :func:`parking_subjects`, in order. Raises Unavailable.

        Cancelled, it leaves nothing behind.
        """
        ...


def parking_subjects(cluster: str) -> str:
    """The wildcard that all parking events of the cluster's log are under."""
    return subjects.event(cluster, EventsParked.aggregate, "*", EventsParked.verb)


def is_parking(message: StoredMessage) -> bool:
    """Whether the message is a parking event, by its type."""
    return message.headers.get("ce-type") == EventsParked.type_name()


def parked_by(messages: Iterable[StoredMessage]) -> frozenset[int]:
    """The sequences that these parking events leave out.

    One that speaks of itself, of what comes behind it or of more than one append can hold parks nothing.
    """
    found: set[int] = set()
    for message in messages:
        if not is_parking(message):
            continue
        event = decode_event(EventsParked.type_name(), message.body, message.sequence)
        if isinstance(event, EventsParked) and 0 < event.first <= event.last < message.sequence:
            found.update(range(event.first, min(event.last, event.first + BATCH_LIMIT - 1) + 1))
    return frozenset(found)


def events_followed(sequence: int, event: EventsParked) -> VerificationFailed:
    """What a reader raises at the parking of events that it has not left out: it must begin anew."""
    return VerificationFailed(
        "events_parked",
        f"event {sequence} parks the events {event.first} to {event.last}, which are part of this state",
        sequence=sequence,
        first=event.first,
        last=event.last,
    )


async def parked_in(log: LogReader) -> frozenset[int]:
    """The sequences that are parked in the log as it is now.

    Raises Unavailable, and VerificationFailed when a parking event is malformed itself. Cancelled, it leaves
    nothing behind.
    """
    if isinstance(log, Indexed):
        return parked_by(await log.parkings())
    return parked_by([message async for batch in log.read() for message in batch.messages])
