"""A group of waiting commands, decided one after another on a fork of the state.

No I/O and no waiting: in goes the state, out comes a plan of what to append and what to answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from controlplane.cluster.decide import decide
from controlplane.cluster.decision import DecisionContext
from controlplane.cluster.evolve import fold
from controlplane.cluster.state import ClusterState
from controlplane.controller.hooks import DecidedCommand, Observer
from controlplane.controller.leadership.term import Term
from controlplane.controller.requests import Request
from events.chain import Head
from events.codec import Cause, OutgoingMessage, Recorded, envelope_of
from events.errors import IsthmusError, Refused
from events.protocol.commands import CommandReply, ImportNodes
from events.types import Event

log = logging.getLogger("isthmus.controller")

_new = tuple.__new__  # a named tuple's own constructor is a Python function

Answer = Callable[[CommandReply | IsthmusError], None]
"""Receives the outcome of one command, exactly once; returns at once."""


class Pending:
    """One command on its way, and everybody who waits for its answer (the same id may ask again)."""

    __slots__ = ("answers", "decided", "request", "term", "trace")

    def __init__(self, request: Request, answer: Answer) -> None:
        self.request = request
        self.answers = [answer]
        self.term: Term | None = None
        """In which it is being decided; None while it waits for its first."""
        self.trace = (request.traceparent, request.tracestate)
        self.decided = False
        """Whether it has been decided before."""


class Decided(NamedTuple):
    """One command's part of a plan. A refusal may come with events (a recorded refusal).

    ``writes``: whether its events are to be stored.
    """

    pending: Pending
    cause: Cause
    events: tuple[Event, ...]
    result: dict[str, Any]
    refusal: IsthmusError | None
    writes: bool


class GroupPlan(NamedTuple):
    """What to append after ``base`` (``written`` events), and who was left out.

    ``full``: there is no room for what comes next.
    """

    base: Head
    decided: list[Decided]
    written: int
    left: list[Pending]
    full: bool


class SpeculativeState:
    """The state as it will be when everything that was decided so far is appended: a fork that is carried on.

    A batch is decided while the one before it is on its way, and made on the same fork, so that no event
    is folded again for each batch. It ends when something that was decided is not appended.
    """

    def __init__(self, state: ClusterState, in_flight: Sequence[Recorded] = ()) -> None:
        """``in_flight`` are events on their way that ``state`` lacks."""
        self._state = state
        self._fork: ClusterState | None = None
        self.written = 0
        """Events that the fork carries."""
        if in_flight:
            self.add(tuple(recorded.event for recorded in in_flight))

    @property
    def state(self) -> ClusterState:
        """Not to be changed, but by :meth:`add`."""
        return self._fork or self._state

    @property
    def forked(self) -> bool:
        """Whether it can be carried on; a speculative without a fork is its state and nothing else."""
        return self._fork is not None

    def add(self, events: Sequence[Event], after: ClusterState | None = None) -> None:
        """Fold decided events. ``after`` is a fork of :attr:`state` with these events in it, if any."""
        self.written += len(events)
        if after is not None:
            if self._fork is None:
                self._fork = after
            else:
                self._fork.absorb(after)
            return
        fork = self._fork = self._fork or self._state.fork()
        fold(fork, enumerate(events, fork.sequence + 1))


def plan_group(
    speculative: SpeculativeState,
    base: Head,
    group: Sequence[Pending],
    *,
    time: datetime,
    source: str,
    messages_limit: int,
    taken: int,
    time_limit_s: float,
    clock: Callable[[], float],
    observer: Observer,
    context: DecisionContext,
) -> GroupPlan:
    """Decide as many of the group as fit ``messages_limit`` events and ``time_limit_s`` of ``clock``.

    ``speculative`` stands at ``base``; what is decided is added to it, unless it is a single command on no fork
    (making one costs more than such a command). ``taken`` events are in the same batch already; without any, at
    least one command is always decided.
    """
    fresh: tuple[Event, ...] = ()  # decided, and not yet in the speculative: nobody may build on them
    after: ClusterState | None = None
    count = 0
    started = before = clock()
    decided: list[Decided] = []
    told: list[DecidedCommand] = []
    left: list[Pending] = []
    room, full = messages_limit - taken, taken >= messages_limit
    for position, pending in enumerate(group):
        too_long = before - started > time_limit_s
        full = full or (bool(decided or taken) and count + _least_events(pending.request) > room)
        if full or (decided and too_long):
            left = list(group[position:])
            break
        if fresh:
            speculative.add(fresh, after)
            fresh, after = (), None
        one, fork = _decide(pending, speculative.state, time, source, context)
        if len(one.events) > messages_limit:
            one = one._replace(events=(), refusal=_too_many(len(one.events), messages_limit), writes=False)
        if one.writes:
            if count + len(one.events) > room:
                left, full = list(group[position:]), True
                break
            fresh, after = one.events, fork
            count += len(fresh)
        decided.append(one)
        now = clock()
        waited_s = before - pending.request.received_s
        told.append(
            _new(DecidedCommand, (pending.request, waited_s, now - before, len(one.events), pending.decided))
        )
        pending.decided = True
        before = now
    observer.decided(told)
    if fresh and (speculative.forked or after is not None):
        speculative.add(fresh, after)
    return GroupPlan(base, decided, count, left, full or count >= room)


def recorded_of(plan: GroupPlan, messages: Sequence[OutgoingMessage], recorded_at: datetime) -> list[Recorded]:
    """The plan's events, sealed as ``messages``, as a reader of the log will see them."""
    result: list[Recorded] = []
    sequence = plan.base.sequence
    for decided in plan.decided:
        if not decided.writes:
            continue
        cause, count = decided.cause, len(decided.events)
        for index, event in enumerate(decided.events):
            envelope = envelope_of(cause, messages[len(result)], index, count)
            sequence += 1
            result.append(_new(Recorded, (sequence, envelope, event, recorded_at)))
    return result


def _decide(
    pending: Pending, state: ClusterState, time: datetime, source: str, context: DecisionContext
) -> tuple[Decided, ClusterState | None]:
    """The command's part, and the state after it if deciding has made one."""
    request = pending.request
    cause = Cause(
        command_id=request.command_id,
        actor=request.actor,
        time=time,
        source=source,
        correlation_id=request.correlation_id,
        causation_id=request.causation_id,
        traceparent=pending.trace[0],
        tracestate=pending.trace[1],
    )
    if request.instance:
        context = msgspec.structs.replace(context, instance=request.instance)
    try:
        decision = decide(state, request.command, time, context)
    except IsthmusError as error:
        return Decided(pending, cause, (), {}, error, writes=False), None
    except Exception as error:  # a defect of the rules must not take the whole group down
        log.exception("deciding %s failed", type(request.command).__name__)
        defect = Refused("internal", f"deciding the command failed ({type(error).__name__}: {error})")
        return Decided(pending, cause, (), {}, defect, writes=False), None
    events = tuple(decision.events)
    writes = bool(events) and not request.dry_run
    decided = _new(Decided, (pending, cause, events, decision.result, decision.refusal, writes))
    return decided, decision.after


def _least_events(request: Request) -> int:
    """How many events the command will cause if it is granted: not worth deciding if they cannot fit."""
    command = request.command
    return 2 * len(command.nodes) if isinstance(command, ImportNodes) else 1


def _too_many(count: int, limit: int) -> IsthmusError:
    return Refused(
        "event_too_large",
        f"the command causes {count:,} events; one atomic append holds {limit:,}: split the request",
        count=count,
        limit=limit,
    )
