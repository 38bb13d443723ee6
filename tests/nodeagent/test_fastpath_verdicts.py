"""Slow and fast path give the same verdict and the same bytes, whatever pods send, under whatever rules."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.nodeagent.sandbox import inside
from tests.nodeagent.twins import Network, ipv4, twins, udp
from tests.nodeagent.verdicts import (
    ONE,
    RULES,
    TWO,
    both,
    made,
    packets,
    rules,
    used,
    warm,
)

pytestmark = pytest.mark.slow


@inside
def test_a_flow_is_fast_after_its_first_packet_and_arrives_with_two_hops_less() -> None:
    with twins() as pair:
        fast = pair[1]
        for protocol, ports in (("udp", (1000, 2000)), ("tcp", (1001, 2001))):
            out, into = used(fast, 1, "fast_out"), used(fast, 2, "fast_in")
            warm(pair, ports, protocol)
            assert used(fast, 1, "fast_out") >= out + 2, fast.counters(1)
            assert used(fast, 2, "fast_in") >= into + 2, fast.counters(2)
        packet = ipv4(ONE, TWO, udp(ONE, TWO, (1000, 2000), b"?"), tos=0x02)
        (arrived,) = both(pair, "from_pod", "one", packet)["two"]
        assert arrived == ipv4(ONE, TWO, udp(ONE, TWO, (1000, 2000), b"?"), tos=0x02, ttl=62)
        whoever_queues_packets_sees_the_same_of_them(pair)


def whoever_queues_packets_sees_the_same_of_them(pair: tuple[Network, Network]) -> None:
    """A rule gives packets a class of the underlay's queue."""
    for network in pair:
        rule = "chain f { type filter hook forward priority 10; udp dport 2000 meta priority set 0x10003; }"
        network.run("h1", f"nft 'table ip other {{ {rule}; }}'")
        network.run("h1", "tc qdisc add dev u root handle 1: htb default 4")
        for number in (3, 4):
            network.run("h1", f"tc class add dev u parent 1: classid 1:{number} htb rate 1gbit")
        network.void()
    before = used(pair[1], 1, "fast_out")
    for _ in range(10):
        both(pair, "from_pod", "one", ipv4(ONE, TWO, udp(ONE, TWO, (1000, 2000), b"!")))
    assert used(pair[1], 1, "fast_out") > before + 5
    for network in pair:
        listing = network.run("h1", "tc -s class show dev u classid 1:3")
        assert " 10 pkt " in listing, (network.name, listing)


@inside
def test_any_packet_of_a_pod_has_the_same_fate_under_any_rules() -> None:
    with twins() as pair:
        ports = [1000]
        present: set[tuple[Network, int]] = set()

        @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(
            st.lists(st.tuples(packets, st.integers(1, 3)), min_size=1, max_size=6),
            st.lists(
                st.tuples(st.integers(0, 5), st.sampled_from(sorted(RULES)), st.sampled_from([1, 2])),
                max_size=2,
            ),
            st.sampled_from(["udp", "tcp"]),
        )
        def same(
            steps: list[tuple[dict[str, object], int]], changes: list[tuple[int, str, int]], kind: str
        ) -> None:
            ports[0] += 1
            for network, number in [*present]:
                rules(network, number, "none")
            present.clear()
            warm(pair, (ports[0], 2000 if kind == "udp" else 2001), kind)
            for place, (what, times) in enumerate(steps):
                for when, name, number in changes:
                    if when == place:
                        for network in pair:
                            rules(network, number, name)
                            present.add((network, number))
                packet = made(what, (ports[0], int(str(what["port"]))))
                for _ in range(times):
                    both(pair, "from_pod", "one", packet, stranger=what["stranger"])

        same()
        fast = pair[1].counters(1)
        assert fast["fast_out"] > 40, fast


@inside
def test_a_packet_translated_into_a_refused_flow_does_not_open_it() -> None:
    """The stack drops a flow; another one is translated into its very addresses and ports and let through."""
    with twins() as pair:
        for network in pair:
            network.run("h1", "nft 'table ip other { "
                "chain p { type filter hook prerouting priority raw; udp dport 2001 notrack; }; "
                "chain d { type filter hook prerouting priority -140; "
                "udp dport 2002 udp dport set 2001 meta mark set 7; }; "
                "chain f { type filter hook forward priority 10; "
                "udp dport 2001 meta mark != 7 drop; }; }'")  # fmt: skip
            network.void()
        refused = ipv4(ONE, TWO, udp(ONE, TWO, (1000, 2001), b"no", sealed=False))
        allowed = ipv4(ONE, TWO, udp(ONE, TWO, (1000, 2002), b"yes", sealed=False))
        for _ in range(20):
            assert not both(pair, "from_pod", "one", refused)
            assert both(pair, "from_pod", "one", allowed)["two"][0][28:] == b"yes"


@inside
def test_a_pod_that_pretends_to_be_another_neither_passes_nor_disturbs() -> None:
    with twins() as pair:
        warm(pair, (1000, 2000))
        fast = pair[1]
        false = ipv4(TWO, ONE, udp(TWO, ONE, (2000, 1000), b"lie"))
        for _ in range(5):
            assert not both(pair, "from_pod", "other", false)
        before = used(fast, 2, "fast_out")
        assert both(pair, "from_pod", "two", ipv4(TWO, ONE, udp(TWO, ONE, (2000, 1000), b"truth")))
        assert used(fast, 2, "fast_out") == before + 1


@inside
def test_what_the_stack_refuses_of_a_flow_does_not_pass_with_the_rest_of_it() -> None:
    """Of one flow the stack drops a service class and packets that have come far; the others are fast."""
    with twins() as pair:
        for network in pair:
            network.run("h1", "nft 'table inet other { chain f { type filter hook forward priority 10; "
                "ip dscp ef drop; ip ttl < 60 drop; }; }'")  # fmt: skip
            network.void()
        warm(pair, (1000, 2000))
        plain, marked, far = (
            ipv4(ONE, TWO, udp(ONE, TWO, (1000, 2000), b"!"), tos=tos, ttl=ttl)
            for tos, ttl in ((0, 64), (0xB8, 64), (0, 30))
        )
        before = used(pair[1], 1, "fast_out")
        for _ in range(5):
            for packet in (marked, marked, far, far):
                assert not both(pair, "from_pod", "one", packet)
            for _ in range(2):
                assert both(pair, "from_pod", "one", plain)
        assert used(pair[1], 1, "fast_out") > before
