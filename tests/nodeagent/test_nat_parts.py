"""What the way through NAT stands on: sockets that pass a router, a device with one source port, the rules."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest

from events.bus.connection import BusOptions
from events.protocol.encryption import STAGES
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.desired import desired_of, difference
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.dataplane.second_device import SecondDevice, second_name
from nodeagent.firewall import ruleset
from nodeagent.firewall.elements import Second
from nodeagent.firewall.ruleset import Rules
from nodeagent.membership.node_key import new_key
from nodeagent.membership.values import Member, OverlayPlan
from nodeagent.membership.view import View
from nodeagent.nat import packets
from nodeagent.nat.elsewhere import SETTLED_S, Elsewhere
from nodeagent.nat.findings import findings
from nodeagent.nat.kept import Kept
from nodeagent.nat.packets import HELLO, Endpoint, Message
from nodeagent.nat.paths import NatPaths
from nodeagent.nat.wire import Wire
from nodeagent.netlink import links
from nodeagent.netlink.links import DeviceSpec
from nodeagent.netlink.rows import Rows
from nodeagent.netlink.socket import Engine, NetlinkChannel
from nodeagent.ways.table import WayTable
from tests.nodeagent import host
from tests.nodeagent.sandbox import inside, sh
from tests.waiting import until

SPEC = DeviceSpec(
    name="isthmus",
    vni=100,
    port=8472,
    mac="66:00:00:00:00:01",
    local="10.0.0.1",
    address="172.16.0.0",
    mtu=1450,
)
RULES = Rules(
    device="isthmus", port=8472, own_range="172.16.0.0/26", cidrs=("172.16.0.0/16",), underlay="10.0.0.1",
    ifindex=7, second=Second("isthmus-nat", 8, 101),
)  # fmt: skip
LENGTH = 3_000_000
"""Bytes: large segments, whose checksums are computed behind the tunnel."""
SERVE = """
import socket
s = socket.create_server(("172.16.1.2", 9000))
print("ready", flush=True)
c, _ = s.accept()
while data := c.recv(65536):
    c.sendall(data)
c.shutdown(socket.SHUT_WR)
"""
SEND = f"""
import socket, threading
s = socket.create_connection(("172.16.1.2", 9000), timeout=60)
threading.Thread(target=lambda: (s.sendall(bytes({LENGTH})), s.shutdown(socket.SHUT_WR))).start()
got = 0
while data := s.recv(65536):
    got += len(data)
print(got)
"""
INJECT = """
import socket, struct, sys
source, port, target, inner_from, inner_to, mac, vni = sys.argv[1:]
a = socket.inet_aton
inner = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 30, 0, 0, 9, 17, 0, a(inner_from), a(inner_to))
total = sum(struct.unpack("!10H", inner))
total = (total & 0xFFFF) + (total >> 16)
inner = inner[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + inner[12:]
inner += struct.pack("!HHHH", 7777, 7777, 10, 0) + b"hi"
frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("020000000001") + b"\\x08\\x00" + inner
outer = struct.pack("!HHHHII", int(port), 8472, 16 + len(frame), 0, 0x08000000, int(vni) << 8)
head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 0, 0, 64, 17, 0, a(source), a(target))
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for _ in range(3):
    s.sendto(head + outer + frame, (target, 0))
"""
PLACES = {"10.0.0.9 . 8472", "10.0.0.9 . 25723", "198.51.100.1 . 1024"}


def underlay() -> None:
    sh("ip link add eth0 type veth peer name far && ip addr add 10.0.0.1/24 dev eth0")
    sh("ip link set eth0 up && ip link set far up")


def test_a_member_cannot_make_the_file_of_numbers_unreadable(tmp_path: Path) -> None:
    """What is kept of it are numbers that others chose."""
    largest = packets.NUMBER_MAX
    for number, taken in ((largest, True), (largest + 1, False), (2**64 - 1, False)):
        content = packets.seal(Message(HELLO, 1, 2, bytes(4), 26, number), bytes(32))
        assert (packets.read(content) is not None) == taken
    kept = Kept(tmp_path)
    kept.save(kept.number, {7: largest, 8: 3}, asked=True)
    assert Kept(tmp_path).floors == {7: largest, 8: 3}


@inside
async def test_messages_pass_by_the_sockets_and_nothing_else_is_heard() -> None:
    sh("ip netns add there && ip link add eth0 type veth peer name eth0 netns there")
    sh("ip addr add 10.0.0.1/24 dev eth0 && ip link set eth0 up")
    sh("ip -n there addr add 10.0.0.2/24 dev eth0 && ip -n there link set eth0 up")
    sh("ip netns exec there nft add table ip n")
    sh("ip netns exec there nft 'add chain ip n o { type nat hook postrouting priority srcnat; }'")
    sh("ip netns exec there nft add rule ip n o udp dport 8472 masquerade to :30000")
    heard: list[tuple[bytes, Endpoint, bytes]] = []
    wire = Wire()
    epoch = (7 << 32) + 2
    wire.listen("eth0", 8472, lambda *found: heard.append(found), receiver=epoch)
    content = packets.seal(Message(HELLO, 1, epoch, bytes(4), 26, 3), bytes(32))
    send = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW); "
        "[s.sendto(bytes.fromhex(p), ('10.0.0.1', 0)) for p in {!r}]"
    )
    mine = packets.datagram(
        content, socket.inet_aton("10.0.0.2"), Endpoint(socket.inet_aton("10.0.0.1"), 8472), 8472
    )
    others = [
        mine[:-1],
        mine[:37] + b"x" + mine[38:],
        mine[:34] + b"\1" + mine[35:],
        mine[:22] + b"\0\1" + mine[24:],
        mine[:61] + b"\6" + mine[62:],  # for the epoch before, and for another one
        mine[:65] + b"\3" + mine[66:],
    ]
    program = send.format([packet.hex() for packet in (*others, mine)])
    await asyncio.to_thread(sh, f'ip netns exec there python3 -c "{program}"')
    await until(lambda: bool(heard), "it is heard")
    target, source, got = heard[-1]
    assert (len(heard), target, got) == (1, socket.inet_aton("10.0.0.1"), content)
    assert source == Endpoint(socket.inet_aton("10.0.0.2"), 30000), "as the router translated it"
    wire.send(content, socket.inet_aton("10.0.0.1"), source, 8472)
    assert (wire.sent, wire.heard) == (1, 1)
    sh("ip link del eth0")
    await until(lambda: not wire.listening, "the device is gone")
    underlay()
    wire.listen("eth0", 8472, lambda *found: heard.append(found))
    wire.close()


@inside
def test_the_second_device_has_one_source_port_and_the_tunnels_address_and_rows_with_ports() -> None:
    underlay()
    links.ensure_device(SPEC)
    second = SecondDevice("isthmus", Conditions())
    assert second.prepare(SPEC, lambda _: True) == ()
    second.wanted = True
    assert second.prepare(SPEC, lambda _: True)
    assert second.prepare(SPEC, lambda _: True) == (), "made once"
    found = links.find(second_name("isthmus"))
    assert found is not None
    assert (found.vni, found.source_ports, found.mac, found.up) == (101, (8472, 8473), SPEC.mac, True)
    place = socket.inet_aton("10.0.0.9") + (25723).to_bytes(2, "big")
    mac = bytes.fromhex("660000000002")
    second.rows = Rows({socket.inet_aton("172.16.0.64"): mac}, {mac: place}, {})
    with Engine(NetlinkChannel()) as engine:
        outcome = second.compare(engine, lambda _: True)
        assert outcome is not None
        assert (outcome.written, outcome.remaining) == (2, ())
        sh("bridge fdb replace 66:00:00:00:00:02 dev isthmus-nat dst 10.0.0.8 port 1 self permanent")
        repaired = second.compare(engine, lambda _: True)
        assert repaired is not None
        assert (repaired.written, repaired.remaining) == (1, ())
        assert "10.0.0.9 port 25723" in sh("bridge fdb show dev isthmus-nat")
    sh("ip link del isthmus-nat && ip link add isthmus-nat type vxlan id 101 dstport 8472 local 10.0.0.1")
    assert any("removed" in action for action in second.prepare(SPEC, lambda _: True)), "its source ports vary"
    second.wanted = False
    assert second.prepare(SPEC, lambda _: True) == ("removed isthmus-nat",)


@inside
def test_the_doctor_names_what_is_in_the_way() -> None:
    underlay()
    links.ensure_device(SPEC)
    assert [one.level for one in findings("isthmus", 100, 8472, "")] == ["ok"]
    assert "seen as 198.51.100.1 by a" in next(findings("isthmus", 100, 8472, "seen as 198.51.100.1 by a")).text
    sh("ip link add theirs type vxlan id 101 dstport 8472 local 10.0.0.1")
    (found,) = findings("isthmus", 100, 8472, "")
    assert (found.level, "theirs holds vni 101" in found.text) == ("warning", True)
    second = SecondDevice("isthmus", conditions := Conditions())
    second.wanted = True
    second.prepare(SPEC, lambda _: True)
    assert not second.ifindex
    assert "theirs" in conditions.sentences()[0]


@inside
def test_a_second_life_goes_on_with_what_stands_in_the_kernel() -> None:
    sh("ip link add u type veth peer name far && ip addr add 10.0.0.1/24 dev u && ip link set u up")
    host.prepare(1, 2, 3, 4, fast=False)
    host.lead_through_nat(1, 2, seen="198.51.100.1", port=30000)
    for number, relay, by in ((3, 2, "isthmus-nat"), (4, 3, "isthmus")):
        metric = (172 << 24 | 16 << 16 | number << 8) >> 2
        way = f"via 172.16.{relay}.0 dev {by} onlink proto 84 metric {metric}"
        sh(f"ip route add 172.16.{number}.0/24 {way} {'mtu 1450 src 172.16.1.0' if relay == 2 else ''}")
    with TemporaryDirectory() as name:
        config = AgentConfig(cluster="c", node="n1", kind="cloud", bus=BusOptions(), state_dir=Path(name))
        view, conditions, wire, fast = View("c", "n1", "u1"), Conditions(), Wire(), None
        view.own = host.peer(1)
        view.plan = OverlayPlan(host.VNI, host.PORT, "172.16.255.0/24", (host.CONTAINERS,))
        for number in (2, 3, 4):
            view.peers.put(host.peer(number))
        reconciler = Reconciler(config, conditions)
        nat = NatPaths(
            config, view, conditions, reconciler=reconciler, fastpath=fast,  # type: ignore[arg-type]
            ways=WayTable(), secrets=new_key(Path(name)), wire=wire,
        )  # fmt: skip
        asyncio.run(nat.begin())
        index, (two, three, four) = socket.if_nametoindex("isthmus-nat"), map(host.peer, (2, 3, 4))
        assert nat.admitted() == {"198.51.100.1 . 30000"}
        for stage in STAGES:
            view.peers.put(msgspec.structs.replace(host.peer(2), key="k", port=51820, stage=stage))
            assert bool(nat.admitted()) == (stage != "required"), "what must be encrypted comes in no other way"
        view.peers.put(host.peer(2))
        assert nat.second() == Second("isthmus-nat", index, host.VNI + 1)
        led = {peer: way.device for peer, way in reconciler.found.exits.items()}
        assert led == {two: index, three: index, four: 0}
        assert nat.book.ways()[two].place == Endpoint(socket.inet_aton("198.51.100.1"), 30000)
        desired = desired_of(view.own, view)
        reconciler.found.device_mtu = host.MTU
        reconciler.found.put_into(desired, view)
        with Engine(NetlinkChannel()) as engine:
            assert difference(desired.rows, engine.read(socket.if_nametoindex("isthmus"))) == []
            assert difference(reconciler.tunnel.second.rows, engine.read(index, routes=False)) == []
        wire.close()


@inside
async def test_the_rules_let_in_from_a_place_and_follow_it() -> None:
    await ruleset.replace(RULES, ["10.0.0.2"], mapped=PLACES)
    assert await ruleset.elements_of("mapped") == PLACES
    assert ruleset.as_written(await ruleset.listing(), RULES, ["10.0.0.2"], mapped=PLACES)
    fewer = {"10.0.0.9 . 8472"}
    assert not ruleset.as_written(await ruleset.listing(), RULES, ["10.0.0.2"], mapped=fewer)
    await ruleset.replace(RULES, ["10.0.0.2"], mapped=fewer)
    assert await ruleset.elements_of("mapped") == fewer
    plain = msgspec.structs.replace(RULES, second=None)
    for rules in (plain, RULES):
        await ruleset.replace(rules, ["10.0.0.2"])
        assert ruleset.as_written(await ruleset.listing(), rules, ["10.0.0.2"])
        assert await ruleset.elements_of("mapped") == set()


@inside
def test_pods_packets_pass_a_router_that_masquerades() -> None:
    for name in ("a", "b", "r", "p1", "p2"):
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
    sh("ip link add u netns a type veth peer name wan netns r")
    sh("ip link add u netns b type veth peer name lan netns r")
    for name, device, address in (("a", "u", "1/24"), ("r", "wan", "254/24"), ("b", "u", "2/32")):
        sh(f"ip -n {name} addr add 10.0.0.{address} dev {device} && ip -n {name} link set {device} up")
    sh("ip -n r addr add 169.254.1.1/32 dev lan && ip -n r link set lan up")
    sh("ip -n r route add 10.0.0.2 dev lan")
    sh("ip -n b route add 169.254.1.1 dev u && ip -n b route add default via 169.254.1.1 dev u")
    sh("ip netns exec r sysctl -qw net.ipv4.ip_forward=1 && ip netns exec r nft add table ip n")
    sh("ip netns exec r nft 'add chain ip n o { type nat hook postrouting priority srcnat; }'")
    sh("ip netns exec r nft add rule ip n o oifname wan udp dport 8472 masquerade to :30000")
    for number, node in ((1, "a"), (2, "b")):
        pod, own = f"p{number}", f"172.16.{number}"
        sh(f"ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1")
        sh(f"ip link add p netns {node} type veth peer name eth0 netns {pod}")
        sh(f"ip -n {node} link set p mtu 1450 up")
        sh(f"ip -n {pod} link set eth0 mtu 1450 up && ip -n {pod} addr add {own}.2/32 dev eth0")
        sh(f"ip -n {node} addr add {own}.1/32 dev p && ip -n {node} route add {own}.2/32 dev p")
        sh(f"ip -n {pod} route add {own}.1 dev eth0 && ip -n {pod} route add default via {own}.1")
    at(1, "prepare(1, 2, fast=False); lead_through_nat(1, 2, seen='10.0.0.254', port=30000)")
    at(2, "prepare(2, 1, fast=False); lead_through_nat(2, 1)")
    server = subprocess.Popen(
        ["ip", "netns", "exec", "p1", sys.executable, "-c", SERVE], stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    assert sh(f"ip netns exec p2 {sys.executable} -c '{SEND}'").strip() == str(LENGTH), "all of it, and back"
    server.kill()
    server.communicate()


def at(number: int, call: str) -> None:
    code = f"from tests.nodeagent.host import lead_through_nat, prepare; {call}"
    sh(f'ip netns exec {"ab"[number - 1]} {sys.executable} -c "{code}"')


@inside
def test_only_from_where_a_peer_is_seen_do_packets_get_to_a_pod() -> None:
    for name in ("a", "x", "p1"):
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
    sh("ip link add u netns a type veth peer name eth0 netns x")
    sh("ip link add p netns a type veth peer name eth0 netns p1")
    for name, device, address in (
        ("a", "u", "10.0.0.1/24"), ("x", "eth0", "10.0.0.66/24"), ("a", "p", "172.16.1.1/32"),
        ("p1", "eth0", "172.16.1.2/32"),
    ):  # fmt: skip
        sh(f"ip -n {name} addr add {address} dev {device} && ip -n {name} link set {device} up")
    sh("ip netns exec a sysctl -qw net.ipv4.ip_forward=1 && ip -n a route add 172.16.1.2/32 dev p")
    sh("ip -n p1 route add 172.16.1.1 dev eth0 && ip -n p1 route add default via 172.16.1.1")
    at(1, "prepare(1, 2, 3, fast=False); lead_through_nat(1, 2, 3, seen='10.0.0.9', port=30000)")
    for place, hook in (("p1", "prerouting"), ("a", "postrouting")):
        seen = f"chain c {{ type filter hook {hook} priority 400; udp dport 7777 counter; }}"
        sh(f"ip netns exec {place} nft 'table inet seen {{ {seen}; }}'")

    def got(source: str, port: int, vni: int, ends: str = "172.16.2.2 172.16.1.2", place: str = "p1") -> int:
        """How many of three packets get there; what leaves ``a`` for another node is counted there."""
        before = counted(place)
        words = f"{source} {port} 10.0.0.1 {ends} {host.mac(1)} {vni}"
        sh(f"ip netns exec x {sys.executable} -c '{INJECT}' {words}")
        return counted(place) - before

    def counted(place: str) -> int:
        listing = sh(f"ip netns exec {place} nft list table inet seen")
        return int(listing.partition("packets ")[2].split()[0])

    for source, port, vni in (
        ("10.0.0.66", 8472, 101), ("10.0.0.66", 8472, 100), ("10.0.0.9", 30001, 101), ("10.0.0.9", 30000, 100),
        ("10.0.0.2", 8472, 101),
    ):  # fmt: skip
        assert got(source, port, vni) == 0, (source, port, vni)
    assert got("10.0.0.9", 30000, 101) == 3, "what is no forgery does"
    relays = (
        ("10.0.0.9", 30000, 101, "172.16.2.2 172.16.3.2"),
        ("10.0.0.9", 30000, 101, "172.16.2.2 172.16.2.9"),
        ("10.0.0.3", 40000, 100, "172.16.3.2 172.16.2.2"),
    )
    for hidden, passes in (("", 0), ("172.16.2.0/24", 0), ("172.16.3.0/24", 3)):
        if hidden:
            sh(f"ip netns exec a nft 'add element inet isthmus hidden {{ {hidden} }}'")
        for source, port, vni, ends in relays:
            alone = hidden == "172.16.2.0/24" and ends.endswith("172.16.2.9")
            found = got(source, port, vni, ends, "a")
            assert found == (3 if alone else passes), (hidden, ends)


def test_from_where_a_peer_is_reached_otherwise_nothing_comes_after_a_time() -> None:
    two, three = host.peer(2), host.peer(3)
    moved = msgspec.structs.replace(three, underlay="10.0.0.33")
    found = Elsewhere()
    found.follow([two, three], 100.0)
    assert (found.due, found.nodes(100.0)) == (100.0 + SETTLED_S, frozenset())
    found.look(found.due)
    assert found.nodes(100.0 + SETTLED_S) == {"n2", "n3"}
    assert found.due == inf
    found.follow([two, moved], 200.0)
    assert found.nodes(200.0) == {"n2"}, "packets from its new address are taken, until it has come to the way"
    found.follow([moved], 220.0)
    assert found.nodes(220.0) == {"n3"}, "who is reached by the tunnel again is taken at once"
    later = Elsewhere()
    later.adopt([two])
    assert later.nodes(0.0) == {"n2"}
    view = View("c", "n1", "u1")
    for number in (2, 3):
        view.members[f"n{number}"] = Member(
            f"n{number}", f"u{number}", host.mac(number), f"192.168.0.{number}", f"10.0.0.{number}"
        )
    assert view.vteps() - view.vteps(frozenset({"n2"})) == {"192.168.0.2", "10.0.0.2"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b'{"number":-1}', b'{"number":1e30}', b'{"floors":{"1":"x"}}', b"[]", None, "fifo", "folder"],
)
def test_whatever_is_in_the_file_of_numbers_the_agent_starts_and_no_number_is_used_twice(
    tmp_path: Path, content: bytes | str | None
) -> None:
    path = tmp_path / "nat.json"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "fifo":
        os.mkfifo(path)
    elif content == "folder":
        path.mkdir()
    before = time.time_ns() // 1000
    kept = Kept(tmp_path)
    assert kept.number >= before
    assert kept.floors == {}
    kept.save(kept.number + 5, {7: 9}, asked=True, asked_ago_s=4.0, ended=True)
    if content != "folder":
        again = Kept(tmp_path)
        assert again.number > kept.number - 1
        assert again.floors == {7: 9}
