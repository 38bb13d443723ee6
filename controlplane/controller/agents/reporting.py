"""Which members report now, and which never have: what a decision must know before it replaces one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from controlplane.cluster.decision import AgentProcess, DecisionContext, Tick
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.gateway_reports import heard_gateways
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.context import ContextSource
from events.protocol.commands import ChangeUnderlay, Command, FenceNode, ImportNodes, JoinNode, LeaveNode
from events.status import SILENT_INTERVALS

INTERVAL_MIN_S, INTERVAL_MAX_S = 1.0, 60.0
"""Bounds of what an agent may say of its own pace here: nobody makes itself irreplaceable for longer."""
WATCH_S = INTERVAL_MAX_S / 2
"""A controller that has not listened for so long yet cannot know who is silent."""
OF_MEMBERS = (JoinNode, ImportNodes, ChangeUnderlay, LeaveNode)
"""Decided by what the members report."""


class LiveMembers:
    """The members as the reports show them at one moment; asked only about the one in question."""

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness

    def silent_s(self, uid: str) -> float | None:
        """How long ago that uid was heard, if it reports; None when it is silent, or said goodbye.

        A uid that this controller has not heard of yet counts as heard while the controller is new.
        """
        live = self._liveness
        status, seen = live.statuses.get(uid), live.heard.get(uid)
        now = live.watch.now()
        if status is None:
            watched_s = (now - live.watching_since).total_seconds()
            return watched_s if seen is None and watched_s < WATCH_S else None
        if status.state in {"stopping", "fenced"}:
            return None
        since = live.watching_since if seen is None else seen
        silent_s = max(0.0, (now - since).total_seconds())
        interval_s = min(max(status.interval_s, INTERVAL_MIN_S), INTERVAL_MAX_S)
        return silent_s if silent_s <= SILENT_INTERVALS * interval_s else None

    def ever(self, uid: str) -> bool:
        """Whether an agent of that uid was ever heard, as far as is known here."""
        return uid in self._liveness.statuses or self.silent_s(uid) is not None

    def process_of(self, uid: str) -> AgentProcess | None:
        """Which agent speaks for that member, as long as it is heard."""
        status, silent_s = self._liveness.statuses.get(uid), self.silent_s(uid)
        if status is None or silent_s is None or not status.instance:
            return None
        return AgentProcess(status.instance, status.underlay, silent_s)


class WithReports:
    """A context source that also tells what the reports say, for what may replace a member or move an address.

    Which members report; which gateways are heard and able now, where there are any; which ranges have pods.
    """

    def __init__(self, around: ContextSource, state: Callable[[], ClusterState], liveness: Liveness) -> None:
        self._around = around
        self._state = state
        self._liveness = liveness

    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:
        known = await self._around.context_for(commands)
        state, more = self._state(), dict[str, Any]()
        if state.gateways:
            more["gateways"] = heard_gateways(state, self._liveness)
        kinds = set(map(type, commands))
        if FenceNode in kinds:
            more["occupied"] = self._liveness.pods.occupied(state)
        if not kinds.isdisjoint(OF_MEMBERS):
            more["members"] = LiveMembers(self._liveness)
        return msgspec.structs.replace(known, **more) if more else known
