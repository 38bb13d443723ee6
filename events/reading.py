"""Reading a log so that it can be believed: each event linked to the one before it, and without what is parked.

:func:`linked` is the one place where a link is checked, :func:`step` takes a whole event, and :func:`verified`
is the loop for readers of many. :class:`ParkedEvents` is the one answer to an event that cannot be followed:
ask the log whether it is parked, and begin anew where it had been followed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import NamedTuple, cast

from events.chain import CHAIN_HEADER, Head, genesis, stated_digest, verify_link
from events.codec import Recorded, StoredMessage, decode, event_of
from events.errors import Unavailable, VerificationFailed
from events.log import LogReader, ReadBatch
from events.parking import parked_in
from events.types import Event

log = logging.getLogger("isthmus.log")


def linked(head: Head, message: StoredMessage) -> Head:
    """The head behind ``message``. Raises VerificationFailed (``chain_broken``, ``sequence_gap``)."""
    sequence, subject, headers, body, _ = message
    return verify_link(head, sequence, subject, headers, body)


def step(head: Head, message: StoredMessage, parked: frozenset[int]) -> tuple[Head, Event]:
    """The head behind ``message`` and its event, whatever its envelope says; a skipped event if it is parked.

    Raises VerificationFailed (``chain_broken``, ``sequence_gap``, ``event_malformed``).
    """
    sequence, subject, headers, body, _ = message
    behind = verify_link(head, sequence, subject, headers, body)
    return behind, event_of(headers.get("ce-type", ""), body, sequence, parked)


class VerifiedBatch(NamedTuple):
    """Consecutive events, the head behind them, and how many more the log is known to hold (0: caught up)."""

    events: list[Recorded]
    head: Head
    pending: int


async def verified(
    source: LogReader,
    after: Head | int | None = None,
    parked: frozenset[int] | None = None,
    *,
    until: int | None = None,
    follow: bool = False,
) -> AsyncIterator[VerifiedBatch]:
    """The events behind ``after``, each linked to the one before it; those of ``parked`` are skipped events.

    ``after`` is a head that is known to be right, a sequence (its digest is then not known, so that the first
    event's link is believed and only the further ones are checked), or None: the log's beginning. With
    ``parked`` None the log itself is asked. ``until`` and ``follow`` are those of
    :meth:`events.log.LogReader.read`.

    The events before an unsound one are yielded first. Raises VerificationFailed (``chain_broken``,
    ``sequence_gap``, ``event_malformed``) there, and Unavailable. Cancellation releases what it holds.
    """
    left_out = await parked_in(source) if parked is None else parked
    position = after if isinstance(after, int) else 0 if after is None else after.sequence
    head = after if isinstance(after, Head) else genesis(source.cluster) if position == 0 else None
    reader = cast("AsyncGenerator[ReadBatch, None]", source.read(after=position, until=until, follow=follow))
    async with aclosing(reader) as batches:
        async for batch in batches:
            events: list[Recorded] = []
            failure: VerificationFailed | None = None
            for message in batch.messages:
                try:
                    found = linked(head, message) if head is not None else stated_head(message)
                    events.append(decode(message, left_out))
                except VerificationFailed as error:
                    failure = error
                    break
                head = found
            yield VerifiedBatch(events, head or Head(position, b""), batch.pending)
            if failure is not None:
                raise failure


def stated_head(message: StoredMessage) -> Head:
    """The head behind ``message`` as it states it; zeros when it states no digest."""
    stated = stated_digest(message.headers.get(CHAIN_HEADER, ""))
    return Head(message.sequence, stated or bytes(32))


class ParkedEvents:
    """The parked events that one reader of a log knows of."""

    def __init__(self, known: frozenset[int] = frozenset()) -> None:
        self.known = known

    async def learn(
        self,
        source: LogReader,
        *,
        sequence: int,
        left_out: frozenset[int],
        begin_anew: Callable[[frozenset[int]], Awaitable[None]],
    ) -> bool:
        """Whether the log parks more events than were known: then reading may go on.

        ``sequence`` is how far the reader is, ``left_out`` what it has left out up to there. Had it followed
        one of those that are parked now, ``begin_anew`` is called with all of them first. When the log cannot
        be asked, or beginning anew fails with an error of ours, nothing has changed and the answer is no.
        Cancelled, it knows what it knew before; ``begin_anew`` may be called again.
        """
        try:
            parked = await parked_in(source)
            if parked <= self.known:
                return False
            if any(one <= sequence for one in parked - left_out):
                await begin_anew(parked)
        except (Unavailable, VerificationFailed) as error:
            log.warning("the parked events cannot be left out yet: %s", error.message)
            return False
        self.known = parked
        log.warning("left out, for the log says that they are parked: events %s", sorted(parked))
        return True
