"""What the agents' reports say about gateways: for the controller's look at them and for other decisions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec

from controlplane.cluster.decision import AssignHolders, DecisionContext, Tick
from controlplane.cluster.decisions.holders import FRESH_S
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.context import ContextSource
from events.protocol.commands import Command


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


class WithGateways:
    """A context_source that also tells which gateways are heard and able now, where there are any."""

    def __init__(
        self,
        around: ContextSource,
        state: Callable[[], ClusterState],
        liveness: Liveness,
    ) -> None:
        self._around = around
        self._state = state
        self._liveness = liveness

    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:
        """The context. Raises Unavailable. Cancelled, it leaves nothing behind."""
        known = await self._around.context_for(commands)
        state = self._state()
        if not state.gateways:
            return known
        seen = look(state, self._liveness)
        fresh = self._liveness.watch.now() - timedelta(seconds=FRESH_S)
        heard = {uid for uid in seen.able if uid in seen.last_seen and seen.last_seen[uid] >= fresh}
        names = frozenset(
            name for name in state.gateways if name in state.nodes and state.nodes[name].uid in heard
        )
        return msgspec.structs.replace(known, gateways=names)
