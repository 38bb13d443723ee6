"""The only writer: decides the waiting commands one after another and appends them together.

Group commit: while one append is on its way, the commands that come are decided on a fork of the
state, each seeing the effect of those before it, sealed into the hash chain and then stored together
in one atomic append, one fsync for many. Each caller gets its own answer, and only after the
append. When another controller was faster (the append's condition fails), the fork is thrown away,
the log is read up to its end and everything is decided again.

It never answers before the events are stored, never writes without the condition, and never gives
one command id two effects. It decides only in a valid term. An answer that writes nothing is as sure as
one that writes: it is given when a majority of the bus has vouched, after the decision, that the log still
ended where the decision was made, and when it is kept (:mod:`controlplane.controller.replication.outcomes`).
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from controlplane.controller.clocks import LogClock
from controlplane.controller.commands.appender import Appender
from controlplane.controller.commands.batch import (
    Batch,
    CommitLimits,
    LostRace,
    OutcomesNotKept,
    Stored,
    not_leading,
    not_yet_folded,
    undecidable,
)
from controlplane.controller.commands.pending_replies import CommandTable, PendingReplies
from controlplane.controller.commands.planner import (
    Answer,
    Pending,
    SpeculativeState,
    plan_group,
    recorded_of,
)
from controlplane.controller.context import ContextSource, NoContext
from controlplane.controller.hooks import Observer
from controlplane.controller.leadership.term import Term, unlimited
from controlplane.controller.replication.outcomes import OutcomeLog, Succeeded
from controlplane.controller.replication.replica import Replica
from controlplane.controller.requests import Request
from controlplane.controller.tasks import end
from events.bus.retry import DICE, happened
from events.codec import seal
from events.errors import (
    IsthmusError,
    OutcomeUnknown,
    Overloaded,
    Unavailable,
    VerificationFailed,
)
from events.log import EventLog
from events.protocol.commands import CommandReply

log = logging.getLogger("isthmus.controller")

SPECULATIVE_LIMIT = 20_000
"""Events that one fork carries before another is made of the state, so that it stays small."""

RACES_LIMIT = 20
"""Times a group is decided again because another controller wrote first."""

UNLIMITED = unlimited()


PIECE = 250
"""Commands decided in one go: what they write is on its way to the log while the next are decided."""

PIECE_LEAST = PIECE // 2
"""Commands worth a piece of their own while an append is under way."""

HANDS = 4
"""Turns of the event loop in which a message gets out: through the append, its try, and the connection."""


class Committer:
    """Takes checked requests and answers each after its effect is stored.

    ``term`` is the one to begin with: :func:`~controlplane.controller.leadership.term.unlimited` for a
    committer that competes with nobody, None for one that waits for :meth:`begin`. Without ``outcomes`` nothing
    is kept of commands that write nothing, but in memory.

    ``source`` names this controller in the envelope. ``now`` is the wall clock (UTC); times in the
    log never run backwards, because each decision takes the later of the clock and the last event.

    One batch is appended at a time; while it is on its way, the next is decided as if it had arrived, piece by
    piece as commands come, and sent to the log but for the message that commits it.
    """

    def __init__(
        self,
        event_log: EventLog,
        replica: Replica,
        *,
        source: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        observer: Observer | None = None,
        command_table: CommandTable | None = None,
        outcomes: OutcomeLog | None = None,
        term: Term | None = UNLIMITED,
        context_source: ContextSource | None = None,
        limits: CommitLimits | None = None,
        jitter: random.Random = DICE,
    ) -> None:
        self._log = event_log
        self._replica = replica
        self._source = source
        self._now = now
        self._clock = LogClock(wall=now, monotonic=monotonic)
        self._observer = observer or Observer()
        self._context_source = context_source or NoContext()
        self._limits = limits or CommitLimits()
        self._replies = PendingReplies(
            event_log, replica, now=now, observer=self._observer, command_table=command_table
        )
        self._outcomes = outcomes
        self._term = term
        self._appender = Appender(
            event_log,
            replica,
            limits=self._limits,
            observer=self._observer,
            jitter=jitter,
            outcomes=outcomes,
        )
        self._waiting: deque[Pending] = deque()
        self._enough = 1
        """So many waiting commands wake the loop."""
        self._deciding: list[Pending] = []
        self._next: Batch | None = None
        """What is decided and not yet being appended."""
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._speculative: SpeculativeState | None = None
        self._races = 0
        self._groups = 0
        self._committed = 0

    # --- terms -----------------------------------------------------------------------------------------

    async def begin(self, term: Term) -> None:
        """Decide from now on, with everything in the state that was acknowledged by anybody before.

        Raises Succeeded when another controller has begun a later term, and Unavailable; then, and when
        cancelled, nothing is decided and it may be called again.
        """
        if self._term is term:
            return
        if self._outcomes is not None:
            self._replica.dedup.keep_unwritten(await self._outcomes.begin())
        if self._replica.halted is None:
            with suppress(VerificationFailed):  # it halts just now, and every command will be told so
                last = await self._log.vouched_end(timeout_s=self._limits.catch_up_s)
                await self._replica.reached(last, timeout_s=self._limits.catch_up_s)
        if term.ended:
            raise Succeeded
        self._appender.unsure = True
        self._term = term
        self._wake.set()

    def end_term(self) -> None:
        """Decide nothing any more; whoever waits is told to ask again. What is on its way is answered later."""
        self._term = None
        waiting, self._waiting = [*self._waiting], deque()
        self._fail(waiting, not_leading())
        self._wake.set()

    # --- taking commands ---------------------------------------------------------------------------

    def offer(self, request: Request, answer: Answer) -> None:
        """Queue a command. ``answer`` is called exactly once, later, unless this raises.

        Raises Overloaded when ``limits.queue`` commands wait already.
        """
        if self._replies.join(request, answer):
            return
        if len(self._waiting) >= self._limits.queue:
            raise Overloaded(
                "overloaded",
                f"{len(self._waiting):,} commands are waiting, the queue holds {self._limits.queue:,}: "
                f"repeat in about a second with the same command id",
                waiting=len(self._waiting),
                limit=self._limits.queue,
                retry_after_s=1.0,
            )
        pending = Pending(request, answer)
        context = self._observer.received(request)
        if context is not None:
            pending.trace = context
        self._replies.expect(pending)
        if not self._waiting:
            self._idle.clear()
        self._waiting.append(pending)
        if len(self._waiting) == self._enough:  # with more it is known that there is something to do
            self._wake.set()

    async def submit(self, request: Request) -> CommandReply:
        """Queue a command and wait for its answer. Raises what it is refused with.

        Cancelled, the command stays in the queue and is decided all the same; nobody hears of it.
        """
        future: asyncio.Future[CommandReply] = asyncio.get_running_loop().create_future()

        def answer(outcome: CommandReply | IsthmusError) -> None:
            if future.done():
                return
            if isinstance(outcome, IsthmusError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        self.offer(request, answer)
        return await future

    async def drained(self, *, timeout_s: float) -> bool:
        """Wait until nothing waits or is on its way; False when that took too long.

        Cancelled, only the waiting ends.
        """
        return await happened(self._idle, within_s=timeout_s)

    def statistics(self) -> dict[str, int]:
        """Commands waiting, batches committed so far, events in them."""
        return {"waiting": len(self._waiting), "groups": self._groups, "events": self._committed}

    # --- the loop ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit for ever. On cancellation every waiting command is answered ``outcome_unknown``.

        While the replica has halted before an event that it cannot follow, commands that happened before
        are answered again, and all others with ``log_poisoned``.
        """
        appending: asyncio.Task[None] | None = None
        in_flight: Batch | None = None
        stored: Stored | None = None
        try:
            while True:
                await self._decide(appending, in_flight)
                if appending is not None and in_flight is not None:
                    # What was decided on top of it counts only if it is appended.
                    stored = await self._appended(appending, in_flight)
                    appending = in_flight = None
                    if stored is None and self._next is not None:
                        self._appender.give_up_ahead()
                        batch, self._next = self._next, None
                        self._put_back(batch.pendings)
                        continue
                if self._next is not None:
                    in_flight, self._next = self._next, None
                    appending = asyncio.create_task(self._appender.append(in_flight))
                    appending.add_done_callback(lambda _: self._wake.set())
                    # Answering holds the loop, and so does deciding: first let the batch get out, so that they
                    # overlap. Of one that went ahead that is a message.
                    await self._let_out()
                if stored is not None:
                    self._settle(stored)
                    stored = None
                if not self._waiting and appending is None:
                    self._idle.set()
        finally:
            if stored is not None:
                self._settle(stored)
            if appending is not None:
                await end([appending])
            undecided = [pending for one in (in_flight, self._next) if one for pending in one.pendings]
            self._abandon([*undecided, *self._deciding, *self._waiting])
            self._next, self._deciding = None, []
            self._waiting.clear()
            self._idle.set()

    async def _decide(self, appending: asyncio.Task[None] | None, in_flight: Batch | None) -> None:
        """Decide what waits, into the next batch, and what comes while an append is under way.

        An append of few costs nearly as much as one of many, and what is decided meanwhile cannot be stored
        before that has ended. So nothing is lost if few wait for more, and all that comes goes into one batch.
        """
        least = 1 if in_flight is None else min(PIECE_LEAST, len(in_flight.plan.decided))
        while True:
            await self._something_to_do(appending, least)
            under_way = appending is not None and not appending.done()
            term = self._term
            if self._next is not None and (
                not under_way or self._next.plan.full or self._next.term is not term
            ):
                return
            if self._waiting and term is not None and not term.valid:
                # Paused for longer than a term lasts, or succeeded: what came to this one is nobody's.
                self._fail([self._waiting.popleft() for _ in range(len(self._waiting))], not_leading())
            if self._waiting and term is not None:
                self._deciding = self._next_group(term)
                piece = await self._prepare(self._deciding, in_flight) if self._deciding else None
                self._deciding = []
                if piece is not None:
                    self._next = piece if self._next is None else self._next.with_more(piece)
            if not under_way:
                return
            if self._next is not None:
                await self._appender.send_ahead(self._next)
                await self._let_out()

    async def _let_out(self) -> None:
        """Let what was sent get out, and what has come get in."""
        for _ in range(HANDS):
            await asyncio.sleep(0)

    def _next_group(self, term: Term) -> list[Pending]:
        """Those that wait for this term. What was put back from another one is told to ask again."""
        waiting, group, late = self._waiting, list[Pending](), list[Pending]()
        for _ in range(min(len(waiting), PIECE)):
            pending = waiting.popleft()
            (group if pending.term is None or pending.term is term else late).append(pending)
            pending.term = term
        self._fail(late, not_leading())
        return group

    async def _something_to_do(self, appending: asyncio.Task[None] | None, least: int) -> None:
        """Until at least so many commands wait, or the append on its way has ended."""
        self._enough = least
        while not (len(self._waiting) >= least and self._term is not None) and not (
            appending is not None and appending.done()
        ):
            if not self._waiting and appending is None:
                self._idle.set()
            self._wake.clear()
            await self._wake.wait()

    async def _prepare(self, group: list[Pending], in_flight: Batch | None) -> Batch | None:
        """Decide a group behind ``in_flight`` and the next batch. None when nothing is left to do for it.

        What does not fit waits again.
        """
        try:
            if self._appender.unsure and in_flight is None and self._replica.halted is None:
                await self._replica.caught_up(timeout_s=self._limits.catch_up_s)
                self._appender.unsure = False
            group = await self._replies.repeat_known(group)
            if not group:
                return None
            context = await self._context_source.context_for([p.request.command for p in group])
            if self._replica.halted is not None:
                raise self._replica.halted.with_traceback(None)
        except VerificationFailed as error:
            self._fail(group, undecidable(error))
            return None
        except IsthmusError as error:
            self._fail(group, error)
            return None
        replica, behind = self._replica, self._next
        unfolded = not_yet_folded(in_flight, replica.head) if in_flight else []
        base = in_flight.head if in_flight and unfolded else replica.head
        if behind is not None:
            if base != behind.plan.base:  # somebody else has written: what is on its way comes to nothing
                self._put_back(group)
                self._next = behind.closed()
                return None
            unfolded, base = [*unfolded, *behind.recorded], behind.head
        expected = behind or in_flight
        if not (self._speculative and self._speculative.forked and expected and base == expected.head):
            self._speculative = None
        if self._speculative is None or self._speculative.written > SPECULATIVE_LIMIT:
            self._speculative = SpeculativeState(replica.state, unfolded)
        plan = plan_group(
            self._speculative,
            base,
            group,
            time=self._clock.now(
                max(replica.last_time, *(r.envelope.time for r in unfolded[-1:]))
                if unfolded
                else replica.last_time
            ),
            source=self._source,
            messages_limit=self._limits.group_messages,
            taken=behind.plan.written if behind is not None else 0,
            time_limit_s=self._limits.group_time_s,
            clock=time.monotonic,
            observer=self._observer,
            context=context,
        )
        self._waiting.extendleft(reversed(plan.left))
        writing = [(d.cause, d.events) for d in plan.decided if d.writes]
        messages, head = seal(replica.cluster, plan.base, writing)
        term = group[0].term or UNLIMITED
        return Batch(plan, messages, head, recorded_of(plan, messages, self._now()), term)

    async def _appended(self, appending: asyncio.Task[None], batch: Batch) -> Stored | None:
        """Wait for the append. None when it is not stored as it was decided."""
        try:
            await appending
        except LostRace:
            self._races += 1
            if self._races >= RACES_LIMIT:
                self._races = 0
                error = Unavailable(
                    "log_unavailable",
                    f"other controllers wrote first {RACES_LIMIT} times in a row; repeat with the same id",
                )
                self._fail(batch.pendings, error)
            else:
                self._put_back(batch.pendings)
            return None
        except OutcomesNotKept as error:
            # What it wrote is stored and counts; what it did not write was not kept, and is nobody's answer.
            return Stored(batch, error.told)
        except IsthmusError as error:
            self._fail(batch.pendings, error)
            return None
        self._races = 0
        self._groups += bool(batch.messages)
        self._committed += len(batch.messages)
        return Stored(batch, None)

    def _settle(self, stored: Stored) -> None:
        """Adopt what is stored, and answer."""
        batch, unwritten = stored
        self._replica.adopt(batch.recorded, batch.head)
        self._replies.settle(batch.plan, batch.messages, unwritten=unwritten)

    # --- endings ---------------------------------------------------------------------------------------

    def _put_back(self, pendings: Sequence[Pending]) -> None:
        """To be decided again, before what has come since."""
        self._waiting.extendleft(reversed(pendings))

    def _fail(self, pendings: Sequence[Pending], error: IsthmusError) -> None:
        for pending in pendings:
            self._replies.finish(pending, error)

    def _abandon(self, pendings: Sequence[Pending]) -> None:
        """This controller stops: whoever still waits is told to ask again (elsewhere)."""
        for pending in pendings:
            error = OutcomeUnknown(
                "outcome_unknown",
                "the controller stopped before it could answer; repeat with the same command id",
                command_id=pending.request.command_id,
            )
            self._replies.finish(pending, error)
