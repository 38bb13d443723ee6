"""Packets between nodes encrypted, there and back, and whatever goes away: with real agents."""

from __future__ import annotations

import re
import signal
import socket
from ipaddress import ip_address

from tests.nodeagent.encrypted import (
    Wire,
    alone,
    kill_program,
    lost,
    needs_program,
    other_key,
    program_of,
    settled,
    shown,
    site,
    stage,
    start,
)
from tests.nodeagent.pods import Pod
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node
from tests.nodeagent.talk import SECOND, fast, talk
from tests.waiting import wait_for as until

DATAGRAMS = """table inet datagrams {
  chain c {
    type filter hook input priority 0
    udp dport 51820-51823 ct state != untracked counter
    udp dport 51820-51823 ct state untracked counter
  }
}"""


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
        killed = kill_program(a)
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
        kill_program(a)
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
    kill_program(node)
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
