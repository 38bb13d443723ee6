"""A group of commands on its way: decided, sealed, not yet answered; and how that can end."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from controlplane.cluster.decision import Tick
from controlplane.controller.commands.planner import GroupPlan, Pending
from controlplane.controller.leadership.term import Term
from controlplane.controller.replication.outcomes import Outcome
from events.chain import Head
from events.codec import OutgoingMessage, Recorded
from events.errors import IsthmusError, Unavailable, VerificationFailed
from events.log import BATCH_LIMIT
from events.protocol.commands import CommandReply

QUEUE_LIMIT = 4096
"""Commands that may wait before the next is answered ``overloaded``: about a second's work."""

GROUP_TIME_S = 0.05
"""Longest time spent deciding one group: it bounds the pause of everything else on the event loop."""


class CommitLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the committer; seconds and counts."""

    queue: int = QUEUE_LIMIT
    group_messages: int = BATCH_LIMIT
    group_time_s: float = GROUP_TIME_S
    append_timeout_s: float = 5.0
    commit_deadline_s: float = 15.0
    catch_up_s: float = 10.0


class Batch(NamedTuple):
    """A plan, sealed, and who waits for it."""

    plan: GroupPlan
    messages: list[OutgoingMessage]
    head: Head
    recorded: list[Recorded]
    term: Term

    def with_more(self, piece: Batch) -> Batch:
        """With what was decided behind it. The lists are the same ones, grown: what went ahead still serves."""
        self.plan.decided.extend(piece.plan.decided)
        self.messages.extend(piece.messages)
        self.recorded.extend(piece.recorded)
        plan = self.plan._replace(written=self.plan.written + piece.plan.written, full=piece.plan.full)
        return self._replace(plan=plan, head=piece.head)

    def closed(self) -> Batch:
        """Nothing more is decided into it."""
        return self._replace(plan=self.plan._replace(full=True))

    @property
    def asked(self) -> bool:
        """Whether anybody outside of this process asked for any of it."""
        return any(not isinstance(d.pending.request.command, Tick) for d in self.plan.decided)

    @property
    def pendings(self) -> list[Pending]:
        return [decided.pending for decided in self.plan.decided]


class Stored(NamedTuple):
    """A stored batch that has yet to be adopted and answered; ``unwritten`` answers what wrote nothing."""

    batch: Batch
    unwritten: IsthmusError | None


def not_yet_folded(in_flight: Batch, head: Head) -> list[Recorded]:
    """The batch's events that the state at ``head`` lacks; none when another writer's stand there instead."""
    known = head.sequence - in_flight.plan.base.sequence
    if known <= 0:
        return in_flight.recorded
    if known < len(in_flight.recorded) and in_flight.recorded[known - 1].envelope.chain == head.hex:
        return in_flight.recorded[known:]
    return []


def undecidable(error: VerificationFailed) -> VerificationFailed:
    """The answer to a command that cannot be decided, for want of the state to decide it on."""
    return VerificationFailed(
        "log_poisoned",
        f"no command is taken, nothing was written: the log cannot be followed [{error.code}]. {error.message}",
        **{**error.details, "reason": error.code},
    )


class LostRace(Exception):
    """Another writer was first: nothing of the batch is stored."""


class OutcomesNotKept(Exception):
    """What the batch wrote is stored; what it did not write could not be kept: it is answered with ``told``."""

    def __init__(self, told: IsthmusError) -> None:
        super().__init__(told.message)
        self.told = told


NOT_LEADING = (
    "this controller does not lead any more (it was paused, cut off, or succeeded by another): "
    "it decided nothing; repeat with the same command id, and the one that leads answers"
)


def not_leading() -> Unavailable:
    return Unavailable("no_controller", NOT_LEADING)


def unwritten_of(plan: GroupPlan) -> list[Outcome]:
    """What the plan's commands come to that write nothing and count all the same."""
    sequence = plan.base.sequence
    found: list[Outcome] = []
    for decided in plan.decided:
        request = decided.pending.request
        if decided.writes:
            sequence += len(decided.events)
        elif not request.dry_run and not isinstance(request.command, Tick):
            told = decided.refusal or CommandReply(sequence=sequence, result=decided.result)
            found.append(Outcome(request.command_id, told))
    return found
