"""What is known of the agents at one moment: now, or at a moment that was recorded, or nothing.

The same questions have the same answers for the present and the past, so that every view can be
shown as it was. Nothing is guessed: what was not recorded is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from controlplane.cluster.state import ClusterState, Node
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.records import Kernel, Observed
from events.protocol.queries import Condition
from events.status import SILENT_INTERVALS

CONDITIONS_MAX, ROWS_MAX, TEXT_MAX = 10, 10, 300
"""What is taken over of an agent's own words: nobody may fill the record with them."""


class LiveReports:
    """The present: the agents by uid."""

    recorded = True
    """Whether anything is known of this moment at all."""

    def __init__(self, liveness: Liveness, now: datetime) -> None:
        self._liveness = liveness
        self._now = now

    @property
    def applied(self) -> Mapping[str, int]:
        """uid → the last sequence that its kernel holds."""
        return self._liveness.applied

    @property
    def absent(self) -> Container[str]:
        """The uids of members that have never reported, and hold nothing."""
        return self._liveness.absent

    @property
    def differing(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        """uid → node and rows, of those whose kernel was found to differ from the log."""
        return {uid: (found.node, found.rows) for uid, found in self._liveness.differences.items()}

    @property
    def further(self) -> Sequence[Condition]:
        """What a person should know about the reports themselves, and the clocks behind them."""
        return self._liveness.conditions()

    def state_of(self, uid: str) -> str:
        """Its own word, ``silent``, ``unreported`` or ``unknown``."""
        status = self._liveness.statuses.get(uid)
        silence_s = self._liveness.silence_s(uid)
        if status is None or silence_s is None:
            return "unreported"
        return "silent" if silence_s > SILENT_INTERVALS * status.interval_s else status.state

    def kernel_of(self, uid: str) -> Kernel:
        """What the attestation of its kernel says, compared with the log."""
        status = self._liveness.statuses.get(uid)
        return self._kernel(uid, bool(status and status.kernel_digest))[0]

    def of(self, uid: str) -> Observed | None:
        """All that is known of it; None when it has never been heard."""
        live = self._liveness
        status = live.statuses.get(uid)
        if status is None:
            return None
        kernel, at = self._kernel(uid, bool(status.kernel_digest))
        found = live.differences.get(uid)
        rows = (found.rows if found is not None else status.drift)[:ROWS_MAX]
        seen = live.last_seen.get(uid)
        return Observed(
            node=status.node,
            uid=uid,
            heard_us=int(seen.timestamp() * 1e6) if seen is not None else 0,
            applied=live.applied.get(uid, 0),
            state=self.state_of(uid),
            kernel=kernel,
            kernel_at=at,
            digest=status.kernel_digest[:64],
            rows=tuple(row[:TEXT_MAX] for row in rows),
            conditions=tuple(text[:TEXT_MAX] for text in status.conditions[:CONDITIONS_MAX]),
            peers=status.peers,
            version=status.agent_version[:TEXT_MAX],
            interval_s=status.interval_s,
            gateway=status.gateway,
            path=status.path[:TEXT_MAX],
            mtu=status.mtu,
            path_mtu=status.path_mtu,
            fast_path=status.fast_path if status.fast_path in {"on", "off"} else "",
            pods=status.pods,
            ways=status.ways,
        )

    def _kernel(self, uid: str, reported: bool) -> tuple[Kernel, int]:
        """What the last comparison said, and at which sequence."""
        found = self._liveness.differences.get(uid)
        if found is not None:
            return "differs", found.sequence
        agreed = self._liveness.agreeing.get(uid)
        if agreed is not None:
            return "agrees", agreed
        return ("unchecked", 0) if reported else ("", 0)

    def age_s(self, observed: Observed) -> float:
        """How old its last report was at this moment; in the past the most that it can have been."""
        if not observed.heard_us:
            return -1.0
        return max(0.0, self._now.timestamp() - observed.heard_us / 1e6)

    def passed_age_s(self, uid: str) -> float:
        """Seconds since a packet of its pods last passed, as it reported; −1 where that is not known."""
        status, silence_s = self._liveness.statuses.get(uid), self._liveness.silence_s(uid)
        if status is None or silence_s is None or status.passed_age_s < 0:
            return -1.0
        return status.passed_age_s + silence_s

    def changed_us(self, observed: Observed) -> int:
        """From when on this is true of the agent: its report's arrival, or when its silence was noticeable."""
        if not observed.heard_us:
            return int(self._now.timestamp() * 1e6)
        if observed.state == "silent":
            return observed.heard_us + int(SILENT_INTERVALS * observed.interval_s * 1e6)
        return observed.heard_us


class PastReports:
    """The same of a moment that was recorded; without ``agents`` one that nobody recorded."""

    absent: Container[str] = frozenset()
    further: Sequence[Condition] = ()

    def __init__(self, agents: Mapping[str, Observed] | None, moment: datetime) -> None:
        self.recorded = agents is not None
        self._agents = agents or {}
        self._moment = moment

    @property
    def applied(self) -> Mapping[str, int]:
        return {uid: found.applied for uid, found in self._agents.items()}

    @property
    def differing(self) -> Mapping[str, tuple[str, tuple[str, ...]]]:
        return {uid: (a.node, a.rows) for uid, a in self._agents.items() if a.kernel == "differs"}

    def state_of(self, uid: str) -> str:
        found = self._agents.get(uid)
        return found.state if found is not None else "unknown"

    def kernel_of(self, uid: str) -> Kernel:
        found = self._agents.get(uid)
        return found.kernel if found is not None else ""

    def of(self, uid: str) -> Observed | None:
        return self._agents.get(uid)

    def age_s(self, observed: Observed) -> float:
        passed = max(0.0, self._moment.timestamp() - observed.heard_us / 1e6)
        if observed.state == "silent":
            return passed + SILENT_INTERVALS * observed.interval_s
        return min(passed, observed.interval_s)

    def passed_age_s(self, uid: str) -> float:  # noqa: ARG002  not recorded
        return -1.0


Reports: TypeAlias = LiveReports | PastReports
"""What was known at one moment."""


def agent_state(state: ClusterState, node: Node, reports: Reports) -> str:
    """What is known of a member's agent: unreachable by the log, else as it reported (or that it never did)."""
    return "unreachable" if node.name in state.unreachable else reports.state_of(node.uid)


def agents_by_state(state: ClusterState, reports: Reports) -> dict[str, int]:
    """Members counted by their agent's state."""
    counts: dict[str, int] = {}
    for node in state.nodes.values():
        name = agent_state(state, node, reports)
        counts[name] = counts.get(name, 0) + 1
    return counts
