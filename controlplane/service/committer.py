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
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from controlplane.decision import ALONE, Surroundings, Tick
from controlplane.service.hooks import NullObserver, Observer
from controlplane.service.planner import Answer, Pending, Plan, plan_group
from controlplane.service.remembered import Place
from controlplane.service.replica import Replica
from controlplane.service.replies import recall, reply_to
from controlplane.service.requests import Request
from events.chain import CHAIN_HEADER
from events.codec import OutgoingMessage, Recorded, decode, seal
from events.commands import Command, CommandReply
from events.envelope import Envelope
from events.errors import (
    IsthmusError,
    OutcomeUnknown,
    Overloaded,
    Refused,
    Unavailable,
    VerificationFailed,
)
from events.log import BATCH_LIMIT, EventLog

log = logging.getLogger("isthmus.controller")

QUEUE_LIMIT = 4096
"""Commands that may wait before the next is answered ``overloaded``: about a second's work."""

GROUP_TIME_S = 0.05
"""Longest time spent deciding one group: it bounds the pause of everything else on the event loop."""

RACES_LIMIT = 20
"""Times a group is decided again because another controller wrote first."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the committer; seconds and counts."""

    queue: int = QUEUE_LIMIT
    group_messages: int = BATCH_LIMIT
    group_time_s: float = GROUP_TIME_S
    append_timeout_s: float = 5.0
    commit_deadline_s: float = 15.0
    catch_up_s: float = 10.0


class History(Protocol):
    """Where the oldest command ids are looked up: the read model's commands table."""

    async def places(self, command_ids: Sequence[str]) -> dict[str, Place]:
        """The places of those of the commands that are known. Raises nothing for the others."""
        ...


class Neighbourhood(Protocol):
    """What decisions may know of the world outside the log: other clusters on the same bus."""

    async def around(self, commands: Sequence[Command | Tick]) -> Surroundings:
        """The surroundings, fresh enough for these commands. Raises Unavailable."""
        ...


class _Alone:
    async def around(self, commands: Sequence[Command | Tick]) -> Surroundings:  # noqa: ARG002  the port's
        return ALONE


class Committer:
    """Takes checked requests and answers each after its effect is stored.

    ``source`` names this controller in the envelope. ``now`` is the wall clock (UTC); times in the
    log never run backwards, because each decision takes the later of the clock and the last event.
    """

    def __init__(
        self,
        event_log: EventLog,
        replica: Replica,
        *,
        source: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        observer: Observer | None = None,
        history: History | None = None,
        neighbourhood: Neighbourhood | None = None,
        limits: Limits | None = None,
        jitter: random.Random | None = None,
    ) -> None:
        self._log = event_log
        self._replica = replica
        self._source = source
        self._now = now
        self._observer = observer or NullObserver()
        self._history = history
        self._neighbourhood = neighbourhood or _Alone()
        self._limits = limits or Limits()
        self._jitter = jitter or random.Random()  # noqa: S311  spreads retries, guards nothing
        self._waiting: deque[Pending] = deque()
        self._by_id: dict[str, Pending] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._unsure = True
        self._groups = 0
        self._committed = 0

    # --- taking commands ---------------------------------------------------------------------------

    def offer(self, request: Request, answer: Answer) -> None:
        """Queue a command. ``answer`` is called exactly once, later, unless this raises.

        Raises Overloaded when ``limits.queue`` commands wait already.
        """
        if not request.dry_run:
            twin = self._by_id.get(request.command_id)
            if twin is not None:
                twin.answers.append(answer)
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
        if not request.dry_run:
            self._by_id[request.command_id] = pending
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

    # --- the loop ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Commit groups for ever. On cancellation every waiting command is answered ``log_unavailable``.

        Raises VerificationFailed when the replica cannot be trusted any more.
        """
        group: list[Pending] = []
        try:
            while True:
                while not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                group = self._take()
                await self._commit(group)
                self._groups += 1
                group = []
                if not self._waiting:
                    self._idle.set()
        finally:
            self._abandon([*group, *self._waiting])
            self._waiting.clear()
            self._idle.set()

    async def drained(self, *, timeout_s: float) -> bool:
        """Wait until nothing waits; False when that took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def statistics(self) -> dict[str, int]:
        """Commands waiting, groups committed so far, events in them."""
        return {"waiting": len(self._waiting), "groups": self._groups, "events": self._committed}

    def _take(self) -> list[Pending]:
        """As many commands as could fit one append, were each to write a single event."""
        count = min(len(self._waiting), self._limits.group_messages)
        return [self._waiting.popleft() for _ in range(count)]

    async def _commit(self, group: list[Pending]) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._limits.commit_deadline_s
        try:
            for _ in range(RACES_LIMIT):
                if self._unsure:
                    await self._replica.caught_up(timeout_s=self._limits.catch_up_s)
                    self._unsure = False
                group = await self._answer_known(group)
                if not group:
                    return
                plan = self._plan(group, await self._neighbourhood.around([p.request.command for p in group]))
                group = [decided.pending for decided in plan.decided]
                self._waiting.extendleft(reversed(plan.left))
                writing = [decided for decided in plan.decided if decided.writes]
                messages, head = seal(self._replica.cluster, plan.base, [(d.cause, d.events) for d in writing])
                recorded = self._recorded(plan, messages)
                self._replica.expect(plan.base, messages, recorded)
                started = loop.time()
                if messages and not await self._append(messages, plan.base.sequence, deadline):
                    continue
                if messages:
                    self._replica.adopt(recorded, head)
                    self._committed += len(messages)
                    self._observer.appended(
                        [d.pending.request for d in writing],
                        first=plan.base.sequence + 1,
                        last=head.sequence,
                        took_s=loop.time() - started,
                    )
                self._answer(plan, messages)
                return
            raise Unavailable(
                "log_unavailable",
                f"other controllers wrote first {RACES_LIMIT} times in a row; repeat with the same command id",
            )
        except VerificationFailed:
            self._waiting.extendleft(reversed(group))
            raise
        except IsthmusError as error:
            for pending in group:
                self._finish(pending, error)

    def _plan(self, group: list[Pending], surroundings: Surroundings) -> Plan:
        replica = self._replica
        return plan_group(
            replica.state,
            replica.head,
            group,
            time=max(self._now(), replica.last_time),
            source=self._source,
            messages_limit=self._limits.group_messages,
            time_limit_s=self._limits.group_time_s,
            clock=asyncio.get_running_loop().time,
            observer=self._observer,
            surroundings=surroundings,
        )

    async def _append(self, messages: list[OutgoingMessage], expected: int, deadline: float) -> bool:
        """Store the group. False when another writer was first and the replica has caught up with it.

        Raises OutcomeUnknown or Unavailable after the deadline. Repeating is safe: the log knows its
        own messages by their ids.
        """
        loop = asyncio.get_running_loop()
        pause_s, unknown = 0.05, False
        while True:
            try:
                await self._log.append(messages, expected=expected, timeout_s=self._limits.append_timeout_s)
            except Refused as error:
                if error.code != "wrong_last_sequence":
                    raise
                log.info("another writer was first (%s); deciding again", error.message)
                self._unsure = True
                return False
            except Unavailable as error:
                unknown = unknown or isinstance(error, OutcomeUnknown)
                self._unsure = True
                if loop.time() + pause_s >= deadline:
                    if unknown and not isinstance(error, OutcomeUnknown):
                        raise OutcomeUnknown("outcome_unknown", error.message) from error
                    raise
                log.warning("append not acknowledged (%s); trying again", error.message)
            else:
                self._unsure = False
                return True
            await asyncio.sleep(pause_s * self._jitter.uniform(0.5, 1.5))
            pause_s = min(1.0, pause_s * 2)

    def _recorded(self, plan: Plan, messages: list[OutgoingMessage]) -> list[Recorded]:
        """The events as a reader of the log will see them."""
        recorded_at = self._now()
        result: list[Recorded] = []
        for decided in plan.decided:
            if not decided.writes:
                continue
            cause = decided.cause
            for index, event in enumerate(decided.events):
                headers = messages[len(result)].headers
                envelope = Envelope(
                    id=headers["ce-id"],
                    type=headers["ce-type"],
                    source=cause.source,
                    time=cause.time,
                    actor=cause.actor,
                    command_id=cause.command_id,
                    correlation_id=cause.correlation_id,
                    causation_id=cause.causation_id,
                    tx_index=index,
                    tx_count=len(decided.events),
                    traceparent=cause.traceparent,
                    tracestate=cause.tracestate,
                    chain=headers[CHAIN_HEADER],
                )
                sequence = plan.base.sequence + len(result) + 1
                result.append(Recorded(sequence, envelope, event, recorded_at))
        return result

    # --- answering -------------------------------------------------------------------------------------

    def _answer(self, plan: Plan, messages: list[OutgoingMessage]) -> None:
        sequence, at = plan.base.sequence, 0
        remembered = self._replica.remembered
        for decided in plan.decided:
            request = decided.pending.request
            if decided.writes:
                bodies = [message.body for message in messages[at : at + len(decided.events)]]
                at += len(bodies)
                sequence += len(bodies)
                outcome = decided.refusal or reply_to(decided, sequence, bodies, self._now())
            else:
                outcome = decided.refusal or reply_to(decided, sequence, None, self._now())
            if not request.dry_run:
                # Also of commands that wrote nothing: a copy that comes late must not find another state.
                remembered.keep(request.command_id, outcome)
            self._finish(decided.pending, outcome)

    async def _answer_known(self, group: list[Pending]) -> list[Pending]:
        """Answer those commands that have already happened; return the others."""
        remembered = self._replica.remembered
        fresh: list[Pending] = []
        unseen: list[Pending] = []
        for pending in group:
            command_id = pending.request.command_id
            if pending.request.dry_run:
                fresh.append(pending)
            elif (known := remembered.answer(command_id)) is not None:
                self._repeat(pending, known)
            elif (place := remembered.place(command_id)) is not None:
                await self._answer_again(pending, place)
            elif remembered.complete or self._history is None:
                fresh.append(pending)
            else:
                unseen.append(pending)
        if unseen and self._history is not None:
            places = await self._history.places([p.request.command_id for p in unseen])
            for pending in unseen:
                place = places.get(pending.request.command_id)
                if place is None:
                    fresh.append(pending)
                else:
                    await self._answer_again(pending, place)
        return fresh

    def _repeat(self, pending: Pending, known: CommandReply | IsthmusError) -> None:
        """Give the first answer again, from memory."""
        if isinstance(known, CommandReply):
            known = msgspec.structs.replace(known, duplicate=True, answered_at=self._now())
        self._finish(pending, known)

    async def _answer_again(self, pending: Pending, place: Place) -> None:
        """Give the first answer again, rebuilt from the stored events."""
        stored = [
            message
            async for batch in self._log.read(after=place.first - 1, until=place.last)
            for message in batch.messages
        ]
        mine = [decode(message) for message in stored]
        mine = [recorded for recorded in mine if recorded.envelope.command_id == pending.request.command_id]
        self._finish(pending, recall(mine, self._now()))

    def _finish(self, pending: Pending, outcome: CommandReply | IsthmusError) -> None:
        request = pending.request
        if not request.dry_run:
            self._by_id.pop(request.command_id, None)
        for position, answer in enumerate(pending.answers):
            if position and isinstance(outcome, CommandReply) and not outcome.duplicate:
                outcome = msgspec.structs.replace(outcome, duplicate=True)
            answer(outcome)
        error = outcome if isinstance(outcome, IsthmusError) else None
        self._observer.answered(
            request,
            sequence=self._replica.head.sequence,
            took_s=asyncio.get_running_loop().time() - request.received_s,
            error=error,
        )

    def _abandon(self, pendings: Sequence[Pending]) -> None:
        """This controller stops: whoever still waits is told to ask again (elsewhere)."""
        for pending in pendings:
            self._finish(
                pending,
                OutcomeUnknown(
                    "outcome_unknown",
                    "the controller stopped before it could answer; repeat with the same command id",
                    command_id=pending.request.command_id,
                ),
            )
