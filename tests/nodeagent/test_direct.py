"""Pods' packets between nodes on one link without the tunnel: counted, spoofed, cut off, switched off."""

from __future__ import annotations

import sys
from ipaddress import IPv4Address

import pytest

from tests.nodeagent.pods import Pod, ask
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node, site
from tests.nodeagent.talk import SECOND, fast, talk
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

SEEN = """
add table inet seen
add chain inet seen wire {{ type filter hook prerouting priority -400; }}
add rule inet seen wire iifname eth0 udp dport 8472 @th,64,32 0x08000000 @th,336,32 {number} \\
  counter comment "tunnel"
add rule inet seen wire iifname eth0 ip saddr {there} counter comment "plain"
add rule inet seen wire udp dport 7777 counter comment "asked"
"""
CUT = """
add table inet cut
add chain inet cut c { type filter hook prerouting priority -500; }
add rule inet cut c iifname eth0 ip saddr 172.16.0.0/16 drop
"""
FORGE = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
s.setsockopt(socket.IPPROTO_IP, 19, 1)
s.bind((sys.argv[1], 0))
for _ in range(3):
    s.sendto(b"forged", (sys.argv[2], 7777))
"""


def nft(node: Node, script: str) -> None:
    path = node.directory / "script.nft"
    path.write_text(script)
    node.run(f"nft -f {path}")


def counted(node: Node, what: str) -> int:
    listing = node.run("nft list table inet seen").splitlines()
    (line,) = (line for line in listing if f'comment "{what}"' in line)
    return int(line.partition("packets ")[2].split()[0])


def direct(node: Node, *peers: Node) -> None:
    """Wait until exactly these peers are reached directly, and the kernel agrees with the log."""

    def reached() -> bool:
        status = node.status()
        names = {way["peer"] for way in status["peer_ways"] if way["way"] == "direct"}
        same = status["kernel_digest"] == status["expected_digest"] != ""
        return names == {peer.name for peer in peers} and same

    until(reached, f"{node.name} reaches {[peer.name for peer in peers]} directly\n{node.log()}", 30)


def forge(node: Node, source: str, target: str) -> None:
    node.run(f"{sys.executable} -c '{FORGE}' {source} {target}")


@inside
def test_pods_on_one_link_talk_without_the_tunnel_and_by_it_when_packets_stop() -> None:
    with site("a", "b", "c", "x", start=False) as place:
        a, b, c, x = place.nodes.values()
        for node in (a, b):
            node.start("--direct", "auto")
        c.start()
        for node in (a, b, c):
            node.ready(2)
        one, two, three = Pod(a, "pod-1"), Pod(b, "pod-2"), Pod(c, "pod-3")
        with talk(one, two) as flow:
            first = flow.now()
            direct(a, b)
            direct(b, a)
            assert not flow.lost(first), "from the tunnel to the direct way"
            assert {way["peer"] for way in c.status()["peer_ways"]} == set()
            if a.status()["fastpath"].startswith("on"):
                fast(a, b)
            nft(b, SEEN.format(there=one.address, number=int(IPv4Address(one.address))))
            flow.pause(SECOND)
            assert counted(b, "plain") > 0, "of a fast flow only those that the stack is asked about"
            assert counted(b, "tunnel") == 0
            who = (ask("pod-1", "tcp", address).split()[0] for address in (two.address, three.address))
            assert list(who) == [one.address] * 2, "also to a node that has no direct ways"
            assert ask("pod-3", "tcp", two.address).split()[0] == three.address
            assert ask(a.name, "tcp", two.address).split()[0] == a.vtep, (
                "the node itself, by its VTEP's address"
            )
            nothing_forged_passes(b, c, x, one, two)

            nft(b, CUT)
            start = flow.now()
            direct(a)
            direct(b)
            flow.flows()
            got = set(flow.numbers("got"))
            silent = [number for number in range(start, flow.last("got")) if number not in got]
            assert len(silent) <= 6 * SECOND, "the tunnel takes over within seconds"
            assert "not answered" in a.status()["peer_ways"][0]["why"]
            assert counted(b, "tunnel") > 0
            b.run("nft delete table inet cut")
            direct(a, b)
            direct(b, a)

            first = flow.now()
            a.stop()
            flow.pause(SECOND)
            a.start("--direct", "auto").ready(2)
            direct(a, b)
            assert not flow.lost(first), "an agent that is started again goes on"
            a.stop()
            a.start("--direct", "off").ready(2)
            direct(a)
            direct(b)
            assert not flow.lost(first), "switched off"
            until(lambda: "eth0" not in a.run("ip route show table main tos 0x04"), "no routes for probes")


def nothing_forged_passes(b: Node, c: Node, x: Node, one: Pod, two: Pod) -> None:
    """``x`` is on the link and no member; ``c`` is one, with an address that is another member's."""
    for node in (x, c):
        node.run(f"ip route add {two.address} via {b.underlay} dev eth0 onlink")
    pod = "ip netns exec pod-2 nft"
    sh(f"{pod} add table inet seen")
    sh(f"{pod} 'add chain inet seen c {{ type filter hook prerouting priority 0; }}'")
    sh(f"{pod} add rule inet seen c udp dport 7777 counter")

    def reached() -> int:
        return int(sh(f"{pod} list table inet seen").partition("packets ")[2].split()[0])

    for node, source in ((x, one.address), (x, "172.16.9.9"), (x, x.underlay), (c, one.address)):
        asked = counted(b, "asked")
        if node is c:
            c.stop()
            c.run("nft delete table inet isthmus")  # its own firewall would not let it leave
        forge(node, source, two.address)
        until(lambda: counted(b, "asked") == asked + 3, f"{source} from {node.name} is on the wire")  # noqa: B023
    assert reached() == 0, "none of it reaches the pod"
    forge_from_pod = f"ip netns exec pod-1 {sys.executable} -c '{FORGE}' {one.address} {two.address}"
    sh(forge_from_pod)
    until(lambda: reached() == 3, "what is no forgery does")
