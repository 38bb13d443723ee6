"""The only writer: decides the waiting commands one after another and appends them together.

Group commit: while one append is on its way, commands gather; then all of them are decided on a
fork of the state, each seeing the effect of those before it, sealed into the hash chain and stored
in one atomic append, one fsync for many. Each caller gets its own answer, and only after the
append. When another controller was faster (the append's condition fails), the fork is thrown away,
the log is read up to its end and everything is decided again.

It never answers before the events are stored, never writes without the condition, and never gives
one command id two effects.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import msgspec

from controlplane.cluster.decision import EMPTY_CONTEXT, DecisionContext, Tick
from controlplane.controller.clocks import LogClock
from controlplane.controller.commands.pending_replies import CommandTable, PendingReplies
from controlplane.controller.commands.planner import (
    Answer,
    GroupPlan,
    Pending,
    SpeculativeState,
    plan_group,
    recorded_of,
)
from controlplane.controller.commands.requests import Request
from controlplane.controller.hooks import NullObserver, Observer
from controlplane.controller.replication.replica import Replica
from controlplane.controller.tasks import end
from events.chain import Head
from events.codec import OutgoingMessage, Recorded, seal
from events.errors import (
    IsthmusError,
    OutcomeUnknown,
    Overloaded,
    Refused,
    Unavailable,
    VerificationFailed,
)
from events.log import BATCH_LIMIT, EventLog
from events.protocol.commands import Command, CommandReply

log = logging.getLogger("isthmus.controller")

QUEUE_LIMIT = 4096
"""Commands that may wait before the next is answered ``overloaded``: about a second's work."""

GROUP_TIME_S = 0.05
"""Longest time spent deciding one group: it bounds the pause of everything else on the event loop."""

SPECULATIVE_LIMIT = 20_000
"""Events that one fork carries before another is made of the state, so that it stays small."""

RACES_LIMIT = 20
"""Times a group is decided again because another controller wrote first."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the committer; seconds and counts."""

    queue: int = QUEUE_LIMIT
    group_messages: int = BATCH_LIMIT
    group_time_s: float = GROUP_TIME_S
    sending_s: float = 0.005
    append_timeout_s: float = 5.0
    commit_deadline_s: float = 15.0
    catch_up_s: float = 10.0


class ContextSource(Protocol):
    """What decisions may know of the world outside the log: other clusters on the same bus."""

    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:
        """The context, fresh enough for these commands. Raises Unavailable."""
        ...


class _NoContext:
    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:  # noqa: ARG002  the port's
        return EMPTY_CONTEXT


class _Batch(NamedTuple):
    """A plan, sealed, and who waits for it."""

    plan: GroupPlan
    messages: list[OutgoingMessage]
    head: Head
    recorded: list[Recorded]

    @property
    def pendings(self) -> list[Pending]:
        return [decided.pending for decided in self.plan.decided]


def _not_yet_folded(in_flight: _Batch, head: Head) -> list[Recorded]:
    """The batch's events that the state at ``head`` lacks; none when another writer's stand there instead."""
    known = head.sequence - in_flight.plan.base.sequence
    if known <= 0:
        return in_flight.recorded
    if known < len(in_flight.recorded) and in_flight.recorded[known - 1].envelope.chain == head.hex:
        return in_flight.recorded[known:]
    return []


def _undecidable(error: VerificationFailed) -> VerificationFailed:
    """The answer to a command that cannot be decided, for want of the state to decide it on."""
    return VerificationFailed(
        "log_poisoned",
        f"no command is taken, nothing was written: the log cannot be followed [{error.code}]. {error.message}",
        **{**error.details, "reason": error.code},
    )


class _Raced(Exception):
    """Another writer was first: nothing of the batch is stored."""


class Committer:
    """Takes checked requests and answers each after its effect is stored.

    ``source`` names this controller in the envelope. ``now`` is the wall clock (UTC); times in the
    log never run backwards, because each decision takes the later of the clock and the last event.

    One batch is appended at a time; while it is on its way, the next is decided as if it had arrived.
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
        context_source: ContextSource | None = None,
        limits: Limits | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._log = event_log
        self._replica = replica
        self._source = source
        self._now = now
        self._clock = LogClock(wall=now, monotonic=monotonic)
        self._observer = observer or NullObserver()
        self._context_source = context_source or _NoContext()
        self._limits = limits or Limits()
        self._jitter = jitter or random.Random()  # noqa: S311  spreads retries, guards nothing
        self._replies = PendingReplies(
            event_log, replica, now=now, observer=self._observer, command_table=command_table
        )
        self._waiting: deque[Pending] = deque()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._unsure = True
        self._speculative: SpeculativeState | None = None
        self._races = 0
        self._groups = 0
        self._committed = 0

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
        self._waiting.append(pending)
        self._idle.clear()
        self._wake.set()

    async def submit(self, request: Request) -> CommandReply:
        """Queue a command and wait for its answer. Raises what it is refused with."""
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
        """Wait until nothing waits or is on its way; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

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
        in_flight: _Batch | None = None
        group: list[Pending] = []
        try:
            while True:
                await self._something_to_do(appending)
                if self._waiting:
                    group = [self._waiting.popleft() for _ in range(min(len(self._waiting), BATCH_LIMIT))]
                    batch = await self._prepare(group, in_flight)
                    group = []
                else:
                    batch = None
                if appending is not None and in_flight is not None:
                    # What was decided on top of it counts only if it is appended.
                    appended = await self._appended(appending, in_flight)
                    appending = in_flight = None
                    if not appended and batch is not None:
                        self._put_back(batch.pendings)
                        continue
                if batch is not None and batch.messages:
                    in_flight = batch
                    appending = asyncio.create_task(self._append(batch))
                    # Deciding holds the loop: first let the batch get out, so that the two overlap.
                    await asyncio.wait({appending}, timeout=self._limits.sending_s)
                elif batch is not None:
                    self._replies.settle(batch.plan, ())
                if not self._waiting and appending is None:
                    self._idle.set()
        finally:
            if appending is not None:
                await end([appending])
            self._abandon([*(in_flight.pendings if in_flight else ()), *group, *self._waiting])
            self._waiting.clear()
            self._idle.set()

    async def _something_to_do(self, appending: asyncio.Task[None] | None) -> None:
        """Until a command waits, or the append on its way has ended."""
        if appending is not None:
            appending.add_done_callback(lambda _: self._wake.set())
        while not self._waiting and not (appending is not None and appending.done()):
            self._wake.clear()
            await self._wake.wait()

    async def _prepare(self, group: list[Pending], in_flight: _Batch | None) -> _Batch | None:
        """Decide a group on the state with ``in_flight`` in it. None when nothing is left to do for it."""
        try:
            if self._unsure and in_flight is None and self._replica.halted is None:
                await self._replica.caught_up(timeout_s=self._limits.catch_up_s)
                self._unsure = False
            group = await self._replies.repeat_known(group)
            if not group:
                return None
            context = await self._context_source.context_for([p.request.command for p in group])
            if self._replica.halted is not None:
                raise self._replica.halted.with_traceback(None)
        except VerificationFailed as error:
            self._fail(group, _undecidable(error))
            return None
        except IsthmusError as error:
            self._fail(group, error)
            return None
        replica = self._replica
        unfolded = _not_yet_folded(in_flight, replica.head) if in_flight else []
        base = in_flight.head if in_flight and unfolded else replica.head
        if not (self._speculative and self._speculative.forked and in_flight and base == in_flight.head):
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
            time_limit_s=self._limits.group_time_s,
            clock=time.monotonic,
            observer=self._observer,
            context=context,
        )
        self._waiting.extendleft(reversed(plan.left))
        writing = [(d.cause, d.events) for d in plan.decided if d.writes]
        messages, head = seal(replica.cluster, plan.base, writing)
        return _Batch(plan, messages, head, recorded_of(plan, messages, self._now()))

    async def _appended(self, appending: asyncio.Task[None], batch: _Batch) -> bool:
        """Wait for the append, adopt it and answer. False when it is not stored as it was decided."""
        try:
            await appending
        except _Raced:
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
            return False
        except IsthmusError as error:
            self._fail(batch.pendings, error)
            return False
        self._races = 0
        self._groups += 1
        self._committed += len(batch.messages)
        self._replica.adopt(batch.recorded, batch.head)
        self._replies.settle(batch.plan, batch.messages)
        return True

    async def _append(self, batch: _Batch) -> None:
        """Store the batch. Repeating is safe: the log knows its own messages.

        Raises _Raced, and OutcomeUnknown or Unavailable after the deadline.
        """
        loop = asyncio.get_running_loop()
        started = time.monotonic()
        deadline = loop.time() + self._limits.commit_deadline_s
        expected = batch.plan.base.sequence
        self._replica.expect(batch.plan.base, batch.messages, batch.recorded)
        pause_s, unknown = 0.05, False
        while True:
            try:
                await self._log.append(
                    batch.messages, expected=expected, timeout_s=self._limits.append_timeout_s
                )
                break
            except Refused as error:
                if error.code != "wrong_last_sequence":
                    raise
                log.info("another writer was first (%s); deciding again", error.message)
                self._unsure = True
                raise _Raced from error
            except Unavailable as error:
                unknown = unknown or isinstance(error, OutcomeUnknown)
                self._unsure = True
                if loop.time() + pause_s >= deadline:
                    if unknown and not isinstance(error, OutcomeUnknown):
                        raise OutcomeUnknown("outcome_unknown", error.message) from error
                    raise
                log.warning("append not acknowledged (%s); trying again", error.message)
            await asyncio.sleep(pause_s * self._jitter.uniform(0.5, 1.5))
            pause_s = min(1.0, pause_s * 2)
        self._unsure = False
        self._observer.appended(
            [d.pending.request for d in batch.plan.decided if d.writes],
            first=expected + 1,
            last=batch.head.sequence,
            took_s=time.monotonic() - started,
        )

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
