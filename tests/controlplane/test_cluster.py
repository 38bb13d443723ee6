"""Definition, growth, networks, overlaps and their overrides, deletion."""

from __future__ import annotations

import re

import pytest

from controlplane.cluster.addressing.free import next_free_network
from controlplane.cluster.decide import DecisionContext
from controlplane.cluster.decisions.overlap import CODE_OF_KIND
from events.protocol.commands import (
    AppendCidr,
    DeclareNetwork,
    DefineCluster,
    DeleteCluster,
    JoinNode,
    Override,
    ReserveClb,
    WithdrawNetwork,
)
from events.types import Network
from tests.controlplane.world import World, joining, names

DEFINE = DefineCluster(container_cidr="172.16.0.0/16", pods_per_node=64, services=256)


def test_a_definition_is_the_first_event_and_carries_the_plan() -> None:
    world = World()
    result = world.ok(DEFINE)
    assert names(world.log) == ["ClusterDefined"]
    assert (result["capacity"], result["service_cidr"]) == (1020, "172.16.255.0/24")
    assert world.state.pool.free == 1020


def test_the_same_definition_again_writes_nothing() -> None:
    world = World()
    assert world.ok(DEFINE) == world.ok(DEFINE)
    assert len(world.log) == 1


@pytest.mark.parametrize(
    "other",
    [
        DefineCluster(container_cidr="172.17.0.0/16", pods_per_node=64, services=256),
        DefineCluster(container_cidr="172.16.0.0/16", pods_per_node=128, services=256),
        DefineCluster(container_cidr="172.16.0.0/16", pods_per_node=64, services=512),
        DefineCluster(container_cidr="172.16.0.0/16", pods_per_node=64, services=256, vni=7),
        DefineCluster(
            container_cidr="172.16.0.0/16",
            pods_per_node=64,
            services=256,
            networks=(Network(cidr="10.0.0.0/8", kind="vpc"),),
        ),
    ],
)
def test_a_definition_never_changes_in_place(other: DefineCluster) -> None:
    world = World()
    world.ok(DEFINE)
    assert world.refused(other) == "cluster_already_defined"
    assert len(world.log) == 1


def test_nothing_works_before_the_definition() -> None:
    world = World()
    for command in (
        joining(1),
        AppendCidr(cidr="10.0.0.0/16"),
        DeleteCluster(),
        WithdrawNetwork(cidr="10.0.0.0/8"),
    ):
        assert world.refused(command) == "cluster_not_defined"
    assert world.log == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("vni", 0), ("vni", 1 << 24), ("vxlan_port", 0), ("vxlan_port", 70000), ("quarantine_s", -1.0),
     ("quarantine_s", float("nan")), ("unreachable_after_s", 0.0), ("remove_after_s", float("inf"))],
)  # fmt: skip
def test_constants_have_bounds(field: str, value: float) -> None:
    fields = {"container_cidr": "10.0.0.0/16", field: value}
    assert World().refused(DefineCluster(**fields)) == "bad_request"  # type: ignore[arg-type]


# --- overlaps ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(CODE_OF_KIND))
@pytest.mark.parametrize("theirs", ["172.16.0.0/16", "172.16.128.0/17", "172.0.0.0/8", "172.16.255.255/32"])
def test_a_definition_that_overlaps_a_network_is_refused_and_names_both(kind: str, theirs: str) -> None:
    world = World()
    command = DefineCluster(
        container_cidr="172.16.0.0/16",
        networks=(Network(cidr="10.0.0.0/8", kind="vpc"), Network(cidr=theirs, kind=kind, name="theirs")),  # type: ignore[arg-type]
    )
    decision = world.do(command)
    assert decision.refusal is not None
    assert decision.refusal.code == CODE_OF_KIND[kind]
    for part in ("172.16.0.0/16", theirs, "'theirs'", "would be free"):
        assert part in decision.refusal.message
    assert world.log == []


def test_an_adjacent_network_is_no_overlap() -> None:
    networks = (Network(cidr="172.15.0.0/16", kind="vpc"), Network(cidr="172.17.0.0/16", kind="idc"))
    World().ok(DefineCluster(container_cidr="172.16.0.0/16", networks=networks))


def test_the_proposed_way_out_works() -> None:
    world = World()
    networks = (Network(cidr="10.0.0.0/12", kind="vpc"), Network(cidr="10.16.4.0/24", kind="route"))
    refusal = world.do(DefineCluster(container_cidr="10.1.0.0/16", networks=networks)).refusal
    assert refusal is not None
    assert "10.17.0.0/16 would be free" in refusal.message
    world.ok(DefineCluster(container_cidr="10.17.0.0/16", networks=networks))


def test_when_nothing_is_free_nothing_is_proposed() -> None:
    from controlplane.cluster.addressing.addresses import network

    everything = [network("10.0.0.0/8"), network("172.16.0.0/12"), network("192.168.0.0/16")]
    assert next_free_network(256, everything) is None
    assert str(next_free_network(256, [network("10.0.0.0/24"), network("10.0.0.0/30")])) == "10.0.1.0/24"


def test_an_override_is_an_event_with_its_reason() -> None:
    world = World()
    command = DefineCluster(
        container_cidr="172.16.0.0/16",
        networks=(Network(cidr="172.16.0.0/12", kind="vpc"), Network(cidr="172.16.9.0/24", kind="vpc")),
        overrides=(Override(code="cidr_conflict_with_vpc", reason="the VPC routes only 172.31/16"),),
    )
    world.ok(command)
    assert names(world.log) == ["ClusterDefined", "ConflictOverridden", "ConflictOverridden"]
    accepted = list(world.state.overrides.values())
    assert [(o.ours, o.theirs, o.reason) for o in accepted] == [
        ("172.16.0.0/16", "172.16.0.0/12", "the VPC routes only 172.31/16"),
        ("172.16.0.0/16", "172.16.9.0/24", "the VPC routes only 172.31/16"),
    ]


def test_an_override_covers_its_own_check_only() -> None:
    networks = (Network(cidr="172.16.0.0/24", kind="vpc"), Network(cidr="172.16.1.0/24", kind="idc"))
    overrides = (Override(code="cidr_conflict_with_vpc", reason="known"),)
    command = DefineCluster(container_cidr="172.16.0.0/16", networks=networks, overrides=overrides)
    assert World().refused(command) == "cidr_conflict_with_idc"


@pytest.mark.parametrize(
    "override",
    [
        Override(code="cidr_conflict_with_own_cidr", reason="x"),
        Override(code="no_such_check", reason="x"),
        Override(code="cidr_conflict_with_vpc", reason="  "),
    ],
)
def test_an_override_must_name_a_check_and_a_reason(override: Override) -> None:
    assert (
        World().refused(DefineCluster(container_cidr="10.0.0.0/16", overrides=(override,)))
        == "override_invalid"
    )


def test_other_clusters_on_the_bus_are_seen() -> None:
    world = World()
    world.context = DecisionContext(
        clusters={"prod": ("10.0.0.0/16",), "stage": ("10.1.0.0/16", "10.2.0.0/16")}
    )
    refusal = world.do(DefineCluster(container_cidr="10.2.0.0/15")).refusal
    assert refusal is not None
    assert refusal.code == "cidr_conflict_with_other_cluster"
    assert "cluster 'stage'" in refusal.message
    world.ok(DefineCluster(container_cidr="10.0.0.0/16"))
    assert world.refused(AppendCidr(cidr="10.1.0.0/24")) == "cidr_conflict_with_other_cluster"
    accepted = (Override(code="cidr_conflict_with_other_cluster", reason="stage moves out on Friday"),)
    world.ok(AppendCidr(cidr="10.1.0.0/24", overrides=accepted))


# --- growth ------------------------------------------------------------------------------------------


def test_ranges_continue_into_an_appended_cidr_cyclically() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=64)
    for number in range(3):
        world.join(number)
    assert world.refused(joining(3)) == "no_free_range"
    assert world.ok(AppendCidr(cidr="10.9.0.0/25"))["total_capacity"] == 5
    assert world.join(3)["cidr"] == "10.9.0.0/26"
    assert world.join(4)["cidr"] == "10.9.0.64/26"
    assert world.state.pool.cursor == 0


def test_appending_the_same_cidr_again_writes_nothing() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=64)
    first = world.ok(AppendCidr(cidr="10.9.0.0/25"))
    written = len(world.log)
    again = world.ok(AppendCidr(cidr="10.9.0.0/25"))
    assert (again["first_index"], again["capacity"]) == (first["first_index"], first["capacity"])
    assert len(world.log) == written


def test_an_appended_cidr_meets_every_check() -> None:
    world = World(
        container_cidr="10.0.0.0/24", pods_per_node=64, networks=(Network(cidr="10.1.0.0/24", kind="idc"),)
    )
    world.join(1, underlay="10.2.0.7")
    world.join(2, underlay="192.0.2.2", announced="10.3.0.7")
    world.ok(ReserveClb(reservation="main", subnet="10.4.0.0/28"))
    for cidr, code in (
        ("10.0.0.128/25", "cidr_conflict_with_own_cidr"),
        ("10.0.0.0/16", "cidr_conflict_with_own_cidr"),
        ("10.1.0.0/25", "cidr_conflict_with_idc"),
        ("10.2.0.0/24", "cidr_conflict_with_node"),
        ("10.3.0.0/24", "cidr_conflict_with_node"),
        ("10.4.0.0/24", "cidr_conflict_with_clb_subnet"),
        ("10.5.0.0/27", "cidr_too_small"),
        ("11.0.0.0/24", "cidr_not_private"),
        ("10.5.0.1/24", "cidr_invalid"),
    ):
        assert world.refused(AppendCidr(cidr=cidr)) == code, cidr
    world.ok(AppendCidr(cidr="10.5.0.0/26"))


@pytest.mark.parametrize("refused", ["10.1.0.0/26", "10.5.0.0/27"], ids=["overlap", "too-small"])
def test_a_refused_append_names_free_cidrs_and_each_of_them_can_be_appended(refused: str) -> None:
    world = World(
        container_cidr="10.0.0.0/24", pods_per_node=64, networks=(Network(cidr="10.0.1.0/25", kind="vpc"),)
    )
    world.ok(DeclareNetwork(network=Network(cidr="10.1.0.0/24", kind="idc")))
    world.join(1, underlay="10.0.1.200")
    refusal = world.do(AppendCidr(cidr=refused)).refusal
    assert refusal is not None
    offered = re.findall(r"10\.0\.[0-9.]+/26", refusal.message)
    assert offered == ["10.0.1.128/26", "10.0.2.0/26", "10.0.2.64/26"], refusal.message
    for cidr in offered:
        world.ok(AppendCidr(cidr=cidr))


def test_a_refused_overlap_is_recorded_once_until_it_changes() -> None:
    world = World(
        container_cidr="10.0.0.0/24", networks=(Network(cidr="10.1.0.0/24", kind="idc"),), pods_per_node=16
    )
    for _ in range(3):
        world.refused(AppendCidr(cidr="10.1.0.0/25"))
    assert names(world.log).count("ConflictRefused") == 1
    world.refused(AppendCidr(cidr="10.1.0.128/25"))
    assert names(world.log).count("ConflictRefused") == 2
    world.ok(AppendCidr(cidr="10.2.0.0/25"))
    world.refused(AppendCidr(cidr="10.1.0.128/25"))
    assert names(world.log).count("ConflictRefused") == 3


# --- networks ----------------------------------------------------------------------------------------


def test_a_declared_network_is_known_to_later_checks_and_a_withdrawn_one_is_not() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=16)
    declare = DeclareNetwork(network=Network(cidr="10.7.0.0/16", kind="route", name="bgp"))
    world.ok(declare)
    world.ok(declare)
    assert names(world.log) == ["ClusterDefined", "NetworkDeclared"]
    assert world.refused(AppendCidr(cidr="10.7.1.0/24")) == "cidr_conflict_with_route"
    world.ok(WithdrawNetwork(cidr="10.7.0.0/16"))
    world.ok(AppendCidr(cidr="10.7.1.0/24"))
    assert world.refused(WithdrawNetwork(cidr="10.7.0.0/16")) == "network_unknown"


def test_a_network_over_the_containers_is_refused_or_overridden() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=16)
    over = Network(cidr="10.0.0.0/8", kind="idc")
    assert world.refused(DeclareNetwork(network=over)) == "cidr_conflict_with_idc"
    world.ok(
        DeclareNetwork(network=over, overrides=(Override(code="cidr_conflict_with_idc", reason="a summary"),))
    )
    assert "10.0.0.0/8" in world.state.networks


@pytest.mark.parametrize("cidr", ["10.0.0.1/8", "nonsense", "10.0.0.0"])
def test_a_network_must_be_one(cidr: str) -> None:
    world = World(container_cidr="172.16.0.0/24", pods_per_node=16)
    assert world.refused(DeclareNetwork(network=Network(cidr=cidr, kind="vpc"))) == "cidr_invalid"


# --- the end -----------------------------------------------------------------------------------------


def test_a_cluster_with_live_nodes_cannot_be_deleted() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=16)
    world.join(1)
    refusal = world.do(DeleteCluster()).refusal
    assert refusal is not None
    assert refusal.code == "cluster_has_live_nodes"
    assert "n1" in refusal.message


def test_a_deleted_cluster_gives_its_addresses_back_and_takes_no_command() -> None:
    from events.protocol.commands import RemoveNode

    world = World(container_cidr="10.0.0.0/24", pods_per_node=16)
    world.join(1)
    world.ok(ReserveClb(reservation="main", subnet="192.0.2.64/28"))
    world.ok(RemoveNode(node="n1"))
    world.ok(DeleteCluster(reason="test over"))
    assert names(world.log)[-2:] == ["ClbReleased", "ClusterDeleted"]
    assert not world.state.clb_addresses
    for command in (joining(2), AppendCidr(cidr="10.1.0.0/24"), DeleteCluster(), DEFINE):
        assert world.refused(command) == "cluster_deleted"


def test_free_text_is_bounded_and_printable() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=16)
    assert world.refused(DeleteCluster(reason="x" * 600)) == "bad_request"
    assert world.refused(DeleteCluster(reason="line\nbreak")) == "bad_request"
    assert world.refused(JoinNode(node="n1", uid="\x00", kind="cloud", underlay="192.0.2.1")) == "bad_request"
