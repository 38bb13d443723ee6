"""The address plan: the product's own examples, its bounds, and its formula against counting."""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.addressing.addresses import address_text, address_value
from controlplane.cluster.addressing.plan import make_plan, range_cidr, round_up
from controlplane.cluster.addressing.proposal import propose
from events.errors import Refused

# reference/networking.md, section 1.2: cidr, pods, services → size, Service range, nodes, first, last,
# usable pods, usable Services, stranded. The first two are the provider's official examples.
VECTORS = [
    ("172.16.0.0/16", 64, 256, 64, "172.16.255.0/24", 1020, "172.16.0.0/26", "172.16.254.192/26", 61, 251, 0),
    (
        "172.16.0.0/16",
        128,
        1024,
        128,
        "172.16.252.0/22",
        504,
        "172.16.0.0/25",
        "172.16.251.128/25",
        125,
        1019,
        0,
    ),
    ("10.200.0.0/16", 256, 1024, 256, "10.200.252.0/22", 252, "10.200.0.0/24", "10.200.251.0/24", 253, 1019, 0),
    (
        "192.168.0.0/20",
        100,
        200,
        128,
        "192.168.15.0/24",
        30,
        "192.168.0.0/25",
        "192.168.14.128/25",
        125,
        251,
        0,
    ),
    ("10.0.0.0/24", 64, 32, 64, "10.0.0.224/27", 3, "10.0.0.0/26", "10.0.0.128/26", 61, 27, 32),
    ("10.0.0.0/14", 32, 32768, 32, "10.3.128.0/17", 7168, "10.0.0.0/27", "10.3.127.224/27", 29, 32763, 0),
]


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v[0]}-{v[1]}-{v[2]}")
def test_the_reference_vectors_hold(vector: tuple) -> None:
    cidr, pods, services, *expected = vector
    plan = make_plan(cidr, pods, services)
    assert [
        plan.range_size,
        plan.service_cidr,
        plan.capacity,
        plan.first_range,
        plan.last_range,
        plan.usable_pods,
        plan.usable_services,
        plan.stranded,
    ] == expected
    assert plan.max_pods_per_node == pods
    assert plan.max_services == services


@given(
    prefix=st.integers(16, 30),
    where=st.sampled_from(["10.64.0.0", "172.16.0.0", "192.168.0.0", "9.1.0.0"]),
    pods=st.integers(4, 1024),
    services=st.integers(32, 32768),
)
def test_the_plan_equals_a_count_of_blocks(prefix: int, where: str, pods: int, services: int) -> None:
    net = IPv4Network(f"{where}/{prefix}")
    range_size, service_size = round_up(pods), round_up(services)
    if pods > net.num_addresses:
        with pytest.raises(Refused) as refused:
            make_plan(str(net), pods, services)
        assert refused.value.code == "pods_out_of_range"
        return
    first_service = int(net.broadcast_address) + 1 - service_size
    starts = range(int(net.network_address), int(net.broadcast_address) + 1, range_size)
    whole = [start for start in starts if start + range_size <= first_service]
    if not whole:
        with pytest.raises(Refused) as refused:
            make_plan(str(net), pods, services)
        assert refused.value.code == "cidr_too_small"
        return
    plan = make_plan(str(net), pods, services)
    assert plan.capacity == len(whole)
    assert IPv4Network(plan.service_cidr) == IPv4Network((first_service, 33 - service_size.bit_length()))
    assert IPv4Network(plan.last_range) == IPv4Network((whole[-1], 33 - range_size.bit_length()))
    assert plan.stranded == first_service - whole[-1] - range_size
    assert range_cidr(int(net.network_address), range_size, len(whole) - 1) == plan.last_range


@pytest.mark.parametrize(
    ("cidr", "pods", "services", "code"),
    [
        ("10.0.0.1/16", 64, 256, "cidr_invalid"),
        ("10.0.0.0", 64, 256, "cidr_invalid"),
        ("10.0.0.0/33", 64, 256, "cidr_invalid"),
        ("10.0.0/16", 64, 256, "cidr_invalid"),
        ("010.0.0.0/16", 64, 256, "cidr_invalid"),
        ("fd00::/64", 64, 256, "cidr_invalid"),
        ("١٠.0.0.0/16", 64, 256, "cidr_invalid"),
        ("11.0.0.0/16", 64, 256, "cidr_not_private"),
        ("172.32.0.0/16", 64, 256, "cidr_not_private"),
        ("192.169.0.0/16", 64, 256, "cidr_not_private"),
        ("10.0.0.0/7", 64, 256, "cidr_not_private"),
        ("8.0.0.0/6", 64, 256, "cidr_not_private"),
        ("10.0.0.0/16", 3, 256, "pods_out_of_range"),
        ("10.0.0.0/24", 257, 32, "pods_out_of_range"),
        ("10.0.0.0/16", 64, 31, "services_out_of_range"),
        ("10.0.0.0/8", 64, 32769, "services_out_of_range"),
        ("10.0.0.0/24", 64, 256, "cidr_too_small"),
        ("10.0.0.0/24", 256, 32, "cidr_too_small"),
        ("10.0.0.0/27", 4, 64, "cidr_too_small"),
    ],
)
def test_bounds(cidr: str, pods: int, services: int, code: str) -> None:
    with pytest.raises(Refused) as refused:
        make_plan(cidr, pods, services)
    assert refused.value.code == code


def test_the_bounds_themselves_are_allowed() -> None:
    assert make_plan("10.0.0.0/26", 4, 32).capacity == 8
    assert make_plan("10.0.0.0/8", 64, 32768).service_size == 32768
    assert make_plan("10.0.0.0/23", 256, 256).capacity == 1


def test_a_plan_with_no_room_says_what_would_work() -> None:
    with pytest.raises(Refused) as refused:
        make_plan("10.0.0.0/24", 256, 32)
    message = refused.value.message
    assert "(256 addresses − 32 for Services) / 256 per node = 0" in message
    assert "128 addresses, 125 pods per node instead of 256 gives 1 node" in message
    assert "10.0.0.0/23 instead of 10.0.0.0/24 gives 1 node" in message


def test_host_bits_are_answered_with_the_nearest_network() -> None:
    with pytest.raises(Refused, match=r"did you mean 172\.16\.0\.0/12\?") as refused:
        make_plan("172.20.0.0/12", 64, 256)
    assert refused.value.details["nearest"] == "172.16.0.0/12"


# --- proposals ---------------------------------------------------------------------------------------


def test_a_proposal_is_the_smallest_cidr_that_fits() -> None:
    proposal = propose("172.16.0.0/16", 64, 256, 300)
    assert proposal.plan.container_cidr == "172.16.0.0/17"
    assert proposal.smaller
    assert proposal.plan.capacity >= 300
    assert make_plan("172.16.0.0/18", 64, 256).capacity < 300


def test_a_cidr_that_is_just_enough_stays() -> None:
    proposal = propose("172.16.0.0/16", 64, 256, 1020)
    assert proposal.plan.container_cidr == "172.16.0.0/16"
    assert not proposal.smaller


def test_too_many_nodes_are_answered_with_the_smallest_changes() -> None:
    with pytest.raises(Refused) as refused:
        propose("172.16.0.0/16", 64, 256, 2000)
    assert refused.value.code == "cidr_too_small"
    assert refused.value.details["changes"] == [
        "32 addresses, 29 pods per node instead of 64 gives 2,040 nodes",
        "172.16.0.0/15 instead of 172.16.0.0/16 gives 2,044 nodes",
    ]


def test_without_a_cidr_a_free_private_one_is_proposed() -> None:
    assert propose("", 64, 256, 1000).plan.container_cidr == "10.0.0.0/16"
    around = propose("", 64, 256, 1000, ["10.0.0.0/16", "10.1.128.0/24", "10.0.0.0/9"])
    assert around.plan.container_cidr == "10.128.0.0/16"
    elsewhere = propose("", 64, 256, 1000, ["10.0.0.0/8"])
    assert elsewhere.plan.container_cidr == "172.16.0.0/16"


def test_a_proposal_that_cannot_exist_says_how_many_fit() -> None:
    with pytest.raises(Refused, match="65,535 nodes"):
        propose("", 256, 256, 100_000)
    with pytest.raises(Refused, match="clear of the 3 networks"):
        propose("", 64, 256, 1000, ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"])


@given(nodes=st.integers(1, 60_000), pods=st.integers(4, 256), services=st.integers(32, 4096))
def test_no_smaller_network_than_the_proposed_one_would_do(nodes: int, pods: int, services: int) -> None:
    plan = propose("", pods, services, nodes).plan
    assert plan.capacity >= nodes
    half = IPv4Network(plan.container_cidr).num_addresses // 2
    assert max(0, half - plan.service_size) // plan.range_size < nodes


@given(st.integers(0, 2**32 - 1) | st.text("0123456789.", max_size=16) | st.text(max_size=16))
def test_an_address_is_read_as_the_standard_library_reads_it(given: int | str) -> None:
    text = address_text(given) if isinstance(given, int) else given
    try:
        expected = int(IPv4Address(text)) if "/" not in text else None
    except AddressValueError:
        expected = None
    assert address_value(text) == expected


@pytest.mark.parametrize(
    "text", ["1.2.3", "1.2.3.4.5", "1.2.3.04", "1.2.3.256", "1.2.3.4\n", " 1.2.3.4", "1.2.3.٤"]
)
def test_an_address_has_one_spelling(text: str) -> None:
    assert address_value(text) is None
