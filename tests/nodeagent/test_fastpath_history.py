"""Slow and fast path give the same verdict and the same bytes while the log goes on and peers change."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from nodeagent.membership.peers import Peer
from tests.nodeagent import host
from tests.nodeagent.sandbox import inside
from tests.nodeagent.twins import ipv4, twins, udp, vxlan
from tests.nodeagent.verdicts import (
    ACK,
    ONE,
    RULES,
    THIRD,
    both,
    made,
    rules,
    used,
    warm,
)

pytestmark = pytest.mark.slow

HERE = host.peer(3)
LIVES: dict[str, Peer | None] = {
    "as it was": HERE,
    "has left, or was fenced, or its range was drained": None,
    "has another underlay address": msgspec.structs.replace(HERE, underlay="10.0.0.33"),
    "was replaced by another machine": msgspec.structs.replace(HERE, uid="u4", epoch=9, vtep_mac=host.mac(300)),
    "has its range anew": msgspec.structs.replace(HERE, epoch=11),
}
events = st.sampled_from([*LIVES, "1300", "1200", "0", "our table anew", *RULES])
traffic = st.tuples(
    st.sampled_from(["out", "in", "in from 3", "in from 33"]),
    st.sampled_from(["udp", "tcp"]),
    st.sampled_from([1, 1150, 1250, 1380]),
    st.sampled_from([0, 0x4000]),
    st.integers(1, 3),
)
EACH = [("out", "udp", 1150, 0, 2), ("in", "tcp", 1150, 0, 2), ("in from 3", "udp", 1, 0, 1)]


@inside
def test_running_flows_have_the_same_fate_while_the_log_goes_on() -> None:
    """A range is moved, drained or fenced, its owner leaves, comes back, or moves; its way gets narrower.

    Between these somebody's rules change, and our own table is written anew.
    """
    with twins() as pair:
        ports = [3000]
        both_ways = [used(pair[1], 1, "fast_out"), used(pair[1], 1, "fast_in")]

        @settings(max_examples=4, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                  phases=[Phase.explicit, Phase.generate])  # fmt: skip
        @given(st.lists(st.tuples(events, st.lists(traffic, min_size=1, max_size=4)), min_size=1, max_size=3))
        @example([(event, EACH) for event in (*LIVES, "1200", "our table anew", "0", "as it was")])
        def same(steps: list[tuple[str, list[tuple[str, str, int, int, int]]]]) -> None:
            ports[0] += 1
            for network in pair:
                network.third(HERE)
                rules(network, 1, "none")
            for protocol in ("udp", "tcp"):
                warm(pair, (ports[0], 2000), protocol, "third")
            for event, packets in steps:
                for network in pair:
                    if event in LIVES:
                        network.third(LIVES[event])
                    elif event in RULES:
                        rules(network, 1, event)
                    elif event == "our table anew":
                        network.protect_anew()
                    else:
                        network.narrow(int(event))
                for way, protocol, size, fragment, times in packets:
                    source, target = (ONE, THIRD) if way == "out" else (THIRD, ONE)
                    what = {
                        "source": source, "target": target, "protocol": protocol, "size": size, "flags": ACK,
                        "fragment": fragment, "ttl": 64, "tos": 0, "sealed": True, "options": b"",
                        "length": None, "broken": False,
                    }  # fmt: skip
                    ends = (ports[0], 2000)
                    packet = made(what, ends if way == "out" else ends[::-1])
                    for _ in range(times):
                        if way.startswith("in from"):
                            outer = f"10.0.0.{way.rpartition(' ')[2]}"
                            payload = vxlan(packet, source_mac=host.mac(3), target_mac=host.mac(1))
                            datagram = udp(outer, "10.0.0.1", (40000, 8472), payload, sealed=False)
                            both(pair, "from_underlay", 3, 1, ipv4(outer, "10.0.0.1", datagram))
                        else:
                            both(pair, "from_pod", "one" if way == "out" else "third", packet)

        same()
        assert used(pair[1], 1, "fast_out") > both_ways[0] + 20
        assert used(pair[1], 1, "fast_in") > both_ways[1] + 20
