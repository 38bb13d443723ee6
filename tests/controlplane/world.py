"""One cluster and its log in a test: commands in, decisions checked and folded, the log kept."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from controlplane.cluster.decide import EMPTY_CONTEXT, Decision, DecisionContext, Tick, decide
from controlplane.cluster.decision import AgentProcess
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import violation
from controlplane.cluster.state import ClusterState
from events.protocol.commands import Command, DefineCluster, JoinNode
from events.types import Event

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Said:
    """Reports by hand: uid → seconds since the last one."""

    def __init__(self, heard: Mapping[str, float], past: frozenset[str] = frozenset()) -> None:
        self.heard = heard
        self.past = past
        self.processes: dict[str, AgentProcess] = {}

    def silent_s(self, uid: str) -> float | None:
        return self.heard.get(uid)

    def ever(self, uid: str) -> bool:
        return uid in self.heard or uid in self.past

    def process_of(self, uid: str) -> AgentProcess | None:
        return self.processes.get(uid)


class World:
    """A state with everything that led to it. Time moves only when told to."""

    def __init__(self, name: str = "prod", **define: Any) -> None:
        self.state = ClusterState(name)
        self.log: list[Event] = []
        self.now = START
        self.context: DecisionContext = EMPTY_CONTEXT
        if define:
            self.ok(DefineCluster(**{"services": 32, **define}))

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def do(self, command: Command | Tick) -> Decision:
        """Decide and fold; no event may break an invariant, and deciding may not change the state."""
        before = state_digest(self.state)
        decision = decide(self.state, command, self.now, self.context)
        assert state_digest(self.state) == before
        for event in decision.events:
            sequence = self.state.sequence + 1
            assert violation(self.state, sequence, event, self.now) is None
            evolve(self.state, sequence, event)
            self.log.append(event)
        return decision

    def ok(self, command: Command | Tick) -> dict[str, Any]:
        """Do what must be accepted; returns its result."""
        decision = self.do(command)
        assert decision.refusal is None, decision.refusal
        return decision.result

    def refused(self, command: Command | Tick) -> str:
        """Do what must be refused; returns the code. A refusal's message is never empty."""
        decision = self.do(command)
        assert decision.refusal is not None, decision
        assert decision.refusal.message
        return decision.refusal.code

    def join(self, number: int, *, uid: str = "", kind: Any = "cloud", **extra: Any) -> dict[str, Any]:
        """Join node ``n<number>`` with an address of its own."""
        return self.ok(joining(number, uid=uid, kind=kind, **extra))


def joining(number: int, *, uid: str = "", kind: Any = "cloud", **extra: Any) -> JoinNode:
    """The join of node ``n<number>``."""
    extra.setdefault("underlay", f"192.0.2.{number + 1}")
    return JoinNode(node=f"n{number}", uid=uid or f"uid-{number}", kind=kind, **extra)


def names(events: tuple[Event, ...] | list[Event]) -> list[str]:
    """The types of the events, for comparisons that read well."""
    return [type(event).__name__ for event in events]
