"""Where a controller's metrics read the live numbers: its replica, projector, agents and stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from controlplane.cluster.decisions.time import watermark
from controlplane.controller.agents.agent_history.store import HistoryStore
from controlplane.controller.agents.convergence import ConvergenceTracker
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.reports import LiveReports, agents_by_state
from controlplane.controller.answers import conditions_now
from controlplane.controller.observability.span_store import SpanStore
from controlplane.controller.replication.replica import Replica
from controlplane.readmodel.projector import Projector
from events.codes.extras import our_version
from events.protocol.mesh import SitePath
from events.protocol.queries import Condition


def not_working_reason(replica: Replica, projector: Projector) -> str:
    """Why this controller does not do its work; empty when it does."""
    if replica.halted is not None:
        return f"the log cannot be followed: {replica.halted.message}"
    if projector.stalled is not None:
        return f"the projection stopped: {projector.stalled.message}"
    return "" if replica.live else "the log has not been read to its end yet"


@dataclass(eq=False)
class LiveNumbers:
    """What a scrape reads, when it comes; nothing is computed before.

    ``waiting`` counts the commands in the queue, ``site_paths`` is what the agents measure between sites, and
    ``credentials`` the file that the controller shows to the bus.
    """

    replica: Replica
    projector: Projector
    liveness: Liveness
    spans: SpanStore
    history: HistoryStore
    convergence: ConvergenceTracker
    leading: Callable[[], bool]
    waiting: Callable[[], int]
    site_paths: Callable[[], Sequence[SitePath]] = tuple
    credentials: str = ""

    def head(self) -> int:
        """The log's last known sequence."""
        return self.replica.state.sequence

    def agents(self) -> dict[str, int]:
        """Agents by reported state."""
        return agents_by_state(self.replica.state, LiveReports(self.liveness, datetime.now(UTC)))

    def watermark(self) -> int:
        """The lowest sequence that a member's agent has applied: the head without members."""
        return watermark(self.replica.state, self.liveness.applied, absent=self.liveness.absent) or 0

    def conditions(self) -> Iterator[Condition]:
        """Everything that a person should know."""
        yield from conditions_now(self.replica.state, self.liveness)
        yield from self.liveness.conditions()
        yield from (*self.spans.file.conditions(), *self.history.file.conditions())

    def other_release(self) -> int:
        """Agents of members of another release than this controller."""
        return sum(
            status.agent_version not in {"", our_version()}
            for uid, status in self.liveness.statuses.items()
            if uid in self.replica.state.by_uid
        )
