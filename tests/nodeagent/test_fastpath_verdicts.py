"""Slow and fast path give the same verdict and the same bytes, whoever sends what into two equal networks."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from nodeagent.dataplane.second_device import second_vni
from nodeagent.membership.peers import Peer
from tests.nodeagent import host
from tests.nodeagent.sandbox import inside
from tests.nodeagent.twins import MAPPED_PORT, WIREGUARD, Network, ipv4, tcp, twins, udp, vxlan

pytestmark = pytest.mark.slow

ONE, TWO, OTHER, THIRD = (address for _, address in Network.PODS.values())
ACK, PUSH, SYN, FIN, RST = 0x10, 0x18, 0x02, 0x11, 0x04
OUTSIDE = "198.51.100.9"


def both(
    pair: tuple[Network, Network], send: str, *arguments: object, **more: object
) -> dict[str, list[bytes]]:
    """Send into both; they must agree on what arrives, to the byte."""
    slow, fast = (_counted(getattr(network, send)(*arguments, **more)) for network in pair)
    assert slow == fast, f"{send} {arguments} {more}\nslow {_hex(slow)}\nfast {_hex(fast)}"
    return dict(slow)


def _counted(found: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    """Without the stack's "network unreachable": how many of them it sends is limited for the whole machine.

    (``ip_error`` in net/ipv4/route.c; its burst and cost are settings of the initial network namespace alone.)
    """
    kept = {
        place: [
            packet
            for packet in packets
            if not (packet[9] == 1 and packet[(packet[0] & 15) * 4 :][:2] == b"\3\0")
        ]
        for place, packets in found.items()
    }
    return {place: packets for place, packets in kept.items() if packets}


def _hex(found: dict[str, list[bytes]]) -> dict[str, list[str]]:
    return {place: [packet.hex() for packet in packets] for place, packets in found.items()}


def warm(pair: tuple[Network, Network], ports: tuple[int, int], protocol: str = "udp", to: str = "two") -> None:
    """A flow between pod one and another that the stack has let through in both directions."""
    there = Network.PODS[to][1]
    for source, target, ends, pod in ((ONE, there, ports, "one"), (there, ONE, ports[::-1], to)):
        for _ in range(3):
            if protocol == "udp":
                packet = ipv4(source, target, udp(source, target, ends, b"warm" * 300))
            else:
                packet = ipv4(source, target, tcp(source, target, ends, ACK, b"warm" * 300), protocol=6)
            assert both(pair, "from_pod", pod, packet)


def used(network: Network, number: int, name: str) -> int:
    return network.counters(number)[name]


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


packets = st.fixed_dictionaries(
    {
        "protocol": st.sampled_from(["udp", "udp", "tcp", "icmp"]),
        "flags": st.sampled_from([ACK, ACK, PUSH, SYN, FIN, RST, ACK | 0x20, 0, SYN | ACK, 0xD0]),
        "size": st.sampled_from(
            [0, 1, 3, 100, 1394, 1395, 1396, 1397, 1409, 1410, 1411, 1421, 1422, 1423, 1460]
        ),
        "ttl": st.sampled_from([64, 64, 64, 1, 2, 3, 255, 0]),
        "tos": st.sampled_from([0, 0, 1, 2, 3, 0x10, 0xB8, 0xBB]),
        "fragment": st.sampled_from([0, 0, 0x4000, 0x4000, 0x2000, 0x0001, 0x2010, 0x8000]),
        "options": st.sampled_from([b"", b"", b"", b"\x01" * 4, b"\x94\x04\0\0"]),
        "target": st.sampled_from([TWO, TWO, OTHER, "172.16.2.99", "172.16.200.9", "172.16.3.2", OUTSIDE]),
        "source": st.sampled_from([ONE, ONE, ONE, "172.16.1.9", TWO, "10.0.0.1", OUTSIDE]),
        "sealed": st.booleans(),
        "length": st.sampled_from([None, None, None, None, 30, 60]),
        "broken": st.sampled_from([False, False, False, True]),
        "stranger": st.sampled_from([False, False, False, True]),
        "port": st.sampled_from([2000, 2001, 8472]),
    }
)


def made(what: dict[str, object], ports: tuple[int, int]) -> bytes:
    source, target = str(what["source"]), str(what["target"])
    data = random.Random(7).randbytes(int(str(what["size"])))
    if what["protocol"] == "udp":
        number, payload = 17, udp(source, target, ports, data, sealed=bool(what["sealed"]))
    elif what["protocol"] == "tcp":
        number, payload = 6, tcp(source, target, ports, int(str(what["flags"])), data)
    else:
        number, payload = 1, b"\x08\0\xf7\xff\0\0\0\0"
    return ipv4(
        source, target, payload, protocol=number, ttl=int(str(what["ttl"])), tos=int(str(what["tos"])),
        fragment=int(str(what["fragment"])), options=what["options"], length=what["length"],  # type: ignore[arg-type]
        broken=bool(what["broken"]),
    )  # fmt: skip


RULES = {
    "none": "",
    "drops a port": "tcp dport 2001 drop; udp dport 2000 drop",
    "changes the mark of service": "ip dscp set cs3",
    "changes the TTL": "ip ttl set 40",
    "drops a class": "ip dscp ef drop",
    "drops what has come far": "ip ttl < 60 drop",
    "drops what is large": "meta length > 1000 drop",
}


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


def rules(network: Network, number: int, name: str) -> None:
    """A table of somebody else; the fast path hears of it as the agent does."""
    chain = f"chain f {{ type filter hook forward priority 10; {RULES[name]}; }}"
    text = f"add table inet other; delete table inet other; add table inet other {{ {chain}; }}"
    network.run(f"h{number}", f"nft '{text}'")
    network.void()


outers = st.fixed_dictionaries(
    {
        "claims": st.sampled_from([1, 1, 1, 3, 66]),
        "vni": st.sampled_from([host.VNI, host.VNI, host.VNI, 7]),
        "flags": st.sampled_from([0x08000000, 0x08000000, 0x08000000, 0, 0x88000000, 0x08000001]),
        "source_mac": st.sampled_from([1, 1, 1, 2, 3, 9]),
        "target_mac": st.sampled_from([2, 2, 2, 1, 9]),
        "port": st.sampled_from([8472, 8472, 8472, 4789]),
        "outer_tos": st.sampled_from([0, 0, 0, 1, 2, 3]),
        "outer_fragment": st.sampled_from([0, 0, 0x4000, 0x2000]),
        "outer_ttl": st.sampled_from([64, 1]),
        "short": st.sampled_from([0, 0, 0, 1, 30]),
        "sealed": st.booleans(),
        "target": st.sampled_from(["10.0.0.2", "10.0.0.2", "10.0.0.2", "172.16.2.0"]),
    }
)
ENDS = [
    *[(ONE, TWO)] * 4, (ONE, OTHER), (TWO, OTHER), ("172.16.3.2", TWO), (OUTSIDE, TWO), ("172.16.200.9", TWO),
    (ONE, "172.16.2.0"),
]  # fmt: skip


@inside
def test_whatever_arrives_on_the_underlay_has_the_same_fate() -> None:
    with twins() as pair:
        warm(pair, (1000, 2000))
        warm(pair, (1001, 2001), "tcp")
        before = pair[1].counters(2)["fast_in"]

        @settings(max_examples=120, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(outers, packets, st.sampled_from(ENDS))
        def same(outer: dict[str, int], what: dict[str, object], ends: tuple[str, str]) -> None:
            ports = (1000, 2000) if what["protocol"] == "udp" else (1001, 2001)
            inner = made({**what, "source": ends[0], "target": ends[1]}, ports)
            payload = vxlan(
                inner[: len(inner) - outer["short"]],
                source_mac=host.mac(outer["source_mac"]),
                target_mac=host.mac(outer["target_mac"]),
                vni=outer["vni"],
                flags=outer["flags"],
            )
            source, target = f"10.0.0.{outer['claims']}", str(outer["target"])
            datagram = udp(source, target, (40000, outer["port"]), payload, sealed=bool(outer["sealed"]))
            tos, fragment, ttl = outer["outer_tos"], outer["outer_fragment"], outer["outer_ttl"]
            packet = ipv4(source, target, datagram, tos=tos, fragment=fragment, ttl=ttl)
            for _ in range(2):
                both(pair, "from_underlay", 66, 2, packet)

        same()
        counters = pair[1].counters(2)
        assert counters["wrong_source"] > 0
        assert counters["fast_in"] > before, counters


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


near = st.fixed_dictionaries(
    {
        "sender": st.sampled_from([3, 3, 3, 66]),
        "tunnelled": st.sampled_from([False, False, False, True]),
        "ends": st.sampled_from(
            [*[(THIRD, ONE)] * 4, ("172.16.3.99", ONE), (TWO, ONE), (OUTSIDE, ONE), ("172.16.200.9", ONE),
             ("10.0.0.3", ONE), (THIRD, "172.16.1.9"), (THIRD, "172.16.1.0"), (THIRD, TWO), (ONE, ONE)]
        ),
    }
)  # fmt: skip


@inside
def test_whatever_a_neighbour_sends_without_the_tunnel_has_the_same_fate() -> None:
    """Host 3 is reached directly; a stranger on the link, and host 3 itself, send what they like."""
    with twins() as pair:
        for network in pair:
            network.lead_directly()
        for protocol, ports in (("udp", (1000, 2000)), ("tcp", (1001, 2001))):
            warm(pair, ports, protocol, "third")
        before = pair[1].counters(1)

        @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(near, packets)
        def same(how: dict[str, object], what: dict[str, object]) -> None:
            ports = (1000, 2000) if what["protocol"] == "udp" else (1001, 2001)
            source, target = how["ends"]  # type: ignore[misc]
            size = min(int(str(what["size"])), 1400)  # what host 3's link takes, in the tunnel too
            packet = made({**what, "source": source, "target": target, "size": size}, ports[::-1])
            if how["tunnelled"]:
                payload = vxlan(packet, source_mac=host.mac(3), target_mac=host.mac(1))
                datagram = udp("10.0.0.3", "10.0.0.1", (40000, 8472), payload, sealed=False)
                packet = ipv4("10.0.0.3", "10.0.0.1", datagram)
            for _ in range(2):
                both(pair, "from_underlay", how["sender"], 1, packet)
            both(pair, "from_pod", "one", made({**what, "source": ONE, "target": THIRD}, ports))

        same()
        after = pair[1].counters(1)
        for name in ("fast_in", "fast_out", "wrong_source"):
            assert after[name] > before[name], after


mapped = st.fixed_dictionaries(
    {
        "vni": st.sampled_from([second_vni(host.VNI)] * 4 + [host.VNI, 7]),
        "port": st.sampled_from([MAPPED_PORT] * 4 + [MAPPED_PORT + 1, host.PORT]),
        "claims": st.sampled_from([3, 3, 3, 3, 2, 66]),
        "to": st.sampled_from([host.PORT, host.PORT, host.PORT, MAPPED_PORT]),
        "source_mac": st.sampled_from([3, 3, 3, 2]),
        "target_mac": st.sampled_from([1, 1, 1, 9]),
        "ends": st.sampled_from(
            [*[(THIRD, ONE)] * 5, ("172.16.3.99", ONE), (TWO, ONE), (OUTSIDE, ONE), ("172.16.200.9", ONE),
             (THIRD, "172.16.1.9"), (THIRD, TWO)]
        ),
    }
)  # fmt: skip


@inside
def test_whatever_comes_from_behind_a_nat_has_the_same_fate() -> None:
    """Host 3 is seen at a port of its own; others send from there, and it sends from elsewhere."""
    with twins() as pair:
        for network in pair:
            network.lead_through_nat()
        for protocol, ports in (("udp", (1000, 2000)), ("tcp", (1001, 2001))):
            warm(pair, ports, protocol, "third")
        before = [pair[1].counters(number) for number in (1, 3)]

        @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(mapped, packets)
        def same(how: dict[str, object], what: dict[str, object]) -> None:
            ports = (1000, 2000) if what["protocol"] == "udp" else (1001, 2001)
            source, target = how["ends"]  # type: ignore[misc]
            size = min(int(str(what["size"])), 1400)
            packet = made({**what, "source": source, "target": target, "size": size}, ports[::-1])
            macs = {name: host.mac(int(str(how[name]))) for name in ("source_mac", "target_mac")}
            payload = vxlan(packet, vni=int(str(how["vni"])), **macs)
            sender = f"10.0.0.{how['claims']}"
            ends = int(str(how["port"])), int(str(how["to"]))
            outer = ipv4(sender, "10.0.0.1", udp(sender, "10.0.0.1", ends, payload, sealed=False))
            for _ in range(2):
                both(pair, "from_underlay", 66, 1, outer)
            both(pair, "from_pod", "one", made({**what, "source": ONE, "target": THIRD}, ports))
            back = {**what, "source": THIRD, "target": ONE, "size": min(size, 1390)}
            both(pair, "from_pod", "third", made(back, ports[::-1]))

        same()
        for number, first in zip((1, 3), before, strict=True):
            after = pair[1].counters(number)
            for name in ("fast_in", "fast_out", *(["wrong_source"] if number == 1 else [])):
                assert after[name] > first[name], after
        its_place_moves(pair)


def its_place_moves(pair: tuple[Network, Network]) -> None:
    """Running flows go with it, and nothing comes from where host 3 was any more, nor goes there."""
    ends = (1000, 2000)
    warm(pair, ends, to="third")
    inner = ipv4(THIRD, ONE, udp(THIRD, ONE, ends[::-1], b"?"))
    payload = vxlan(inner, vni=second_vni(host.VNI), source_mac=host.mac(3), target_mac=host.mac(1))

    def arrives(port: int) -> bool:
        datagram = udp("10.0.0.3", "10.0.0.1", (port, host.PORT), payload, sealed=False)
        return bool(both(pair, "from_underlay", 66, 1, ipv4("10.0.0.3", "10.0.0.1", datagram)))

    assert arrives(MAPPED_PORT)
    for network in pair:
        network.lead_through_nat(MAPPED_PORT + 1)
    assert not arrives(MAPPED_PORT)
    assert arrives(MAPPED_PORT + 1)
    warm(pair, ends, to="third")
    before = {name: used(pair[1], 1, name) for name in ("fast_out", "fast_in")}
    warm(pair, ends, to="third")
    assert arrives(MAPPED_PORT + 1)
    assert not arrives(MAPPED_PORT)
    assert all(used(pair[1], 1, name) > count + 2 for name, count in before.items()), before


encrypted = st.fixed_dictionaries(
    {
        "by": st.sampled_from(["wireguard", "wireguard", "wireguard", "tunnel", "link"]),
        "ends": st.sampled_from(
            [*[(THIRD, ONE)] * 5, ("172.16.3.99", ONE), (TWO, ONE), (OUTSIDE, ONE), ("172.16.200.9", ONE),
             ("10.0.0.3", ONE), (THIRD, "172.16.1.9"), (THIRD, TWO), (THIRD, "172.16.1.0"), (ONE, ONE)]
        ),
    }
)  # fmt: skip


@inside
def test_whatever_is_encrypted_has_the_same_fate_and_nothing_else_passes() -> None:
    """Host 3 is reached by WireGuard alone; packets come out of it, and in the clear as if from there."""
    with twins() as pair:
        for network in pair:
            network.lead_into_wireguard()
        for protocol, ports in (("udp", (1000, 2000)), ("tcp", (1001, 2001))):
            warm(pair, ports, protocol, "third")
        before = [pair[1].counters(number) for number in (1, 3)]

        @settings(max_examples=80, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(encrypted, packets)
        def same(how: dict[str, object], what: dict[str, object]) -> None:
            ports = (1000, 2000) if what["protocol"] == "udp" else (1001, 2001)
            source, target = how["ends"]  # type: ignore[misc]
            size = min(int(str(what["size"])), 1380)
            packet = made({**what, "source": source, "target": target, "size": size}, ports[::-1])
            for _ in range(2):
                if how["by"] == "wireguard":
                    both(pair, "from_wireguard", 1, packet)
                elif how["by"] == "link":
                    assert "one" not in both(pair, "from_underlay", 3, 1, packet)
                else:
                    payload = vxlan(packet, source_mac=host.mac(3), target_mac=host.mac(1))
                    datagram = udp("10.0.0.3", "10.0.0.1", (40000, 8472), payload, sealed=False)
                    assert "one" not in both(
                        pair, "from_underlay", 3, 1, ipv4("10.0.0.3", "10.0.0.1", datagram)
                    )
            both(pair, "from_pod", "one", made({**what, "source": ONE, "target": THIRD}, ports))
            back = {**what, "source": THIRD, "target": ONE, "size": size}
            both(pair, "from_pod", "third", made(back, ports[::-1]))

        same()
        for number, first in zip((1, 3), before, strict=True):
            after = pair[1].counters(number)
            for name in ("fast_in", "fast_out"):
                assert after[name] > first[name], after
        for network in pair:  # the device goes, and nothing goes out in its place
            network.run("h1", f"ip link set {WIREGUARD} down")
        for _ in range(3):
            assert not both(pair, "from_pod", "one", ipv4(ONE, THIRD, udp(ONE, THIRD, (1000, 2000), b"?")))


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


@inside
def test_what_a_host_passes_on_from_one_peer_to_another_has_the_same_fate() -> None:
    """As a relay does, and whoever still gets packets for a range that others have by now."""
    with twins() as pair:
        warm(pair, (1000, 2000))
        for protocol, ports in (("udp", (2000, 1000)), ("tcp", (2001, 1001))):
            what = {
                "source": THIRD, "target": TWO, "protocol": protocol, "size": 100, "flags": ACK, "fragment": 0,
                "ttl": 64, "tos": 0, "sealed": True, "options": b"", "length": None, "broken": False,
            }  # fmt: skip
            payload = vxlan(made(what, ports), source_mac=host.mac(3), target_mac=host.mac(1))
            datagram = udp("10.0.0.3", "10.0.0.1", (40000, 8472), payload, sealed=False)
            for _ in range(5):
                both(pair, "from_underlay", 3, 1, ipv4("10.0.0.3", "10.0.0.1", datagram))
