"""Pods attached by the real CNI plugins of a node's conflist, servers in them, questions to these, an outside.

The outside is a host beyond the nodes' network (198.51.100.9) that knows a route to the pods through
one node: what a misconfigured router or an attacker would have. Missing routes protect nobody here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.nodeagent.sandbox import sh
from tests.nodeagent.site import Node

PLUGINS = next(
    (place for place in ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni") if Path(place, "ptp").exists()), ""
)
OUTSIDE = "198.51.100.9"

LISTEN = """
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET, kind)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.bind((sys.argv[2], int(sys.argv[3])))
if sys.argv[1] == "tcp":
    s.listen()
print("ready", flush=True)
while True:
    if sys.argv[1] == "tcp":
        c, peer = s.accept()
        c.sendall(f"{peer[0]} {peer[1]}".encode())
        c.close()
    else:
        _, peer = s.recvfrom(2048)
        s.sendto(f"{peer[0]} {peer[1]}".encode(), peer)
"""

ASK = """
import socket, sys
kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
s = socket.socket(socket.AF_INET, kind)
s.settimeout(0.4)
try:
    if len(sys.argv) > 5:
        s.bind((sys.argv[5], 0))
    s.connect((sys.argv[2], int(sys.argv[3])))
    if sys.argv[1] == "udp":
        s.send(bytes.fromhex(sys.argv[4]))
    print(s.recv(100).decode())
except OSError as error:
    print("none", error)
"""


class Pod:
    """A namespace attached by the plugins of the node's conflist, with a TCP and a UDP server on port 80."""

    def __init__(self, node: Node, name: str) -> None:
        self.node, self.name = node, name
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
        (path,) = (node.directory / "cni").glob("*.conflist")
        self.conflist = json.loads(path.read_text())
        result = self._plugins("ADD", self.conflist["plugins"])
        self.address = result["ips"][0]["address"].partition("/")[0]
        self.servers = [serve(name, "tcp", self.address, 80), serve(name, "udp", self.address, 80)]

    def _plugins(self, command: str, plugins: list[dict[str, Any]]) -> dict[str, Any]:
        result: dict[str, Any] | None = None
        for plugin in plugins:
            config = {**plugin, "cniVersion": self.conflist["cniVersion"], "name": self.conflist["name"]}
            if result is not None:
                config["prevResult"] = result
            done = subprocess.run(
                ["ip", "netns", "exec", self.node.name, f"{PLUGINS}/{plugin['type']}"],
                input=json.dumps(config), capture_output=True, text=True, check=False,
                env={**os.environ, "CNI_COMMAND": command, "CNI_CONTAINERID": self.name, "CNI_IFNAME": "eth0",
                     "CNI_NETNS": f"/run/netns/{self.name}", "CNI_PATH": PLUGINS},
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            result = json.loads(done.stdout) if command == "ADD" else result
        return result or {}

    def run(self, command: str) -> str:
        """A command in the pod; raises with its words when it fails."""
        return sh(f"ip netns exec {self.name} {command}")

    def delete(self) -> None:
        """As a container runtime would."""
        for server in self.servers:
            server.kill()
            server.wait()
        self._plugins("DEL", self.conflist["plugins"][::-1])
        sh(f"ip netns del {self.name}")


def serve(place: str, kind: str, address: str, port: int) -> subprocess.Popen[str]:
    server = subprocess.Popen(
        ["ip", "netns", "exec", place, sys.executable, "-c", LISTEN, kind, address, str(port)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    return server


def ask(place: str, kind: str, address: str, port: int = 80, source: str = "", datagram: bytes = b"?") -> str:
    """Who the server says we are ("address port"), or "none …" when nothing comes back to the ``datagram``."""
    words = f"{kind} {address} {port} {datagram.hex()} {source}"
    return sh(f"ip netns exec {place} {sys.executable} -c '{ASK}' {words}").strip()


def outside(through: Node, *cidrs: str) -> list[subprocess.Popen[str]]:
    """The outside, with routes to all pods through that node, and its servers (TCP and UDP, port 80)."""
    sh(
        "ip netns add far && ip -n far link set lo up && "
        "ip link add v-far type veth peer name eth0 netns far && "
        "ip addr add 198.51.100.1/24 dev v-far && ip link set v-far up && "
        f"ip -n far addr add {OUTSIDE}/24 dev eth0 && ip -n far link set eth0 up && "
        "ip -n far route add default via 198.51.100.1"
    )
    for cidr in cidrs:
        sh(f"ip route add {cidr} via {through.underlay}")
    return [serve("far", "tcp", OUTSIDE, 80), serve("far", "udp", OUTSIDE, 80)]
