"""The hops of a trace, as a kernel answers: which table takes a packet, and how often it is looked at."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from events.mesh import Step
from nodeagent.health.path_prober import Route
from nodeagent.health.probe_device import device_name
from nodeagent.membership.peers import Peer
from nodeagent.mesh import tracing
from nodeagent.mesh.tracing import AGAIN_MAX_S, AGAIN_S, ASKED_KEPT_S, PeerTracer
from tests.nodeagent.sandbox import inside, sh

OWN = Peer("n0", "uid-0", 3, "10.0.0.0/27", "66:00:00:00:00:01", "192.0.2.1")
PEER = Peer("n1", "uid-1", 5, "10.0.0.32/27", "66:00:00:00:00:02", "192.0.2.2")


@inside
def test_a_policy_table_that_takes_the_peers_range_is_named() -> None:
    probe = device_name("isthmus")
    sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0")
    for number, device in enumerate(("isthmus", probe, "eth0")):
        sh(f"ip link add {device} type veth peer name p{number} && ip link set p{number} up")
        sh(f"ip link set {device} up")
    # The probe address is behind its device, as a pod's is.
    sh(f"ip address add 192.0.2.1/24 dev eth0 && ip route add 10.0.0.31/32 dev {probe}")
    sh("ip route add 10.0.0.32/27 dev isthmus")
    view: Any = SimpleNamespace(own=OWN, peers={})
    route = Route(view, "192.0.2.1", "isthmus", socket.if_nametoindex("isthmus"), 1450)

    def way() -> Step:
        return tracing._way(PEER, route, OWN.cidr)

    assert way() == Step("route", 1, "10.0.0.32/27 by isthmus")
    sh("ip route add 10.0.0.32/27 via 192.0.2.254 dev eth0 table 199 && ip rule add to 10.0.0.32/27 lookup 199")
    assert way() == Step("route", 0, "packets for 10.0.0.32/27 leave by eth0 (table 199), not by isthmus")
    sh("ip route replace blackhole 10.0.0.32/27 table 199")
    step = way()
    assert (step.ok, step.name) == (0, "route")
    assert "no way from a pod here to 10.0.0.32/27" in step.text
    sh("ip rule del to 10.0.0.32/27 lookup 199 && ip route flush table 199")
    assert way().ok == 1
    sh("ip route replace 10.0.0.32/27 via 192.0.2.254 dev eth0")
    assert way() == Step("route", 0, "packets for 10.0.0.32/27 leave by eth0, not by isthmus")


def test_a_trouble_that_stays_is_looked_at_less_and_less_and_at_once_when_somebody_asks() -> None:
    tracer = PeerTracer(lambda _epoch: (0, 0))
    tracer._next[5] = 100.0, AGAIN_MAX_S
    tracer._found[5] = 40.0, ()
    assert not tracer._is_due(5, 99.0)
    assert tracer._is_due(5, 100.0)
    tracer.ask(5, 60.0)
    assert tracer._is_due(5, 60.1)
    tracer._found[5] = 61.0, ()
    assert not tracer._is_due(5, 62.0)
    assert tracer._is_due(5, 61.0 + AGAIN_S)  # whoever asked may be watching
    assert not tracer._is_due(5, 60.0 + ASKED_KEPT_S + 1)


@pytest.mark.parametrize("wrong", [b"", b"null", b"{}", b'{"epoch": "5"}', b"[" * 10_000, b"\xff"])
def test_a_request_that_is_none_changes_nothing(wrong: bytes) -> None:
    from nodeagent.mesh.prober import MeshProber

    mesh = MeshProber(SimpleNamespace(device=None, unable="", mesh=None), context=lambda: None, narrow=dict)  # type: ignore[arg-type]
    mesh.tracer = PeerTracer(lambda _epoch: (0, 0))
    mesh.trace(wrong)
    assert mesh.tracer.asked(0.0) == []
