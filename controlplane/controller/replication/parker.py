"""Parks a poison event: says in the log that it, and what its command wrote with it, counts as never written.

Only a leading controller whose fold has halted does it, only if its operator asked for it
(``--on-poison park``), and only for an event that is damaged or contradicts the state. One of a newer release
is never parked (that release can follow it), and a broken chain cannot be: nothing after it can be trusted.

What follows the poison in the log is not judged here: with the parking in the log everybody goes on, and what
then contradicts is parked in its turn.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.controller.replication.replica import Replica
from events.chain import Head
from events.codec import Cause, StoredMessage, seal
from events.errors import IsthmusError, VerificationFailed
from events.ids import new_id
from events.log import BATCH_LIMIT, EventLog
from events.parking import is_parking, parked_by
from events.reading import linked
from events.types import EventsParked

log = logging.getLogger("isthmus.controller")

PARKABLE = frozenset({"invariant_violated", "event_malformed"})
SAME_COMMAND_MAX = BATCH_LIMIT
"""Events that may belong to the same command, before and after the poison."""


@dataclass(slots=True, eq=False)
class Parker:
    """Writes the parking event for what ``replica`` has halted at, as ``source`` and ``actor``."""

    log: EventLog
    replica: Replica
    source: str
    actor: str

    async def park(self, poison: VerificationFailed) -> EventsParked | None:
        """The event that was written, if it was. Raises nothing: what failed is tried again later.

        Cancelled, the event may have been written.
        """
        sequence = poison.details.get("sequence")
        if poison.code not in PARKABLE or not isinstance(sequence, int):
            return None
        try:
            return await self._park(sequence, poison)
        except IsthmusError as error:
            log.warning("event %d could not be parked: %s [%s]", sequence, error.message, error.code)
            return None

    async def _park(self, sequence: int, poison: VerificationFailed) -> EventsParked | None:
        head, around, parkings = await self._read(sequence)
        mine = around.get(sequence)
        if mine is None or sequence in parked_by(parkings):
            return None
        first, last = _command(around, sequence)
        event = EventsParked(
            first=first,
            last=last,
            poison=sequence,
            poison_id=mine.headers.get("ce-id", ""),
            poison_type=mine.headers.get("ce-type", ""),
            code=poison.code,
            reason=poison.message,
        )
        cause = Cause(
            command_id=f"park-{new_id()}",
            actor=self.actor,
            time=max(datetime.now(UTC), self.replica.last_time),
            source=self.source,
        )
        messages, _ = seal(self.log.cluster, head, [(cause, [event])])
        await self.log.append(messages, expected=head.sequence)
        return event

    async def _read(self, sequence: int) -> tuple[Head, dict[int, StoredMessage], list[StoredMessage]]:
        """The log's verified end, the poison with the events around it, and the parkings after it."""
        head = self.replica.head
        around: dict[int, StoredMessage] = {}
        parkings: list[StoredMessage] = []
        async for batch in self.log.read(after=max(0, sequence - 1 - SAME_COMMAND_MAX)):
            for message in batch.messages:
                if abs(message.sequence - sequence) <= SAME_COMMAND_MAX:
                    around[message.sequence] = message
                if message.sequence > head.sequence:
                    head = linked(head, message)
                    if is_parking(message):
                        parkings.append(message)
        return head, around, parkings


def _command(around: dict[int, StoredMessage], sequence: int) -> tuple[int, int]:
    """The first and the last of the consecutive events that the same command wrote."""
    command_id = around[sequence].headers.get("ce-commandid", "")
    first = last = sequence
    if command_id:
        while first - 1 in around and around[first - 1].headers.get("ce-commandid") == command_id:
            first -= 1
        while last + 1 in around and around[last + 1].headers.get("ce-commandid") == command_id:
            last += 1
    return first, last
