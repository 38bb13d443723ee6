"""Pods by the real CNI plugins, and the firewall's rules, each with packets in both directions."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from nodeagent.path_mtu.probe import Path, datagram
from tests.nodeagent.pods import OUTSIDE, Pod, ask, outside, serve
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node, Site, site
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

SEND = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
s.sendto(bytes.fromhex(sys.argv[4]), (sys.argv[2], int(sys.argv[3])))
"""


@inside
def test_pods_and_the_firewall() -> None:
    pods_and_the_firewall("on")


@inside
def test_pods_and_the_firewall_where_every_packet_takes_the_stack() -> None:
    os.environ["ISTHMUS_FASTPATH"] = "off"
    pods_and_the_firewall("off")


def pods_and_the_firewall(fastpath: str) -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        if "ISTHMUS_FASTPATH" not in os.environ or fastpath == "off":
            assert all(node.status()["fastpath"].startswith(fastpath) for node in (a, b))
        servers = outside(a, "172.16.0.0/16")
        one, two, three = Pod(a, "pod-1"), Pod(a, "pod-2"), Pod(b, "pod-3")
        assert one.address.rpartition(".")[2] == str(int(a.vtep.rpartition(".")[2]) + 2), (
            "after VTEP and gateway"
        )
        for kind in ("tcp", "udp"):
            for source, target in ((one, two), (one, three), (three, one)):
                seen = ask(source.name, kind, target.address)
                assert seen.startswith(f"{source.address} "), f"{kind} {source.name} → {target.name}: {seen}"
            # The node itself to its pods and to another node's pods (kubelet, health checks), and back.
            assert ask("a", kind, one.address).startswith("172.16.")
            assert ask("a", kind, three.address).startswith(f"{a.vtep} ")
            # Pods to the outside wear the node's address, on ports clear of the VXLAN port.
            address, port = ask(one.name, kind, OUTSIDE).split()
            assert address == a.underlay
            assert int(port) > 8472
            # From outside: no new connection to a pod, directly or past the node's own addresses.
            for target in (one.address, three.address, a.vtep):
                assert ask("far", kind, target).startswith("none"), f"{kind} from outside to {target}"
        # Pods to nodes: by underlay address (kubelet, node-local services), with replies.
        server = serve("b", "tcp", b.underlay, 81)
        assert ask(one.name, "tcp", b.underlay, 81).startswith(f"{a.underlay} ")
        server.kill()
        # A published port (NodePort, hostPort: translated on the node) is let through.
        a.run(
            "nft 'add table ip nat2; add chain ip nat2 pre { type nat hook prerouting priority dstnat; }; "
            f"add rule ip nat2 pre tcp dport 30080 dnat to {one.address}:80'"
        )
        assert not ask("far", "tcp", a.underlay, 30080).startswith("none")
        # Nobody outside can pretend to be a pod.
        sh("ip -n far addr add 172.16.77.7/32 dev lo && ip route add 172.16.77.7/32 via 198.51.100.9")
        assert ask("far", "udp", one.address, 80, "172.16.77.7").startswith("none")
        # What is addressed to a range that nobody has does not follow the default route, not when a Service's
        # address was translated to it either. (In the output hook such a packet still has its old route.)
        a.run(
            "nft 'add table ip nat3; add chain ip nat3 pre { type nat hook prerouting priority dstnat; }; "
            "add chain ip nat3 out { type nat hook output priority -100; }; "
            + " ".join(
                f"add rule ip nat3 {chain} ip daddr {service} dnat to {target};"
                for chain in ("pre", "out")
                for service, target in (("10.96.0.1", three.address), ("10.96.0.2", "172.16.200.9"))
            )
            + "'"
        )
        assert ask("a", "udp", "10.96.0.1").startswith(f"{a.vtep} ")
        seen = subprocess.Popen(
            ["tcpdump", "-i", "wire", "--immediate-mode", "-lnn", "dst", "172.16.200.9"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert seen.stderr is not None
        until(lambda: "listening" in seen.stderr.readline(), "tcpdump listens")  # type: ignore[union-attr]
        for place_name in (one.name, "a"):
            for target in ("172.16.200.9", "10.96.0.2"):
                assert ask(place_name, "udp", target).startswith("none")
        seen.terminate()
        assert "172.16.200.9" not in seen.communicate()[0]
        # VXLAN from an unknown VTEP is dropped: the same packet from a member's address is let in.
        vxlan = bytes.fromhex("0800000000006400") + bytes(60)
        with counted(a, "from_members", 1):
            ask("far", "udp", a.underlay, 8472, datagram=vxlan)
        with counted(a, "from_members", 1, packets=0):
            ask("b", "udp", a.underlay, 8472, datagram=vxlan)
        # What the kernel would not take for VXLAN is nobody's there, from a member neither.
        for stranger in ("far", "b"):
            with counted(a, "delivered", 0):
                ask(stranger, "udp", a.underlay, 8472)
        # Nor may a pod speak as a member to another node, through the tunnel or to any address of the node.
        for target in (a.vtep, a.underlay):
            with counted(a, "from_members", 1):
                ask(three.name if target == a.vtep else one.name, "udp", target, 8472, datagram=vxlan)
        # ... nor past it: masqueraded, its packet would wear this node's address there.
        with counted(a, "passing", 0), counted(b, "from_members", 1, packets=0):
            ask(one.name, "udp", b.underlay, 8472, datagram=vxlan)
        check_what_comes_out_of_the_tunnel(a, b, one, two)
        # A pod that takes another pod's address is heard by nobody.
        with counted(a, "pods", 0):
            sh(f"ip -n {one.name} addr add {two.address}/32 dev lo")
            assert ask(one.name, "udp", three.address, 80, two.address).startswith("none")
            sh(f"ip -n {one.name} addr del {two.address}/32 dev lo")
        # Pods ping the outside, masqueraded, too. What masquerading leaves alone keeps its pod address inside.
        sh(f"ip netns exec {one.name} ping -c1 -W5 {OUTSIDE}")
        with counted(a, "answered", 0):
            assert ask("a", "udp", "224.0.0.251", 5353, a.vtep).startswith("none")
        # An address of the own range that no pod has goes nowhere instead of around in circles.
        unused = a.vtep.rpartition(".")[0] + "." + str(int(a.vtep.rpartition(".")[2]) + 50)
        assert ask(three.name, "udp", unused).startswith("none")
        for server in servers:
            server.kill()
        check_conflist_changes(place, a, one, three)
        check_the_table_heals(a, three)
        for pod in (one, two, three):
            pod.delete()
        assert Pod(a, "pod-4").address.startswith("172.16.")


@contextlib.contextmanager
def counted(node: Node, chain: str, rule: int, packets: int = 1) -> Iterator[None]:
    """Within it, that many packets meet the chain's counting rule of that number."""
    before = met(node, chain, rule)
    yield
    until(lambda: met(node, chain, rule) == before + packets, f"{packets} packets at rule {rule} of {chain}")


def met(node: Node, chain: str, rule: int) -> int:
    text = node.run(f"nft list chain inet isthmus {chain}")
    return int(text.split("counter packets ")[rule + 1].split()[0])


def check_what_comes_out_of_the_tunnel(a: Node, b: Node, one: Pod, two: Pod) -> None:
    """A member's packets with a sender that cannot be behind it: no pod, the receiver's own, nobody's."""
    mac = {node: str(node.status()["vtep_mac"]) for node in (a, b)}
    for sender, target, chain, rule in (
        (OUTSIDE, one.address, "tunnelled", 0),
        (OUTSIDE, a.vtep, "tunnelled", 0),
        (two.address, one.address, "tunnelled", 0),
        ("172.16.200.9", one.address, "tunnelled", 0),
        (two.address, a.vtep, "tunnelled", 0),
        ("172.16.200.9", a.vtep, "tunnelled", 0),
    ):
        way = Path(vni=100, port=8472, underlay=b.underlay, vtep=sender, mac=mac[b],
                   peer_underlay=a.underlay, peer_vtep=target, peer_mac=mac[a])  # fmt: skip
        payload = way.packet(40000, 128)
        with counted(a, chain, rule):
            b.run(f"{sys.executable} -c '{SEND}' {b.underlay} {a.underlay} 8472 {payload.hex()}")
    # In it, a packet that would be a member's in no tunnel.
    within = datagram(b.underlay, 40000, a.underlay, 8472, payload)
    with counted(a, "from_members", 0):
        headers = payload[: len(payload) - 78].hex()
        b.run(f"{sys.executable} -c '{SEND}' {b.underlay} {a.underlay} 8472 {headers}{within.hex()}")


def check_conflist_changes(place: Site, a: Node, one: Pod, three: Pod) -> None:
    """Another MTU rewrites the file; running pods go on as they are."""
    pinging = subprocess.Popen(
        ["ip", "netns", "exec", "pod-1", "ping", "-i", "0.02", three.address], stdout=subprocess.PIPE, text=True
    )
    assert '"mtu": 1450' in (a.directory / "cni" / "10-isthmus.conflist").read_text()
    a.run("ip link set eth0 mtu 1400")
    until(lambda: '"mtu": 1350' in (a.directory / "cni" / "10-isthmus.conflist").read_text(), "rewritten")
    late = Pod(a, "pod-5")
    assert "mtu 1350" in sh("ip -n pod-5 link show eth0")
    assert ask("pod-5", "tcp", three.address).startswith(late.address)
    assert not list((a.directory / "cni").glob(".*")), "no half-written file is left behind"
    pinging.send_signal(2)
    out, _ = pinging.communicate()
    assert " 0% packet loss" in out, out[-300:]
    late.delete()


def check_the_table_heals(a: Node, three: Pod) -> None:
    """The whole table, a rule, or a member removed by hand: back by itself."""
    for damage in (
        "delete table inet isthmus",
        "flush chain inet isthmus forwarded",
        "delete element inet isthmus vteps { 10.0.0.2 }",
    ):
        a.run(f"nft '{damage}'")
        until(lambda: complete(a), f"{damage}: heals")
        until(lambda: not ask("a", "tcp", three.address).startswith("none"), f"{damage}: packets pass")


def complete(node: Node) -> bool:
    text = node.run("nft list table inet isthmus")
    return "10.0.0.2" in text and "goto pods" in text.partition("chain forwarded")[2] and "masquerade" in text


@inside
def test_the_bridge_plugin_works_too() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.start("--cni-plugin", "bridge").ready()
        b.start().ready()
        one, two, three = Pod(a, "pod-1"), Pod(a, "pod-2"), Pod(b, "pod-3")
        for source, target in ((one, two), (one, three), (three, two)):
            until(lambda: ask(source.name, "tcp", target.address).startswith(f"{source.address} "), "answers")  # noqa: B023
        for pod in (one, two, three):
            pod.delete()
