"""What the HTTP API may know of a running controller, and nothing else. Reads only; owns nothing.

It answers from the live state and the read model, never blocks the event loop, and raises only
:class:`events.errors.IsthmusError`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from controlplane.cluster.conditions import poisoned
from controlplane.cluster.decisions.time import watermark
from controlplane.cluster.state import ClusterState
from controlplane.console import event_queries
from controlplane.console.schemas import TimelineBucket
from controlplane.controller.agents.agent_history.store import Coverage
from controlplane.controller.agents.convergence import Convergence
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.records import Alarm
from controlplane.controller.agents.reports import LiveReports, PastReports, Reports
from controlplane.controller.mesh.answers import MeshAnswers
from controlplane.controller.observability.live import not_working_reason
from controlplane.controller.observability.setup import Observability
from controlplane.controller.replication.replica import Replica
from controlplane.readmodel.asof import load_state, moment, sequence_at
from controlplane.readmodel.projector import Projector
from controlplane.readmodel.rows import as_moment, microseconds
from events.codec import Recorded, decode
from events.log import LogReader
from events.protocol.pods import PodsView
from events.protocol.queries import Condition
from events.status import AgentStatus

PROJECTED_WITHIN_S = 3.0
"""How long a question about the very recent past waits for the read model."""


@dataclass
class Inspector:
    """A controller's replica, read model and reports, as the API sees them.

    A cancelled question leaves nothing behind.
    """

    log: LogReader
    replica: Replica
    projector: Projector
    liveness: Liveness
    observability: Observability
    mesh: MeshAnswers
    leading: Callable[[], bool]
    pods_of: Callable[[str, str], Awaitable[PodsView]] | None = None
    """What is kept of the pods that had an address on a node; None: nobody keeps it."""

    @property
    def state(self) -> ClusterState:
        """The live state. Valid until the next await: whoever reads it reads it in one go."""
        return self.replica.state

    @property
    def head_time(self) -> datetime | None:
        """When the last event was decided; None in an empty log."""
        return self.replica.last_time if self.replica.state.sequence else None

    @property
    def watermark(self) -> int:
        """The lowest applied sequence of the live agents; 0 without any."""
        return watermark(self.replica.state, self.liveness.applied, absent=self.liveness.absent) or 0

    def latest_convergence(self, limit: int) -> list[Convergence]:
        """The latest transactions, newest first; before this process' own those that were recorded."""
        found = self.observability.convergence.latest(limit)
        before = found[-1].first_sequence if found else self.state.sequence + 1
        now_us = microseconds(datetime.now(UTC))
        recalled = self.observability.recalled
        if any(one.applied < one.expected for one in recalled):
            # The measuring broke off with the process. What every agent has applied since is not on its way
            # any more, and when the last of them had it nobody saw: it is no line of this list.
            heard = (self.liveness.applied.get(uid, 0) for uid in self.state.by_uid)
            reached = min((applied for applied in heard if applied), default=0)
            recalled = [one for one in recalled if one.applied >= one.expected or one.last > reached]
            self.observability.recalled = recalled
        earlier = (one.seen_at(now_us) for one in recalled if one.last < before)
        return [*found, *islice(earlier, limit - len(found))]

    def reports(self) -> Reports:
        """What the agents last said."""
        return LiveReports(self.liveness, datetime.now(UTC))

    def hear(self, callback: Callable[[str], None]) -> Callable[[], None]:
        """Call with the uid of each agent that reports, until the function returned is called."""

        def listener(status: AgentStatus, _age_s: float) -> None:
            callback(status.uid)

        self.liveness.listeners.append(listener)
        return lambda: self.liveness.listeners.remove(listener)

    def not_working_reason(self) -> str:
        """Why this controller does not do its work; empty when it does."""
        return not_working_reason(self.replica, self.projector)

    def own_conditions(self) -> list[Condition]:
        """What a person should know of this controller itself."""
        halted = self.replica.halted
        own = [poisoned(halted)] if halted is not None else []
        return [*own, *self.observability.conditions()]

    async def state_at(self, sequence: int) -> ClusterState:
        """The state as it was directly after ``sequence``, for the caller alone. 0 is the empty state."""
        if sequence == 0:
            return ClusterState(self.replica.cluster)
        await self.projector.reached(sequence, timeout_s=PROJECTED_WITHIN_S)
        return await self.projector.query(lambda connection: load_state(connection, sequence))

    async def time_of(self, sequence: int) -> datetime | None:
        """When the event was decided; None when there is no such event (yet) in the read model."""

        def question(connection: sqlite3.Connection) -> datetime | None:
            row = connection.execute("SELECT time_us FROM event WHERE sequence = ?", (sequence,)).fetchone()
            return moment(row[0]) if row else None

        return await self.projector.query(question)

    async def command_of(self, sequence: int) -> tuple[int, int] | None:
        """The first and the last event of the command that an event belongs to; None when none is known."""
        return await self.projector.query(lambda connection: event_queries.command_of(connection, sequence))

    async def sequence_at(self, moment_: datetime) -> int:
        """The last sequence decided at or before the moment; 0 when there is none."""
        return await self.projector.query(lambda connection: sequence_at(connection, moment_))

    async def events(
        self, *, before: int, limit: int, entity: str, aggregate: str
    ) -> tuple[Sequence[Recorded], int]:
        """At most ``limit`` events with a sequence below ``before``, newest first.

        ``entity`` and ``aggregate`` narrow them (empty: all). The number is where to go on; 0 at the beginning.
        """
        if not entity and not aggregate:
            wanted: Sequence[int] = range(max(1, before - limit), before)
        else:
            wanted = await self.projector.query(
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
            async for batch in self.log.read(after=first - 1, until=last)
            for message in batch.messages
        ]

    async def event(self, sequence: int) -> Recorded | None:
        """One event; None beyond the head."""
        if not 1 <= sequence <= self.state.sequence:
            return None
        return next(iter(await self._read(sequence, sequence)), None)

    async def timeline(self, *, buckets: int) -> Sequence[TimelineBucket]:
        """The log from its beginning to the read model's checkpoint, evenly cut by sequence."""
        return await self.projector.query(lambda connection: event_queries.timeline(connection, buckets))

    # --- the agents' past ----------------------------------------------------------------------------

    async def reports_at(self, state: ClusterState, moment: datetime) -> Reports:
        """What was known of that state's members then."""
        await self.observability.recorder.settle(moment)
        return PastReports(await self.observability.history.agents(state.by_uid, microseconds(moment)), moment)

    async def recorded(self, moment: datetime) -> Coverage:
        """Whether the agents' reports were recorded at that moment."""
        await self.observability.recorder.settle(moment)
        return await self.observability.history.coverage(microseconds(moment))

    async def convergence_at(self, sequence: int, moment: datetime, limit: int) -> list[Convergence]:
        """The latest transactions up to a sequence as they were known then, newest first."""
        await self.observability.recorder.settle(moment)
        found = await self.observability.history.convergence_records(sequence, limit)
        return [record.seen_at(microseconds(moment)) for record in found]

    async def convergence_of(self, sequence: int, moment: datetime | None) -> Convergence | None:
        """The transaction that contains a sequence, at that moment (None: now); None when not recorded."""
        if moment is None:
            known = self.observability.convergence.of(sequence)
            if known is not None:
                return known
        await self.observability.recorder.settle(moment or datetime.now(UTC))
        found = await self.observability.history.convergence_record(sequence)
        return found.seen_at(microseconds(moment or datetime.now(UTC))) if found is not None else None

    async def alarms(self, moment: datetime, limit: int) -> list[Alarm]:
        """The latest alarms up to a moment, newest first."""
        await self.observability.recorder.settle(moment)
        return await self.observability.history.alarms(microseconds(moment), limit)

    async def clb_events(self, name: str, *, until: int, kind: str, limit: int) -> Sequence[Recorded]:
        """Events of a reservation whose verb begins with ``kind``, at most so many, newest first."""
        await self.projector.reached(until, timeout_s=PROJECTED_WITHIN_S)
        wanted = await self.projector.query(
            lambda c: event_queries.of_kind(c, name, f"clb.{kind}", until, limit)
        )
        return await self._pick(wanted)

    async def until(self, sequence: int) -> datetime | None:
        """When the next event was decided; None when there is none yet."""
        us = await self.projector.query(lambda connection: event_queries.first_time(connection, sequence))
        return as_moment(us) if us is not None else None
