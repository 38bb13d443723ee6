"""Records what changes about the agents, once a second, within a budget. What came and went between is lost.

Taking a report costs one dictionary write. What is told at once is what a person would miss: a state,
a condition, a kernel that differs. A mere step of the applied sequence waits for its turn: in a storm
of ten thousand agents each is written every twenty seconds, with the time of its arrival.
"""

from __future__ import annotations

import asyncio
import logging
import time
from array import array
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime

from controlplane.controller.agents.agent_history.store import HistoryStore
from controlplane.controller.agents.convergence import ConvergenceTracker, Transaction
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.records import (
    LATENCIES_MAX,
    Alarm,
    ConvergenceRecord,
    Observed,
    RecordBatch,
)
from controlplane.controller.agents.reports import LiveReports
from controlplane.readmodel.rows import microseconds
from events.errors import IsthmusError, Unavailable
from events.status import AgentStatus

log = logging.getLogger("isthmus.history")

EVERY_S = 1.0
LOOK_S = 5.0
"""How often it is looked for agents that have fallen silent."""
ROWS_PER_S = 500
RECORDS_PER_S = 64
ALARMS_WAITING = 100
UNSETTLED_S = 120.0
"""What is older has been written: the budget covers ten thousand agents in a sixth of it."""


class Recorder:
    """Feeds a :class:`HistoryStore`. :meth:`run` is owned by whoever watches the controller."""

    def __init__(
        self,
        store: HistoryStore,
        convergence: ConvergenceTracker,
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._convergence = convergence
        self._now = now
        self._clock = clock
        self._liveness: Liveness | None = None
        self._dirty: dict[str, None] = {}
        self._written: dict[str, Observed] = {}
        self._since: dict[str, int] = {}  # uid → from when its last row is true
        self._gone: dict[str, int] = {}
        self._alarms: deque[Alarm] = deque(maxlen=ALARMS_WAITING)
        self.alarms_raised = 0
        self._looked_s = float("-inf")
        self._busy = asyncio.Lock()

    def watch(self, liveness: Liveness) -> None:
        """Whose reports to record. Call once."""
        self._liveness = liveness
        self._dirty = dict.fromkeys(liveness.statuses)

    def reported(self, status: AgentStatus) -> None:
        """A report was taken. Called for each: costs nothing."""
        self._dirty[status.uid] = None

    def gone(self, uid: str, at: datetime) -> None:
        """The node is no member any more."""
        self._dirty.pop(uid, None)
        self._gone[uid] = microseconds(at)

    def alarmed(self, name: str, error: IsthmusError) -> None:
        """Something needs a person."""
        self.alarms_raised += 1
        self._alarms.append(
            Alarm(
                name=name, code=error.code, message=error.message, at=datetime.fromtimestamp(self._now(), UTC)
            )
        )

    async def run(self) -> None:
        """Write once a second until cancelled; then once more. What cannot be written is lost, and said."""
        try:
            while True:
                await self.flush()
                await asyncio.sleep(EVERY_S)
        finally:
            await self.flush(budget=10 * ROWS_PER_S)

    async def flush(self, *, budget: int = ROWS_PER_S) -> None:
        """Write what is due: at most ``budget`` mere steps, and whatever matters more.

        Cancelled, what was taken is still written, in the thread.
        """
        async with self._busy:
            batch = self._batch(budget)
            try:
                await self._store.write(batch)
            except Unavailable as error:  # a full disk must not end the controller
                log.warning("the agents' reports could not be recorded: %s", error.message)

    async def settle(self, moment: datetime) -> None:
        """Write all that has been reported, when somebody asks about a moment that may still be waiting.

        Cancelled, the writing goes on in its thread.
        """
        if self._now() - moment.timestamp() < UNSETTLED_S:
            await self.flush(budget=len(self._dirty) + 1)

    def _batch(self, budget: int) -> RecordBatch:
        now_us = int(self._now() * 1e6)
        agents: list[Observed] = []
        since: list[int] = []
        gone: list[tuple[str, int]] = []
        if self._liveness is not None:
            self._look(self._liveness)
            reports = LiveReports(self._liveness, datetime.fromtimestamp(now_us / 1e6, UTC))
            self._choose(reports, budget, now_us, agents, since)
        for uid, at_us in self._gone.items():
            self._since.pop(uid, None)
            if self._written.pop(uid, None) is not None:
                gone.append((uid, at_us))
        self._gone.clear()
        offset_us = now_us - int(self._clock() * 1e6)
        records = [convergence_record(found, offset_us) for found in self._convergence.unwritten(RECORDS_PER_S)]
        alarms = list(self._alarms)
        self._alarms.clear()
        return RecordBatch(now_us, agents, since, gone, records, alarms)

    def _look(self, liveness: Liveness) -> None:
        """Those who have fallen silent, and those who are forgotten, say so by not saying anything."""
        if self._clock() - self._looked_s < LOOK_S:
            return
        self._looked_s = self._clock()
        for uid in self._written:
            self._dirty[uid] = None
        for uid in liveness.statuses:
            if uid not in self._written:
                self._dirty[uid] = None

    def _choose(
        self, reports: LiveReports, budget: int, now_us: int, agents: list[Observed], since: list[int]
    ) -> None:
        later: dict[str, None] = {}
        for uid in self._dirty:
            observed = reports.of(uid)
            known = self._written.get(uid)
            if observed is None:
                if known is not None:
                    self._gone.setdefault(uid, now_us)
                continue
            if known is not None and _same(known, observed):
                continue
            if known is not None and _quiet(known, observed):
                if budget <= 0:
                    later[uid] = None
                    continue
                budget -= 1
            at_us = reports.changed_us(observed)
            at_us = max(min(at_us, now_us), self._since.get(uid, 0) + 1)
            self._written[uid] = observed
            self._since[uid] = at_us
            agents.append(observed)
            since.append(at_us)
        self._dirty = later


def _same(known: Observed, observed: Observed) -> bool:
    numbers = known.applied, known.kernel_at, known.peers
    return numbers == (observed.applied, observed.kernel_at, observed.peers) and _quiet(known, observed)


def _quiet(known: Observed, observed: Observed) -> bool:
    """Whether nothing has changed that a person would miss."""
    return (
        known.state == observed.state
        and known.kernel == observed.kernel
        and known.conditions == observed.conditions
        and known.rows == observed.rows
        and known.gateway == observed.gateway
        and known.version == observed.version
        and (known.mtu, known.path_mtu) == (observed.mtu, observed.path_mtu)
        and known.fast_path == observed.fast_path
    )


def convergence_record(transaction: Transaction, offset_us: int) -> ConvergenceRecord:
    """A followed transaction as it is recorded; ``offset_us`` leads from the steady clock to Unix time."""
    ordered = sorted(transaction.latencies)
    count = len(ordered)
    if count > LATENCIES_MAX:
        ordered = [ordered[round(i * (count - 1) / (LATENCIES_MAX - 1))] for i in range(LATENCIES_MAX)]
    return ConvergenceRecord(
        first=transaction.first,
        last=transaction.last,
        stored_us=int(transaction.at * 1e6) + offset_us,
        decided_us=microseconds(transaction.decided_at) if transaction.decided_at else 0,
        summary=transaction.summary,
        expected=count + transaction.waiting,
        applied=count,
        latencies=array("f", ordered),
        slowest=tuple((node, round(seconds, 6)) for node, seconds in transaction.slowest),
    )
