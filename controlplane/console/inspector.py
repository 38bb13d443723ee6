"""The API's source over the parts of a running controller. Reads only; owns nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import islice

from controlplane.changes import Changes
from controlplane.cluster.conditions import poisoned
from controlplane.cluster.decisions.time import watermark
from controlplane.cluster.state import ClusterState
from controlplane.console import event_queries
from controlplane.console.schemas import TimelineBucket
from controlplane.controller.agents.agent_history.store import Coverage, HistoryStore
from controlplane.controller.agents.convergence import Convergence, ConvergenceTracker
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.records import Alarm
from controlplane.controller.agents.reports import LiveReports, PastReports, Reports
from controlplane.controller.mesh.answers import MeshAnswers
from controlplane.controller.observability.live import not_working_reason
from controlplane.controller.observability.setup import Observability
from controlplane.controller.observability.span_store import SpanStore
from controlplane.controller.replication.replica import Replica
from controlplane.readmodel.asof import load_state, moment, sequence_at
from controlplane.readmodel.projector import Projector
from controlplane.readmodel.rows import as_moment, microseconds
from events.codec import Recorded, decode
from events.log import LogReader
from events.protocol.mesh import MeshView, ShowMesh
from events.protocol.queries import Condition
from events.status import AgentStatus

PROJECTED_WITHIN_S = 3.0
"""How long a question about the very recent past waits for the read model."""


class Inspector:
    """A :class:`controlplane.console.source.Source` over a controller's replica, read model and reports."""

    def __init__(
        self,
        log: LogReader,
        replica: Replica,
        projector: Projector,
        liveness: Liveness,
        observability: Observability,
        *,
        mesh: MeshAnswers,
        leading: Callable[[], bool],
    ) -> None:
        self._log = log
        self._replica = replica
        self._projector = projector
        self._liveness = liveness
        self._observability = observability
        self._mesh = mesh
        self._leading = leading

    @property
    def cluster(self) -> str:
        return self._replica.cluster

    @property
    def state(self) -> ClusterState:
        return self._replica.state

    @property
    def head_time(self) -> datetime | None:
        return self._replica.last_time if self._replica.state.sequence else None

    @property
    def leading(self) -> bool:
        return self._leading()

    @property
    def watermark(self) -> int:
        return watermark(self._replica.state, self._liveness.applied, absent=self._liveness.absent) or 0

    @property
    def changes(self) -> Changes:
        return self._replica.changes

    @property
    def convergence(self) -> ConvergenceTracker:
        return self._observability.convergence

    def latest_convergence(self, limit: int) -> list[Convergence]:
        found = self.convergence.latest(limit)
        before = found[-1].first_sequence if found else self.state.sequence + 1
        now_us = microseconds(datetime.now(UTC))
        recalled = self._observability.recalled
        if any(one.applied < one.expected for one in recalled):
            # The measuring broke off with the process. What every agent has applied since is not on its way
            # any more, and when the last of them had it nobody saw: it is no line of this list.
            heard = (self._liveness.applied.get(uid, 0) for uid in self.state.by_uid)
            reached = min((applied for applied in heard if applied), default=0)
            recalled = [one for one in recalled if one.applied >= one.expected or one.last > reached]
            self._observability.recalled = recalled
        earlier = (one.seen_at(now_us) for one in recalled if one.last < before)
        return [*found, *islice(earlier, limit - len(found))]

    @property
    def spans(self) -> SpanStore:
        return self._observability.spans

    def reports(self) -> Reports:
        return LiveReports(self._liveness, datetime.now(UTC))

    def mesh(self, query: ShowMesh) -> MeshView:
        return self._mesh.view(query)

    def hear(self, callback: Callable[[str], None]) -> Callable[[], None]:
        def listener(status: AgentStatus, _age_s: float) -> None:
            callback(status.uid)

        self._liveness.listeners.append(listener)
        return lambda: self._liveness.listeners.remove(listener)

    @property
    def alarms_raised(self) -> int:
        return self._observability.recorder.alarms_raised

    def not_working_reason(self) -> str:
        return not_working_reason(self._replica, self._projector)

    def own_conditions(self) -> list[Condition]:
        halted = self._replica.halted
        own = [poisoned(halted)] if halted is not None else []
        return [*own, *self._observability.conditions()]

    def metrics(self) -> bytes:
        return self._observability.telemetry.prometheus()

    async def state_at(self, sequence: int) -> ClusterState:
        if sequence == 0:
            return ClusterState(self.cluster)
        await self._projector.reached(sequence, timeout_s=PROJECTED_WITHIN_S)
        return await self._projector.query(lambda connection: load_state(connection, sequence))

    async def time_of(self, sequence: int) -> datetime | None:
        def question(connection: sqlite3.Connection) -> datetime | None:
            row = connection.execute("SELECT time_us FROM event WHERE sequence = ?", (sequence,)).fetchone()
            return moment(row[0]) if row else None

        return await self._projector.query(question)

    async def command_of(self, sequence: int) -> tuple[int, int] | None:
        return await self._projector.query(lambda connection: event_queries.command_of(connection, sequence))

    async def sequence_at(self, moment_: datetime) -> int:
        return await self._projector.query(lambda connection: sequence_at(connection, moment_))

    async def events(
        self, *, before: int, limit: int, entity: str, aggregate: str
    ) -> tuple[Sequence[Recorded], int]:
        if not entity and not aggregate:
            wanted: Sequence[int] = range(max(1, before - limit), before)
        else:
            wanted = await self._projector.query(
                lambda c: event_queries.matching(c, before, limit, entity, aggregate)
            )
        found = await self._pick(wanted)
        complete = len(wanted) < limit or (found and found[-1].sequence <= 1)
        return found, 0 if complete or not found else found[-1].sequence

    async def _pick(self, wanted: Sequence[int]) -> list[Recorded]:
        """Those events (given in ascending order), newest first."""
        found: list[Recorded] = []
        asked = set(wanted)
        for first, last in event_queries.runs(wanted):
            found.extend(one for one in await self._read(first, last) if one.sequence in asked)
        found.reverse()
        return found

    async def _read(self, first: int, last: int) -> list[Recorded]:
        return [
            decode(message)
            async for batch in self._log.read(after=first - 1, until=last)
            for message in batch.messages
        ]

    async def event(self, sequence: int) -> Recorded | None:
        if not 1 <= sequence <= self.state.sequence:
            return None
        return next(iter(await self._read(sequence, sequence)), None)

    async def timeline(self, *, buckets: int) -> Sequence[TimelineBucket]:
        return await self._projector.query(lambda connection: event_queries.timeline(connection, buckets))

    # --- the agents' past ----------------------------------------------------------------------------

    @property
    def _history(self) -> HistoryStore:
        return self._observability.history

    async def reports_at(self, state: ClusterState, moment: datetime) -> Reports:
        await self._observability.recorder.settle(moment)
        return PastReports(await self._history.agents(state.by_uid, microseconds(moment)), moment)

    async def recorded(self, moment: datetime) -> Coverage:
        await self._observability.recorder.settle(moment)
        return await self._history.coverage(microseconds(moment))

    async def convergence_at(self, sequence: int, moment: datetime, limit: int) -> list[Convergence]:
        await self._observability.recorder.settle(moment)
        found = await self._history.convergence_records(sequence, limit)
        return [record.seen_at(microseconds(moment)) for record in found]

    async def convergence_of(self, sequence: int, moment: datetime | None) -> Convergence | None:
        if moment is None:
            known = self.convergence.of(sequence)
            if known is not None:
                return known
        await self._observability.recorder.settle(moment or datetime.now(UTC))
        found = await self._history.convergence_record(sequence)
        return found.seen_at(microseconds(moment or datetime.now(UTC))) if found is not None else None

    async def alarms(self, moment: datetime, limit: int) -> list[Alarm]:
        await self._observability.recorder.settle(moment)
        return await self._history.alarms(microseconds(moment), limit)

    async def clb_events(self, name: str, *, until: int, kind: str, limit: int) -> Sequence[Recorded]:
        await self._projector.reached(until, timeout_s=PROJECTED_WITHIN_S)
        wanted = await self._projector.query(
            lambda c: event_queries.of_kind(c, name, f"clb.{kind}", until, limit)
        )
        return await self._pick(wanted)

    async def until(self, sequence: int) -> datetime | None:
        us = await self._projector.query(lambda connection: event_queries.first_time(connection, sequence))
        return as_moment(us) if us is not None else None
