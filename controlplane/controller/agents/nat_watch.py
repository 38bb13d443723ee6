"""Who is behind NAT, by what the agents report again and again: before it becomes a fact of the log.

A fact of the log moves packets on every node, so one report is not enough for it, in neither direction. Every
controller listens; only the leading one's findings are decided about, on the newest state, so that a change of
leaders neither loses nor doubles anything: a new leader has listened, too, or waits for the next reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from controlplane.cluster.decision import NatFinding
from controlplane.cluster.state import ClusterState
from events.status import AgentStatus, NatReport

BEHIND_REPORTS, BEHIND_S = 2, 2.0
"""Reports in a row by which a node is behind NAT, and how long they last at least: its pods wait for it."""
GONE_REPORTS, GONE_S = 4, 30.0
"""The same for one that is not any more: nothing waits for it."""
PENDING_MAX = 20_000
"""Members of which something is pending, or was lately; the others wait for their next report."""
PAUSE_S, PAUSE_MAX_S = 20.0, 3600.0
"""After the second change of one member the next one waits so long, and twice as long each time: what a node
says of itself must not fill the log. It begins anew when nothing changed for twice the longest pause."""


class _Pending(NamedTuple):
    report: NatReport
    since: float
    reports: int


class _Change(NamedTuple):
    """The last change of a member that was found here, and how long the next one waits."""

    says: bool
    at: float
    pause_s: float


class NatWatch:
    """Members that say something else than the log. ``clock`` is monotonic (seconds). O(1) a report."""

    def __init__(self, state: Callable[[], ClusterState], clock: Callable[[], float]) -> None:
        self._state, self._clock = state, clock
        self._pending: dict[str, _Pending] = {}  # uid → what it has said since when
        self._changes: dict[str, _Change] = {}  # uid → its last change

    def take(self, status: AgentStatus, age_s: float) -> None:
        """A report that counts, which arrived ``age_s`` ago."""
        report, state = status.nat, self._state()
        says = report.says if report is not None else None
        if report is None or says is None or says == (status.node in state.behind_nat):
            self._pending.pop(status.uid, None)
            return
        if report.mode == "auto" and not says and not self._believable(state, status.node, report):
            self._pending.pop(status.uid, None)
            return
        at = self._clock() - age_s
        known = self._pending.get(status.uid)
        if known is None or known.report.says != says:
            if len(self._pending) < PENDING_MAX:
                self._pending[status.uid] = _Pending(report, at, 1)
        else:
            self._pending[status.uid] = _Pending(report, known.since, known.reports + 1)

    def _believable(self, state: ClusterState, node: str, report: NatReport) -> bool:
        """Whether somebody saw it who is not behind NAT: whoever shares its link sees no NAT between."""
        return any(
            name in state.nodes and name not in state.behind_nat for name in report.seen_by if name != node
        )

    def settled(self) -> Iterator[NatFinding]:
        """What was said often enough, and is not in the log."""
        now, state = self._clock(), self._state()
        for uid, (report, since, heard) in list(self._pending.items()):
            says = bool(report.says)
            name = state.by_uid.get(uid)
            if name is None or says == (name in state.behind_nat):
                del self._pending[uid]
                continue
            reports, seconds = (BEHIND_REPORTS, BEHIND_S) if says else (GONE_REPORTS, GONE_S)
            enough = report.mode != "auto" or (heard >= reports and now - since >= seconds)
            if enough and self._in_time(uid, now, says=says):
                seen = (report.seen_as, report.seen_by) if report.mode == "auto" else ("", ())
                yield NatFinding(uid, says, *seen)

    def _in_time(self, uid: str, now: float, *, says: bool) -> bool:
        """Whether the member may change now; the same said again is no change."""
        last = self._changes.get(uid)
        if last is not None and last.says == says:
            return True
        pause_s = 0.0
        if last is not None and now - last.at < 2 * PAUSE_MAX_S:
            if now - last.at < last.pause_s:
                return False
            pause_s = min(PAUSE_MAX_S, max(PAUSE_S, 2 * last.pause_s))
        if len(self._changes) >= PENDING_MAX:
            del self._changes[next(iter(self._changes))]
        self._changes.pop(uid, None)  # the oldest is the first
        self._changes[uid] = _Change(says, now, pause_s)
        return True

    def restart(self) -> None:
        """Nobody watched for a while: what was pending is said again, or is not true."""
        self._pending.clear()
