"""A group of waiting commands, decided one after another on a fork of the state.

No I/O and no waiting: in goes the state, out comes a plan of what to append and what to answer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from controlplane.decide import decide
from controlplane.decision import Surroundings
from controlplane.evolve import evolve
from controlplane.service.hooks import Observer
from controlplane.service.requests import Request
from controlplane.state import ClusterState
from events.chain import CHAIN_HEADER, Head
from events.codec import Cause, OutgoingMessage, Recorded
from events.commands import CommandReply, ImportNodes
from events.envelope import Envelope
from events.errors import IsthmusError, Refused
from events.types import Event

log = logging.getLogger("isthmus.controller")

Answer = Callable[[CommandReply | IsthmusError], None]
"""Receives the outcome of one command, exactly once; returns at once."""


class Pending:
    """One command on its way, and everybody who waits for its answer (the same id may ask again)."""

    __slots__ = ("answers", "request", "trace")

    def __init__(self, request: Request, answer: Answer) -> None:
        self.request = request
        self.answers = [answer]
        self.trace = (request.traceparent, request.tracestate)


class Decided(NamedTuple):
    """One command's part of a plan. A refusal may come with events (a recorded refusal)."""

    pending: Pending
    cause: Cause
    events: tuple[Event, ...]
    result: dict[str, Any]
    refusal: IsthmusError | None

    @property
    def writes(self) -> bool:
        """Whether its events are to be stored."""
        return bool(self.events) and not self.pending.request.dry_run


class Plan(NamedTuple):
    """What to append behind ``base`` (``written`` events), and who was left out."""

    base: Head
    decided: list[Decided]
    written: int
    left: list[Pending]


def plan_group(
    state: ClusterState,
    base: Head,
    group: Sequence[Pending],
    *,
    ahead: Sequence[Recorded] = (),
    time: datetime,
    source: str,
    messages_limit: int,
    time_limit_s: float,
    clock: Callable[[], float],
    observer: Observer,
    surroundings: Surroundings,
) -> Plan:
    """Decide as many of the group as fit ``messages_limit`` events and ``time_limit_s`` of ``clock``.

    ``state`` is not changed. ``ahead`` are events on their way that it lacks; with them it is at
    ``base``. At least one command is always decided.
    """
    fork: ClusterState | None = None
    if ahead:
        fork = state.fork()
        for recorded in ahead:
            evolve(fork, recorded.sequence, recorded.event)
    fresh: tuple[Event, ...] = ()  # decided, and not yet in the fork: nobody may build on them
    sequence, count = base.sequence, 0
    started = clock()
    decided: list[Decided] = []
    for position, pending in enumerate(group):
        before = clock()
        too_long = before - started > time_limit_s
        if decided and (too_long or count + _least_events(pending.request) > messages_limit):
            return Plan(base, decided, count, list(group[position:]))
        if fresh:
            fork = fork or state.fork()
            for event in fresh:
                sequence += 1
                evolve(fork, sequence, event)
            fresh = ()
        one = _decide(pending, fork or state, time, source, surroundings)
        if len(one.events) > messages_limit:
            one = one._replace(events=(), refusal=_too_many(len(one.events), messages_limit))
        if one.writes:
            if count + len(one.events) > messages_limit:
                return Plan(base, decided, count, list(group[position:]))
            fresh = one.events
            count += len(one.events)
        decided.append(one)
        observer.decided(
            pending.request,
            waited_s=before - pending.request.received_s,
            took_s=clock() - before,
            events=len(one.events),
        )
    return Plan(base, decided, count, [])


def recorded_of(plan: Plan, messages: Sequence[OutgoingMessage], recorded_at: datetime) -> list[Recorded]:
    """The plan's events, sealed as ``messages``, as a reader of the log will see them."""
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
            result.append(Recorded(plan.base.sequence + len(result) + 1, envelope, event, recorded_at))
    return result


def _decide(
    pending: Pending, state: ClusterState, time: datetime, source: str, surroundings: Surroundings
) -> Decided:
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
    try:
        decision = decide(state, request.command, time, surroundings)
    except IsthmusError as error:
        return Decided(pending, cause, (), {}, error)
    except Exception as error:  # a defect of the rules must not take the whole group down
        log.exception("deciding %s failed", type(request.command).__name__)
        defect = Refused("internal", f"deciding the command failed ({type(error).__name__}: {error})")
        return Decided(pending, cause, (), {}, defect)
    return Decided(pending, cause, tuple(decision.events), decision.result, decision.refusal)


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
