"""Adoption: exactly the range that a node has, at no other time, and all findings at once."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.cluster.decision import DecisionContext
from controlplane.cluster.digest import canonical, state_digest
from controlplane.cluster.state_decoder import decode_state
from events.protocol.commands import (
    AdoptedNode,
    AdoptNodes,
    BeginAdoption,
    EndAdoption,
    JoinNode,
    RemoveNode,
    ReserveClb,
)
from events.types import NodeUnderlayChanged, RangeAdopted
from tests.controlplane.world import Said, World, names


def node(number: int, **changes: Any) -> AdoptedNode:
    """Node ``old<number>`` of a flannel cluster, with the range 10.42.<number>.0/24."""
    fields: dict[str, Any] = {
        "node": f"old{number}",
        "uid": f"machine-{number}",
        "kind": "cloud",
        "underlay": f"198.18.0.{number}",
        "range": f"10.42.{number}.0/24",
        "vtep_mac": f"8a:00:00:00:00:{number:02x}",
    }
    return AdoptedNode(**fields | changes)


@pytest.fixture
def world() -> World:
    world = World(container_cidr="10.42.0.0/16", pods_per_node=256, services=256, vni=1)
    world.ok(BeginAdoption(source="flannel", plan="0" * 64))
    return world


def findings(world: World, *nodes: AdoptedNode) -> set[tuple[str, str]]:
    """Who was refused why; nothing may have been written."""
    decision = world.do(AdoptNodes(nodes=nodes))
    assert decision.refusal is not None, decision
    assert decision.refusal.code == "adoption_refused"
    assert decision.events == ()
    assert all(each["message"] for each in decision.refusal.details["findings"])
    return {(each["node"], each["code"]) for each in decision.refusal.details["findings"]}


def test_nodes_keep_their_ranges_and_macs_and_the_next_node_comes_behind_them(world: World) -> None:
    decision = world.do(AdoptNodes(nodes=(node(7), node(0), node(3, vtep_mac="8A:00:00:00:00:03"))))
    assert names(decision.events) == ["NodeJoined", "RangeAdopted"] * 3
    assert [event.index for event in decision.events if isinstance(event, RangeAdopted)] == [0, 3, 7]
    assert decision.result["cursor"] == 8
    assert {name: held.cidr for name, held in world.state.owned.items()} == {
        "old0": "10.42.0.0/24",
        "old3": "10.42.3.0/24",
        "old7": "10.42.7.0/24",
    }
    assert world.state.nodes["old3"].vtep_mac == "8a:00:00:00:00:03"
    assert world.join(1)["cidr"] == "10.42.8.0/24"


def test_repeating_it_writes_nothing_and_the_agent_that_joins_gets_the_same(world: World) -> None:
    world.ok(AdoptNodes(nodes=(node(5),)))
    assert world.do(AdoptNodes(nodes=(node(5),))).events == ()
    again = JoinNode(node="old5", uid="machine-5", kind="cloud", underlay="198.18.0.5")
    result = world.ok(again)
    assert (result["cidr"], result["vtep_mac"]) == ("10.42.5.0/24", "8a:00:00:00:00:05")


def test_a_range_behind_the_cursor_does_not_move_it_back(world: World) -> None:
    world.ok(AdoptNodes(nodes=(node(200),)))
    world.ok(AdoptNodes(nodes=(node(4),)))
    assert world.state.pool.cursor == 201
    world.ok(AdoptNodes(nodes=(node(254),)))
    assert world.state.pool.cursor == 0
    assert world.join(1)["index"] == 0


def test_it_is_open_only_between_beginning_and_end() -> None:
    world = World(container_cidr="10.42.0.0/16", pods_per_node=256, services=256)
    assert world.refused(AdoptNodes(nodes=(node(1),))) == "adoption_closed"
    world.ok(BeginAdoption(source="flannel"))
    assert world.do(BeginAdoption(source="flannel")).events == ()
    assert world.refused(BeginAdoption(source="cilium")) == "adoption_open"
    assert world.refused(BeginAdoption(source="Not A Label")) == "bad_request"
    world.ok(AdoptNodes(nodes=(node(1),)))
    world.ok(EndAdoption())
    assert world.do(EndAdoption()).events == ()
    assert world.refused(AdoptNodes(nodes=(node(2),))) == "adoption_closed"
    wish = JoinNode(node="x", uid="x", kind="cloud", underlay="198.18.0.9", range="10.42.9.0/24")
    assert world.refused(wish) == "static_range_refused"


def test_everything_that_is_wrong_is_told_at_once_and_nothing_is_written(world: World) -> None:
    world.ok(AdoptNodes(nodes=(node(1),)))
    world.join(50)
    world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/28"))
    before = state_digest(world.state)
    told = findings(
        world,
        node(2),
        node(3, node="a-twin", uid="twin", underlay="192.0.2.77", range="10.42.2.0/24"),
        node(4, range="10.42.4.9/24"),
        node(5, range="10.43.5.0/24", vtep_mac=""),
        node(6, range="10.42.255.0/24", underlay="10.42.0.9"),
        node(7, range="10.42.7.0/25"),
        node(8, range=""),
        node(9, range="10.42.9.0/24,10.42.10.0/24"),
        node(10, range="fd00:10:42::/64"),
        node(11, range="***HIDDEN***/25"),
        node(12, vtep_mac="8a:00:00:00:00:01"),
        node(13, vtep_mac="01:00:5e:00:00:01"),
        node(14, underlay="198.18.0.1"),
        node(15, uid="machine-1"),
        node(16, underlay="198.51.100.2"),
        node(17, underlay="nowhere"),
        node(1, range="10.42.99.0/24"),
        node(1, uid="other"),
        node(18, node="Not_A_Name"),
    )
    assert told == {
        ("a-twin", "adopt_range_taken"),
        ("old2", "adopt_range_taken"),
        ("old4", "adopt_range_host_bits"),
        ("old5", "adopt_range_outside"),
        ("old5", "adopt_mac_invalid"),
        ("old6", "adopt_range_service"),
        ("old6", "cidr_conflict_with_node"),
        ("old7", "adopt_range_size"),
        ("old8", "adopt_range_missing"),
        ("old9", "adopt_range_several"),
        ("old10", "adopt_range_ipv6"),
        ("old11", "adopt_range_unreadable"),
        ("old12", "adopt_mac_taken"),
        ("old13", "adopt_mac_invalid"),
        ("old14", "underlay_address_in_use"),
        ("old15", "uid_in_use"),
        ("old16", "underlay_address_in_use"),
        ("old17", "underlay_address_invalid"),
        ("old1", "adopt_range_fixed"),
        ("old1", "node_alive"),
        ("Not_A_Name", "node_name_invalid"),
    }
    assert state_digest(world.state) == before


def test_what_the_network_before_changes_about_a_node_that_it_serves_is_followed(world: World) -> None:
    """Flannel makes its device anew at a reboot, with another MAC, or finds itself at another address."""
    world.ok(AdoptNodes(nodes=(node(1), node(2))))
    decision = world.do(
        AdoptNodes(nodes=(node(1, vtep_mac="8a:00:00:00:00:aa", underlay="198.18.0.77"), node(2)))
    )
    (moved,) = decision.events
    assert isinstance(moved, NodeUnderlayChanged)
    member = world.state.nodes["old1"]
    assert (member.vtep_mac, member.announced) == ("8a:00:00:00:00:aa", "198.18.0.77")
    assert world.state.owned["old1"].cidr == "10.42.1.0/24"
    assert findings(world, node(2, vtep_mac="8a:00:00:00:00:aa")) == {("old2", "adopt_mac_taken")}
    assert findings(world, node(2, underlay="198.18.0.77")) == {("old2", "underlay_address_in_use")}
    world.ok(AdoptNodes(nodes=(node(3, vtep_mac="8a:00:00:00:00:01"),)))  # which nobody has any more
    assert decode_state(canonical(world.state)).by_mac == world.state.by_mac


def test_of_a_node_whose_agent_reports_nothing_is_followed(world: World) -> None:
    world.ok(AdoptNodes(nodes=(node(1),)))
    world.context = DecisionContext(members=Said({"machine-1": 1.0}))
    assert world.do(AdoptNodes(nodes=(node(1, underlay="198.18.0.77"),))).events == ()
    assert findings(world, node(1, vtep_mac="8a:00:00:00:00:aa")) == {("old1", "adopt_range_fixed")}


def test_a_range_that_drains_is_nobodys_yet(world: World) -> None:
    world.ok(AdoptNodes(nodes=(node(1),)))
    world.ok(RemoveNode(node="old1"))
    assert findings(world, node(2, range="10.42.1.0/24")) == {("old2", "adopt_range_taken")}


@pytest.mark.parametrize(
    "text",
    [
        "10.42.1.0",
        "10.42.1.0/",
        "10.42.1.0/33",
        "10.42.1.0/0",
        "10.42.01.0/24",
        "x",
        "10.42.1.0/24/24",
        "٣/24",
        "/24",
    ],
)
def test_what_is_no_range_is_told_as_it_stands(world: World, text: str) -> None:
    assert findings(world, node(1, range=text)) == {("old1", "adopt_range_unreadable")}


def test_a_batch_has_a_bound(world: World) -> None:
    many = tuple(node(1, node=f"n{number}") for number in range(501))
    assert world.refused(AdoptNodes(nodes=many)) == "event_too_large"


def test_the_state_in_adoption_is_carried_whole(world: World) -> None:
    world.ok(AdoptNodes(nodes=(node(1),)))
    again = decode_state(canonical(world.state))
    assert again.adoption == world.state.adoption
    assert state_digest(again) == state_digest(world.state)
