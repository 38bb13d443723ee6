"""What the agents' reports say about gateways: for the controller's look at them and for other decisions."""

from __future__ import annotations

from datetime import timedelta

from controlplane.cluster.decision import AssignHolders
from controlplane.cluster.decisions.holders import FRESH_S
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.liveness import Liveness


def look(state: ClusterState, liveness: Liveness) -> AssignHolders:
    """The gateways as they were last heard."""
    statuses, last_seen = liveness.statuses, liveness.heard
    uids = [state.nodes[name].uid for name in state.gateways if name in state.nodes]
    said = {uid: statuses[uid] for uid in uids if uid in statuses}
    return AssignHolders(
        last_seen={uid: last_seen[uid] for uid in uids if uid in last_seen},
        watching_since=liveness.watching_since,
        at=liveness.watch.now(),
        able=frozenset(uid for uid, status in said.items() if status.gateway),
        unable={uid: status.gateway_hindrance for uid, status in said.items() if not status.gateway},
    )


def heard_gateways(state: ClusterState, liveness: Liveness) -> frozenset[str]:
    """Names of the gateways that are heard and able now."""
    seen = look(state, liveness)
    fresh = liveness.watch.now() - timedelta(seconds=FRESH_S)
    heard = {uid for uid in seen.able if uid in seen.last_seen and seen.last_seen[uid] >= fresh}
    return frozenset(name for name in state.gateways if name in state.nodes and state.nodes[name].uid in heard)
