"""Pods' packets through routers that masquerade: all pairs, changes of a router, strangers, restarts."""

from __future__ import annotations

import re
import sys

import pytest

from tests.nodeagent.nat_site import Branch, branch_nodes, mapped, place_of, ways
from tests.nodeagent.pods import Pod, ask
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import Node, site
from tests.nodeagent.talk import SECOND, Talk, fast, talk
from tests.waiting import patient
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

RECORD = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
s.bind(("eth0", 0x0800))
found = []
while len(found) < 3:
    packet, where = s.recvfrom(2048)
    if packet[36:47] == b"isthmus-nat" and where[2] == 0:
        found.append(packet.hex())
print("\\n".join(found))
"""
REPLAY = """
import socket, sys, time
mine, target = (socket.inet_aton(text) for text in sys.argv[1:3])
heard = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
heard.bind(("eth0", 0x0800))
heard.settimeout(1.5)
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
for line in sys.argv[3:]:
    packet = bytearray.fromhex(line)
    packet[10:12] = packet[26:28] = bytes(2)
    packet[12:16], packet[16:20] = mine, target
    for at in (None, 80, 110):
        changed = bytearray(packet)
        if at is not None:
            changed[at] ^= 1
        s.sendto(bytes(changed), (sys.argv[2], 0))
got = 0
try:
    while True:
        packet, where = heard.recvfrom(2048)
        got += packet[12:16] == target and where[2] == 0
except TimeoutError:
    print(got)
"""


def reached(node: Node, **wanted: str) -> None:
    """Wait until these peers are reached so, and nobody else otherwise than by the tunnel."""

    def as_wanted() -> bool:
        found, status = ways(node), node.status()
        same = status["kernel_digest"] == status["expected_digest"] != ""
        return same and found.keys() == wanted.keys() and all(found[n].startswith(w) for n, w in wanted.items())

    try:
        until(as_wanted, f"{node.name} reaches {wanted}", 30)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{ways(node)}\n{node.status()['conditions']}\n{node.log()}") from error


@inside
def test_nodes_behind_a_router_are_reached_and_go_on_when_it_changes() -> None:
    with site("a", "x", start=False) as place:
        router = Branch("r", 9)
        a, x = place.nodes.values()
        b, c = branch_nodes(place, router, "b", "c")
        for node in (a, b, c):
            node.start()
        for node in (a, b, c):
            node.ready(2)
        reached(a, b="nat 10.0.0.9:", c="nat 10.0.0.9:")
        reached(b, a="nat this node seen as 10.0.0.9:")
        reached(c, a="nat this node seen as 10.0.0.9:")
        assert place_of(a, b) != place_of(a, c)
        assert mapped(a) == {place_of(a, b), place_of(a, c)}
        assert mapped(b) == {place_of(b, a)} == {"10.0.0.1:8472"}
        one, two, three = pods = [Pod(node, f"pod-{node.name}") for node in (a, b, c)]
        for source in pods:
            for target in pods:
                assert ask(source.name, "tcp", target.address).split()[0] == source.address, "all pairs pass"
        with talk(one, two) as flow:
            fast(a, b)
            for change in (
                router.forget, lambda: router.move(19), lambda: router.masquerade("random"), router.forget
            ):  # fmt: skip
                healed(flow, change)
                fast(a, b)
            reached(a, b="nat 10.0.0.19:", c="nat 10.0.0.19:")
            strangers_get_and_change_nothing(a, x, b)
            nobody_has_their_addresses_here(a, b, c)
            rows_are_kept(a, b)
            healed(flow, lambda: None)
            flow.pause(SECOND)
            start = flow.now()
            for node in (a, b):
                node.stop()
            flow.pause(SECOND // 2)
            for node in (a, b):
                node.start().ready(2)
            flow.pause(2 * SECOND)
            fast(a, b)
            assert flow.lost(start) == [], "agents that are started again go on"
            assert ask(three.name, "tcp", one.address).split()[0] == three.address
        b.stop()
        b.start("--nat", "off").ready(2)
        assert "isthmus-nat" not in b.run("ip link"), "switched off, nothing of it is left"


def healed(flow: Talk, change: object) -> None:
    """After the change at most five seconds' packets are lost, by the sender's own count."""
    start = flow.now()
    change()  # type: ignore[operator]
    until(lambda: len([n for n in flow.numbers("got") if n > start + SECOND // 2]) > SECOND, "answers come", 40)
    got = set(flow.numbers("got"))
    silent = [number for number in range(start, max(got)) if number not in got]
    assert len(silent) <= patient(5 * SECOND), f"{len(silent)} of {SECOND} a second"


def strangers_get_and_change_nothing(a: Node, x: Node, b: Node) -> None:
    """``x`` is on the wire and no member: it replays what it saw, also with a bit changed."""
    recorded = a.run(f"{sys.executable} -c '{RECORD}'").split()
    places, known = place_of(a, b), mapped(a)
    until(lambda: a.run(f"{sys.executable} -c '{RECORD}'").split(), "newer ones have come")
    got = x.run(f"{sys.executable} -c '{REPLAY}' {x.underlay} {a.underlay} {' '.join(recorded)}")
    assert int(got) == 0, "it gets no packet"
    assert (place_of(a, b), mapped(a)) == (places, known)


def nobody_has_their_addresses_here(a: Node, b: Node, c: Node) -> None:
    """Whoever is at the own address of a peer that is reached through NAT sends nothing as that peer."""

    def vteps(node: Node) -> set[str]:
        return set(re.findall(r"\d+\.\d+\.\d+\.\d+", node.run("nft list set inet isthmus vteps")))

    until(lambda: vteps(a) == set(), "nobody is reached by the tunnel", 30)
    until(lambda: vteps(b) == {c.underlay}, "of who is reached by the tunnel packets are taken", 30)


def rows_are_kept(a: Node, b: Node) -> None:
    """Whatever somebody removes of the second device comes back."""
    before = place_of(a, b)
    mac = b.status()["vtep_mac"]
    a.run(f"bridge fdb del {mac} dev isthmus-nat")
    until(lambda: place_of(a, b) == before, "the row is back", 20)
    a.run("nft flush set inet isthmus mapped")
    until(lambda: before in mapped(a), "so is who is let in", 20)
    a.run("ip link del isthmus-nat")
    until(lambda: place_of(a, b) == before, "and the device with its rows", 20)
