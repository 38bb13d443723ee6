"""An entry on a running site: listed hosts reach pods by a gateway's address, over its death, until it ends."""

from __future__ import annotations

import subprocess
import sys
import time
from ipaddress import ip_network

import pytest

from tests.clb.place import HERE, PORT, Lasting, Pair, cut, pair
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node
from tests.waiting import patient
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

FAILOVER_S = 5.0
LISTED, STRANGER, ROUTER = "10.1.0.2", "10.1.0.3", "10.0.0.254"


def pod(made: Pair, node: Node) -> str:
    """A server in a pod of the node, attached as by the plugin ptp; its address."""
    name, hosts = f"p-{node.name}", list(ip_network(str(node.status()["range"])).hosts())
    gateway, address = hosts[0], hosts[1]
    sh(f"""set -e; ip netns add {name}; ip -n {name} link set lo up
        ip link add c-{node.name} netns {node.name} type veth peer name eth0 netns {name}
        ip -n {node.name} addr add {gateway}/32 dev c-{node.name}; ip -n {node.name} link set c-{node.name} up
        ip -n {node.name} route add {address}/32 dev c-{node.name}
        ip -n {name} addr add {address}/32 dev eth0; ip -n {name} link set eth0 mtu 1450 up
        ip -n {name} route add {gateway} dev eth0; ip -n {name} route add default via {gateway}""")
    made.servers[name] = subprocess.Popen(
        ["ip", "netns", "exec", name, sys.executable, "-S", str(HERE / "server.py"), name, str(PORT)]
    )
    until(lambda: f":{PORT}" in sh(f"ip netns exec {name} ss -ltn"), f"{name} listens")
    return str(address)


@inside
def test_listed_hosts_reach_pods_over_the_death_of_a_gateway_until_the_entry_ends() -> None:
    with pair("e1") as made:
        place, nodes = made.place, made.place.nodes
        address = made.addresses[0]
        holder = made.holders()[0]
        other = {"g1": "g2", "g2": "g1"}[holder]
        sh(f"""set -e; ip netns add dc; ip link add v-dc type veth peer name eth0 netns dc
            ip addr add 10.1.0.1/24 dev v-dc; ip link set v-dc up
            ip -n dc addr add {LISTED}/24 dev eth0; ip -n dc addr add {STRANGER}/24 dev eth0
            ip -n dc link set eth0 up; ip -n dc route add default via 10.1.0.1
            ip route add 172.16.0.0/16 via {address}""")
        pods = {name: pod(made, nodes[name]) for name in (holder, "e1")}

        def reached(name: str, source: str) -> bool:
            return made.ask(pods[name], within="dc", source=source).startswith(f"p-{name} ")

        assert not any(reached(name, LISTED) for name in pods), "nobody outside reaches a pod"
        made.cli("entry", "add", "mon", "--from", f"{LISTED}/32,{ROUTER}/32", "--address", address, "--yes")
        for name in pods:
            until(lambda: reached(name, LISTED), f"the pod on {name} is reached")  # noqa: B023
            assert not reached(name, STRANGER)
        lasting = Lasting(pods["e1"])
        cut(place, holder)
        began = time.monotonic()
        until(lambda: reached("e1", LISTED), "reached again", patient(FAILOVER_S))
        print(f"{time.monotonic() - began:.1f} s without a gateway")
        assert made.holders()[0] == other
        with pytest.raises(OSError, match=r"reset|timed out"):  # its connection was the dead one's
            lasting.ask()
        lasting.close()
        lasting = Lasting(pods["e1"])
        assert not reached("e1", STRANGER)
        said = made.cli("entry", "remove", "mon", "--yes")
        # The one that was cut off is a gateway still, and nobody knows what it lets in.
        assert holder not in said.partition("closed on: ")[2]
        if f"closed on: {other}\n" in said:
            assert not reached("e1", LISTED), "it said so"
        until(lambda: not reached("e1", LISTED), "closed")
        with pytest.raises(OSError, match="timed out"):
            lasting.ask()
        lasting.close()
        shown = made.cli("replay", "history", "entry", "mon")
        assert "entry.added.v1" in shown
        assert "entry.removed.v1" in shown
