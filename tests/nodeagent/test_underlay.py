"""The node's own address: kept while it works, followed at once when it must be, and fought over with a limit.

Real agents, real devices and routes. Each test shows what 0.2.0 got wrong.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess

import pytest

from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import BUS, ISTHMUS, Node, Site, site, until

pytestmark = pytest.mark.slow


def member(place: Site, name: str) -> str:
    """The node's address as the cluster knows it."""
    listed = json.loads(place.isthmus("node", "list", "--json").stdout)
    nodes = listed["nodes"] if isinstance(listed, dict) else listed
    return str(next(node["underlay"] for node in nodes if node["node"] == name))


def conflist(node: Node) -> dict[str, object]:
    (path,) = (node.directory / "cni").glob("*.conflist")
    plugin: dict[str, object] = json.loads(path.read_text())["plugins"][0]
    return plugin


def passes(one: Node, other: Node) -> None:
    until(lambda: one.run(f"ping -c1 -W1 -I {one.vtep} {other.vtep}"), f"{one.name} reaches {other.name}")


def add_vpn(node: Node) -> None:
    node.run("ip link add tun-vpn type bridge")
    node.run("ip addr add 10.8.0.2/24 dev tun-vpn")
    node.run("ip link set tun-vpn up")
    node.run("ip route prepend default dev tun-vpn")


@inside
def test_a_default_route_of_a_vpn_moves_nobody() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.start("--resync", "1", underlay="auto").ready()
        b.start().ready(1)
        passes(a, b)
        add_vpn(a)
        looked = a.status()["counters"]["resyncs"]
        until(lambda: a.status()["counters"]["resyncs"] >= looked + 3, "it looked again")
        assert a.status()["underlay"] == a.underlay
        assert member(place, "a") == a.underlay
        passes(a, b)
        # Not after a restart either: the cluster knows it by that address.
        a.stop(signal.SIGKILL)
        a.start("--resync", "1", underlay="auto").ready(1)
        assert a.status()["underlay"] == a.underlay
        passes(b, a)


@inside
def test_another_link_is_followed_at_once() -> None:
    """The next regular look would be 75 seconds away."""
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.start("--resync", "600", underlay="auto").ready()
        b.start("--resync", "600").ready(1)
        sh("ip link del v-a")
        until(lambda: any(text.startswith("underlay:") for text in a.status()["conditions"]), "it is missed")
        sh("ip link add v-a2 type veth peer name eth9 netns a && ip link set v-a2 master wire up")
        a.run("ip addr add 10.0.0.77/24 dev eth9")
        a.run("ip link set eth9 up")
        a.run("ip route add default via 10.0.0.254")
        until(lambda: a.status()["underlay"] == "10.0.0.77", "the new link is followed")
        until(lambda: member(place, "a") == "10.0.0.77", "the cluster knows it")
        passes(b, a)


@inside
def test_a_link_whose_carrier_is_lost_is_left_for_another_one() -> None:
    """It stays up and keeps its address and routes: only the carrier says that nothing leaves by it."""
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        sh("ip link add v-a2 type veth peer name eth9 netns a && ip link set v-a2 master wire up")
        a.run("ip addr add 10.0.0.77/24 dev eth9 metric 300")
        a.run("ip link set eth9 up")
        a.run("ip route add default via 10.0.0.254 dev eth9 metric 300")
        # Two links into one network: without this the kernel itself goes on sending into the dead one.
        a.run("sysctl -qw net.ipv4.conf.all.ignore_routes_with_linkdown=1")
        a.start("--resync", "600", underlay="auto").ready()
        b.start("--resync", "600").ready(1)
        assert a.status()["underlay"] == a.underlay
        sh("ip link set v-a down")  # the other end of the cable
        until(lambda: a.status()["underlay"] == "10.0.0.77", "the other link is taken")
        until(lambda: member(place, "a") == "10.0.0.77", "the cluster knows it", 30)
        passes(b, a)


def fought(node: Node, command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["ip", "netns", "exec", node.name, "sh", "-c", f"while :; do {command}; sleep 0.03; done"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def not_fought_for_ever(place: Site, command: str, named: str) -> None:
    """``a`` says what another program keeps undoing, and does not repair it at that program's pace."""
    a, b = place.nodes.values()
    fight = fought(a, command)
    try:
        try:
            until(lambda: named in str(a.status()["conditions"]), named, 120)
        except AssertionError as error:
            raise AssertionError(f"{command}: {error}\n{a.status()['conditions']}\n{a.log()}") from error
        assert a.status()["state"] == "degraded"
        before, since = a.status()["counters"]["drift_repaired_link"], a.status()["written_at"]
        until(lambda: a.status()["written_at"] > since + 3, "three more seconds of it")
        assert a.status()["counters"]["drift_repaired_link"] - before <= 3, command
    finally:
        os.killpg(fight.pid, signal.SIGKILL)
        fight.wait()
    a.ready(1)
    passes(a, b)


@inside
def test_a_program_that_keeps_changing_the_device_is_not_fought_for_ever() -> None:
    with site("a", "b") as place:
        not_fought_for_ever(place, "ip link set isthmus mtu 1300", "mtu of device isthmus")
        # The last one takes rows away, too: these are held back ever longer, fight after fight.
        not_fought_for_ever(place, "ip link set isthmus down", "up of device isthmus")


@inside
def test_a_program_that_keeps_taking_the_cni_file_away_is_named() -> None:
    with site("a", "b") as place:
        a, _ = place.nodes.values()
        (path,) = (a.directory / "cni").glob("*.conflist")
        written = path.read_bytes()
        for damage in (lambda: path.write_text("{}"), path.unlink):
            damage()
            until(lambda: path.exists() and path.read_bytes() == written, "it is written again")

        def told() -> bool:
            path.unlink(missing_ok=True)
            return "cni contested: " in str(a.status()["conditions"]) and a.status()["state"] == "degraded"

        until(told, "another program takes it away again and again", 60)
        until(lambda: path.exists() and not a.status()["conditions"], "it is over", 60)


@inside
def test_a_program_that_keeps_removing_the_device_is_not_fought_for_ever() -> None:
    with site("a", "b") as place:
        not_fought_for_ever(place, "ip link del isthmus", "again and again by another program")


@inside
def test_a_route_to_more_than_the_container_network_is_no_conflict() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.run("ip route add 172.16.0.0/12 via 10.0.0.254 proto bird")
        for node in (a, b):
            node.start()
        a.ready(1)
        b.ready(1)
        passes(a, b)
        assert not any("routes" in text for text in a.status()["conditions"])
        # One that wins over a range is named with its maker.
        a.run(f"ip route add {b.status()['range']} via 10.0.0.254 proto bgp")
        until(lambda: "BGP" in str(a.status()["conditions"]), "the route is named")


@inside
def test_an_address_on_the_loopback_device_gives_pods_the_mtu_of_the_way_to_peers() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.run("ip addr add 10.7.0.1/32 dev lo")
        sh("ip route add 10.7.0.1/32 via 10.0.0.1")
        b.run("ip route add 10.7.0.1/32 via 10.0.0.1")
        b.start().ready()
        a.start(underlay="10.7.0.1").ready(1)
        passes(a, b)
        until(lambda: conflist(a)["mtu"] == 1450, "the CNI file has it")
        assert a.status()["mtu"] == 1450
        a.run("ip link set eth0 mtu 1400")
        until(lambda: conflist(a)["mtu"] == 1350, "it is followed")


@inside
def test_an_overlap_that_was_accepted_in_the_log_does_not_stop_an_agent() -> None:
    with site(start=False) as place:
        (a,) = place.add("a")
        a.run("ip route add 172.16.9.0/24 via 10.0.0.254")
        a.start()
        until(lambda: "route_conflict" in a.log(), "without that it refuses to start", 90)
        a.stop()
        until(lambda: place.isthmus("cluster", "show").returncode == 0, "the cluster is there")
        added = place.isthmus(
            "cluster", "network", "add", "172.16.9.0/24", "--kind", "idc", "--name", "old",
            "--override", "cidr_conflict_with_idc=moves out next week",
        )  # fmt: skip
        assert added.returncode == 0, added.stderr
        a.start().ready()
        # Nor does it degrade one that was here before, or is it the doctor's to have it removed.
        a.run("ip route add 172.16.9.64/26 via 10.0.0.254")
        a.stop(signal.SIGKILL)
        a.start().ready()
        assert a.status()["conditions"] == []
        found = a.run(
            f"sh -c '{ISTHMUS} doctor --bus {BUS} --underlay eth0 --state-dir {a.directory}/state || true'"
        )
        assert "172.16.9.64/26 overlaps 172.16.0.0/16: accepted" in found
        assert "ip route del" not in found
        a.run("ip route add 172.16.10.64/26 via 10.0.0.254")
        until(lambda: "ip route del 172.16.10.64/26" in str(a.status()["conditions"]), "another one is told")


@inside
def test_an_address_that_moves_to_a_bridge_is_followed_there() -> None:
    """As NetworkManager, libvirt and Docker do with a host's only link."""
    with site("a", "b") as place:
        a, b = place.nodes.values()
        passes(a, b)
        a.run(
            "sh -c 'ip link add br0 type bridge && ip link set br0 up && ip addr del 10.0.0.1/24 dev eth0 && "
            "ip link set eth0 master br0 && ip addr add 10.0.0.1/24 dev br0 && "
            "ip route add default via 10.0.0.254'"
        )
        until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {b.vtep}"), "packets pass again")
        a.ready(1)
        assert a.status()["underlay"] == a.underlay
        assert not any(text.startswith("underlay:") for text in a.status()["conditions"])
