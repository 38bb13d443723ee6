"""What the agents' reports say: who is alive, who has applied what, who complains.

Observations, not facts: kept in memory by every controller, leading or not, and gone with it. They
become facts only through decisions (:class:`controlplane.cluster.decision.MarkLiveness`,
:class:`~controlplane.cluster.decision.AdvanceDrains`). Arrival by this controller's watch is what counts
(:class:`controlplane.controller.clocks.Watch`); no wall clock is trusted, its own as little as an agent's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

from controlplane.changes import Changes, Lagged
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.attestation import Attestor, Difference
from controlplane.controller.agents.pod_reports import PodReports
from controlplane.controller.clocks import ClockCheck, Watch
from events.protocol.queries import Condition
from events.status import SILENT_INTERVALS, AgentStatus
from events.types import NodeFenced, NodeJoined, NodeLeft

UIDS_LIMIT = 200_000
"""Agents remembered. Reports of more are dropped: somebody invents uids."""


ABSENT_AFTER_S = 60.0
"""A member whose agent has not come for so long, since it joined or this controller listens, is absent."""


class Liveness:
    """The last report of each agent, by uid. ``clocks`` is told how far the agents' own clocks are off."""

    def __init__(self, *, watch: Watch | None = None, clocks: ClockCheck | None = None) -> None:
        self.watch = watch or Watch()
        self.clocks = clocks or ClockCheck()
        self.absent = Absent(self, self._watched_s)
        """Members whose agents have never reported."""
        self.ever_heard = EverHeard(self)
        """Members whose agents have been heard at all."""
        self.heard: dict[str, datetime] = {}
        """uid → arrival of its last report, by :attr:`watch`."""
        self.applied: dict[str, int] = {}
        """uid → highest sequence that its agent has applied."""
        self.statuses: dict[str, AgentStatus] = {}
        """uid → its last report."""
        self.watching_since = self.watch.now()
        """From this moment on, by the watch, silence has been watched without a gap."""
        self.pods = PodReports()
        """What the reports say of pods, also those of nodes that are no members any more."""
        self.attestor = Attestor()
        """Judges what the reports say about the kernels."""
        self.moved = asyncio.Event()
        """Set when an applied sequence has grown; whoever waits clears it."""
        self.warnings: Callable[[], Sequence[Condition]] = tuple
        """What is wrong with the reports that were not taken."""
        self.exceeded: Callable[[str, str], None] = lambda _node, _what: None
        """Called with a node and what it did too much of."""
        self.listeners: list[Callable[[AgentStatus, float], None]] = []
        """Called with each report that was taken and its age in seconds; each returns at once."""

    def restart(self) -> None:
        """Listening was interrupted (the bus was away): silence counts from now on only."""
        self.heard.clear()
        self.watch_anew()

    def watch_anew(self) -> None:
        """What was silent before this moment may have spoken unheard: silence counts from now on only."""
        self.watching_since = self.watch.now()
        self.absent.restart()

    def _watched_s(self) -> float:
        return self.watch.now().timestamp()

    def observe(self, status: AgentStatus, *, age_s: float = 0.0, state: ClusterState | None = None) -> None:
        """Take one report. Late and repeated ones are harmless: applied sequences only grow.

        ``age_s``: how long ago it arrived on the bus, by the bus's own time; 0 for one that has just come.
        With ``state`` what it says about the kernel is judged, before the listeners hear of it. An agent
        that says it is stopping is alive no longer than its silence says; one that starts anew (lower
        ``applied``) keeps what it had: its kernel has it still.
        """
        uid = status.uid
        known = self.heard.get(uid) if uid in self.statuses else None
        if uid not in self.heard and len(self.heard) >= UIDS_LIMIT:
            return
        arrived = self.watch.now() - timedelta(seconds=max(0.0, age_s))
        if not age_s:
            self.clocks.agent(status.node, status.sent_at)
        if known is None or arrived > known:
            self.heard[uid] = arrived
            self.statuses[uid] = status
        if status.applied > self.applied.get(uid, 0):
            self.applied[uid] = status.applied
            self.moved.set()
        if state is not None:
            self.attestor.judge(state, status)
        for listener in self.listeners:
            listener(status, age_s)

    def joined(self, uid: str, *, itself: bool = True, at: datetime | None = None) -> None:
        """The node has just become a member, ``at`` by :attr:`watch`: now, if the caller has not looked.

        By its agent ``itself``: that counts as a report, but says nothing of its kernel. Entered by somebody
        else it says nothing at all.
        """
        at = at or self.watch.now()
        self.heard.setdefault(uid, at)
        self.absent.joined(uid, at.timestamp())
        if itself:
            self.ever_heard.add(uid)

    def forget(self, uid: str) -> None:
        """The node is no member any more."""
        self.heard.pop(uid, None)
        self.applied.pop(uid, None)
        self.statuses.pop(uid, None)
        self.absent.forget(uid)
        self.ever_heard.forget(uid)
        self.attestor.forget(uid)

    @property
    def encrypts(self) -> Mapping[str, int]:
        """As ``applied``, without the agents that wait for sessions with peers. O(members)."""
        known = self.statuses
        return {
            uid: value
            for uid, value in self.applied.items()
            if uid not in known or not known[uid].encryption_waits
        }

    @property
    def last_seen(self) -> Mapping[str, datetime]:
        """uid → arrival of its last report, as the wall clock counts now."""
        return _ByWallClock(self.heard, self.watch)

    def silence_s(self, uid: str) -> float | None:
        """For how long an agent has not reported; None when it never has."""
        seen = self.heard.get(uid)
        return None if seen is None else (self.watch.now() - seen).total_seconds()

    def stale(self, uid: str) -> bool:
        """Whether its last report is older than it should be: it says what was."""
        status, silence_s = self.statuses.get(uid), self.silence_s(uid)
        return status is not None and (silence_s is None or silence_s > SILENT_INTERVALS * status.interval_s)

    @property
    def differences(self) -> Mapping[str, Difference]:
        """uid → how its kernel differs from what the log demands."""
        return self.attestor.differences

    @property
    def agreeing(self) -> Mapping[str, int]:
        """uid → the last sequence at which its kernel was as the log says."""
        return self.attestor.agreeing

    def conditions(self) -> tuple[Condition, ...]:
        """What a person should know about the reports themselves, and the clocks behind them."""
        return (*self.clocks.conditions(), *self.pods.conditions(), *self.warnings())


class EverHeard(Container[str]):
    """The uids of members whose agents have been heard: by a report, or by their own join."""

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness
        self._joined: set[str] = set()

    def __contains__(self, uid: object) -> bool:
        statuses = self._liveness.statuses
        return uid in self._joined or uid in statuses or len(statuses) >= UIDS_LIMIT

    def add(self, uid: str) -> None:
        """It joined by itself."""
        self._joined.add(uid)

    def forget(self, uid: str) -> None:
        """It is no member any more."""
        self._joined.discard(uid)


class Absent(Container[str]):
    """The uids of members that have never reported, after they had :data:`ABSENT_AFTER_S` to do so.

    Imported nodes whose agents never came, for instance: nothing waits for them. A uid that was heard
    once is never absent again, however long it is silent: its kernel may hold what it had.
    """

    def __init__(self, liveness: Liveness, steady_s: Callable[[], float]) -> None:
        self._liveness = liveness
        self._steady_s = steady_s
        self._since_s = steady_s()
        self._joined_s: dict[str, float] = {}

    def __contains__(self, uid: object) -> bool:
        statuses = self._liveness.statuses
        if uid in statuses or len(statuses) >= UIDS_LIMIT:  # beyond the limit reports are dropped
            return False
        since_s = self._joined_s.get(uid, self._since_s) if isinstance(uid, str) else self._since_s
        return self._steady_s() - since_s >= ABSENT_AFTER_S

    def joined(self, uid: str, at_s: float) -> None:
        """It has just become a member: its agent has time to come."""
        self._joined_s.setdefault(uid, at_s)

    def forget(self, uid: str) -> None:
        """It is no member any more."""
        self._joined_s.pop(uid, None)

    def restart(self) -> None:
        """Listening was interrupted: everybody has time again."""
        self._since_s = self._steady_s()
        self._joined_s.clear()


class _ByWallClock(Mapping[str, datetime]):
    """Moments of a watch, for people."""

    def __init__(self, moments: Mapping[str, datetime], watch: Watch) -> None:
        self._moments = moments
        self._watch = watch

    def __getitem__(self, uid: str) -> datetime:
        return self._watch.wall(self._moments[uid])

    def __iter__(self) -> Iterator[str]:
        return iter(self._moments)

    def __len__(self) -> int:
        return len(self._moments)


async def watch_members(
    liveness: Liveness, changes: Changes, state: Callable[[], ClusterState] | None = None
) -> None:
    """For ever: a joining counts as a report; whoever is out needs no watching.

    With ``state`` the attestor follows too, so that reports about kernels can be judged. Cancelled, what was
    taken stays taken.
    """
    while True:
        subscription = changes.subscribe()
        if state is not None:
            liveness.attestor.load(state())
        # A missed joining only means that the node's silence counts from when watching began.
        with suppress(Lagged):
            async for run in subscription:
                if state is not None:
                    liveness.attestor.fold(run)
                came_at = liveness.watch.now()
                for recorded in run:
                    event = recorded.event
                    if isinstance(event, NodeJoined):
                        itself = recorded.envelope.actor == f"node/{event.node}"
                        liveness.joined(event.uid, itself=itself, at=came_at)
                    elif isinstance(event, NodeLeft | NodeFenced):
                        liveness.forget(event.uid)
                        liveness.clocks.forget(event.node)
            return
