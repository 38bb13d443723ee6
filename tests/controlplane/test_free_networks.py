"""The first free private network: netaddr's set arithmetic against counting it out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.addressing.addresses import Net, network
from controlplane.cluster.addressing.free import free_networks, next_free_network
from controlplane.cluster.addressing.plan import PRIVATE


def counted(size: int, taken: Sequence[Net]) -> Net | None:
    """Every aligned candidate, one after another, past whatever is in its way."""
    for block in PRIVATE[1:]:
        candidate = block.first
        for item in sorted(taken):
            if item.first >= candidate + size:
                break
            if item.first + item.size > candidate:
                candidate = -(-(item.first + item.size) // size) * size
        if candidate + size <= block.first + block.size:
            return Net(candidate, size)
    return None


@st.composite
def nets(draw: st.DrawFn) -> Net:
    bits = draw(st.integers(0, 26))
    base = draw(st.sampled_from([0x0A000000, 0x0A800000, 0xAC100000, 0xAC1F0000, 0xC0A80000, 0x08000000]))
    return Net((base + draw(st.integers(0, 0xFFFFFF))) & ~((1 << bits) - 1) & 0xFFFFFFFF, 1 << bits)


@given(st.integers(2, 24), st.lists(nets(), max_size=12))
def test_the_first_free_network_is_the_first(bits: int, taken: list[Net]) -> None:
    assert next_free_network(1 << bits, taken) == counted(1 << bits, taken)


def test_nothing_is_free_when_everything_is_taken() -> None:
    everything = [network("10.0.0.0/8"), network("172.16.0.0/12"), network("192.168.0.0/16")]
    assert next_free_network(4, everything) is None
    assert next_free_network(1 << 25, []) is None
    assert str(next_free_network(1 << 16, everything[:1])) == "172.16.0.0/16"


@given(st.integers(2, 24), st.lists(nets(), max_size=12))
def test_each_further_free_network_is_the_first_once_those_before_it_are_taken(
    bits: int, taken: list[Net]
) -> None:
    found = list(islice(free_networks(1 << bits, taken), 5))
    for position, net in enumerate(found):
        assert net == counted(1 << bits, [*taken, *found[:position]])
    if len(found) < 5:
        assert counted(1 << bits, [*taken, *found]) is None
