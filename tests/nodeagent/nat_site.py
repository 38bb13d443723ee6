"""Branches of a site: nodes behind routers that masquerade them, with one address each on the site's wire."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from tests.nodeagent.sandbox import sh
from tests.nodeagent.site import Node, Site

MASQUERADE = """
table ip nat {{
  chain out {{ type nat hook postrouting priority srcnat; oifname "eth0" masquerade {how}; }}
}}
"""


class Branch:
    """A router on the wire (10.0.0.``number``) and a link behind it (192.168.``number``.0/24)."""

    def __init__(self, name: str, number: int) -> None:
        self.name, self.number, self.address = name, number, f"10.0.0.{number}"
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
        sh(f"ip link add v-{name} type veth peer name eth0 netns {name} && ip link set v-{name} master wire up")
        sh(f"ip -n {name} addr add {self.address}/24 dev eth0 && ip -n {name} link set eth0 up")
        sh(f"ip -n {name} route add default via 10.0.0.254")
        sh(f"ip -n {name} link add lan type bridge && ip -n {name} addr add 192.168.{number}.1/24 dev lan")
        sh(f"ip -n {name} link set lan up && ip netns exec {name} sysctl -qw net.ipv4.ip_forward=1")
        self.masquerade()

    def run(self, command: str) -> str:
        """A shell line in the router's namespace."""
        return sh(f"ip netns exec {self.name} {command}")

    def masquerade(self, how: str = "") -> None:
        """From now on in this way (``random``: another port for each flow)."""
        path = Path(f"/tmp/{self.name}.nft")
        path.write_text("flush ruleset\n" + MASQUERADE.format(how=how))
        self.run(f"nft -f {path}")

    def forget(self) -> None:
        """Flush the connection tracking table."""
        self.run(f"{sys.executable} -c 'from pyroute2 import NFCTSocket; NFCTSocket().flush()'")

    def move(self, number: int) -> None:
        """Give the router another address on the wire."""
        sh(f"ip -n {self.name} addr flush dev eth0 && ip -n {self.name} addr add 10.0.0.{number}/24 dev eth0")
        sh(f"ip -n {self.name} route replace default via 10.0.0.254")
        self.address = f"10.0.0.{number}"


class BranchNode(Node):
    """A node behind a router."""

    def __init__(self, site: Site, name: str, branch: Branch, host: int) -> None:
        self.branch = branch
        self.private = f"192.168.{branch.number}.{host}"
        super().__init__(site, name, host)
        self.underlay = self.private

    def plug(self) -> None:
        sh(
            f"ip link add e-{self.name} netns {self.branch.name} type veth peer name eth0 netns {self.name} && "
            f"ip -n {self.branch.name} link set e-{self.name} master lan up && "
            f"ip -n {self.name} addr add {self.private}/24 dev eth0 && ip -n {self.name} link set eth0 up && "
            f"ip -n {self.name} route add default via 192.168.{self.branch.number}.1"
        )


def branch_nodes(place: Site, branch: Branch, *names: str) -> list[Node]:
    """Further nodes behind the router, without agents."""
    for host, name in enumerate(names, 2 + sum(name in place.nodes for name in names)):
        place.nodes[name] = BranchNode(place, name, branch, host)
    return [place.nodes[name] for name in names]


def ways(node: Node) -> dict[str, str]:
    """How each peer is reached that is not reached by the plain tunnel: ``nat 10.0.0.9:8472``."""
    others = (way for way in node.status()["peer_ways"] if way["way"] != "tunnel")
    return {way["peer"]: f"{way['way']} {way['via']}" for way in others}


def place_of(node: Node, peer: Node) -> str:
    """Where the kernel sends what is for a peer behind NAT, ADDRESS:PORT; empty without such a row."""
    mac = peer.status()["vtep_mac"]
    rows = node.run("sh -c 'bridge -j fdb show dev isthmus-nat 2>/dev/null || echo []'")
    for row in json.loads(rows or "[]"):
        if row.get("mac") == mac and "dst" in row:
            return f"{row['dst']}:{row.get('port', 8472)}"
    return ""


def mapped(node: Node) -> set[str]:
    """From where the node's firewall lets packets of the second device in."""
    listing = node.run("sh -c 'nft list set inet isthmus mapped 2>/dev/null || true'")
    return {f"{address}:{port}" for address, port in re.findall(r"(\d+\.\d+\.\d+\.\d+) \. (\d+)", listing)}
