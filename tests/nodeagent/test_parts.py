"""Small pure parts: the guard against fights, underlay and MTU, preflight, firewall text, CNI file, probe."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
from datetime import UTC, datetime
from ipaddress import IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.bus.connection import BusOptions
from events.errors import Refused, Usage
from nodeagent.config import AgentConfig, check
from nodeagent.dataplane import host_settings, merging, preflight
from nodeagent.dataplane.fight_guard import FREE_REPAIRS, PAUSE_LONGEST_S, ROWS_LIMIT, FightGuard
from nodeagent.dataplane.merging import Merging
from nodeagent.dataplane.preflight import ForeignRoute
from nodeagent.dataplane.underlay import Underlay, overlay_mtu, resolve
from nodeagent.doctor import ExaminedNode, clock, examine
from nodeagent.firewall import elements, ruleset
from nodeagent.netlink import links
from nodeagent.netlink.links import Link
from nodeagent.netlink.rows import Kind, describe, mac_bytes, route_key, split_route_key
from nodeagent.path_mtu.probe import Path as Path_
from nodeagent.path_mtu.probe import measure
from nodeagent.pods import cni
from tests.nodeagent.sandbox import inside, sh

ROW = (Kind.FDB, b"\x66\0\0\0\0\1")


def test_a_few_repairs_are_free_and_a_fight_is_paused_ever_longer() -> None:
    guard, now, done = FightGuard(), 0.0, []
    while now < 2000:
        if guard.allow(ROW, now):
            done.append(now)
        now += 0.1
    assert len([moment for moment in done if moment < 1]) == FREE_REPAIRS + 1
    gaps = [
        round(after - before)
        for before, after in zip(done[FREE_REPAIRS:], done[FREE_REPAIRS + 1 :], strict=False)
    ]
    assert gaps == sorted(gaps)
    assert max(gaps) <= PAUSE_LONGEST_S + 0.2
    assert len(done) < 20


def test_repairs_now_and_then_are_never_paused() -> None:
    guard = FightGuard()
    assert all(guard.allow(ROW, minute * 60.0) for minute in range(100))


def test_peace_is_forgiven() -> None:
    guard = FightGuard()
    for _ in range(FREE_REPAIRS + 1):
        guard.allow(ROW, 0.0)
    assert guard.contested(ROW, 1.0)
    assert guard.next_release(1.0) == 5.0
    assert all(guard.allow(ROW, 100.0) for _ in range(FREE_REPAIRS))


def test_the_guard_forgets_rows_beyond_its_limit() -> None:
    guard = FightGuard()
    for number in range(ROWS_LIMIT + 10):
        guard.allow((Kind.FDB, number.to_bytes(6, "big")), 0.0)
    assert len(guard._records) == ROWS_LIMIT


@pytest.mark.parametrize(
    ("underlay", "configured", "expected"),
    [(1500, 0, 1450), (9000, 0, 8950), (1500, 1400, 1400), (1300, 1400, 1250)],
)
def test_the_inner_mtu_leaves_room_for_the_tunnel(underlay: int, configured: int, expected: int) -> None:
    assert overlay_mtu(Underlay("10.0.0.1", "eth0", 2, underlay, up=True), configured) == expected


@given(st.binary(min_size=4, max_size=4), st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_route_keys_hold_what_they_were_made_of(network: bytes, length: int, metric: int) -> None:
    assert split_route_key(route_key(network, length, metric)) == (network, length, metric)


def test_a_device_that_vanishes_between_two_calls_is_an_oserror() -> None:
    with pytest.raises(OSError, match="No such device") as raised, links.kernel() as socket:
        socket.link("set", index=2**31 - 1, state="up")
    assert raised.value.errno == errno.ENODEV


def test_rows_are_described_in_the_words_of_the_tools() -> None:
    key = route_key(bytes([172, 16, 0, 64]), 26)
    assert describe(Kind.ROUTE, key, b"") == "route 172.16.0.64/26 blackhole metric 2886729792"
    assert (
        describe(Kind.FDB, mac_bytes("66:00:00:00:00:01"), b"\n\0\0\1") == "fdb 66:00:00:00:00:01 dst 10.0.0.1"
    )
    assert "foreign form" in describe(Kind.NEIGHBOUR, b"\n\0\0\1", b"!odd mac=- state=0x2")


@pytest.mark.parametrize(
    ("release", "old"), [("4.18.0-553.el8", True), ("5.6.19", True), ("5.7.0", False), ("6.18.44-fc", False)]
)
def test_old_kernels_need_the_checksum_in_software(release: str, old: bool) -> None:
    assert host_settings.needs_software_checksum(behind_nat=False, release=release) is old
    assert host_settings.needs_software_checksum(behind_nat=True, release=release)


def route(cidr: str) -> ForeignRoute:
    return ForeignRoute(IPv4Network(cidr), 2, 3)


def test_overlaps_are_found_and_the_own_pods_and_wider_routes_are_none() -> None:
    routes = [route("172.16.0.0/12"), route("172.16.0.66/32"), route("10.0.0.0/8"), route("172.16.9.0/24")]
    found = preflight.overlapping(routes, ["172.16.0.0/16"], "172.16.0.64/26")
    assert [str(conflict.network) for conflict, _ in found] == ["172.16.9.0/24"]
    same = preflight.overlapping([route("172.16.0.0/16")], ["172.16.0.0/16"], "172.16.0.64/26")
    assert [str(conflict.network) for conflict, _ in same] == ["172.16.0.0/16"]


def test_only_routes_as_long_as_a_range_draw_its_packets_away() -> None:
    routes = [route("172.16.0.0/16"), route("172.16.9.0/24"), route("172.16.9.64/26"), route("172.16.9.7/32")]
    found = preflight.overriding_routes(routes, ["172.16.0.0/16"], "172.16.0.64/26")
    assert [str(found_route.network) for found_route in found] == ["172.16.9.64/26", "172.16.9.7/32"]


def test_an_overlap_that_the_log_accepts_is_accepted_here() -> None:
    accepted = preflight.accepted(["172.16.9.0/24", "10.0.0.0/8"], ["172.16.0.0/16"], "172.16.200.5")
    assert accepted(IPv4Network("172.16.9.0/25"))
    assert accepted(IPv4Network("172.16.200.0/24"))  # a member's own network
    assert not accepted(IPv4Network("172.16.8.0/24"))
    for address in ("10.0.0.1", "", "nonsense"):
        assert not preflight.accepted([], ["172.16.0.0/16"], address)(IPv4Network("172.16.9.0/24"))


def test_vxlan_conflicts_are_the_same_vni_and_port_or_the_whole_port() -> None:
    def link(name: str, vni: int, port: int, *, metadata: bool = False) -> Link:
        return Link(
            index=1, name=name, up=True, mtu=1450, mac="", kind="vxlan", vni=vni, port=port, metadata=metadata
        )

    present = [
        link("isthmus", 100, 8472),
        link("same", 100, 8472),
        link("other", 7, 8472),
        link("cilium_vxlan", 0, 8472, metadata=True),
        link("far", 100, 4789),
    ]
    found = preflight.vxlan_conflicts(present, "isthmus", 100, 8472)
    assert [item.name for item in found] == ["same", "cilium_vxlan"]
    assert [name for _, name in preflight.other_overlays(present, "isthmus")] == ["Cilium"]


@pytest.mark.parametrize(
    ("port", "expected"), [(8472, "8473-65535"), (4789, "4790-65535"), (40000, "1024-39999")]
)
def test_masquerading_keeps_clear_of_the_vxlan_port(port: int, expected: str) -> None:
    assert elements.source_ports(port) == expected
    rules = ruleset.Rules(device="isthmus", port=port, own_range="172.16.0.0/26", cidrs=("172.16.0.0/16",))
    assert f"masquerade to :{expected}" in ruleset.render(rules, ["10.0.0.2"])


def test_no_name_in_the_firewall_is_a_word_of_a_newer_nft() -> None:
    """Debian 13's nft knows ``vxlan`` as a protocol; a chain of that name was refused with the whole table."""
    rules = ruleset.Rules(device="isthmus", port=8472, own_range="172.16.0.0/26", cidrs=("172.16.0.0/16",))
    text = ruleset.render(rules, ["10.0.0.2"])
    named = set(re.findall(r"(?:chain|set|map|jump|goto) @?([a-z_0-9]+)", text))
    assert "from_members" in named
    protocols = {
        "vxlan",
        "geneve",
        "gre",
        "gretap",
        "tcp",
        "udp",
        "icmp",
        "esp",
        "ah",
        "comp",
        "dccp",
        "sctp",
        "th",
    }
    words = {
        "tunnel",
        "last",
        "exists",
        "missing",
        "position",
        "xt",
        "fib",
        "socket",
        "osf",
        "reset",
        "destroy",
    }
    assert not named & (protocols | words)


def test_the_cni_file_gives_every_address_but_three_to_pods(tmp_path: Path) -> None:
    content = cni.conflist(cidr="172.16.0.64/26", mtu=1450, plugin="ptp")
    (pool,) = json.loads(content)["plugins"][0]["ipam"]["ranges"][0]
    assert (pool["gateway"], pool["rangeStart"], pool["rangeEnd"]) == (
        "172.16.0.65",
        "172.16.0.66",
        "172.16.0.126",
    )
    assert cni.write(tmp_path / "net.d", content)
    assert not cni.write(tmp_path / "net.d", content), "the same content is not written again"
    assert cni.remove(tmp_path / "net.d")
    assert not cni.remove(tmp_path / "net.d")


def config(**options: object) -> AgentConfig:
    return AgentConfig(cluster="c", node="n", kind="cloud", bus=BusOptions(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"device": "x" * 16},
        {"device": "a/b"},
        {"announced": "nat"},
        {"mtu": 100},
        {"resync_s": 0},
        {"heartbeat_s": 0},
    ],
)
def test_bad_settings_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(Usage):
        check(config(**options))
    check(config())


@inside
def test_resolving_the_underlay() -> None:
    with pytest.raises(Usage, match="default route"):
        resolve("auto")
    with pytest.raises(Usage, match="no such device"):
        resolve("eth7")
    sh("ip link add eth7 type veth peer name eth8")
    sh("ip -6 addr add fd00::1/64 dev eth7 nodad")
    for wish, words in (("eth7", "has no IPv4 address"), ("fd00::1", "over IPv4 only")):
        with pytest.raises(Usage, match=words):
            resolve(wish)
    sh("ip addr add 10.1.1.1/24 dev eth7")
    sh("ip link set eth7 up mtu 1400")
    sh("ip link set eth8 up")
    sh("ip route add default via 10.1.1.254")
    expected = resolve("eth7")
    assert (expected.address, expected.device, expected.mtu, expected.present) == (
        "10.1.1.1",
        "eth7",
        1400,
        True,
    )
    assert resolve("auto") == resolve("10.1.1.1") == expected
    sh("ip link del eth7")
    gone = resolve("eth7", expected)
    assert (gone.address, gone.present) == ("10.1.1.1", False)
    assert not resolve("10.1.1.1", expected).present


@inside
def test_a_device_name_that_is_taken_is_refused_and_left() -> None:
    sh("ip link add isthmus type veth peer name other")
    spec = links.DeviceSpec(name="isthmus", vni=1, port=8472, mac="66:00:00:00:00:01", local="10.0.0.1",
                            address="172.16.0.0", mtu=1450)  # fmt: skip
    with pytest.raises(Refused, match="no vxlan device"):
        links.ensure_device(spec)
    assert links.remove_device("isthmus") is False
    sh("ip link del isthmus")
    sh("ip link add cilium_vxlan type vxlan external dstport 8472; ip link set cilium_vxlan up")
    with pytest.raises(Refused, match="cilium_vxlan"):
        links.ensure_device(spec)


@inside
def test_no_ipv6_on_the_tunnel_where_settings_are_read_only() -> None:
    """As in a container that is not privileged: the init container cannot do it for a device to come."""
    sh("sysctl -qw net.ipv4.ip_forward=1 && mount --bind /proc/sys /proc/sys")
    sh("mount -o remount,bind,ro /proc/sys && ip link add isthmus type vxlan id 1 dstport 8472 local 127.0.0.1")
    sh("ip link set isthmus up")
    assert "inet6 fe80:" in sh("ip -6 addr show dev isthmus")
    done, failed = host_settings.prepare_host("isthmus", behind_nat=False, gro=True)
    assert (failed, "IPv6 off on the tunnel" in done) == ([], True)
    sh("ip link set isthmus down && ip link set isthmus up")
    assert not sh("ip -6 addr show dev isthmus")
    assert not host_settings.switch_ipv6_off("isthmus")


@inside
def test_checksum_offload_and_gro_are_switched() -> None:
    sh("ip link add one type veth peer name two")
    assert host_settings.set_tx_checksum("one", on=False)
    assert not host_settings.set_tx_checksum("one", on=False)
    assert "tx-checksumming: off" in sh("ethtool -k one")
    assert host_settings.set_gro("one", on=True) in {True, False}
    assert "generic-receive-offload: on" in sh("ethtool -k one")


PATH = Path_(
    vni=100, port=8472, underlay="10.0.1.1", vtep="172.16.0.0", mac="66:00:00:00:00:01",
    peer_underlay="10.0.2.1", peer_vtep="172.16.0.64", peer_mac="66:00:00:00:00:02",
)  # fmt: skip


def far_apart() -> None:
    """Two tunnel ends, here and in ``b``, with a router ``r`` between them."""
    for step in (
        "ip netns add r; ip netns add b",
        "ip link add a0 type veth peer name r0 netns r; ip -n r link add r1 type veth peer name b0 netns b",
        "ip addr add 10.0.1.1/24 dev a0; ip link set a0 up; ip route add default via 10.0.1.2",
        "ip -n r addr add 10.0.1.2/24 dev r0; ip -n r link set r0 up",
        "ip -n r addr add 10.0.2.2/24 dev r1; ip -n r link set r1 up",
        "ip -n b addr add 10.0.2.1/24 dev b0; ip -n b link set b0 up; ip -n b route add default via 10.0.2.2",
        "ip netns exec r sysctl -qw net.ipv4.ip_forward=1",
        "ip netns exec b sysctl -qw net.ipv4.icmp_ratelimit=0",
    ):
        sh(step)
    tunnel_end(
        "", "10.0.1.1", "172.16.0.0", "66:00:00:00:00:01", "10.0.2.1", "172.16.0.64", "66:00:00:00:00:02"
    )
    tunnel_end(
        "-n b", "10.0.2.1", "172.16.0.64", "66:00:00:00:00:02", "10.0.1.1", "172.16.0.0", "66:00:00:00:00:01"
    )


def tunnel_end(place: str, own: str, vtep: str, mac: str, peer: str, peer_vtep: str, peer_mac: str) -> None:
    sh(f"ip {place} link add isthmus address {mac} type vxlan id 100 dstport 8472 local {own} nolearning")
    sh(f"ip {place} addr add {vtep}/32 dev isthmus && ip {place} link set isthmus up mtu 1450")
    sh(f"ip {place} neigh add {peer_vtep} lladdr {peer_mac} dev isthmus nud permanent")
    sh(f"bridge {place} fdb add {peer_mac} dev isthmus dst {peer} self permanent")
    sh(f"ip {place} route add {peer_vtep}/26 via {peer_vtep} dev isthmus onlink")


@inside
async def test_the_way_to_a_peer_is_measured_with_packets_that_are_not_cut() -> None:
    """A router that says what it passes, one that swallows the rest in silence, and nobody at all."""
    far_apart()
    assert await measure(PATH, 1500) == 1500
    narrow = "ip -n r route change 10.0.2.0/24 dev r1 mtu lock"
    sh(f"{narrow} 1400")
    sh("ping -c1 -W2 -M do -s 1422 -I 172.16.0.0 172.16.0.64")  # cut on the way, and put together again
    assert await measure(PATH, 1500) == 1400
    sh("ip route flush cache; ip netns exec r nft 'add table ip t; "
       "add chain ip t o { type filter hook output priority 0; }; "
       "add rule ip t o icmp type destination-unreachable drop'")  # fmt: skip
    sh(f"{narrow} 151")
    assert await measure(PATH, 160, wait_s=0.3) == 151
    sh("ip -n b link set isthmus down")
    assert await measure(PATH, 1500, wait_s=0.1) == 0


@inside
async def test_the_doctor_finds_what_is_wrong_and_says_what_to_do() -> None:
    sh("ip link add eth7 type veth peer name eth8")
    sh("ip addr add 10.1.1.1/24 dev eth7")
    sh("ip link set eth7 up")
    sh("ip link set eth8 up")
    sh("ip link add theirs type vxlan id 100 dstport 8472 local 10.1.1.1; sysctl -qw net.ipv4.ip_forward=0")
    sh("ip link add flannel.1 type vxlan id 1 dstport 4789 local 10.1.1.1")
    sh("sysctl -qw net.ipv4.conf.all.rp_filter=1")
    node = ExaminedNode(
        cluster="c",
        bus=BusOptions(servers=("nats://127.0.0.1:9",)),
        state_dir=Path("/run/none"),
        underlay="eth7",
    )
    findings = {finding.check: finding for finding in await examine(node)}
    assert findings["vxlan"].level == "problem"
    assert "theirs" in findings["vxlan"].text
    sh("ip link del theirs")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 8472))
        assert any(f"process {os.getpid()}" in finding.text for finding in await examine(node))
    assert any("is free for isthmus" in finding.text for finding in await examine(node))
    assert findings["other overlay"].text.startswith("device flannel.1 belongs to flannel")
    assert findings["forwarding"].level == "warning"
    assert findings["rp_filter"].level == "info"
    assert findings["underlay"].level == "ok"
    assert findings["bus"].level == "problem"
    assert all(finding.fix for finding in findings.values() if finding.level == "problem")


@pytest.mark.parametrize(
    ("skew_s", "level"), [(0.0, "ok"), (1.5, "ok"), (-3.0, "warning"), (3600.0, "warning")]
)
def test_a_clock_that_is_wrong_is_told_with_its_sign(skew_s: float, level: str) -> None:
    there = datetime(2026, 1, 1, tzinfo=UTC)
    here = there.timestamp() + skew_s
    finding = clock(there, here - 0.1, here + 0.1)
    assert (finding.level, bool(finding.fix)) == (level, level == "warning")
    assert finding.text.startswith(f"{skew_s:+.2f} s")


def test_receive_offload_follows_what_arrives() -> None:
    mtu = 1450
    assert not merging.judge(True, 1000, 1000 * 20_000, mtu), "merged before the device"
    assert merging.judge(False, 1000, 1000 * 1450, mtu), "full segments that nobody has merged"
    assert merging.judge(False, 1000, 500 * 1450 + 500 * 52, mtu), "with acknowledgements between"
    for on in (True, False):
        assert merging.judge(on, 1000, 1000 * 64, mtu) is on, "small packets tell nothing"
        assert merging.judge(on, 999, 999 * 20_000, mtu) is on, "nor do few"
    assert Merging(None).on
    assert Merging(True).on
    assert not Merging(False).on


@inside
def test_receive_offload_is_switched_by_the_devices_own_counters() -> None:
    sh("ip link add left type veth peer name right && ip link set left mtu 9000 up && "
                   "ip link set right mtu 9000 up")  # fmt: skip
    found = Merging(None)
    host_settings.set_gro("right", on=True)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("left", 0))
        for size, on in ((8000, False), (64, False), (1450, True), (64, True), (8000, False)):
            frame = bytes.fromhex("020000000001020000000002") + b"\x08\0" + bytes(size)
            goal = merging.arrived("right").packets + 1200
            while merging.arrived("right").packets < goal:  # a busy machine's queue drops some of so many
                for _ in range(100):
                    sender.send(frame)
            found.look("right", 1450)
            assert found.on is on, f"{size} bytes a packet"
            assert host_settings.set_gro("right", on=on) is False, "the device has it so"
