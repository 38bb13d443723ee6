"""Participants of earlier releases that are heard now: what is asked before a new event is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec
from nats.aio.client import Client

from controlplane.cluster.decision import (
    AdvanceEncryption,
    DecisionContext,
    MarkNat,
    MarkPaths,
    Participant,
    Tick,
)
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.reporting import LiveMembers
from controlplane.controller.context import ContextSource
from events.errors import Unavailable
from events.jetstream.readers import readers
from events.protocol.commands import (
    AddEntry,
    AdoptNodes,
    BeginAdoption,
    BindNodes,
    ChangeKey,
    Command,
    FenceNode,
    JoinNode,
    SetEncryption,
    UseToken,
)
from events.status import AgentStatus
from events.types.releases import FIRST, KNOWN_SINCE, follows, release

NEWEST = max(KNOWN_SINCE.values(), key=lambda version: release(version) or ())
"""Who is of this release or a later one knows every type that is written."""
DECIDED = (AddEntry, AdoptNodes, BeginAdoption, FenceNode, SetEncryption)
"""Decided by operators, and may write an event of a type that earlier releases lack: the bus is asked."""
BROUGHT = (AdvanceEncryption, BindNodes, ChangeKey, JoinNode, MarkNat, MarkPaths, UseToken)
"""The same of what nodes and time bring: often, and not at once."""
KEPT_OPEN = "the way back, which the leading controller keeps open (--compatible-with)"
FRESH_S = 10.0
"""How long the answer of the bus serves these."""


def _brought(commands: Sequence[Command | Tick], kinds: set[type[Command | Tick]]) -> bool:
    """Whether one of them, which are of these kinds, may write such an event."""
    for kind in kinds.intersection(BROUGHT):
        if kind is JoinNode:
            if any(c.node_key or c.nat == "on" for c in commands if isinstance(c, JoinNode)):
                return True
        elif kind is UseToken:
            if any(c.shared is not None for c in commands if isinstance(c, UseToken)):
                return True
        else:
            return True
    return False


class OlderAgents:
    """Members whose agents say that they are of an earlier release. O(1) a report."""

    def __init__(self, liveness: Liveness) -> None:
        self._liveness = liveness
        self._found: dict[str, Participant] = {}  # uid → its agent
        liveness.listeners.append(self._take)

    def _take(self, status: AgentStatus, _age_s: float) -> None:
        if follows(status.agent_version, NEWEST):
            self._found.pop(status.uid, None)
        else:
            self._found[status.uid] = Participant(f"the agent of {status.node}", status.agent_version)

    def reporting(self) -> list[Participant]:
        """Those that are heard now."""
        statuses, members = self._liveness.statuses, LiveMembers(self._liveness)
        self._found = {uid: one for uid, one in self._found.items() if uid in statuses}
        return [one for uid, one in self._found.items() if members.silent_s(uid) is not None]


class WithReleases:
    """A context source that also tells who is of an earlier release, where it matters.

    ``compatible_with``: a release to which the operators may want to go back; empty: none.
    """

    def __init__(
        self,
        around: ContextSource,
        client: Client,
        cluster: str,
        liveness: Liveness,
        *,
        compatible_with: str = "",
        clock: Callable[[], float] = lambda: asyncio.get_running_loop().time(),
    ) -> None:
        self._around = around
        self._client = client
        self._cluster = cluster
        self._agents = OlderAgents(liveness)
        self._clock = clock
        self._wanted = (
            (Participant(KEPT_OPEN, compatible_with),)
            if compatible_with and not follows(compatible_with, NEWEST)
            else ()
        )
        self._readers: tuple[Participant, ...] = ()
        self._read_s = float("-inf")

    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:
        known = await self._around.context_for(commands)
        kinds = set(map(type, commands))
        decided = not kinds.isdisjoint(DECIDED)
        if not decided and not _brought(commands, kinds):
            return known
        now = self._clock()
        if decided or now - self._read_s > FRESH_S:
            self._readers, self._read_s = await self._ask(), now
        older = (*self._wanted, *self._agents.reporting(), *self._readers)
        return msgspec.structs.replace(known, older=older) if older else known

    async def _ask(self) -> tuple[Participant, ...]:
        """Readers of the log, which are controllers on a bus with credentials; unknown is not "none"."""
        try:
            found = await readers(self._client, self._cluster)
        except Unavailable as error:
            return (Participant(f"perhaps another controller, of which the bus does not say: {error}", "?.?"),)
        old = [one for one in found if not one.version or not follows(one.version, NEWEST)]
        return tuple(
            Participant(
                f"a controller (or reader) with the consumer {one.name}", one.version or f"{FIRST} or earlier"
            )
            for one in old
        )
