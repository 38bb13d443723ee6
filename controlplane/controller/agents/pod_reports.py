"""What nodes say of the pods that run on them: no range is given away while one has an address of it.

Also a node that is no member any more is heard, as the last owner of its range, until that range is free.
Observations, kept in memory; the last report of each node is read again after a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from controlplane.cluster.state import ClusterState, Range
from events.protocol.queries import Condition
from events.status import AgentStatus

SHOWN = 5
AHEAD_MAX = 1000
"""Reports of events that are not read here yet."""
SLACK = 1000
"""Owners remembered beyond those that the state has; then the others are forgotten."""


class PodReport(NamedTuple):
    """What one node said last: up to which event it knew its ranges, and the ranges of which pods still run."""

    node: str
    sequence: int
    own: int
    stray_ranges: tuple[str, ...]
    stray_pods: tuple[str, ...]


class PodReports:
    """uid → its last report; only of members and of last owners."""

    def __init__(self) -> None:
        self._last: dict[str, PodReport] = {}
        self._ahead: dict[str, AgentStatus] = {}
        self.state: Callable[[], ClusterState] = ClusterState
        """The present state, for :meth:`conditions`."""
        self.heard_all = True
        """Whether everybody's last report has been read: before that, no owner is known to have gone."""

    def take(self, status: AgentStatus, state: ClusterState) -> None:
        """Take what a report says of pods, if whoever sends it is a member or the last owner of a range.

        Reports of agents before 0.3 say nothing, and are no reason to wait for them.
        """
        uid, node = status.uid, status.node
        if not status.pods_sequence:
            return
        if status.pods_sequence > state.sequence:
            if uid in self._ahead or len(self._ahead) < AHEAD_MAX:
                self._ahead[uid] = status  # of an event that is not read here yet
            return
        self._ahead.pop(uid, None)
        if state.by_uid.get(uid) != node and not any(
            (held.node, held.uid) == (node, uid) for held in ending(state)
        ):
            return
        if len(self._last) > len(state.ranges) + SLACK:
            known = {held.uid for held in state.ranges.values()}
            self._last = {uid: said for uid, said in self._last.items() if uid in known}
        self._last[uid] = PodReport(
            node, status.pods_sequence, status.pods, status.stray_ranges, status.stray_pods
        )

    def of(self, uid: str) -> PodReport | None:
        """The last report of that uid."""
        return self._last.get(uid)

    def occupied(self, state: ClusterState) -> dict[int, str]:
        """Indices of ranges that are not to be reused yet → why, in words.

        A pod of the last owner may still run, or the owner has not said yet that none does. Whoever was
        fenced by an operator holds nothing: that is what fencing says.
        """
        for status in [one for one in self._ahead.values() if one.pods_sequence <= state.sequence]:
            self.take(status, state)
        # A node speaks for the ranges that it had itself: nobody holds up the reuse of another's.
        named = {(said.node, cidr): said for said in self._last.values() for cidr in said.stray_ranges}
        found: dict[int, str] = {}
        for held in ending(state):
            fenced = state.fenced.get(held.uid)
            if fenced is not None and fenced.cause == "operator":
                continue
            said = named.get((held.node, held.cidr))
            if said is not None:
                found[held.index] = f"pods of {held.cidr} still run on {said.node}"
            elif fenced is None and held.index in state.draining:
                last = self._last.get(held.uid)
                if not self.heard_all:
                    found[held.index] = "this controller has not read the last reports yet"
                elif last is not None and last.sequence < state.draining[held.index]:
                    found[held.index] = f"{held.node} has not said yet that no pod of {held.cidr} runs on it"
        return found

    def conditions(self) -> list[Condition]:
        """Which ranges wait for pods of a node that has lost them, and the way out."""
        state = self.state()
        waiting = self.occupied(state)
        if not waiting or not self.heard_all:
            return []
        nodes = sorted({state.ranges[index].node for index in waiting})
        said = "; ".join(list(waiting.values())[:SHOWN])
        return [
            Condition(
                code="pods_running",
                severity="warning",
                message=f"{len(waiting)} released ranges are not given to anybody yet: {said}. On such a node: "
                f"isthmus agent end-pods --yes; if its machine is gone: "
                f"{'; '.join(f'isthmus node fence {name} --yes' for name in nodes[:SHOWN])}",
            )
        ]


def ending(state: ClusterState) -> Iterable[Range]:
    """The ranges that have lost their owner and are not free yet."""
    for indices in (state.draining, state.quarantined):
        for index in indices:
            yield state.ranges[index]
