"""Packets between nodes encrypted: with real agents, a real program, and a capture of what is on the wire.

The kernels of the tests have no WireGuard module: `wireguard-go` stands in for it, by the same port.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from events.types import ClusterEncryptionChanged, Event, NodeKeyChanged
from nodeagent.dataplane.desired import Desired
from nodeagent.dataplane.own_findings import OwnFindings
from nodeagent.membership.node_key import AGE_FILE, OLD_FILE, new_key
from nodeagent.membership.peers import PeerChange
from nodeagent.nat.packets import PROBE_VNI
from nodeagent.netlink.messages import Action
from nodeagent.netlink.rows import BLACKHOLE
from nodeagent.ways.table import Exit
from nodeagent.wireguard import kernel, userspace
from nodeagent.wireguard.device import PeerSettings, PeerState, WireGuardDevice, difference
from nodeagent.wireguard.link import index_of
from tests.nodeagent.host import peer
from tests.nodeagent.logs import DEFINED, folded, joined
from tests.nodeagent.nat_site import Branch, branch_nodes
from tests.nodeagent.pods import Pod
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Flow, Node, Site
from tests.nodeagent.talk import SECOND, Talk, fast, talk
from tests.waiting import patient
from tests.waiting import wait_for as until

needs_program = pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="wireguard-go is not installed")
VXLAN = 8472
FAST_S = 0.004
"""Between two packets of a stream through the change of a key."""
DATAGRAMS = """table inet datagrams {
  chain c {
    type filter hook input priority 0
    udp dport 51820-51823 ct state != untracked counter
    udp dport 51820-51823 ct state untracked counter
  }
}"""


class Wire:
    """Counts what node a sends and gets in the clear: packets in VXLAN form, and bare packets of pods."""

    def __init__(self, device: str = "v-a") -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((device, 0))
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self.plain = self.encrypted = 0
        self.examples = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):  # nothing came, or the device is down
                frame = self._socket.recv(65535)
                if frame[12:14] != b"\x08\x00":
                    continue
                packet = frame[14:]
                datagram = packet[(packet[0] & 15) * 4 :]
                ports = datagram[:4]
                if packet[12] == 172 or packet[16] == 172:  # a container address on the underlay
                    self.seen(packet)
                elif packet[9] == socket.IPPROTO_UDP:
                    port = int.from_bytes(ports[2:], "big")
                    if port == VXLAN and int.from_bytes(datagram[12:15], "big") != PROBE_VNI:  # agents' own
                        self.seen(packet)
                    self.encrypted += 51820 <= port < 51824

    def seen(self, packet: bytes) -> None:
        self.plain += 1
        self.examples = f"{self.plain} packets, the last one: {packet[:110].hex()}"

    def stop(self) -> Wire:
        self._over.set()
        self._thread.join()
        self._socket.close()
        return self


@contextlib.contextmanager
def site(*names: str) -> Iterator[tuple[Site, list[Node]]]:
    """Nodes that share a machine but not the folder of WireGuard's sockets."""
    with tempfile.TemporaryDirectory() as folder:
        made = Site(Path(folder))
        made.up()
        nodes = made.add(*names)
        for node in nodes:
            wrap(node)
        try:
            yield made, nodes
        finally:
            for node in nodes:
                node.stop()
            made.down()


def wrap(node: Node) -> None:
    sockets = node.directory / "sockets"
    sockets.mkdir()
    script = node.directory / "own-sockets"
    script.write_text(f'#!/bin/sh\nmkdir -p /run/wireguard\nmount --bind {sockets} /run/wireguard\nexec "$@"\n')
    script.chmod(0o755)


def start(node: Node, *options: str, by: str = "") -> Node:
    return node.start("--wireguard", "userspace", *options, by=f"{node.directory / 'own-sockets'} {by}")


def stage(site: Site, scope: str) -> None:
    done = site.isthmus("cluster", "encrypt", scope)
    assert done.returncode == 0, done.stderr


def settled(site: Site, words: str) -> None:
    until(lambda: words in site.isthmus("cluster", "show").stdout, f"the cluster is {words}", 60)


def shown(site: Site) -> dict[str, str]:
    found: dict[str, str] = json.loads(site.isthmus("cluster", "show", "--json").stdout)["encryption"]
    return found


def lost(*flows: Flow) -> list[tuple[int, str]]:
    """Numbers of the packets that did not come back, each with when."""
    found = []
    for flow in flows:
        times = flow.stop().times
        found += [
            (number, time.strftime("%H:%M:%S", time.gmtime(times.get(number - 1, 0))))
            for number in range(1, max(times))
            if number not in times
        ]
    return found


def program_of(node: Node) -> int:
    """The process that serves the node's WireGuard device."""
    namespace = Path(f"/run/netns/{node.name}").stat().st_ino
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            ours = entry.name.isdigit() and (entry / "comm").read_text().strip() == "wireguard-go"
            if ours and (entry / "ns" / "net").stat().st_ino == namespace:
                return int(entry.name)
    return 0


@needs_program
@inside
def test_there_and_back_without_a_lost_packet_and_nothing_in_the_clear() -> None:
    with site("a", "b") as (made, (a, b)):
        for node in (a, b):
            start(node)
        a.ready(1)
        b.ready(1)
        flow, back = a.flow(b), b.flow(a)
        stage(made, "all")
        settled(made, "all (required within sites, required between sites)")
        missing = lost(flow, back)
        assert missing == [], f"on the way from plain to encrypted: {missing}\n{a.log()}\n{b.log()}"
        wire = Wire()
        flow = a.flow(b)
        until(lambda: wire.encrypted > 50, "packets cross the wire", 30)
        assert flow.stop().lost == 0
        assert wire.stop().plain == 0, wire.examples
        until(lambda: "1 of them encrypted" in a.status()["ways"], "the way is shown")
        until(lambda: "1 peers, 1 with a session" in a.status()["encryption"], "the session is shown", 30)
        assert "blackhole 172.16.0.64/26" in a.run("ip route show proto 84")
        # The agent restarts: key, device and sessions are what they were.
        before = (a.directory / "state" / "node.key").read_bytes()
        flow = b.flow(a)
        a.stop()
        start(a).ready(1)
        missing = lost(flow)
        assert missing == [], f"while the agent restarts: {missing}\n{a.log()}"
        assert (a.directory / "state" / "node.key").read_bytes() == before
        # Its program is killed: nothing is sent in its place until it is there again.
        wire, flow = Wire(), a.flow(b)
        killed = program_of(a)
        os.kill(killed, 9)
        until(lambda: program_of(a) not in {0, killed}, "the program runs again", 30)
        sent = wire.encrypted
        until(lambda: wire.encrypted > sent + 50, "packets cross the wire again", 30)
        flow.stop()
        assert wire.stop().plain == 0, wire.examples
        # And back.
        a.ready(1)
        b.ready(1)
        flow, back = a.flow(b), b.flow(a)
        stage(made, "off")
        until(lambda: shown(made)["within_sites"] == "plain", "nothing is encrypted", 60)
        until(lambda: not program_of(a), "the program is gone", 30)
        missing = lost(flow, back)
        assert missing == [], f"on the way back: {missing}\n{a.log()}\n{b.log()}"


@needs_program
@inside
def test_a_fast_flow_is_encrypted_with_the_clusters_step_and_fast_again_without() -> None:
    with site("a", "b") as (made, (a, b)):
        for node in (a, b):
            start(node, "--fastpath", "auto")
        for node in (a, b):
            node.ready(1)
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        with talk(one, two) as talking:
            fast(a, b)
            first = talking.now()
            stage(made, "all")
            settled(made, "all (required within sites, required between sites)")
            wire = Wire()
            a.run(f"nft '{DATAGRAMS}'")
            fast(a, b)
            talking.pause(SECOND // 2)
            assert not talking.lost(first)
            alone(a, other_key(a))
            talking.flows()
            fast(a, b)  # by the device and session that are right now
            assert wire.stop().plain == 0, wire.examples
            assert wire.encrypted > SECOND // 2
            tracked, untracked = re.findall(r"packets (\d+)", a.run("nft list table inet datagrams"))
            assert int(tracked) == 0 < int(untracked), "WireGuard's own go past connection tracking"
            stage(made, "off")
            fast(a, b)
            assert not talking.lost(first)


@needs_program
@inside
def test_the_contract_of_a_device_in_userspace() -> None:
    sh("mount -t tmpfs none /run && mkdir /run/wireguard")
    contract(userspace.UserspaceDevice("wgtest"))


@pytest.mark.skipif(bool(kernel.missing()), reason="this kernel has no WireGuard module")
@inside
def test_the_contract_of_a_device_of_the_kernel() -> None:
    contract(kernel.KernelDevice("wgtest"))


def contract(device: WireGuardDevice) -> None:
    """What both kinds of devices must do."""
    with pytest.raises(OSError):
        device.read()
    device.create()
    with tempfile.TemporaryDirectory() as folder:
        key = new_key(Path(folder))
        others = [new_key(Path(folder)).public for _ in range(700)]
    device.configure(key.private, 51999)
    wanted = {
        other: PeerSettings(
            ("192.0.2.1", 51820 + number), (f"10.{number >> 8}.{number & 255}.0/24",), number % 2 * 25
        )
        for number, other in enumerate(others)
    }
    device.change(wanted, [])
    state = device.read()
    assert (state.public_key, state.port) == (key.public, 51999)
    assert {other: peer.settings for other, peer in state.peers.items()} == wanted
    assert difference(wanted, state.peers, 0.0) == ({}, [])
    device.nudge({others[0]: 0, others[1]: 25})
    assert {other: peer.settings for other, peer in device.read().peers.items()} == wanted
    # A range goes to whom it was given last; a peer that is dropped is gone.
    moved = PeerSettings(("192.0.2.2", 1), ("10.0.0.0/24", "10.9.9.0/26"))
    device.change({others[1]: moved}, [others[2]])
    state = device.read()
    assert state.peers[others[1]].settings == moved
    assert state.peers[others[0]].settings.allowed == ()
    assert others[2] not in state.peers
    # A range that moves is taken from its last peer, and the others of both stay as they are meanwhile.
    taker = wanted[others[5]]._replace(allowed=tuple(sorted((*wanted[others[5]].allowed, "10.9.9.0/26"))))
    giver = moved._replace(allowed=("10.0.0.0/24",))
    device.change({others[5]: taker, others[1]: giver}, [], losing=())
    state = device.read()
    assert (state.peers[others[5]].settings, state.peers[others[1]].settings) == (taker, giver)
    device.change({others[1]: giver._replace(allowed=())}, [], losing={others[1]})
    assert device.read().peers[others[1]].settings.allowed == ()
    device.remove()
    until(lambda: not index_of(device.name), "the device is gone")
    device.remove()


def test_an_endpoint_that_moved_by_a_peers_own_packets_is_left_alone() -> None:
    wanted = {"k": PeerSettings(("192.0.2.1", 51820), ("10.0.0.0/24",))}
    seen = PeerSettings(("203.0.113.9", 4711), ("10.0.0.0/24",))
    assert difference(wanted, {"k": PeerState(seen, 100.0)}, 150.0) == ({}, [])
    assert difference(wanted, {"k": PeerState(seen, 100.0)}, 400.0) == (wanted, [])
    stolen = PeerState(seen._replace(allowed=()), 100.0)
    assert difference(wanted, {"k": stolen, "x": stolen}, 150.0) == (wanted, ["x"])


def test_the_kernels_message_says_what_the_settings_are() -> None:
    settings = PeerSettings(("192.0.2.1", 51820), ("10.0.0.0/24", "10.0.1.0/26"))
    key = "b2xka2tra2tra2tra2tra2tra2tra2tra2tra2tra2s="
    message = kernel.set_message("wg", ("WGDEVICE_A_PEERS", [kernel.peer_attributes(key, settings)]))
    message.encode()
    read = type(message)(message.data)
    read.decode()
    (peer,) = read.get_attr("WGDEVICE_A_PEERS")
    assert peer.get_attr("WGPEER_A_PUBLIC_KEY").decode() == key
    assert (peer.get_attr("WGPEER_A_ENDPOINT")["addr"], peer.get_attr("WGPEER_A_ENDPOINT")["port"]) == (
        "192.0.2.1",
        51820,
    )


def test_a_sealed_peer_has_a_blackhole_and_its_way_comes_before_it() -> None:
    """From plain to encrypted the route into WireGuard is written first; without one nothing leads out."""
    plain = peer(2)
    own, findings = Desired(), OwnFindings()
    findings.device_mtu = 1440
    own.preferred = findings.preferred
    own.apply(PeerChange(None, plain))
    accepting = msgspec.structs.replace(plain, key="k", port=1, stage="accepting")
    assert own.apply(PeerChange(plain, accepting)) == []
    findings.encrypted = {accepting: Exit(bytes(4), 7, b"\x0a\0\0\1")}
    sealed = msgspec.structs.replace(accepting, stage="sending")
    findings.follow([PeerChange(accepting, sealed)])
    first, second = own.apply(PeerChange(accepting, sealed))
    assert (len(first.value), second.value) == (16, BLACKHOLE)
    assert own.narrow(sealed, 1300) == []
    back = own.apply(PeerChange(sealed, accepting))
    assert [operation.action for operation in back] == [Action.PUT, Action.DROP], "the tunnel's route first"
    alone = Desired()
    alone.apply(PeerChange(None, sealed))
    assert set(alone.rows.routes.values()) == {BLACKHOLE}, "at the start, before WireGuard is there"


@needs_program
@inside
def test_nothing_is_sent_in_the_clear_whatever_goes_away() -> None:
    with site("a", "b") as (made, (a, b)):
        for node in (a, b):
            start(node)
        a.ready(1)
        b.ready(1)
        stage(made, "all")
        settled(made, "all (required within sites, required between sites)")
        wire, flow = Wire(), a.flow(b)
        until(lambda: wire.encrypted > 20, "packets cross the wire", 30)

        def flows() -> None:
            before = wire.encrypted
            until(lambda: wire.encrypted > before + 20, f"packets cross the wire\n{a.log()}", 30)

        vtep = a.vtep
        # The device is deleted; the agent is killed, and WireGuard goes on; both are killed.
        flow = a.flow(b)
        a.run("ip link del isthmus-wg0")
        flows()
        a.stop(signal.SIGKILL)
        flows()
        os.kill(program_of(a), 9)
        until(lambda: not program_of(a), "WireGuard is gone")
        other = a.run(f"ping -n -c 5 -i 0.05 -W 1 -I {vtep} {b.vtep} || true")
        assert "100% packet loss" in other
        # Before the agent is ready nothing else leads there either.
        start(a).ready(1)
        flows()
        flow.stop()
        assert wire.stop().plain == 0, wire.examples
        boots_in_silence(a, b)


def boots_in_silence(node: Node, other: Node) -> None:
    """Of the kernel's state nothing is left. Pods are ordered behind the agent's unit, and send at once."""
    pod = str(ip_address(node.vtep) + 9)
    node.stop(signal.SIGKILL)
    os.kill(program_of(node), 9)
    until(lambda: not program_of(node), "WireGuard is gone")
    sh(f"ip link del v-{node.name} && ip netns del {node.name}")
    sh(f"ip netns add {node.name} && ip -n {node.name} link set lo up")
    node.plug()
    node.run(f"ip addr add {pod}/32 dev lo")
    ping = f"ping -n -c 3 -i 0.05 -W 1 -I {pod} {other.vtep} || true"
    wire = Wire()
    node.run(ping)
    until(lambda: wire.plain, "who does not wait for the agent sends in the clear: the capture shows it")
    wire.stop()
    path = node.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(path))
        told.settimeout(60)
        start(node, by=f"env NOTIFY_SOCKET={path}")
        assert told.recv(100) == b"READY=1"
    wire = Wire()
    node.run(ping)
    until(lambda: ", 0% packet loss" in node.run(ping), f"packets pass again\n{node.log()}", 60)
    assert wire.stop().plain == 0, wire.examples
    assert wire.encrypted > 0


def other_key(node: Node) -> str:
    """Ask for another key, as people do; the public one."""
    told = subprocess.run(
        [ISTHMUS, "agent", "rotate-key", "--json", "--state-dir", str(node.directory / "state")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(told.stdout)["key"])


def key_of(node: Node) -> str:
    return str(node.status()["encryption"]).rpartition(" ")[2]


def alone(node: Node, key: str) -> None:
    """That key is the node's only one: the change to it is over."""
    until(
        lambda: "valid, too" not in node.status()["encryption"] and key_of(node) == key,
        f"{node.name} has the key {key} alone\n{node.log()}",
        60,
    )


def devices_of(node: Node) -> set[str]:
    return set(re.findall(r"isthmus-wg\d", node.run("ip -brief link")))


@needs_program
@inside
def test_keys_are_replaced_without_a_lost_packet_and_nothing_in_the_clear() -> None:
    """By command, by age, on both ends at once, and with the agent killed in the middle."""
    with site("a", "b") as (made, (a, b)):
        for node in (a, b):
            start(node)
        a.ready(1)
        b.ready(1)
        stage(made, "all")
        settled(made, "all (required within sites, required between sites)")
        wire, flows = Wire(), [a.flow(b, FAST_S), b.flow(a, FAST_S)]
        until(lambda: wire.encrypted > 500, "packets cross the wire", 30)
        first = key_of(a)
        new = other_key(a)
        assert other_key(a) == new, "asked for twice, also while both are valid, it is the same"
        alone(a, new)
        assert first != new
        until(lambda: (devices_of(a), devices_of(b)) == ({"isthmus-wg2"}, {"isthmus-wg1"}), "a device each")
        assert not list((a.directory / "state").glob("node.*.key"))
        # The peer's agent is away, and the own one is killed as soon as it has both keys: what is in the
        # kernels goes on. Then both are there, and the peer's key is as old as it may be.
        old = key_of(b)
        b.stop(signal.SIGKILL)
        third = other_key(a)
        held = a.directory / "state" / OLD_FILE
        until(held.exists, f"both keys are held\n{a.log()}", 30)
        a.stop(signal.SIGKILL)
        assert held.stat().st_mode & 0o777 == 0o600
        start(a)
        until(lambda: f"1 still without one by the new key, so {new} is" in a.status()["encryption"], a.log())
        (b.directory / "state" / AGE_FILE).write_text(json.dumps({"key": old, "seconds": 86_400}))
        start(b, "--rotate-key", "1")
        alone(a, third)
        until(lambda: key_of(b) != old, f"the key was replaced by its age\n{b.log()}", 60)
        alone(b, key_of(b))
        until(lambda: (devices_of(a), devices_of(b)) == ({"isthmus-wg1"}, {"isthmus-wg2"}), "a device each")
        missing = lost(*flows)
        assert missing == [], f"{len(missing)}: {missing[:20]}\n{a.log()}\n{b.log()}"
        assert sum(flow.sent for flow in flows) > 5000
        assert wire.stop().plain == 0, wire.examples


def test_ways_that_were_found_for_an_earlier_stage_hold_for_the_next_one() -> None:
    """A peer goes on to the next stage while WireGuard is looked at: its route stays."""
    log: list[Event] = [DEFINED, *joined(0), *joined(1), NodeKeyChanged(node="n1", uid="u1", key="k", port=7)]
    view, own, findings = folded(log), Desired(), OwnFindings()
    findings.device_mtu, own.preferred = 1440, findings.preferred
    for stage in ("accepting", "sending"):
        event = ClusterEncryptionChanged(cluster="c", scope="all", within_sites=stage, between_sites=stage)  # type: ignore[arg-type]
        changes = view.apply(view.sequence + 1, event)
        findings.follow(changes)
        for change in changes:
            own.apply(change)
        if stage == "accepting":
            (peer_then,) = view.peers
            ways = {(peer_then.cidr, peer_then.epoch): Exit(bytes(4), 7, b"\x0a\0\0\1")}
            assert findings.encrypt(ways, view, own) == [], "not sealed yet"
    assert findings.encrypt(ways, view, own) == []
    assert sum(len(value) == 16 for value in own.rows.routes.values()) == 1
    assert [operation.action for operation in findings.encrypt({}, view, own)] == [Action.DROP]


def way(node: Node, peer: Node) -> tuple[str, str, bool]:
    found = (one for one in node.status()["peer_ways"] if one["peer"] == peer.name)
    return next(((one["way"], one["via"], one.get("encrypted", False)) for one in found), ("", "", False))


def left(flow: Talk, wire: Wire) -> bool:
    """Whether packets take another way by now, in both directions: few are on that wire in half a second."""
    before = wire.encrypted
    flow.pause(SECOND // 2)
    return wire.encrypted - before < SECOND // 20


def healed_s(flow: Talk) -> float:
    """For how long nothing came, once it comes again; seconds by the sender's own count."""
    start = flow.now()
    until(lambda: len([n for n in flow.numbers("got") if n > start]) > SECOND, "answers come", 60)
    got = set(flow.numbers("got"))
    return sum(number not in got for number in range(start, max(got))) / SECOND


@needs_program
@pytest.mark.slow
@inside
def test_nodes_behind_different_nats_are_relayed_encrypted() -> None:
    with site("g", "h") as (place, (g, h)):
        (b,) = branch_nodes(place, Branch("r", 9), "b")
        (c,) = branch_nodes(place, Branch("s", 8), "c")
        nodes = [g, h, b, c]
        sites = {"g": "cloud", "h": "cloud", "b": "branch", "c": "home"}
        for node in (b, c):
            wrap(node)
        for node in nodes:
            start(node, "--gateway", "--site", sites[node.name])
        for node in nodes:
            node.ready(3)
        stage(place, "all")
        until(lambda: "the cluster has no gateway" in str(b.status()["conditions"]), "it says why not", 60)
        assert shown(place)["within_sites"] == "accepting"
        for node in (g, h):
            assert place.isthmus("clb", "gateway", "add", node.name).returncode == 0
        one, two = Pod(b, "pod-b"), Pod(c, "pod-c")
        with talk(one, two) as flow:
            until(lambda: len(flow.numbers("got")) > SECOND // 4, "relayed in the clear", 60)
            first = flow.now()
            settled(place, "all (required within sites, required between sites)")
            wires = [Wire(f"v-{name}") for name in ("g", "h", "r", "s")]
            gone = flow.lost(first)
            assert gone == [], f"{len(gone)}: {gone[:3]} …, on the way to encryption\n{b.log()}\n{c.log()}"
            # One behind NAT and both gateways get other keys at once: the relay's are in use at either end.
            for node, key in [(node, other_key(node)) for node in (b, g, h)]:
                alone(node, key)
            gone = flow.lost(first)
            said = f"{len(gone)} of {first} to {flow.now()}: {gone[:3]} … {gone[-3:]} while keys are replaced"
            assert gone == [], f"{said}\n{b.log()}\n{c.log()}"
            # The gateway that relays is cut off and comes back; then the only one's agent stands still.
            via = next(node for node in (g, h) if node.name == way(b, c)[1])
            assert way(b, c) == way(c, b) == ("relayed", via.name, True)
            sh(f"ip link set v-{via.name} down")
            seconds = healed_s(flow)
            assert seconds < patient(10), f"{seconds:g} s\n{b.log()}\n{c.log()}"
            sh(f"ip link set v-{via.name} up")
            until(lambda: way(b, c)[1] == way(c, b)[1] == via.name, "the first one relays again", 60)
            other = h if via is g else g
            assert place.isthmus("clb", "gateway", "remove", via.name).returncode == 0
            until(lambda: way(b, c)[1] == way(c, b)[1] == other.name, "the other one is the only one", 60)
            until(lambda: left(flow, wires["gh".index(via.name)]), "both ends' devices have followed", 60)
            start_at = flow.now()
            assert other.agent is not None
            os.kill(other.agent.pid, signal.SIGSTOP)
            flow.pause(6 * SECOND)
            os.kill(other.agent.pid, signal.SIGCONT)
            stopped_at = flow.now()
            for node in (b, c):
                node.stop()
                start(node, "--gateway", "--site", sites[node.name]).ready(3)
            flow.pause(4 * SECOND)
            gone, marks = flow.lost(start_at), (start_at, stopped_at, flow.now())
            assert gone == [], f"{len(gone)} of {marks}: {gone[:3]} … {gone[-3:]} agents matter to no packet"
            assert [wire.stop().plain for wire in wires] == [0, 0, 0, 0], [wire.examples for wire in wires]
            assert all(wire.encrypted > SECOND for wire in wires[2:])
            between_the_hidden_only(other, via, b)
            first = flow.now()
            stage(place, "off")
            until(lambda: shown(place)["within_sites"] == "plain", "nothing is encrypted", 60)
            flow.pause(SECOND // 2)
            assert flow.lost(first) == [], "on the way back"


def between_the_hidden_only(g: Node, h: Node, b: Node) -> None:
    """A node behind NAT has no use of a gateway as a way to one that is not."""
    assert b.run(f"ping -n -c 1 -W 5 -I {b.vtep} {h.vtep} && echo passed").endswith("passed\n")
    listing = g.run("nft list chain inet isthmus relayed")
    assert "ip saddr @hidden ip daddr @hidden goto tunnelled" in listing
    assert 'iifname "isthmus-wg*" oifname "isthmus-wg*" goto relayed' in g.run("nft list table inet isthmus")
    ranges = g.run("nft list set inet isthmus hidden")
    assert str(b.status()["range"]) in ranges
    assert str(h.status()["range"]) not in ranges
    assert "elements" not in b.run("nft list set inet isthmus hidden"), "who is no gateway relays nothing"
