"""No range is reused while a pod of its last owner may still run (invariant 15)."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.decision import AdvanceDrains, DecisionContext
from controlplane.controller.agents.pod_reports import PodReports
from events.protocol.commands import DefineCluster, FenceNode, JoinNode, RemoveNode
from events.status import AgentStatus
from tests.controlplane.world import World

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def cluster(nodes: int = 2) -> World:
    world = World()
    world.do(DefineCluster(container_cidr="10.9.0.0/24", pods_per_node=16, services=32, quarantine_s=0))
    for number in range(nodes):
        world.do(JoinNode(node=f"n{number}", uid=f"u{number}", kind="cloud", underlay=f"10.0.0.{number + 1}"))
    return world


def report(world: World, number: int, *, sequence: int = 0, strays: tuple[str, ...] = ()) -> AgentStatus:
    return AgentStatus(
        node=f"n{number}", uid=f"u{number}", applied=world.state.sequence, sent_at=NOW, pods=0,
        pods_sequence=sequence or world.state.sequence, stray_ranges=strays,
    )  # fmt: skip


def advance(world: World, pods: PodReports) -> None:
    everybody = dict.fromkeys(world.state.by_uid, world.state.sequence)
    world.do(AdvanceDrains(applied=everybody, occupied=pods.occupied(world.state)))


def test_a_removed_node_is_waited_for_until_it_says_that_no_pod_runs() -> None:
    world, pods = cluster(), PodReports()
    pods.take(report(world, 0), world.state)
    cidr = world.state.owned["n0"].cidr
    world.do(RemoveNode(node="n0"))
    advance(world, pods)
    assert world.state.draining, "it has not spoken since"
    pods.take(report(world, 0, strays=(cidr,)), world.state)
    advance(world, pods)
    assert world.state.draining, "pods run"
    assert "n0" in next(iter(pods.occupied(world.state).values()))
    pods.take(report(world, 0), world.state)
    advance(world, pods)
    assert not world.state.ranges.keys() - {world.state.owned["n1"].index}


def test_an_agent_of_an_earlier_release_and_a_stranger_are_no_reason_to_wait() -> None:
    world, pods = cluster(), PodReports()
    old = AgentStatus(node="n0", uid="u0", applied=3, sent_at=NOW)
    pods.take(old, world.state)
    cidr = world.state.owned["n0"].cidr
    world.do(RemoveNode(node="n0"))
    forged = AgentStatus(
        node="n9", uid="u9", applied=0, sent_at=NOW, pods_sequence=world.state.sequence, stray_ranges=(cidr,)
    )
    pods.take(forged, world.state)
    advance(world, pods)
    assert not world.state.draining


def test_a_member_holds_up_no_range_but_those_that_it_had_itself() -> None:
    world, pods = cluster(), PodReports()
    cidr = world.state.owned["n0"].cidr
    world.do(RemoveNode(node="n0"))
    pods.take(report(world, 0), world.state)
    pods.take(report(world, 1, strays=(cidr,)), world.state)
    advance(world, pods)
    assert not world.state.draining


def test_a_fence_by_an_operator_ends_the_wait_also_of_a_node_that_is_no_member_any_more() -> None:
    world, pods = cluster(), PodReports()
    pods.take(report(world, 0), world.state)
    world.do(RemoveNode(node="n0"))
    advance(world, pods)
    assert world.state.draining
    world.context = DecisionContext(occupied=pods.occupied(world.state))
    world.do(FenceNode(node="n0"))
    assert "u0" in world.state.fenced
    advance(world, pods)
    assert not world.state.draining
    assert world.do(FenceNode(node="n0")).refusal is not None, "there is nothing more to fence"


def test_a_controller_that_has_not_read_the_reports_yet_frees_nothing() -> None:
    world, pods = cluster(), PodReports()
    pods.heard_all = False
    world.do(RemoveNode(node="n0"))
    advance(world, pods)
    assert world.state.draining


@given(st.data())
def test_whatever_comes_a_range_with_pods_is_given_to_nobody(data: st.DataObject) -> None:
    """Nodes leave, join, report late and again; the truth of where pods run is known to the test alone."""
    world, pods = cluster(3), PodReports()
    running: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}  # node → ranges of which pods run on it
    joined = {0, 1, 2}
    for step in range(data.draw(st.integers(5, 30))):
        number = data.draw(st.integers(0, 2))
        act = data.draw(st.sampled_from(["remove", "join", "start", "end", "report", "advance"]))
        own = world.state.owned.get(f"n{number}")
        if act == "remove" and number in joined:
            if pods.of(f"u{number}") is None:
                continue  # one that never spoke is another test
            world.do(RemoveNode(node=f"n{number}"))
            joined.discard(number)
        elif act == "join" and number not in joined:
            decision = world.do(
                JoinNode(node=f"n{number}", uid=f"u{number}", kind="cloud", underlay=f"10.0.0.{number + 1}")
            )
            if decision.refusal is None:
                joined.add(number)
        elif act == "start" and own is not None and not running[number] - {own.cidr}:
            running[number].add(own.cidr)
        elif act == "end" and running[number]:
            running[number].pop()
        elif act == "report":
            strays = tuple(sorted(running[number] - ({own.cidr} if own else set())))
            pods.take(report(world, number, strays=strays), world.state)
        elif act == "advance":
            advance(world, pods)
        for place, cidrs in running.items():
            others = {held.cidr for name, held in world.state.owned.items() if name != f"n{place}"}
            assert not cidrs & others, f"step {step}: two owners"
