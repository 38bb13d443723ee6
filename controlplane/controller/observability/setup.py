"""The observability of one controller, set up: spans, metrics, convergence, the built-in stores.

::

    async with Observability.open(cluster, name, directory) as observability:
        controller = await Controller.start(options, observer=observability.observer)
        async with observability.following(controller.changes, controller.liveness, live, controller.client):
            await controller.run()

It sits beside the command path and can lose anything it has without harm.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from nats.aio.client import Client

from controlplane.changes import Changes, Lagged
from controlplane.controller.agents.agent_history.recorder import Recorder
from controlplane.controller.agents.agent_history.store import REPORTS_MAX, HistoryStore
from controlplane.controller.agents.convergence import ConvergenceTracker
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.records import ConvergenceRecord
from controlplane.controller.hooks import AnsweredCommand, DecidedCommand, Observer, TraceContext
from controlplane.controller.observability.live import LiveNumbers
from controlplane.controller.observability.metrics import ControllerMetrics
from controlplane.controller.observability.span_intake import SpanIntake
from controlplane.controller.observability.span_store import SPANS_MAX, SpanStore
from controlplane.controller.observability.tracing import TracingObserver
from controlplane.controller.requests import Request
from controlplane.controller.tasks import end
from events.codec import Recorded
from events.errors import IsthmusError, Unavailable, Usage
from events.protocol.queries import Condition
from events.status import AgentStatus
from events.telemetry.role import Telemetry
from events.telemetry.spans import Outbox
from events.types import NodeFenced, NodeLeft

log = logging.getLogger("isthmus.observability")

RECALLED = 50
SINGLY = 16
"""Transactions of one run that are measured one by one; more are measured together."""


_EVENT = attrgetter("event")
_OUT = frozenset({NodeLeft, NodeFenced})


@dataclass(slots=True, eq=False)
class CombinedObserver(Observer):
    """Spans and metrics as one observer. On the path of every command: calls, and nothing else."""

    spans: TracingObserver
    metrics: ControllerMetrics
    convergence: ConvergenceTracker
    recorder: Recorder

    def received(self, request: Request) -> TraceContext | None:
        return self.spans.received(request)

    def decided(self, commands: Sequence[DecidedCommand]) -> None:
        self.spans.decided(commands)
        self.metrics.decided(commands)

    def appended(self, requests: Sequence[Request], *, first: int, last: int, took_s: float) -> None:
        self.spans.appended(requests, first=first, last=last, took_s=took_s)
        self.metrics.appended(requests, first=first, last=last, took_s=took_s)
        self.convergence.sent(first, last, time.monotonic() - took_s)

    def answered(self, commands: Sequence[AnsweredCommand], *, sequence: int) -> None:
        self.spans.answered(commands, sequence=sequence)
        self.metrics.answered(commands, sequence=sequence)

    def projected(self, *, last: int, count: int, took_s: float) -> None:
        self.metrics.projected(last=last, count=count, took_s=took_s)

    def alarmed(self, name: str, error: IsthmusError) -> None:
        self.metrics.alarmed(name, error)
        self.recorder.alarmed(name, error)


class Observability:
    """Telemetry and the stores of one controller. Made by :meth:`open`."""

    def __init__(
        self, cluster: str, telemetry: Telemetry, outbox: Outbox, spans: SpanStore, history: HistoryStore
    ) -> None:
        self.cluster = cluster
        self.telemetry = telemetry
        self.spans = spans
        self.metrics = ControllerMetrics(telemetry)
        self.convergence = ConvergenceTracker(
            on_applied=self.metrics.applied.record, on_converged=self.metrics.converged.record
        )
        self.history = history
        self.recorder = Recorder(history, self.convergence)
        self.recalled: list[ConvergenceRecord] = []
        """The latest transactions that an earlier process of this directory recorded, newest first."""
        self.observer: Observer = CombinedObserver(
            TracingObserver(telemetry, cluster), self.metrics, self.convergence, self.recorder
        )
        self._outbox = outbox

    def conditions(self) -> list[Condition]:
        """What a person should know of the stores."""
        return [*self.spans.file.conditions(), *self.history.file.conditions()]

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        cluster: str,
        instance: str,
        directory: Path | None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> AsyncIterator[Observability]:
        """Open the stores of spans and reports in ``directory`` (in memory without one); start telemetry.

        ``ISTHMUS_SPANS_MAX`` and ``ISTHMUS_REPORTS_MAX`` set how many spans and changes of agents are kept.
        Raises Usage(usage) when one of them is no positive number. A cancellation inside of the block closes
        them, too.
        """
        spans_max = _limit(environ, "ISTHMUS_SPANS_MAX", SPANS_MAX)
        reports_max = _limit(environ, "ISTHMUS_REPORTS_MAX", REPORTS_MAX)
        spans_at: Path | str = ":memory:"
        history_at: Path | str = ":memory:"
        if directory is not None:
            with suppress(OSError):  # the stores say what they cannot do
                directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240  once, at start
            spans_at, history_at = directory / "spans.db", directory / "reports.db"
        outbox = Outbox()
        async with (
            SpanStore.open(spans_at, limit=spans_max) as spans,
            HistoryStore.open(history_at, limit=reports_max) as history,
        ):
            telemetry = Telemetry.start(
                "controller", instance=instance, cluster=cluster, sink=outbox, metrics=True, environ=environ
            )
            shipping = asyncio.create_task(outbox.run(spans.add), name="spans")
            try:
                observability = cls(cluster, telemetry, outbox, spans, history)
                with suppress(Unavailable):
                    observability.recalled = await history.convergence_records(2**53, RECALLED)
                yield observability
            finally:
                await end([shipping])
                await telemetry.close()

    @asynccontextmanager
    async def following(
        self, changes: Changes, liveness: Liveness, live: LiveNumbers, client: Client | None
    ) -> AsyncIterator[None]:
        """Follow the events and the reports until the block is left; ``client`` brings others' spans.

        A cancellation inside of the block ends its tasks, too.
        """
        self.metrics.bind(live)

        def on_report(status: AgentStatus, _age_s: float) -> None:
            # An agent whose node was taken out goes on reporting; nothing waits for it.
            if status.uid in live.replica.state.by_uid:
                self.convergence.reported(status.node, status.applied, time.monotonic())
            self.recorder.reported(status)

        liveness.listeners.append(on_report)
        self.recorder.watch(liveness)
        following = asyncio.create_task(self._follow(changes), name="convergence")
        recording = asyncio.create_task(self.recorder.run(), name="reports")
        intake = (
            SpanIntake(client, self.cluster, self.spans, exceeded=liveness.exceeded)
            if client is not None
            else None
        )
        try:
            if intake is not None:
                await intake.open()
            yield
        finally:
            if intake is not None:
                await intake.close()
            liveness.listeners.remove(on_report)
            await end([following])
            await end([recording])

    async def _follow(self, changes: Changes) -> None:
        while True:
            subscription = changes.subscribe()
            try:
                async for run in subscription:
                    self._stored(run)
                return  # noqa: TRY300  the loop's way out: the broadcast has ended
            except Lagged:
                log.info("measuring convergence again from here: too many events at once")
            finally:
                subscription.close()

    def _stored(self, run: Sequence[Recorded]) -> None:
        now = time.monotonic()
        self.metrics.stored(run)
        if not _OUT.isdisjoint(map(type, map(_EVENT, run))):
            for recorded in run:
                if isinstance(recorded.event, (NodeLeft, NodeFenced)):
                    self.convergence.gone(recorded.event.node)
                    self.recorder.gone(recorded.event.uid, recorded.envelope.time)
        ends = [r for r in run if (place := r[1]).tx_index == place.tx_count - 1]
        if len(ends) > SINGLY:
            # A storm is one thing that happens to the agents; measuring each part would tell no more.
            last = ends[-1]
            summary = f"{len(ends):,} transactions"
            self.convergence.stored(run[0].sequence, last.sequence, now, summary, last.envelope.time)
            return
        for recorded in ends:
            envelope, event = recorded.envelope, recorded.event
            more = f" and {envelope.tx_index} more" if envelope.tx_index > 1 else ""
            summary = f"{event.verb.replace('-', ' ')} {event.entity}{more}"
            first = recorded.sequence - envelope.tx_index
            self.convergence.stored(first, recorded.sequence, now, summary, envelope.time)


def _limit(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "").strip()
    if text and not (text.isdigit() and int(text)):
        raise Usage("usage", f"{name}={text} is not a positive number")
    return int(text or default)
