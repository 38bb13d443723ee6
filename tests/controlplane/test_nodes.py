"""Joins, twins, address changes, leaves, fencing, refusals and imports."""

from __future__ import annotations

from itertools import permutations

import pytest

from controlplane.cluster.addressing.mac import vtep_mac
from controlplane.cluster.decide import AdvanceDrains, DecisionContext
from events.protocol.commands import (
    ChangeUnderlay,
    FenceNode,
    ImportNodes,
    JoinNode,
    LeaveNode,
    Override,
    RemoveNode,
    ReserveClb,
)
from events.types import AllocationRefused, NodeFenced, NodeJoined
from tests.controlplane.world import World, joining, names


@pytest.fixture
def world() -> World:
    return World(container_cidr="10.0.0.0/24", pods_per_node=32, quarantine_s=60)


def test_ranges_are_given_cyclically_and_sequentially_and_index_0_is_used(world: World) -> None:
    given = [world.join(number)["cidr"] for number in range(3)]
    assert given == ["10.0.0.0/27", "10.0.0.32/27", "10.0.0.64/27"]
    world.ok(RemoveNode(node="n0"))
    settle(world)
    assert world.join(3)["cidr"] == "10.0.0.96/27", "the next one, not the freed one"
    for number in range(4, 7):
        world.join(number)
    assert world.join(7)["cidr"] == "10.0.0.0/27", "after the last comes the first that is free"


def settle(world: World) -> None:
    """Let every drained range come free: all agents report, the quarantine passes."""
    applied = dict.fromkeys(world.state.by_uid, world.state.sequence)
    world.do(AdvanceDrains(applied=applied))
    world.forward(61)
    world.do(AdvanceDrains(applied=applied))
    assert not world.state.draining
    assert not world.state.quarantined


def test_cloud_and_external_nodes_share_one_pool(world: World) -> None:
    kinds = ["cloud", "external", "external", "cloud"]
    assert [world.join(n, kind=kind)["index"] for n, kind in enumerate(kinds)] == [0, 1, 2, 3]
    assert world.state.external == 2


def test_joining_again_returns_the_same_range_and_writes_nothing(world: World) -> None:
    first = world.join(1)
    written = len(world.log)
    assert world.join(1) == first
    assert len(world.log) == written


def test_the_epoch_is_the_sequence_of_the_allocation(world: World) -> None:
    for number in range(3):
        result = world.join(number)
        assert result["epoch"] == world.state.sequence
        assert type(world.log[result["epoch"] - 1]).__name__ == "RangeAllocated"


def test_a_reinstalled_machine_fences_its_predecessor_and_gets_a_new_epoch(world: World) -> None:
    first = world.join(1, uid="old")
    second = world.join(1, uid="new")
    assert names(world.log)[-4:] == ["NodeFenced", "RangeDraining", "NodeJoined", "RangeAllocated"]
    assert second["epoch"] > first["epoch"]
    assert second["index"] != first["index"]
    assert world.refused(joining(1, uid="old")) == "node_fenced"
    assert world.refused(LeaveNode(node="n1", uid="old")) == "node_fenced"
    assert world.refused(ChangeUnderlay(node="n1", uid="old", underlay="192.0.2.99")) == "node_fenced"
    assert world.state.nodes["n1"].uid == "new"


@pytest.mark.parametrize("order", list(permutations(["a", "b", "c"])))
def test_twins_in_every_order_end_with_the_last_newcomer(world: World, order: tuple[str, ...]) -> None:
    for uid in order:
        world.join(1, uid=uid)
    for uid in order[:-1]:
        assert world.refused(joining(1, uid=uid)) == "node_fenced"
    assert world.state.nodes["n1"].uid == order[-1]
    assert set(world.state.fenced) == set(order[:-1])


def test_a_twin_that_finds_no_free_range_still_fences_so_that_one_comes_free(world: World) -> None:
    for number in range(7):
        world.join(number)
    decision = world.do(joining(3, uid="reinstalled"))
    assert decision.refusal is not None
    assert decision.refusal.code == "no_free_range"
    assert names(decision.events) == ["NodeFenced", "RangeDraining", "AllocationRefused"]
    settle(world)
    assert world.join(3, uid="reinstalled")["index"] == 3


def test_a_node_that_left_may_come_back_and_gets_another_range(world: World) -> None:
    first = world.join(1)
    world.ok(LeaveNode(node="n1", uid="uid-1"))
    assert names(world.log)[-2:] == ["NodeLeft", "RangeDraining"]
    second = world.join(1)
    assert second["index"] != first["index"]
    assert world.refused(LeaveNode(node="n1", uid="stranger")) == "node_unknown"
    assert world.refused(RemoveNode(node="ghost")) == "node_unknown"


def test_a_fenced_uid_never_joins_again_under_any_name(world: World) -> None:
    world.join(1)
    world.ok(FenceNode(node="n1", reason="hardware gone"))
    assert world.refused(joining(1)) == "node_fenced"
    assert world.refused(joining(5, uid="uid-1")) == "node_fenced"
    event = next(e for e in world.log if isinstance(e, NodeFenced))
    assert (event.cause, event.reason) == ("operator", "hardware gone")


# --- addresses ---------------------------------------------------------------------------------------


def test_an_address_belongs_to_one_live_node(world: World) -> None:
    world.join(1)
    decision = world.do(joining(2, underlay="192.0.2.2"))
    assert decision.refusal is not None
    assert decision.refusal.code == "underlay_address_in_use"
    for part in ("n2", "192.0.2.2", "n1", "uid-1"):
        assert part in decision.refusal.message
    world.ok(RemoveNode(node="n1"))
    world.join(2, underlay="192.0.2.2")


def test_behind_nat_the_announced_address_counts(world: World) -> None:
    world.join(1, underlay="192.168.1.10", announced="203.0.113.1")
    world.join(2, underlay="192.168.1.10", announced="203.0.113.2")
    assert (
        world.refused(joining(3, underlay="192.168.1.30", announced="203.0.113.1")) == "underlay_address_in_use"
    )
    world.join(4, underlay="192.168.1.10")
    assert world.state.nodes["n1"].underlay == "192.168.1.10"


def test_a_changed_address_keeps_range_and_epoch(world: World) -> None:
    first = world.join(1)
    for command in (
        ChangeUnderlay(node="n1", uid="uid-1", underlay="192.0.2.77"),
        joining(1, underlay="192.0.2.78", announced="203.0.113.9"),
    ):
        result = world.ok(command)
        assert (result["cidr"], result["epoch"]) == (first["cidr"], first["epoch"])
        assert names(world.log)[-1] == "NodeUnderlayChanged"
    assert world.state.by_address == {"203.0.113.9": "n1"}
    written = len(world.log)
    world.ok(ChangeUnderlay(node="n1", uid="uid-1", underlay="192.0.2.78", announced="203.0.113.9"))
    assert len(world.log) == written


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "224.0.0.5",
        "255.255.255.255",
        "169.254.1.1",
        "10.0.0",
        "fe80::1",
        "1.2.3.04",
        "",
    ],
)
def test_an_underlay_address_must_be_reachable(world: World, address: str) -> None:
    assert world.refused(joining(1, underlay=address)) == "underlay_address_invalid"
    assert len(world.log) == 1


@pytest.mark.parametrize("where", ["underlay", "announced"])
@pytest.mark.parametrize("address", ["10.0.0.5", "10.0.0.250"])
def test_an_address_inside_the_container_network_is_refused_or_overridden(
    world: World, where: str, address: str
) -> None:
    assert world.refused(joining(1, **{where: address})) == "cidr_conflict_with_node"
    accepted = (Override(code="cidr_conflict_with_node", reason="lab"),)
    world.join(1, **{where: address}, overrides=accepted)
    assert "ConflictOverridden" in names(world.log)


def test_an_address_inside_another_clusters_container_network_is_refused(world: World) -> None:
    world.context = DecisionContext(clusters={"stage": ("10.64.0.0/16",)})
    assert world.refused(joining(1, underlay="10.64.3.3")) == "cidr_conflict_with_other_cluster"


def test_an_address_of_a_clb_is_refused(world: World) -> None:
    pair = world.ok(ReserveClb(reservation="main", subnet="192.0.2.0/28"))["addresses"]
    assert world.refused(joining(1, underlay=pair[0]["address"])) == "underlay_address_in_use"
    world.join(2, underlay="192.0.2.9")
    assert (
        world.refused(ChangeUnderlay(node="n2", uid="uid-2", underlay=pair[1]["address"]))
        == "underlay_address_in_use"
    )


# --- identity ----------------------------------------------------------------------------------------


def test_a_clone_is_recognised(world: World) -> None:
    world.join(1)
    assert world.refused(joining(2, uid="uid-1")) == "uid_in_use"


def test_kind_and_site_are_fixed_while_a_member(world: World) -> None:
    world.join(1, kind="external", site="shenzhen")
    assert world.refused(joining(1, kind="cloud", site="shenzhen")) == "node_attribute_fixed"
    assert world.refused(joining(1, kind="external", site="beijing")) == "node_attribute_fixed"


@pytest.mark.parametrize("name", ["", "UPPER", "a_b", "-a", "a..b", "x" * 254, "a b"])
def test_a_name_is_a_dns_subdomain(world: World, name: str) -> None:
    assert (
        world.refused(JoinNode(node=name, uid="u", kind="cloud", underlay="192.0.2.1")) == "node_name_invalid"
    )


def test_a_fully_qualified_name_is_fine(world: World) -> None:
    world.ok(JoinNode(node="idc-7.sz.example.com", uid="u", kind="external", underlay="192.0.2.1"))


@pytest.mark.parametrize("uid", ["", " ", "x" * 129])
def test_a_uid_has_bounds(world: World, uid: str) -> None:
    assert world.refused(JoinNode(node="n", uid=uid, kind="cloud", underlay="192.0.2.1")) == "bad_request"


def test_the_vtep_mac_is_unicast_local_and_never_shared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = int(vtep_mac("some-uid")[:2], 16)
    assert first & 1 == 0
    assert first & 2 == 2
    assert vtep_mac("some-uid") == vtep_mac("some-uid") != vtep_mac("some-uid", 1)
    # Two uids whose hashes meet: the second takes the next of its series.
    monkeypatch.setattr(
        "controlplane.cluster.decisions.nodes.vtep_mac", lambda uid, attempt=0: f"66:00:00:00:00:0{attempt}"
    )
    macs = [world.join(number)["vtep_mac"] for number in range(3)]
    assert macs == ["66:00:00:00:00:00", "66:00:00:00:00:01", "66:00:00:00:00:02"]


# --- refusals ----------------------------------------------------------------------------------------


def test_no_way_to_ask_for_a_range_or_a_pod_address(world: World) -> None:
    assert world.refused(joining(1, range="10.0.0.64/27")) == "static_range_refused"
    assert world.refused(joining(1, pod_ip="10.0.0.70")) == "static_pod_ip_refused"
    assert len(world.log) == 1


def test_exhaustion_is_recorded_once_per_node_with_its_numbers(world: World) -> None:
    for number in range(7):
        world.join(number)
    for _ in range(3):
        assert world.refused(joining(8)) == "no_free_range"
    assert world.refused(joining(9)) == "no_free_range"
    records = [event for event in world.log if isinstance(event, AllocationRefused)]
    assert [record.node for record in records] == ["n8", "n9"]
    assert (records[0].capacity, records[0].allocated, records[0].earliest_free) == (7, 7, None)
    assert "7 are allocated" in records[0].message


def test_exhaustion_says_when_a_range_comes_free(world: World) -> None:
    for number in range(7):
        world.join(number)
    world.ok(RemoveNode(node="n2"))
    world.do(AdvanceDrains(applied=dict.fromkeys(world.state.by_uid, world.state.sequence)))
    refusal = world.do(joining(8)).refusal
    assert refusal is not None
    assert refusal.details["earliest_free"] == "2026-03-01T12:01:00+00:00"
    assert "(in 60 s)" in refusal.message
    assert refusal.details["quarantined"] == 1


def test_a_refusal_is_recorded_anew_after_the_node_got_what_it_wanted(world: World) -> None:
    world.join(1)
    for _ in range(2):
        assert world.refused(joining(2, underlay="192.0.2.2")) == "underlay_address_in_use"
    world.join(2, underlay="192.0.2.50")
    assert world.state.refusals == {}
    assert (
        world.refused(ChangeUnderlay(node="n2", uid="uid-2", underlay="192.0.2.2")) == "underlay_address_in_use"
    )
    assert names(world.log).count("AllocationRefused") == 2


# --- import ------------------------------------------------------------------------------------------


def test_an_import_is_one_decision_with_a_line_per_node(world: World) -> None:
    world.join(0)
    result = world.ok(ImportNodes(nodes=tuple(joining(number) for number in range(4))))
    assert (result["joined"], result["unchanged"]) == (3, 1)
    assert [line["status"] for line in result["lines"]] == ["unchanged", "joined", "joined", "joined"]
    assert [line["index"] for line in result["lines"]] == [0, 1, 2, 3]
    epochs = [line["epoch"] for line in result["lines"]]
    assert epochs == [world.state.owned[f"n{number}"].epoch for number in range(4)]


def test_an_import_with_one_bad_line_writes_nothing_and_reports_every_line(world: World) -> None:
    nodes = (joining(0), joining(1, underlay="192.0.2.1"), joining(2, underlay="bad"), joining(3))
    refusal = world.do(ImportNodes(nodes=nodes)).refusal
    assert refusal is not None
    assert refusal.code == "import_refused"
    statuses = [(line["line"], line["status"], line.get("code")) for line in refusal.details["lines"]]
    assert statuses == [
        (1, "joined", None),
        (2, "refused", "underlay_address_in_use"),
        (3, "refused", "underlay_address_invalid"),
        (4, "joined", None),
    ]
    assert names(world.log) == ["ClusterDefined"]


def test_an_import_larger_than_the_pool_is_refused_as_a_whole(world: World) -> None:
    assert world.refused(ImportNodes(nodes=tuple(joining(n) for n in range(8)))) == "import_refused"
    assert not world.state.nodes


def test_an_import_that_outgrows_one_batch_is_refused() -> None:
    world = World(container_cidr="10.0.0.0/16", pods_per_node=4)
    nodes = tuple(joining(n, underlay=f"192.168.{n // 250}.{n % 250 + 1}") for n in range(501))
    assert world.refused(ImportNodes(nodes=nodes)) == "event_too_large"
    world.ok(ImportNodes(nodes=nodes[:500]))
    assert sum(isinstance(event, NodeJoined) for event in world.log) == 500


def test_a_node_listed_twice_is_joined_once(world: World) -> None:
    result = world.ok(ImportNodes(nodes=(joining(1), joining(1))))
    assert [line["status"] for line in result["lines"]] == ["joined", "unchanged"]
