"""Where a controller's metrics read the live numbers: its replica, projector, agents and stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from controlplane.cluster.decisions.time import watermark
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.reports import LiveReports, agents_by_state
from controlplane.controller.answers import conditions_now
from controlplane.controller.observability.metrics import LiveNumbers
from controlplane.controller.replication.replica import Replica
from controlplane.readmodel.projector import Projector
from events.protocol.mesh import SitePath
from events.telemetry.role import our_version

if TYPE_CHECKING:
    from controlplane.controller.observability.setup import Observability


def not_working_reason(replica: Replica, projector: Projector) -> str:
    """Why this controller does not do its work; empty when it does."""
    if replica.halted is not None:
        return f"the log cannot be followed: {replica.halted.message}"
    if projector.stalled is not None:
        return f"the projection stopped: {projector.stalled.message}"
    return "" if replica.live else "the log has not been read to its end yet"


def live_numbers(
    replica: Replica,
    projector: Projector,
    liveness: Liveness,
    observability: Observability,
    *,
    leading: Callable[[], bool],
    waiting: Callable[[], int],
    site_paths: Callable[[], Sequence[SitePath]] = tuple,
    credentials: str = "",
) -> LiveNumbers:
    """What a scrape reads; nothing is computed before."""
    return LiveNumbers(
        state=lambda: replica.state,
        head=lambda: replica.state.sequence,
        projected=lambda: projector.sequence,
        leading=leading,
        agents=lambda: agents_by_state(replica.state, LiveReports(liveness, datetime.now(UTC))),
        watermark=lambda: watermark(replica.state, liveness.applied, absent=liveness.absent) or 0,
        chain_verified=lambda: replica.head.sequence,
        healthy=lambda: not not_working_reason(replica, projector),
        waiting=waiting,
        site_paths=site_paths,
        spans=lambda: observability.spans.count,
        reports=lambda: observability.history.count,
        latest=observability.convergence.newest,
        conditions=lambda: (
            *conditions_now(replica.state, liveness),
            *liveness.conditions(),
            *observability.conditions(),
        ),
        other_release=lambda: sum(
            status.agent_version not in {"", our_version()}
            for uid, status in liveness.statuses.items()
            if uid in replica.state.by_uid
        ),
        credentials=credentials,
        subscribers=lambda: replica.changes.statistics()["subscribers"],
    )
