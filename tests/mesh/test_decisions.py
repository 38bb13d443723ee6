"""What becomes an event of what the collector found: news only, bounded, and nothing of who is gone."""

from __future__ import annotations

from datetime import timedelta
from itertools import combinations

import pytest

from controlplane.cluster.decide import decide
from controlplane.cluster.decision import MarkPaths
from controlplane.cluster.decisions.paths import EVIDENCE_MAX, OPEN_MAX, TEXT_MAX
from controlplane.cluster.evolve import evolve
from controlplane.cluster.mesh.findings import Finding
from controlplane.cluster.state import ClusterState
from events.errors import VerificationFailed
from events.protocol.commands import DefineCluster, RemoveNode
from events.types import Event, PathLost, PathRestored
from tests.controlplane.world import START, joining


@pytest.fixture
def state() -> ClusterState:
    made = ClusterState("prod")
    for command in (
        DefineCluster(container_cidr="10.0.0.0/16", pods_per_node=32, services=32),
        *(joining(number) for number in range(3)),
    ):
        run(made, command)
    return made


def run(state: ClusterState, command: object) -> list[Event]:
    events = list(decide(state, command, START).events)  # type: ignore[arg-type]
    for event in events:
        evolve(state, state.sequence + 1, event)
    return events


def dark(name: str = "n1", **more: object) -> Finding:
    return Finding(scope="node", a=name, since=40.0, **more)  # type: ignore[arg-type]


def test_a_finding_is_recorded_once_with_when_it_began(state: ClusterState) -> None:
    (event,) = run(state, MarkPaths(found=(dark(),), at_s=45.0))
    assert isinstance(event, PathLost)
    assert event.since == START - timedelta(seconds=5)
    assert run(state, MarkPaths(found=(dark(),), at_s=50.0)) == []


def test_another_fault_of_the_same_path_is_news(state: ClusterState) -> None:
    run(state, MarkPaths(found=(dark(),), at_s=45.0))
    (event,) = run(state, MarkPaths(found=(dark(fault="large"),), at_s=50.0))
    assert isinstance(event, PathLost)
    assert len(state.lost_paths) == 1


def test_what_is_over_is_restored_and_names_its_loss(state: ClusterState) -> None:
    run(state, MarkPaths(found=(dark(),), at_s=45.0))
    lost = state.sequence
    assert run(state, MarkPaths(over=frozenset({("node", "n1", "")}))) == [
        PathRestored(scope="node", a="n1", lost=lost)
    ]
    assert not state.lost_paths
    assert run(state, MarkPaths(over=frozenset({("node", "n1", "")}))) == []


def test_a_node_that_left_is_lost_no_more(state: ClusterState) -> None:
    run(state, MarkPaths(found=(dark(),), at_s=45.0))
    run(state, RemoveNode(node="n1"))
    late = MarkPaths(found=(dark(),), at_s=45.0)
    assert [type(event) for event in decide(state, late, START).events] == [PathRestored]
    assert [type(event) for event in run(state, MarkPaths())] == [PathRestored]


def test_what_is_recorded_is_bounded(state: ClusterState) -> None:
    for number in range(3, 14):
        run(state, joining(number))
    evidence = ("x" * 999,) * 9
    many = tuple(Finding(scope="pair", a=a, b=b, evidence=evidence) for a, b in combinations(state.nodes, 2))
    assert len(many) > OPEN_MAX
    events = run(state, MarkPaths(found=many))
    assert len(events) == OPEN_MAX
    for event in events:
        assert isinstance(event, PathLost)
        assert len(event.evidence) <= EVIDENCE_MAX
        assert all(len(text) <= TEXT_MAX for text in event.evidence)
    assert run(state, MarkPaths(found=many)) == []


def test_no_path_is_restored_that_was_not_lost(state: ClusterState) -> None:
    with pytest.raises(VerificationFailed):
        evolve(state, state.sequence + 1, PathRestored(scope="node", a="n1", lost=3))


def test_nothing_is_recorded_before_there_is_a_cluster() -> None:
    assert run(ClusterState("prod"), MarkPaths(found=(dark(),))) == []
