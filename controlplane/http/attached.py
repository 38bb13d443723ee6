"""The API's source over the parts of a running controller. Reads only; owns nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from controlplane.convergence import ConvergenceTracker
from controlplane.decisions.time import watermark
from controlplane.http.build import Reports, agents_by_state
from controlplane.http.views import TimelineBucket
from controlplane.liveness import Liveness
from controlplane.metrics import Live
from controlplane.observe import Observability
from controlplane.readmodel.asof import load_state, moment, sequence_at
from controlplane.readmodel.projector import Projector
from controlplane.service.hooks import Changes
from controlplane.service.replica import Replica
from controlplane.spans import SpanStore
from controlplane.state import ClusterState
from events.codec import Recorded, decode
from events.log import LogReader

T = TypeVar("T")
READ_OVER = 64
PROJECTED_WITHIN_S = 3.0
"""How long a question about the very recent past waits for the read model."""

_TIMELINE = """
SELECT max(sequence), max(time_us),
  sum(type LIKE 'node.joined.%'), sum(type LIKE 'node.left.%' OR type LIKE 'node.fenced.%'),
  sum(type LIKE '%.refused.%' OR type LIKE '%-refused.%'), count(*)
FROM event GROUP BY (sequence - 1) * ?1 / ?2 ORDER BY 1
"""


class AttachedSource:
    """A :class:`controlplane.http.source.Source` over a controller's replica, read model and reports."""

    def __init__(
        self,
        log: LogReader,
        replica: Replica,
        projector: Projector,
        liveness: Liveness,
        observability: Observability,
        *,
        leading: Callable[[], bool],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log = log
        self._replica = replica
        self._projector = projector
        self._liveness = liveness
        self._observability = observability
        self._leading = leading
        self._now = now

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
        return watermark(self._replica.state, self._liveness.applied) or 0

    @property
    def changes(self) -> Changes:
        return self._replica.changes

    @property
    def convergence(self) -> ConvergenceTracker:
        return self._observability.convergence

    @property
    def spans(self) -> SpanStore:
        return self._observability.spans

    def reports(self) -> Reports:
        live = self._liveness
        return Reports(statuses=live.statuses, last_seen=live.last_seen, applied=live.applied, now=self._now())

    def trouble(self) -> str:
        if self._projector.stalled is not None:
            return f"the projection stopped: {self._projector.stalled.message}"
        return "" if self._replica.live else "the log has not been read to its end yet"

    def metrics(self) -> bytes:
        return self._observability.telemetry.prometheus()

    def live(self, *, waiting: Callable[[], int]) -> Live:
        """What the metrics read."""
        return Live(
            state=lambda: self._replica.state,
            head=lambda: self._replica.state.sequence,
            projected=lambda: self._projector.sequence,
            leading=self._leading,
            agents=lambda: agents_by_state(self._replica.state, self.reports()),
            watermark=lambda: self.watermark,
            chain_verified=lambda: self._replica.head.sequence,
            healthy=lambda: not self.trouble(),
            waiting=waiting,
            spans=lambda: self.spans.count,
            subscribers=lambda: self.changes.statistics()["subscribers"],
        )

    async def _query(self, question: Callable[[sqlite3.Connection], T]) -> T:
        store = await self._projector.open()
        return await store.run(question)

    async def state_at(self, sequence: int) -> ClusterState:
        if sequence == 0:
            return ClusterState(self.cluster)
        await self._projector.reached(sequence, timeout_s=PROJECTED_WITHIN_S)
        return await self._query(lambda connection: load_state(connection, sequence))

    async def time_of(self, sequence: int) -> datetime | None:
        def question(connection: sqlite3.Connection) -> datetime | None:
            row = connection.execute("SELECT time_us FROM event WHERE sequence = ?", (sequence,)).fetchone()
            return moment(row[0]) if row else None

        return await self._query(question)

    async def sequence_at(self, moment_: datetime) -> int:
        return await self._query(lambda connection: sequence_at(connection, moment_))

    async def events(
        self, *, before: int, limit: int, entity: str, aggregate: str
    ) -> tuple[Sequence[Recorded], int]:
        if not entity and not aggregate:
            wanted: Sequence[int] = range(max(1, before - limit), before)
        else:
            wanted = await self._query(lambda c: _matching(c, before, limit, entity, aggregate))
        found: list[Recorded] = []
        asked = set(wanted)
        for first, last in _runs(wanted):
            found.extend(one for one in await self._read(first, last) if one.sequence in asked)
        found.reverse()
        complete = len(wanted) < limit or (found and found[-1].sequence <= 1)
        return found, 0 if complete or not found else found[-1].sequence

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
        def question(connection: sqlite3.Connection) -> list[TimelineBucket]:
            (last,) = connection.execute("SELECT max(sequence) FROM event").fetchone()
            if not last:
                return []
            found = []
            for sequence, time_us, joins, leaves, refusals, total in connection.execute(
                _TIMELINE, (min(buckets, last), last)
            ):
                at = moment(time_us)
                if at is not None:
                    others = total - joins - leaves - refusals
                    found.append(
                        TimelineBucket(
                            sequence=sequence,
                            at=at,
                            joins=joins,
                            leaves=leaves,
                            refusals=refusals,
                            others=others,
                        )
                    )
            return found

        return await self._query(question)


def _matching(
    connection: sqlite3.Connection, before: int, limit: int, entity: str, aggregate: str
) -> list[int]:
    """Sequences of the newest events below ``before`` that match, ascending."""
    conditions = ["sequence < ?"]
    values: list[object] = [before]
    if aggregate:
        conditions.append("type >= ? AND type < ?")
        values += [f"{aggregate}.", f"{aggregate}/"]
    if entity:
        # A node's history includes its ranges': they name it, but are events of the range.
        conditions.append("(entity = ? OR sequence IN (SELECT valid_from FROM range WHERE node = ?))")
        values += [entity, entity]
    rows = connection.execute(
        f"SELECT sequence FROM event WHERE {' AND '.join(conditions)} ORDER BY sequence DESC LIMIT ?",  # noqa: S608
        (*values, limit),
    ).fetchall()
    return [row[0] for row in reversed(rows)]


def _runs(sequences: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending sequences as stretches that are read at once; small gaps are read over."""
    runs: list[tuple[int, int]] = []
    for sequence in sequences:
        if runs and sequence - runs[-1][1] <= READ_OVER:
            runs[-1] = (runs[-1][0], sequence)
        else:
            runs.append((sequence, sequence))
    return runs
