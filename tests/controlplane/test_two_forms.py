"""A member on the bus (``NodeView``) and over HTTP (``NodeRow``): other names, and the same facts."""

from __future__ import annotations

import math
from datetime import datetime, timedelta

import pytest

from controlplane.console.presenters import node_row
from controlplane.console.schemas import NodeRow
from controlplane.controller.agents.attestation import Difference
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.reports import LiveReports
from controlplane.controller.answers import node_view
from controlplane.controller.clocks import Watch
from events.protocol.queries import NodeView
from events.status import AgentStatus
from tests.controlplane.world import START, World

OTHER_NAME = {"node": "name", "cidr": "range", "lag": "behind", "agent_conditions": "conditions"}
"""The bus's name → the API's."""
SAME = {"kind", "site", "announced", "index", "epoch", "applied", "kernel_at", "path", "stale", "pods", "ways",
        "behind_nat", "seen_as"}  # fmt: skip
ELSEWHERE = {"uid", "underlay", "vtep_mac", "joined", "refusals"}
"""Fields of ``NodeView`` that the API has in ``NodeDetail``."""
TOLD_OTHERWISE = {
    "last_seen": "age_s",
    "passed_at": "passed_age_s",
    "agent_state": "state",
    "unreachable": "state",
    "kernel": "kernel",
}
"""The bus tells moments and raw words, the API ages, and one state and one verdict made of them."""
BUS_ONLY = {"member", "changed", "drift", "stray_pods", "peer_ways"}
API_ONLY = {"version", "mtu", "path_mtu", "fast_path", "translated"}


def test_every_field_of_both_is_accounted_for() -> None:
    bus, api = set(NodeView.__struct_fields__), set(NodeRow.__struct_fields__)
    assert bus == OTHER_NAME.keys() | SAME | ELSEWHERE | TOLD_OTHERWISE.keys() | BUS_ONLY
    assert api == set(OTHER_NAME.values()) | SAME | set(TOLD_OTHERWISE.values()) | API_ONLY


class Cluster:
    """Three members, whose agents' reports came at START, and a clock that goes on."""

    def __init__(self) -> None:
        self.now = START
        self.world = World(container_cidr="10.0.0.0/24", pods_per_node=64)
        for number in (1, 2, 3):
            self.world.join(number, kind="external" if number == 1 else "cloud", site="sz")
        self.liveness = Liveness(watch=Watch(monotonic=self._seconds, wall=self._wall, stall_s=math.inf))

    def _seconds(self) -> float:
        return (self.now - START).total_seconds()

    def _wall(self) -> datetime:
        return self.now

    def report(self, number: int, **said: object) -> None:
        self.liveness.observe(
            AgentStatus(node=f"n{number}", uid=f"uid-{number}", sent_at=self.now, **said)  # type: ignore[arg-type]
        )

    def both(self, number: int) -> tuple[NodeView, NodeRow]:
        state = self.world.state
        node = state.nodes[f"n{number}"]
        row = node_row(state, node, LiveReports(self.liveness, self.now), state.sequence)
        return node_view(state, node, self.liveness), row


@pytest.mark.parametrize("later_s", [0, 7, 100])
def test_both_say_the_same_of_every_member(later_s: float) -> None:
    cluster = Cluster()
    cluster.report(
        1, applied=4, conditions=("mtu low",), path="confirmed", passed_age_s=3.0, pods=5, kernel_digest="aa"
    )
    cluster.report(2, applied=6, state="degraded", kernel_digest="bb")
    cluster.liveness.attestor.differences["uid-2"] = Difference(
        node="n2", sequence=6, expected="aa", reported="bb", rows=("fdb",)
    )
    cluster.now += timedelta(seconds=later_s)
    for number in (1, 2, 3):
        view, row = cluster.both(number)
        for field in SAME:
            assert (getattr(view, field) or 0) == (getattr(row, field) or 0), field
        for ours, theirs in OTHER_NAME.items():
            one, other = getattr(view, ours), getattr(row, theirs)
            assert (list(one) if isinstance(one, tuple) else one or 0) == (other or 0) or (one, other) == (
                (),
                [],
            ), ours
        assert row.age_s == (later_s if view.last_seen else -1.0)
        assert row.passed_age_s == ((cluster.now - view.passed_at).total_seconds() if view.passed_at else -1.0)
        assert row.kernel == (view.kernel or ("unchecked" if number == 1 else ""))
        assert row.state == (("silent" if view.stale else view.agent_state) or "unreported")
