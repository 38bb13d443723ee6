"""The cluster's state in this process, folded from the log with its hash chain verified.

Every controller has one, leading or not. It moves forward in two ways: by messages read from the
log, and by adopting what this controller itself has appended (so that the next decision need not
wait for the bus to hand the own events back). The read loop later meets those events again and
checks that the log stores what was sealed.

It stops at the first message that it cannot trust, understand or follow (:attr:`Replica.halted`): a
controller must not decide on a guess. The state is then that before this message, and questions are
answered from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import NamedTuple, cast

from controlplane.changes import Changes
from controlplane.cluster.evolve import evolve, fold
from controlplane.cluster.state import ClusterState
from controlplane.controller.replication.command_dedup import CommandDedup
from events.bus.retry import happened
from events.chain import Head, genesis
from events.codec import OutgoingMessage, Recorded, StoredMessage, decode
from events.errors import Unavailable, VerificationFailed
from events.log import LogReader, ReadBatch
from events.reading import ParkedEvents, linked, verified

log = logging.getLogger("isthmus.controller")

_EPOCH = datetime.fromtimestamp(0, UTC)


EXPECTED_LIMIT = 50_000
"""Own events not yet met in the log, beyond which they are verified like anybody's."""


LOOK_S = 1.0
"""How often a resting leader looks whether somebody else has written."""

GRACE_S = 0.25
"""How long an own append may be stored and not yet acknowledged before that counts as somebody else's."""


class _Sealed(NamedTuple):
    """An own event on its way: the digest that it was sealed on, the message, and its decoded form."""

    previous: bytes
    message: OutgoingMessage
    recorded: Recorded


class Replica:
    """State and head of one log. Owned by one event loop; nothing here blocks it for long."""

    def __init__(
        self,
        log: LogReader,
        *,
        changes: Changes | None = None,
        dedup: CommandDedup | None = None,
        state: ClusterState | None = None,
        head: Head | None = None,
    ) -> None:
        """``state`` and ``head`` (of a snapshot) spare the fold of everything before them."""
        self._log = log
        self.changes = changes or Changes()
        self.dedup = dedup or CommandDedup()
        self.head = head or genesis(log.cluster)
        self.state = state or ClusterState(log.cluster)
        self.last_time = _EPOCH
        self.halted: VerificationFailed | None = None
        """Why the fold stands before the next event, while it does: the error names that event."""
        self._parked = ParkedEvents(self.state.parked)
        self._read = self.head
        self._expected: dict[int, _Sealed] = {}
        self._sealed: deque[tuple[int, bytes]] = deque()
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._live = asyncio.Event()
        self._alone = False
        self._resting = False
        self._noise = asyncio.Event()
        if self.head.sequence:
            self.dedup.start_after(self.head.sequence)

    @property
    def cluster(self) -> str:
        return self._log.cluster

    @property
    def live(self) -> bool:
        """Whether the fold has met the end of the log at least once."""
        return self._live.is_set()

    async def follow(self) -> None:
        """Fold the log for ever.

        Raises VerificationFailed: ``chain_broken``, ``sequence_gap``, ``event_unknown``,
        ``event_malformed``, ``invariant_violated``; :attr:`halted` then says the same until following
        again has brought a further event. Runs until cancelled otherwise.
        """
        try:
            while True:
                try:
                    await self._read_on()
                    await self._rest()
                except VerificationFailed as error:
                    if self._read.sequence > self.head.sequence:
                        self._read = self.head  # what was read and not followed is read again
                    if not await self._leave_out():
                        self.halted = error
                        raise
        except BaseException as error:
            self._fail_waiters(error)
            raise

    async def _read_on(self) -> None:
        """Read and fold, for ever, or until this controller may rest."""
        reader = cast("AsyncGenerator[ReadBatch, None]", self._log.read(after=self._read.sequence, follow=True))
        async with aclosing(reader) as batches:  # leaving it releases what it holds on the bus
            async for batch in batches:
                self.fold(batch.messages)
                if batch.pending == 0:
                    self._live.set()
                    self._wake()
                if self._alone and self.live and self._read.sequence == self.head.sequence:
                    return

    async def _leave_out(self) -> bool:
        """Whether the log says of more events than are known here that they are parked.

        If the state was made with some of them, it is made again without.
        """

        async def begin_anew(parked: frozenset[int]) -> None:
            state, head = await _fold_without(self._log, parked, until=self.head.sequence)
            self.state, self.head, self._read = state, head, head
            self.changes.lag()

        return await self._parked.learn(
            self._log, sequence=self.head.sequence, left_out=self.state.parked, begin_anew=begin_anew
        )

    # --- resting: the leader need not be told what it wrote ----------------------------------------------

    def rest(self, *, alone: bool) -> None:
        """``alone``: this controller leads, and what comes into the log is its own.

        Then it stops reading its own events back, which is a third of the work on each: the append's
        condition proves that nobody else wrote, and everybody else verifies the chain. Should another
        write all the same, an append or the look once a second finds out, and reading goes on.
        """
        self._alone = alone
        if not alone:
            self._noise.set()

    async def _rest(self) -> None:
        self._resting = True
        self._noise.clear()
        try:
            while self._alone and not self._noise.is_set():
                if not await happened(self._noise, within_s=LOOK_S):
                    await self._look()
        finally:
            self._resting = False

    async def _look(self) -> None:
        """Whether the log has grown by somebody else's hand."""
        try:
            found = await self._log.head()
        except Unavailable:
            return
        if found.sequence > self.head.sequence:
            # Perhaps an own append, whose acknowledgement is on its way.
            await happened(self._noise, within_s=GRACE_S)
            if found.sequence > self.head.sequence:
                self._noise.set()

    def fold(self, messages: Sequence[StoredMessage]) -> None:
        """Verify consecutive messages and apply those that are new here.

        Raises VerificationFailed that names the event which cannot be followed.
        """
        fresh: list[Recorded] = []
        state = self.state
        try:
            for message in messages:
                own = self._own(message)
                if own is None:
                    self._read = linked(self._read, message)
                if message.sequence <= self.head.sequence:
                    self._check_own(message.sequence)
                    continue
                recorded = decode(message, self._parked.known) if own is None else own
                evolve(state, message.sequence, recorded.event)
                self.head = self._read
                fresh.append(recorded)
                self.halted = None
        except VerificationFailed as error:
            raise _named(message, error) from error
        finally:
            self._announce(fresh)

    def expect(self, base: Head, messages: Sequence[OutgoingMessage], events: Sequence[Recorded]) -> None:
        """These, sealed on ``base``, are about to be appended: met in the log unchanged, they are believed."""
        if self._resting:
            return
        if len(self._expected) > EXPECTED_LIMIT:
            self._expected.clear()
        previous = base.digest
        for message, recorded in zip(messages, events, strict=True):
            self._expected[recorded.sequence] = _Sealed(previous, message, recorded)
            previous = bytes.fromhex(message.chain)

    def _own(self, message: StoredMessage) -> Recorded | None:
        """The event that this controller sealed, if the log holds it byte for byte at its place.

        Equality with what was sealed on the very digest that was read last proves what hashing would.
        """
        sealed = self._expected.pop(message.sequence, None)
        if (
            sealed is None
            or message.sequence != self._read.sequence + 1
            or sealed.previous != self._read.digest
            or message.body != sealed.message.body
            or message.subject != sealed.message.subject
            or not sealed.message.headers.items() <= message.headers.items()
        ):
            return None
        self._read = Head(message.sequence, bytes.fromhex(sealed.message.chain))
        return sealed.recorded

    def adopt(self, events: Sequence[Recorded], head: Head) -> None:
        """Take over what this controller has appended, up to ``head``; what was already read is skipped."""
        known = self.head.sequence
        if not events or events[-1].sequence <= known:
            return
        fresh = events if events[0].sequence > known else [one for one in events if one.sequence > known]
        fold(self.state, [(sequence, event) for sequence, _, event, _ in fresh])
        self.head = head
        if self._resting:
            self._read = head
        else:
            self._sealed.append((head.sequence, head.digest))
        self._announce(fresh)

    async def reached(self, sequence: int, *, timeout_s: float) -> None:
        """Wait until everything up to ``sequence`` is folded.

        Raises Unavailable(log_unavailable) in time, and VerificationFailed when the fold has halted before it.
        Cancelled, only the waiting ends.
        """
        if self.head.sequence >= sequence:
            return
        await self._wait(sequence, timeout_s, f"event {sequence} (this controller has {self.head.sequence})")

    async def caught_up(self, *, timeout_s: float) -> None:
        """Wait until the fold has met the end of the log, as the log itself states it now.

        Raises as :meth:`reached` does. Cancelled, only the waiting ends.
        """
        head = await self._log.head()
        await self.reached(head.sequence, timeout_s=timeout_s)
        if not self.live:
            await self._wait(-1, timeout_s, "the end of the log")

    async def _wait(self, sequence: int, timeout_s: float, what: str) -> None:
        if self.halted is not None:
            raise self.halted.with_traceback(None)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (sequence, future)
        self._noise.set()
        self._waiters.append(entry)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            raise Unavailable(
                "log_unavailable",
                f"the log of cluster {self.cluster!r} did not deliver {what} within {timeout_s:g} s",
                cluster=self.cluster,
                sequence=self.head.sequence,
            ) from None
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)

    def _check_own(self, sequence: int) -> None:
        """The log must store what this controller sealed and was acknowledged for."""
        while self._sealed and self._sealed[0][0] <= sequence:
            at, digest = self._sealed.popleft()
            if at == sequence and digest != self._read.digest:
                raise VerificationFailed(
                    "chain_broken",
                    f"event {sequence}: the log stores {self._read.hex[:16]}…, this controller appended "
                    f"{digest.hex()[:16]}…",
                    sequence=sequence,
                    computed=digest.hex(),
                    stated=self._read.hex,
                )

    def _announce(self, events: Sequence[Recorded]) -> None:
        if not events:
            return
        self.last_time = max(self.last_time, events[-1].envelope.time)
        self.dedup.learn(events)
        self.changes.publish(events)
        self._wake()

    def _wake(self) -> None:
        if not self._waiters:
            return
        for sequence, future in self._waiters:
            reached = self.live if sequence < 0 else self.head.sequence >= sequence
            if reached and not future.done():
                future.set_result(None)

    def _fail_waiters(self, error: BaseException) -> None:
        for _, future in self._waiters:
            if not future.done():
                if isinstance(error, Exception):
                    future.set_exception(error)
                else:
                    future.cancel()


async def _fold_without(log_: LogReader, parked: frozenset[int], *, until: int) -> tuple[ClusterState, Head]:
    """The state at ``until`` (or at the end before it) without the parked events; the chain verified again."""
    state, head = ClusterState(log_.cluster), genesis(log_.cluster)
    async for batch in verified(log_, head, parked, until=until):
        for recorded in batch.events:
            evolve(state, recorded.sequence, recorded.event)
        head = batch.head
    return state, head


def _named(message: StoredMessage, error: VerificationFailed) -> VerificationFailed:
    """The error with everything by which the message can be found again."""
    details = {
        "sequence": message.sequence,
        "id": message.headers.get("ce-id", ""),
        "type": message.headers.get("ce-type", ""),
        "subject": message.subject,
        "source": message.headers.get("ce-source", ""),
        **error.details,
    }
    text = f"{error.message} [event id {details['id'] or 'none'}, written by {details['source'] or 'nobody'}]"
    return VerificationFailed(error.code, text, **details)
