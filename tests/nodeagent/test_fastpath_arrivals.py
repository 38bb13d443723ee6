"""Slow and fast path give the same verdict and the same bytes, whatever arrives at a host by whichever way."""

from __future__ import annotations

import socket
import struct
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nodeagent.dataplane.second_device import second_vni
from nodeagent.fastpath import libbpf
from tests.nodeagent import host
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.twins import ETH_ARP, MAPPED_PORT, WIREGUARD, Network, ipv4, twins, udp, vxlan, within
from tests.nodeagent.verdicts import (
    ACK,
    ONE,
    OTHER,
    OUTSIDE,
    THIRD,
    TWO,
    both,
    made,
    packets,
    used,
    warm,
)

pytestmark = pytest.mark.slow

VERDICT_BYTES = 72
"""Of ``struct verdict`` in fastpath.bpf.c; its third word is the flow's own number."""

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
        another_flows_verdict_is_none(pair)
        a_pod_takes_what_is_for_its_own_address(pair)
        who_comes_by_another_way_lets_nobody_in(pair)


def from_one(pair: tuple[Network, Network], target: str, data: bytes) -> dict[str, list[bytes]]:
    """On the link of host 2, a stranger sends what host 1 would send of pod one."""
    inner = ipv4(ONE, target, udp(ONE, target, (1000, 2000), data), ttl=63)
    payload = vxlan(inner, source_mac=host.mac(1), target_mac=host.mac(2))
    datagram = udp("10.0.0.1", "10.0.0.2", (40000, 8472), payload, sealed=False)
    return both(pair, "from_underlay", 66, 2, ipv4("10.0.0.1", "10.0.0.2", datagram))


def another_flows_verdict_is_none(pair: tuple[Network, Network]) -> None:
    """The map gives the room of a flow's entry to another flow while a packet of the former is under way."""
    flows = pair[1].programs[2]._loaded.maps["flows"]
    keys = [
        socket.inet_aton(ONE) + socket.inet_aton(to) + struct.pack("!HH", 1000, 2000) + struct.pack("=I", 17)
        for to in (TWO, OTHER)
    ]
    warm(pair, (1000, 2000))
    entry = libbpf.read(flows, keys[0], VERDICT_BYTES)
    assert entry is not None
    libbpf.put(flows, {keys[1]: entry[:12] + b"\x5a\xa5\x5a\xa5" + entry[16:]})
    assert from_one(pair, OTHER, b"?").keys() == {"other"}


def a_pod_takes_what_is_for_its_own_address(pair: tuple[Network, Network]) -> None:
    """Somebody's neighbour entry names another address than the pod's: it takes none of that."""
    with within(pair[1].host(2)):
        port = socket.if_nametoindex("other").to_bytes(4, sys.byteorder)
    macs = pair[1].programs[2]._loaded.maps["macs"]
    libbpf.drop(macs, port)
    pair[1].from_pod("other", bytes(46), kind=ETH_ARP)
    own = sh(f"ip netns exec {pair[1].name}other cat /sys/class/net/eth0/address").strip()
    assert (libbpf.read(macs, port, 8) or b"")[:6].hex(":") == own, "a pod that only answers is known, too"
    warm(pair, (1000, 2000), to="other")
    for arrives in (False, True):
        for network in pair:
            own = sh(f"ip netns exec {network.name}other cat /sys/class/net/eth0/address").strip()
            mac = own if arrives else "02:00:00:00:00:99"
            network.run("h2", f"ip neigh replace {OTHER} lladdr {mac} dev other nud permanent")
            network.void()
        for _ in range(3):
            assert bool(from_one(pair, OTHER, b"for whom?")) == arrives


def who_comes_by_another_way_lets_nobody_in(pair: tuple[Network, Network]) -> None:
    """Host 2 takes the tunnel's packets from another link alone; what comes there opens nothing here."""
    rule = "iifname u udp dport 8472 drop"
    for network in pair:
        network.lead_by_another_link()
        network.run(
            "h2", f"nft 'table ip other {{ chain i {{ type filter hook input priority 0; {rule}; }}; }}'"
        )
        network.void()
    warm(pair, (1000, 2000))
    for _ in range(3):
        assert not from_one(pair, TWO, b"let me in")


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


def dropped(network: Network) -> int:
    """How many packets out of the tunnel host 1 has dropped for where their source's route leads."""
    chain = network.run("h1", "nft list chain inet isthmus tunnelled")
    return int(chain.partition("counter packets ")[2].split()[0])


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
        # Out of the tunnel nobody speaks to WireGuard's port who has no route there.
        inner = ipv4(OUTSIDE, "10.0.0.1", udp(OUTSIDE, "10.0.0.1", (1000, 51820), b"?"))
        payload = vxlan(inner, source_mac=host.mac(2), target_mac=host.mac(1))
        outer = udp("10.0.0.2", "10.0.0.1", (40000, host.PORT), payload, sealed=False)
        for network in pair:
            there = dropped(network)
            network.from_underlay(3, 1, ipv4("10.0.0.2", "10.0.0.1", outer))
            assert dropped(network) == there + 1
        for network in pair:  # the device goes, and nothing goes out in its place
            network.run("h1", f"ip link set {WIREGUARD} down")
        for _ in range(3):
            assert not both(pair, "from_pod", "one", ipv4(ONE, THIRD, udp(ONE, THIRD, (1000, 2000), b"?")))


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
