"""Answers: whose they are, that each is given once, and that a repeated command gets its first one again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import msgspec

from controlplane.cluster.decision import Tick
from controlplane.controller.commands.planner import Answer, GroupPlan, Pending
from controlplane.controller.commands.replies import recall, reply_to
from controlplane.controller.hooks import AnsweredCommand, Observer
from controlplane.controller.replication.outcomes import Outcome
from controlplane.controller.replication.replica import Replica
from controlplane.controller.requests import Request
from controlplane.readmodel.store import SequenceSpan
from events.codec import OutgoingMessage, decode
from events.errors import IsthmusError
from events.log import LogReader
from events.protocol.commands import CommandReply

_new = tuple.__new__  # a named tuple's own constructor is a Python function


class CommandTable(Protocol):
    """Where the oldest command ids are looked up: the read model's commands table."""

    async def spans(self, command_ids: Sequence[str]) -> dict[str, SequenceSpan]:
        """The spans of those of the commands that are known. Raises Unavailable.

        Cancelled, it leaves nothing behind.
        """
        ...


@dataclass(slots=True, eq=False)
class PendingReplies:
    """Knows who waits for which command, and what was answered before."""

    log: LogReader
    replica: Replica
    now: Callable[[], datetime]
    observer: Observer
    command_table: CommandTable | None
    _by_id: dict[str, Pending] = field(default_factory=dict)

    def join(self, request: Request, answer: Answer) -> bool:
        """Wait along with the same command, if it is on its way already."""
        same = None if request.dry_run else self._by_id.get(request.command_id)
        if same is None:
            return False
        same.answers.append(answer)
        return True

    def expect(self, pending: Pending) -> None:
        """The command is on its way from now on."""
        if not pending.request.dry_run:
            self._by_id[pending.request.command_id] = pending

    def finish(self, pending: Pending, outcome: CommandReply | IsthmusError) -> None:
        """Give the answer to everybody who waits for it."""
        told = [self._tell(pending, outcome)]
        self.observer.answered(told, sequence=self.replica.head.sequence)

    def _tell(self, pending: Pending, outcome: CommandReply | IsthmusError) -> AnsweredCommand:
        request = pending.request
        if not request.dry_run:
            self._by_id.pop(request.command_id, None)
        answers, pending.answers = pending.answers, []
        if answers:
            answers[0](outcome)
        for answer in answers[1:] if len(answers) > 1 else ():
            if isinstance(outcome, CommandReply) and not outcome.duplicate:
                outcome = msgspec.structs.replace(outcome, duplicate=True)
            answer(outcome)
        error = outcome if isinstance(outcome, IsthmusError) else None
        return _new(AnsweredCommand, (request, time.monotonic() - request.received_s, error))

    def settle(
        self,
        plan: GroupPlan,
        messages: Sequence[OutgoingMessage],
        *,
        unwritten: IsthmusError | None = None,
    ) -> None:
        """The plan's events are stored (as ``messages``): answer each of its commands.

        With ``unwritten`` those that wrote nothing are answered with that instead.
        """
        sequence, at, now = plan.base.sequence, 0, self.now()
        dedup = self.replica.dedup
        told: list[AnsweredCommand] = []
        for decided in plan.decided:
            request = decided.pending.request
            stored: Sequence[OutgoingMessage] | None = None
            if decided.writes:
                stored = messages[at : at + len(decided.events)]
                at += len(stored)
                sequence += len(stored)
            if unwritten is not None and not decided.writes:
                told.append(self._tell(decided.pending, unwritten))
                continue
            outcome = decided.refusal or reply_to(decided, sequence, stored, now)
            if decided.writes:
                dedup.keep(request.command_id, outcome)
            elif not request.dry_run and not isinstance(request.command, Tick):
                # A copy that comes late must not find another state.
                dedup.keep_unwritten((Outcome(request.command_id, outcome),))
            told.append(self._tell(decided.pending, outcome))
        self.observer.answered(told, sequence=self.replica.head.sequence)

    async def repeat_known(self, group: Sequence[Pending]) -> list[Pending]:
        """Answer those commands that have already happened; return the others. Raises Unavailable.

        Cancelled, some of them may have been answered.
        """
        dedup = self.replica.dedup
        final = dedup.complete or self.command_table is None
        fresh: list[Pending] = []
        unseen: list[Pending] = []
        for pending in group:
            command_id = pending.request.command_id
            if pending.request.dry_run or (final and dedup.unheard(command_id)):
                fresh.append(pending)
            elif (known := dedup.answer(command_id)) is not None:
                self._repeat(pending, known)
            elif (span := dedup.span(command_id)) is not None:
                await self._rebuild(pending, span)
            elif final:
                self._unless_told(pending, fresh)
            else:
                unseen.append(pending)
        if unseen and self.command_table is not None:
            spans = await self.command_table.spans([p.request.command_id for p in unseen])
            for pending in unseen:
                found = spans.get(pending.request.command_id)
                if found is None:
                    self._unless_told(pending, fresh)
                else:
                    await self._rebuild(pending, found)
        return fresh

    def _unless_told(self, pending: Pending, fresh: list[Pending]) -> None:
        """A command without an event: say again what it was told, or take it as a new one.

        Only now: an outcome may have been kept and not told, and the command then have happened after all.
        """
        told = self.replica.dedup.unwritten(pending.request.command_id)
        if told is None:
            fresh.append(pending)
        else:
            self._repeat(pending, told)

    def _repeat(self, pending: Pending, known: CommandReply | IsthmusError) -> None:
        """Give the first answer again, from memory."""
        if isinstance(known, CommandReply):
            known = msgspec.structs.replace(known, duplicate=True, answered_at=self.now())
        self.finish(pending, known)

    async def _rebuild(self, pending: Pending, span: SequenceSpan) -> None:
        """Give the first answer again, made of the stored events."""
        stored = [
            message
            async for batch in self.log.read(after=span.first - 1, until=span.last)
            for message in batch.messages
        ]
        events = [decode(message) for message in stored]
        mine = [event for event in events if event.envelope.command_id == pending.request.command_id]
        self.finish(pending, recall(mine, self.now()))
