"""Answers: whose they are, that each is given once, and that a repeated command gets its first one again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Protocol

import msgspec

from controlplane.controller.commands.planner import Answer, Pending, Plan
from controlplane.controller.commands.replies import recall, reply_to
from controlplane.controller.commands.requests import Request
from controlplane.controller.hooks import Observer
from controlplane.controller.replication.command_dedup import Place
from controlplane.controller.replication.replica import Replica
from events.codec import OutgoingMessage, decode
from events.errors import IsthmusError
from events.log import LogReader
from events.protocol.commands import CommandReply


class History(Protocol):
    """Where the oldest command ids are looked up: the read model's commands table."""

    async def places(self, command_ids: Sequence[str]) -> dict[str, Place]:
        """The places of those of the commands that are known. Raises Unavailable."""
        ...


class Answering:
    """Knows who waits for which command, and what was answered before."""

    def __init__(
        self,
        log: LogReader,
        replica: Replica,
        *,
        now: Callable[[], datetime],
        observer: Observer,
        history: History | None,
    ) -> None:
        self._log = log
        self._replica = replica
        self._now = now
        self._observer = observer
        self._history = history
        self._by_id: dict[str, Pending] = {}

    def join(self, request: Request, answer: Answer) -> bool:
        """Wait along with the same command, if it is on its way already."""
        twin = None if request.dry_run else self._by_id.get(request.command_id)
        if twin is None:
            return False
        twin.answers.append(answer)
        return True

    def expect(self, pending: Pending) -> None:
        """The command is on its way from now on."""
        if not pending.request.dry_run:
            self._by_id[pending.request.command_id] = pending

    def finish(self, pending: Pending, outcome: CommandReply | IsthmusError) -> None:
        """Give the answer to everybody who waits for it."""
        request = pending.request
        if not request.dry_run:
            self._by_id.pop(request.command_id, None)
        answers, pending.answers = pending.answers, []
        for position, answer in enumerate(answers):
            if position and isinstance(outcome, CommandReply) and not outcome.duplicate:
                outcome = msgspec.structs.replace(outcome, duplicate=True)
            answer(outcome)
        self._observer.answered(
            request,
            sequence=self._replica.head.sequence,
            took_s=time.monotonic() - request.received_s,
            error=outcome if isinstance(outcome, IsthmusError) else None,
        )

    def settle(self, plan: Plan, messages: Sequence[OutgoingMessage]) -> None:
        """The plan's events are stored (as ``messages``): answer each of its commands."""
        sequence, at, now = plan.base.sequence, 0, self._now()
        remembered = self._replica.remembered
        for decided in plan.decided:
            request = decided.pending.request
            bodies: list[bytes] | None = None
            if decided.writes:
                bodies = [message.body for message in messages[at : at + len(decided.events)]]
                at += len(bodies)
                sequence += len(bodies)
            outcome = decided.refusal or reply_to(decided, sequence, bodies, now)
            if not request.dry_run:
                # Also of commands that wrote nothing: a copy that comes late must not find another state.
                remembered.keep(request.command_id, outcome)
            self.finish(decided.pending, outcome)

    async def repeat_known(self, group: Sequence[Pending]) -> list[Pending]:
        """Answer those commands that have already happened; return the others. Raises Unavailable."""
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
                await self._rebuild(pending, place)
            elif remembered.complete or self._history is None:
                fresh.append(pending)
            else:
                unseen.append(pending)
        if unseen and self._history is not None:
            places = await self._history.places([p.request.command_id for p in unseen])
            for pending in unseen:
                found = places.get(pending.request.command_id)
                if found is None:
                    fresh.append(pending)
                else:
                    await self._rebuild(pending, found)
        return fresh

    def _repeat(self, pending: Pending, known: CommandReply | IsthmusError) -> None:
        """Give the first answer again, from memory."""
        if isinstance(known, CommandReply):
            known = msgspec.structs.replace(known, duplicate=True, answered_at=self._now())
        self.finish(pending, known)

    async def _rebuild(self, pending: Pending, place: Place) -> None:
        """Give the first answer again, made of the stored events."""
        stored = [
            message
            async for batch in self._log.read(after=place.first - 1, until=place.last)
            for message in batch.messages
        ]
        events = [decode(message) for message in stored]
        mine = [event for event in events if event.envelope.command_id == pending.request.command_id]
        self.finish(pending, recall(mine, self._now()))
