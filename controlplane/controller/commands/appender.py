"""Stores what a batch of decisions writes, and makes sure of what it does not write. It answers nobody."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import dataclass

from controlplane.controller.commands.batch import (
    NOT_LEADING,
    Batch,
    CommitLimits,
    LostRace,
    OutcomesNotKept,
    not_leading,
    unwritten_of,
)
from controlplane.controller.hooks import Observer
from controlplane.controller.replication.outcomes import OutcomeLog, Succeeded
from controlplane.controller.replication.replica import Replica
from events.bus.retry import backoff_s, pauses
from events.errors import IsthmusError, OutcomeUnknown, Refused, Unavailable
from events.log import FORGOTTEN_S, EventLog, SendsAhead

log = logging.getLogger("isthmus.controller")


@dataclass(slots=True, eq=False)
class Appender:
    """One batch at a time. ``unsure`` says that the log may hold more than was stored and read here."""

    log: EventLog
    replica: Replica
    limits: CommitLimits
    observer: Observer
    jitter: random.Random
    outcomes: OutcomeLog | None
    unsure: bool = True
    _ahead_from_s: float = 0.0

    async def send_ahead(self, batch: Batch) -> None:
        """Hand the log what will be appended if the batch before it is. Cancelled, some of it may be sent."""
        if isinstance(self.log, SendsAhead) and time.monotonic() >= self._ahead_from_s:
            await self.log.send_ahead(batch.messages, expected=batch.plan.base.sequence)

    def give_up_ahead(self) -> None:
        """What was sent ahead is not appended after all: send no more until the log has forgotten it."""
        self._ahead_from_s = time.monotonic() + FORGOTTEN_S

    async def append(self, batch: Batch) -> None:
        """Store what the batch writes, and make sure of what it does not.

        Raises LostRace, OutcomesNotKept, and OutcomeUnknown or Unavailable after the deadline. Cancelled, it
        leaves the batch stored or not.
        """
        if batch.messages:
            await self._store(batch)
        elif batch.asked:
            await self._vouch(batch)
        await self._keep(batch)

    async def _vouch(self, batch: Batch) -> None:
        """The log still ends where the batch was decided: asked after it was. Raises LostRace, Unavailable."""
        expected, last = batch.plan.base.sequence, 0
        async for left_s in pauses(asyncio.get_running_loop().time() + self.limits.append_timeout_s):
            last = await self.log.vouched_end(timeout_s=left_s)
            if last == expected:
                return
            if last > expected:
                log.info("decided on sequence %d, the log ends at %d; deciding again", expected, last)
                self.unsure = True
                raise LostRace
        raise Unavailable(
            "log_unavailable",
            f"a majority of the bus confirms the log up to {last} only, this controller has read {expected}",
        )

    async def _keep(self, batch: Batch) -> None:
        """Keep the outcomes that no event will tell. Raises OutcomesNotKept."""
        unwritten = unwritten_of(batch.plan)
        if not unwritten or self.outcomes is None:
            return
        try:
            await self.outcomes.record(unwritten)
        except Succeeded:
            batch.term.end()
            raise OutcomesNotKept(not_leading()) from None
        except IsthmusError as error:
            raise OutcomesNotKept(error) from error

    async def _store(self, batch: Batch) -> None:
        """Store the batch. Repeating is safe: the log knows its own messages.

        Raises LostRace, and OutcomeUnknown or Unavailable after the deadline.
        """
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        deadline = loop.time() + self.limits.commit_deadline_s
        expected = batch.plan.base.sequence
        self.replica.expect(batch.plan.base, batch.messages, batch.recorded)
        failures, unknown = 0, False
        while True:
            if not batch.term.valid:
                raise OutcomeUnknown("outcome_unknown", NOT_LEADING) if unknown else not_leading()
            try:
                await self.log.append(batch.messages, expected=expected, timeout_s=self.limits.append_timeout_s)
                break
            except Refused as error:
                if error.code != "wrong_last_sequence":
                    raise
                log.info("another writer was first (%s); deciding again", error.message)
                self.unsure = True
                raise LostRace from error
            except Unavailable as error:
                unknown = unknown or isinstance(error, OutcomeUnknown)
                self.unsure = True
                pause_s = backoff_s(failures, first_s=0.05, longest_s=1.0, dice=self.jitter)
                if loop.time() + pause_s >= deadline:
                    if unknown and not isinstance(error, OutcomeUnknown):
                        raise OutcomeUnknown("outcome_unknown", error.message) from error
                    raise
                log.warning("append not acknowledged (%s); trying again", error.message)
            await asyncio.sleep(pause_s)
            failures += 1
        self.unsure = False
        self.observer.appended(
            [d.pending.request for d in batch.plan.decided if d.writes],
            first=expected + 1,
            last=batch.head.sequence,
            took_s=time.monotonic() - started,
        )
