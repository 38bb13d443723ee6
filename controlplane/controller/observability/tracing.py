"""Spans of the command path: received → decided → appended → answered, one trace per command.

Attaches to the committer as an observer. The span of a command continues the caller's trace, and
its context is what the command's events carry, so that every agent's work hangs below it. One
append serves many commands: each recorded command gets a producer span of its own with links to
the others of the batch.

It may never slow the command path down: what is not sampled costs one decision of the sampler.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from operator import attrgetter, itemgetter

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind
from opentelemetry.util.types import AttributeValue

from controlplane.controller.hooks import AnsweredCommand, DecidedCommand, Observer, TraceContext
from controlplane.controller.requests import Request
from events import subjects
from events.errors import IsthmusError
from events.telemetry.role import MESSAGING_SYSTEM, Telemetry, extract, mark_error

log = logging.getLogger("isthmus.commands")

OPEN_MAX = 8192
"""Commands followed at once; more than the committer's queue holds. The oldest is given up beyond it."""
LINKS_MAX = 8
OWN_ACTOR = "controller/"
"""How the actor of a controller's own commands begins (see the ticker)."""

_ROOT = Context()
_REQUEST, _TOOK_S, _EVENTS = itemgetter(0), itemgetter(2), itemgetter(3)  # of a DecidedCommand
_DRY_RUN = attrgetter("dry_run")


class _Open:
    """One recorded command on its way: its span, the context for spans below it, and its (last) decision.

    ``decision`` is its end (Unix nanoseconds), the seconds it took and waited, its events, and how many events
    its group writes before them.
    """

    __slots__ = ("context", "decision", "span")

    def __init__(self, span: Span, context: Context) -> None:
        self.span = span
        self.context = context
        self.decision: tuple[int, float, float, int, int] | None = None


class TracingObserver(Observer):
    """Turns what the committer says into spans of ``telemetry``."""

    def __init__(self, telemetry: Telemetry, cluster: str) -> None:
        self._telemetry = telemetry
        self._tracer = telemetry.tracer
        self._roots = telemetry.sampling.root if telemetry.sampling is not None else None
        self._cluster = cluster
        self._stream = subjects.stream(cluster)
        self._open: dict[int, _Open] = {}

    def received(self, request: Request) -> TraceContext | None:
        written = request.traceparent
        if not written and self._roots is not None and self._roots.spent():  # in a storm nearly all
            return None
        if self._telemetry.would_drop(written):
            # The events must not claim a trace that nobody records.
            return TraceContext(f"{written[:-2]}00", request.tracestate) if written else None
        command = request.command
        parent = extract({"traceparent": request.traceparent, "tracestate": request.tracestate})
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent), _ROOT) if parent else _ROOT
        span = self._tracer.start_span(f"process command.{command.name}", context, kind=SpanKind.CONSUMER)
        own = span.get_span_context()
        if not own.is_valid:
            return None
        if span.is_recording():
            span.set_attributes(self._attributes(request))
            if len(self._open) >= OPEN_MAX:
                self._open.pop(next(iter(self._open))).span.end()
            self._open[id(request)] = _Open(span, trace.set_span_in_context(span, _ROOT))
        header = f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}"
        return TraceContext(header, own.trace_state.to_header() if own.trace_state else "")

    def _attributes(self, request: Request) -> dict[str, AttributeValue]:
        command = request.command
        attributes: dict[str, AttributeValue] = {
            "messaging.system": MESSAGING_SYSTEM,
            "messaging.operation.name": "process",
            "messaging.operation.type": "process",
            "messaging.destination.template": f"command.{command.name}",
            "isthmus.cluster": self._cluster,
            "isthmus.command.id": request.command_id,
            "isthmus.actor": request.actor,
        }
        if request.correlation_id:
            attributes["messaging.message.conversation_id"] = request.correlation_id
        node = getattr(command, "node", "")
        if node:
            attributes["isthmus.node"] = node
        if request.dry_run:
            attributes["isthmus.dry_run"] = True
        return attributes

    # In a storm a few commands of a group are recorded: only they are looked at one by one, and the others by
    # nothing that is written in Python.

    def decided(self, commands: Sequence[DecidedCommand]) -> None:
        open_ = self._open
        if not open_:
            return
        mine = self._mine(commands)
        if not mine:
            return
        # They were decided one after another.
        ended = time.time_ns() - int(sum(map(_TOOK_S, commands)) * 1e9)
        at = before = 0
        for place in mine:
            others = commands[at:place]
            ended += int(sum(map(_TOOK_S, others)) * 1e9)
            if any(map(_DRY_RUN, map(_REQUEST, others))):
                others = [other for other in others if not other.request.dry_run]
            before += sum(map(_EVENTS, others))
            at = place
            request, waited_s, took_s, events, _ = commands[place]
            open_[id(request)].decision = (ended + int(took_s * 1e9), took_s, waited_s, events, before)

    def appended(self, requests: Sequence[Request], *, first: int, last: int, took_s: float) -> None:
        open_ = self._open
        if not open_ or open_.keys().isdisjoint(map(id, requests)):
            return
        mine = [open_[id(request)] for request in requests if id(request) in open_]
        end = time.time_ns()
        start = end - int(took_s * 1e9)
        recorded: list[tuple[_Open, int, int]] = []
        for entry in mine:
            if entry.decision is not None:
                count, before = entry.decision[3:]
                recorded.append((entry, first + before, first + before + count - 1))
        contexts = [entry.span.get_span_context() for entry, _, _ in recorded]
        for entry, own_first, own_last in recorded:
            places = {"isthmus.sequence.first": own_first, "isthmus.sequence.last": own_last}
            entry.span.set_attributes(places)
            own = entry.span.get_span_context()
            others = [context for context in contexts[: LINKS_MAX + 1] if context is not own]
            decided = entry.decision[0] if entry.decision is not None else start
            self._tracer.start_span(
                f"send {self._stream}",
                entry.context,
                kind=SpanKind.PRODUCER,
                links=[Link(context, {"isthmus.link": "same append"}) for context in others],
                start_time=max(start, decided),  # two clocks: an append never begins before its decision
                attributes={
                    "messaging.system": MESSAGING_SYSTEM,
                    "messaging.operation.name": "send",
                    "messaging.operation.type": "send",
                    "messaging.destination.name": self._stream,
                    "messaging.batch.message_count": last - first + 1,
                    "isthmus.batch.commands": len(requests),
                    **places,
                },
            ).end(end)

    def answered(self, commands: Sequence[AnsweredCommand], *, sequence: int) -> None:
        open_ = self._open
        if not open_:
            return
        for request, took_s, error in [commands[place] for place in self._mine(commands)]:
            self._ended(request, open_.pop(id(request)), sequence, took_s, error)

    def _mine(self, commands: Sequence[DecidedCommand] | Sequence[AnsweredCommand]) -> list[int]:
        """The places of those that are recorded, ascending."""
        identities = list(map(id, map(_REQUEST, commands)))
        return sorted(map(identities.index, self._open.keys() & identities))

    def _ended(
        self, request: Request, entry: _Open, sequence: int, took_s: float, error: IsthmusError | None
    ) -> None:
        if entry.decision is not None:
            end, took, waited, events, _ = entry.decision
            if not events and error is None and request.actor.startswith(OWN_ACTOR):
                return  # the controller looked whether time has brought anything: no; such a span never ends
            self._tracer.start_span(
                f"decide {request.command.name}",
                entry.context,
                kind=SpanKind.INTERNAL,
                start_time=end - int(took * 1e9),
                attributes={"isthmus.events": events, "isthmus.queued_ms": round(waited * 1000, 3)},
            ).end(end)
        if error is not None:
            mark_error(entry.span, error)
        entry.span.end()
        _tell(request, entry, sequence, took_s, error)


def _tell(request: Request, entry: _Open, sequence: int, took_s: float, error: IsthmusError | None) -> None:
    """One line for a recorded command, so that the logs lead to its trace and its events; never one more."""
    if not log.isEnabledFor(logging.INFO):
        return
    events = entry.decision[3] if entry.decision is not None else 0
    if error is not None:
        outcome = f"{error.code}: {error.message}"
    elif request.dry_run:
        outcome = f"would write {events} events"
    else:
        outcome = f"{events} events up to {sequence}" if events else "nothing to write"
    context = entry.span.get_span_context()
    log.info(
        "%s by %s: %s",
        request.command.name,
        request.actor,
        outcome,
        extra={
            "isthmus": {
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
                "sequence": sequence,
                "command_id": request.command_id,
                "code": error.code if error is not None else "ok",
                "took_ms": round(took_s * 1000, 3),
            }
        },
    )
