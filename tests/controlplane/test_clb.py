"""The CLB pair: both addresses or none, never one that somebody uses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.decide import DecisionContext
from events.protocol.commands import Override, ReleaseClb, ReserveClb
from events.types import Network
from tests.controlplane.world import World, names


@pytest.fixture
def world() -> World:
    return World(container_cidr="172.16.0.0/24", pods_per_node=16)


def pair(result: dict) -> tuple[str, ...]:
    return tuple(item["address"] for item in result["addresses"])


def test_the_pair_is_the_lowest_two_usable_addresses_with_its_purposes(world: World) -> None:
    result = world.ok(ReserveClb(reservation="main", subnet="10.0.8.0/28"))
    assert result["addresses"] == (
        {"purpose": "apiserver", "address": "10.0.8.2"},
        {"purpose": "public-services", "address": "10.0.8.3"},
    )
    assert (result["gateway"], result["provider"]) == ("10.0.8.1", "reserve-only")
    assert names(world.log)[-1] == "ClbReserved"


def test_used_addresses_are_passed_over(world: World) -> None:
    world.join(1, underlay="10.0.8.3")
    world.join(2, underlay="192.0.2.9", announced="10.0.8.4")
    command = ReserveClb(
        reservation="main", subnet="10.0.8.0/28", gateway="10.0.8.2", exclude=("10.0.8.5", "10.0.8.8/30")
    )
    assert pair(world.ok(command)) == ("10.0.8.1", "10.0.8.6")
    assert pair(world.ok(ReserveClb(reservation="spare", subnet="10.0.8.0/28"))) == ("10.0.8.7", "10.0.8.12")


def test_a_reservation_is_idempotent_by_name(world: World) -> None:
    command = ReserveClb(reservation="main", subnet="10.0.8.0/28", purposes=("apiserver", "mirror"))
    first = world.ok(command)
    written = len(world.log)
    assert pair(world.ok(command)) == pair(first)
    assert len(world.log) == written
    for other in (
        ReserveClb(reservation="main", subnet="10.0.9.0/28", purposes=("apiserver", "mirror")),
        ReserveClb(reservation="main", subnet="10.0.8.0/28"),
        ReserveClb(
            reservation="main", subnet="10.0.8.0/28", purposes=("apiserver", "mirror"), provider="gateway"
        ),
        ReserveClb(
            reservation="main", subnet="10.0.8.0/28", purposes=("apiserver", "mirror"), exclude=("10.0.8.2",)
        ),
    ):
        assert world.refused(other) == "clb_already_reserved"
    assert len(world.log) == written


@pytest.mark.parametrize(
    ("subnet", "exclude", "usable"),
    [
        ("10.0.8.0/30", (), 1),
        ("10.0.8.0/31", (), 0),
        ("10.0.8.0/32", (), 0),
        ("10.0.8.0/29", ("10.0.8.2", "10.0.8.3", "10.0.8.4", "10.0.8.5"), 1),
        ("10.0.8.0/24", ("10.0.8.0/25", "10.0.8.128/25"), 0),
    ],
)
def test_fewer_than_two_usable_addresses_are_refused_and_counted(
    world: World, subnet: str, exclude: tuple[str, ...], usable: int
) -> None:
    decision = world.do(ReserveClb(reservation="main", subnet=subnet, exclude=exclude))
    assert decision.refusal is not None
    assert decision.refusal.code == "clb_subnet_too_small"
    assert decision.refusal.details["usable"] == usable
    assert f"{usable} usable" in decision.refusal.message
    assert names(decision.events) == ["ClbRefused"]
    again = world.do(ReserveClb(reservation="main", subnet=subnet, exclude=exclude))
    assert again.events == ()
    assert not world.state.clb


def test_two_usable_addresses_are_enough(world: World) -> None:
    result = world.ok(
        ReserveClb(reservation="main", subnet="10.0.8.0/29", exclude=("10.0.8.2", "10.0.8.3", "10.0.8.4"))
    )
    assert pair(result) == ("10.0.8.5", "10.0.8.6")


def test_what_one_reservation_was_told_is_in_use_for_the_next_one_too(world: World) -> None:
    world.ok(ReserveClb(reservation="main", subnet="10.0.8.0/29", exclude=("10.0.8.2", "10.0.8.3", "10.0.8.4")))
    assert world.refused(ReserveClb(reservation="next", subnet="10.0.8.0/29")) == "clb_subnet_too_small"
    world.ok(ReleaseClb(reservation="main"))
    assert pair(world.ok(ReserveClb(reservation="next", subnet="10.0.8.0/29"))) == ("10.0.8.2", "10.0.8.3")


def test_released_addresses_are_free_again(world: World) -> None:
    first = pair(world.ok(ReserveClb(reservation="main", subnet="10.0.8.0/28")))
    assert pair(world.ok(ReleaseClb(reservation="main"))) == first
    assert pair(world.ok(ReserveClb(reservation="other", subnet="10.0.8.0/28"))) == first
    assert world.refused(ReleaseClb(reservation="main")) == "clb_unknown"


def test_a_subnet_inside_a_container_network_is_refused_or_overridden(world: World) -> None:
    command = ReserveClb(reservation="main", subnet="172.16.0.64/28")
    for _ in range(2):
        assert world.refused(command) == "cidr_conflict_with_clb_subnet"
    assert names(world.log).count("ClbRefused") == 1
    world.context = DecisionContext(clusters={"stage": ("10.64.0.0/16",)})
    other = ReserveClb(reservation="other", subnet="10.64.1.0/28")
    assert world.refused(other) == "cidr_conflict_with_other_cluster"
    accepted = (Override(code="cidr_conflict_with_clb_subnet", reason="routed by hand"),)
    world.ok(ReserveClb(reservation="main", subnet="172.16.0.64/28", overrides=accepted))
    assert names(world.log)[-2:] == ["ConflictOverridden", "ClbReserved"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"subnet": "10.0.8.1/28"}, "cidr_invalid"),
        ({"gateway": "10.0.9.1"}, "bad_request"),
        ({"gateway": "x"}, "bad_request"),
        ({"exclude": ("x",)}, "cidr_invalid"),
        ({"purposes": ("a", "a")}, "bad_request"),
        ({"purposes": ("a", "Not A Label")}, "bad_request"),
        ({"reservation": "Bad Name"}, "bad_request"),
        ({"provider": ""}, "bad_request"),
    ],
)
def test_plain_bad_input_writes_nothing(world: World, change: dict, code: str) -> None:
    assert world.refused(ReserveClb(**{"reservation": "main", "subnet": "10.0.8.0/28", **change})) == code
    assert len(world.log) == 1


def test_a_subnet_outside_the_vpc_is_noted() -> None:
    world = World(
        container_cidr="172.16.0.0/24", pods_per_node=16, networks=(Network(cidr="10.0.0.0/16", kind="vpc"),)
    )
    assert "warnings" not in world.ok(ReserveClb(reservation="inside", subnet="10.0.8.0/28"))
    outside = world.ok(ReserveClb(reservation="outside", subnet="10.1.8.0/28"))
    assert "no declared VPC CIDR (10.0.0.0/16)" in outside["warnings"][0]


@given(
    prefix=st.integers(27, 32),
    gateway=st.one_of(st.none(), st.integers(0, 31)),
    excluded=st.lists(st.integers(0, 31), max_size=31, unique=True),
)
def test_any_pair_equals_a_search_address_by_address(
    prefix: int, gateway: int | None, excluded: list[int]
) -> None:
    net = IPv4Network((int(IPv4Address("10.0.8.0")), prefix))
    router = "" if gateway is None else str(IPv4Address("10.0.8.0") + gateway % net.num_addresses)
    out = {str(IPv4Address("10.0.8.0") + number) for number in excluded}
    used = {str(net.network_address), str(net.broadcast_address), *out, router}
    if not router and net.num_addresses >= 4:
        used.add("10.0.8.1")
    usable = [str(address) for address in net if str(address) not in used]
    world = World(container_cidr="172.16.0.0/24", pods_per_node=16)
    decision = world.do(
        ReserveClb(reservation="main", subnet=str(net), gateway=router, exclude=tuple(sorted(out)))
    )
    if len(usable) < 2:
        assert decision.refusal is not None
        assert decision.refusal.details["usable"] == len(usable)
    else:
        assert pair(decision.result) == tuple(usable[:2])
