"""Who may take a member's name: nobody whose agent reports is fenced unless a decision names it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from controlplane.cluster.decide import DecisionContext
from controlplane.cluster.decision import AgentProcess
from controlplane.controller.agents.liveness import ABSENT_AFTER_S, Liveness
from controlplane.controller.agents.report_intake import ReportIntake
from controlplane.controller.agents.reporting import WATCH_S, LiveMembers
from controlplane.controller.clocks import Watch
from events.protocol.commands import FenceNode, ImportNodes, JoinNode, LeaveNode
from events.status import AgentStatus
from events.types import NodeFenced
from tests.controlplane.world import Said, World, joining, names


@pytest.fixture
def world() -> World:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=32, quarantine_s=60)
    for number in range(3):
        world.join(number)
    world.context = DecisionContext(members=Said({"uid-0": 2.0}, past=frozenset({"uid-1"})))
    return world


def test_another_uid_does_not_join_in_the_name_of_a_member_that_reports(world: World) -> None:
    before = world.state.owned["n0"]
    assert world.refused(joining(0, uid="clone", underlay="192.0.2.99")) == "node_alive"
    assert world.state.owned["n0"] == before
    assert "uid-0" in world.state.by_uid
    # once it is named by a decision, or silent, the other one takes the name
    world.ok(FenceNode(node="n0"))
    assert world.join(0, uid="clone")["uid"] == "clone"
    assert world.join(1, uid="reinstalled")["uid"] == "reinstalled"
    assert [event.uid for event in world.log if isinstance(event, NodeFenced)] == ["uid-0", "uid-1"]


def test_a_copy_of_a_machine_does_not_move_it_while_it_reports(world: World) -> None:
    member = world.state.nodes["n0"]
    said = Said({"uid-0": 2.0})
    said.processes["uid-0"] = AgentProcess("first", member.underlay, 2.0)

    def asks(instance: str, underlay: str = "192.0.2.99") -> JoinNode:
        world.context = DecisionContext(members=said, instance=instance)
        return joining(0, underlay=underlay)

    written = len(world.log)
    assert world.refused(asks("second")) == "identity_twice"
    assert len(world.log) == written, "it is tried again and again, and not recorded"
    world.ok(asks("second", member.underlay))
    assert len(world.log) == written, "the next process of the same machine"
    world.ok(asks("first"))
    assert world.state.nodes["n0"].underlay == "192.0.2.99", "the process that is the member may move"
    said.processes["uid-0"] = AgentProcess("first", "192.0.2.99", 2.0)
    assert world.refused(asks("second", "192.0.2.98")) == "identity_twice"
    said.processes.clear()  # silent
    world.ok(asks("second", "192.0.2.98"))
    assert world.state.nodes["n0"].underlay == "192.0.2.98"


def test_a_copy_of_a_machine_does_not_take_it_out_while_it_reports(world: World) -> None:
    said = Said({"uid-0": 2.0})
    said.processes["uid-0"] = AgentProcess("first", world.state.nodes["n0"].underlay, 2.0)
    world.context = DecisionContext(members=said, instance="a copy's")
    leaving = LeaveNode(node="n0", uid="uid-0")
    written = len(world.log)
    assert world.refused(leaving) == "identity_twice"
    assert len(world.log) == written
    said.processes.clear()  # silent
    world.ok(leaving)
    assert "n0" not in world.state.nodes


def test_of_two_agents_with_one_identity_one_counts(world: World) -> None:
    """Reports of the one that was there count; its successor's do at once, a copy's once it is silent."""
    member, moment = world.state.nodes["n0"], [1000.0]
    liveness = Liveness()
    door = ReportIntake(liveness, lambda: world.state, clock=lambda: moment[0])

    def says(instance: str, applied: int, underlay: str = member.underlay, boot: str = "b1") -> bool:
        moment[0] += 1
        said = AgentStatus(node="n0", uid="uid-0", applied=applied, sent_at=NOW, interval_s=5)
        return door.take(msgspec.structs.replace(said, instance=instance, underlay=underlay, boot=boot))

    assert says("a1", 1)
    assert says("a2", 2), "the same machine's next process"
    assert not says("copy", 5, "192.0.2.99", "b2")
    assert not door.conditions(), "nobody knows yet that the first one lives"
    assert says("a2", 3)
    assert liveness.applied["uid-0"] == 3
    (condition,) = door.conditions()
    assert condition.code == "identity_twice"
    assert member.underlay in condition.message
    assert "192.0.2.99" in condition.message
    moment[0] += 20
    assert says("copy", 5, "192.0.2.99", "b2"), "the first one is silent"
    assert says("a3", 4, boot="b3"), "the one at the address that the log has comes first"
    assert not says("copy", 5, "192.0.2.99", "b2")


def test_who_has_left_is_nobody_beside_the_next_one_of_that_name(world: World) -> None:
    """A machine leaves, and another one takes its name: no second installation is told of, unless it speaks."""
    door = ReportIntake(Liveness(), lambda: world.state, clock=lambda: 1000.0)
    last = AgentStatus(node="n0", uid="uid-0", applied=0, sent_at=NOW, interval_s=5, state="stopping")
    world.ok(LeaveNode(node="n0", uid="uid-0"))
    assert not door.take(last)
    world.join(0, uid="reinstalled")
    door.caught_up(["n0"])
    assert not door.conditions()
    assert not door.take(last)
    assert [condition.code for condition in door.conditions()] == ["identity_mismatch"]


def test_two_agents_with_one_address_that_report_in_turn_are_noticed(world: World) -> None:
    """Copies of a running machine have its boot id, too. A late report of a process that ended is none."""
    member, moment = world.state.nodes["n0"], [1000.0]
    door = ReportIntake(Liveness(), lambda: world.state, clock=lambda: moment[0])

    def say(*instances: str) -> None:
        for instance in instances:
            moment[0] += 1
            said = AgentStatus(node="n0", uid="uid-0", applied=1, sent_at=NOW, interval_s=5, boot="b1")
            door.take(msgspec.structs.replace(said, instance=instance, underlay=member.underlay))

    say("a", "a", "b", "a", "b", "b", "c", "d")
    assert not door.conditions()
    say("c", "d", "c")
    (condition,) = door.conditions()
    assert condition.code == "identity_twice"
    assert "speak in turn" in condition.message


def test_the_refused_clone_is_recorded_once(world: World) -> None:
    written = len(world.log)
    for _ in range(3):
        assert world.refused(joining(0, uid="clone")) == "node_alive"
    assert names(world.log[written:]) == ["AllocationRefused"]
    assert "node fence n0" in world.log[-1].message


def test_an_import_fences_nobody_who_was_ever_heard_unless_named(world: World) -> None:
    nodes = tuple(joining(number, uid=f"machine-{number}") for number in range(3))
    refusal = world.do(ImportNodes(nodes=nodes)).refusal
    assert refusal is not None
    assert refusal.code == "import_refused"
    lines = refusal.details["lines"]
    assert [(line["status"], line.get("code")) for line in lines] == [
        ("refused", "node_alive"),
        ("refused", "node_alive"),
        ("joined", None),
    ]
    assert "--replace n0" in lines[0]["message"]
    assert lines[2]["fences"] == "uid-2", "what would be fenced is said before"
    assert set(world.state.by_uid) == {"uid-0", "uid-1", "uid-2"}

    result = world.ok(ImportNodes(nodes=nodes, replace=("n0", "n1")))
    assert [line["fences"] for line in result["lines"]] == ["uid-0", "uid-1", "uid-2"]
    assert set(world.state.by_uid) == {"machine-0", "machine-1", "machine-2"}


def test_a_label_that_changed_changes_nothing_and_refuses_nothing(world: World) -> None:
    nodes = (joining(0, site="sz"), joining(1, kind="external"), joining(5))
    result = world.ok(ImportNodes(nodes=nodes))
    assert [line["status"] for line in result["lines"]] == ["unchanged", "unchanged", "joined"]
    assert "site 'sz'" in result["lines"][0]["note"]
    assert "kind 'external'" in result["lines"][1]["note"]
    assert (world.state.nodes["n0"].site, world.state.nodes["n1"].kind) == ("", "cloud")


def test_one_batch_gives_a_name_to_one_machine(world: World) -> None:
    refusal = world.do(ImportNodes(nodes=(joining(6), joining(6, uid="other")))).refusal
    assert refusal is not None
    assert [line.get("code") for line in refusal.details["lines"]] == [None, "name_repeated"]


# --- who reports ---------------------------------------------------------------------------------------

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Heard:
    """A controller's ears with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = NOW
        self.liveness = Liveness(watch=Watch(monotonic=self.now_s, wall=lambda: self.now, stall_s=math.inf))

    def now_s(self) -> float:
        return self.now.timestamp()

    def report(self, uid: str = "u", **said: object) -> None:
        status = AgentStatus(node="n", uid=uid, applied=1, sent_at=self.now, **said)  # type: ignore[arg-type]
        self.liveness.observe(status)

    def silent_s(self, uid: str = "u") -> float | None:
        return LiveMembers(self.liveness).silent_s(uid)

    def ever(self, uid: str = "u") -> bool:
        return LiveMembers(self.liveness).ever(uid)


def test_a_member_reports_for_three_of_its_intervals() -> None:
    it = Heard()
    it.report(interval_s=10.0)
    it.now += timedelta(seconds=29)
    assert it.silent_s() == 29
    it.now += timedelta(seconds=2)
    assert it.silent_s() is None
    assert it.ever()


def test_whoever_says_goodbye_can_be_replaced_at_once() -> None:
    it = Heard()
    it.report()
    it.report(state="stopping")
    it.now += timedelta(seconds=1)
    it.report(state="stopping")
    assert it.silent_s() is None


def test_a_controller_that_has_just_begun_to_listen_does_not_know_who_is_silent() -> None:
    it = Heard()
    assert it.silent_s("not heard yet") == 0.0
    it.now += timedelta(seconds=WATCH_S - 1)
    assert it.ever("not heard yet")
    it.now += timedelta(seconds=1)
    assert it.silent_s("not heard yet") is None
    assert not it.ever("not heard yet")


def test_a_member_that_joined_under_its_eyes_and_never_reported_holds_nothing() -> None:
    it = Heard()
    it.liveness.joined("imported")
    assert it.silent_s("imported") is None


def test_absent_is_who_never_came_however_the_wall_clock_jumps() -> None:
    steady = [0.0]
    jumping = lambda: NOW + timedelta(hours=steady[0] > 1)  # noqa: E731  a clock
    liveness = Liveness(watch=Watch(monotonic=lambda: steady[0], wall=jumping, stall_s=math.inf))
    liveness.observe(AgentStatus(node="a", uid="heard", applied=0, sent_at=NOW))
    liveness.joined("imported")
    steady[0] = ABSENT_AFTER_S - 1
    assert "imported" not in liveness.absent, "it has time to come"
    liveness.joined("late")
    steady[0] += 1
    assert "imported" in liveness.absent
    assert "before this controller" in liveness.absent
    assert "late" not in liveness.absent
    steady[0] += 1000
    assert "late" in liveness.absent
    assert "heard" not in liveness.absent, "its kernel may hold what it had"
    liveness.restart()
    assert "imported" not in liveness.absent, "it may have come while nobody listened"


@pytest.mark.parametrize("interval_s", [1e9, -5.0, 0.0])
def test_nobody_makes_itself_irreplaceable_by_its_interval(interval_s: float) -> None:
    it = Heard()
    it.report(interval_s=interval_s)
    it.now += timedelta(seconds=181)
    assert it.silent_s() is None
