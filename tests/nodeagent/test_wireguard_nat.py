"""Nodes behind different NATs, encrypted, through a gateway that relays."""

from __future__ import annotations

import json
import signal

import pytest

from tests.nodeagent.encrypted import (
    Wire,
    alone,
    at_length,
    needs_program,
    other_key,
    settled,
    shown,
    site,
    stage,
    start,
    wrap,
)
from tests.nodeagent.nat_site import Branch, branch_nodes
from tests.nodeagent.pods import Pod
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node
from tests.nodeagent.talk import SECOND, Talk, talk
from tests.waiting import patient
from tests.waiting import wait_for as until


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


def comes_in_the_clear(source: Node, node: Node) -> bool:
    """Whether what a peer behind NAT sends without encryption, from its place, comes out at the node."""

    def came() -> int:
        (device,) = json.loads(node.run("ip -j -s link show isthmus-nat"))
        return int(device["stats64"]["rx"]["packets"])

    before = came()
    source.run(f"ping -n -c 3 -i 0.05 -W 1 -I isthmus-nat {node.vtep} || true")
    return came() - before >= 3


@needs_program
@pytest.mark.slow
@at_length
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
            assert comes_in_the_clear(b, g)
            fast_at_the_ends(flow, (b, c), (g, h))
            first = flow.now()
            settled(place, "all (required within sites, required between sites)")
            wires = [Wire(f"v-{name}") for name in ("g", "h", "r", "s")]
            gone = flow.lost(first)
            assert gone == [], f"{len(gone)}: {gone[:3]} …, on the way to encryption\n{b.log()}\n{c.log()}"
            fast_at_the_ends(flow, (b, c), (g, h))
            # One behind NAT and both gateways get other keys at once: the relay's are in use at either end.
            for node, key in [(node, other_key(node)) for node in (b, g, h)]:
                alone(node, key)
            gone = flow.lost(first)
            said = f"{len(gone)} of {first} to {flow.now()}: {gone[:3]} … {gone[-3:]} while keys are replaced"
            assert gone == [], f"{said}\n{b.log()}\n{c.log()}"
            # The gateway that relays is cut off and comes back; then the only one's agent stands still.
            via = next(node for node in (g, h) if node.name == way(b, c)[1])
            assert way(b, c) == way(c, b) == ("relayed", via.name, True)
            until(lambda: way(g, b)[1].startswith("10.0.0.9:5182"), "it says where encrypted packets go", 60)
            assert way(b, g) == ("nat", "this node seen as 10.0.0.9", True)
            sh(f"ip link set v-{via.name} down")
            seconds = healed_s(flow)
            assert seconds < patient(10), f"{seconds:g} s\n{b.log()}\n{c.log()}"
            flow.pause(4 * SECOND)  # long enough that both ends have noticed
            first = flow.now()
            sh(f"ip link set v-{via.name} up")
            until(lambda: way(b, c)[1] == way(c, b)[1] == via.name, "the first one relays again", 60)
            flow.pause(2 * SECOND)
            gone = flow.lost(first)
            said = f"{len(gone)} of {first} to {flow.now()}: {gone[:3]} … {gone[-3:]} while it comes back"
            assert len(gone) < patient(SECOND // 4), f"{said}\n{b.log()}\n{c.log()}"
            other = h if via is g else g
            assert place.isthmus("clb", "gateway", "remove", via.name).returncode == 0
            until(lambda: way(b, c)[1] == way(c, b)[1] == other.name, "the other one is the only one", 60)
            until(lambda: left(flow, wires["gh".index(via.name)]), "both ends' devices have followed", 60)
            start_at = flow.now()
            assert other.agent is not None
            other.agent.send_signal(signal.SIGSTOP)
            flow.pause(6 * SECOND)
            other.agent.send_signal(signal.SIGCONT)
            stopped_at = flow.now()
            for node in (b, c):
                node.stop()
                start(node, "--gateway", "--site", sites[node.name]).ready(3)
            flow.pause(4 * SECOND)
            gone, marks = flow.lost(start_at), (start_at, stopped_at, flow.now())
            assert gone == [], f"{len(gone)} of {marks}: {gone[:3]} … {gone[-3:]} agents matter to no packet"
            assert [wire.stop().plain for wire in wires] == [0, 0, 0, 0], [wire.examples for wire in wires]
            assert all(wire.encrypted > SECOND for wire in wires[2:])
            assert not comes_in_the_clear(b, g)
            between_the_hidden_only(other, via, b)
            first = flow.now()
            stage(place, "off")
            until(lambda: shown(place)["within_sites"] == "plain", "nothing is encrypted", 60)
            flow.pause(SECOND // 2)
            assert flow.lost(first) == [], "on the way back"


def fast_at_the_ends(flow: Talk, ends: tuple[Node, ...], gateways: tuple[Node, ...]) -> None:
    """A relayed flow is carried past the stack at both of its ends; who relays forwards by the stack."""

    def carried(node: Node) -> tuple[float, float]:
        counters = node.status()["counters"]
        return counters["fastpath_fast_out"], counters["fastpath_fast_in"]

    if not all(str(node.status()["fastpath"]).startswith("on") for node in ends):
        return  # no eBPF here
    before, first = [carried(node) for node in ends], flow.now()

    def grown() -> bool:
        pairs = zip(before, map(carried, ends), strict=True)
        return all(now - then >= SECOND / 2 for old, new in pairs for then, now in zip(old, new, strict=True))

    until(grown, f"{SECOND // 2} packets each way past the stack at both ends, since {before}", 60)
    assert flow.now() - first < patient(20 * SECOND), "most of them"
    assert [carried(node) for node in gateways] == [(0, 0)] * len(gateways)


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
