"""Nodes that encrypt: real agents, a real program, and a capture of what is on the wire.

The kernels of the tests have no WireGuard module: `wireguard-go` stands in for it, by the same port.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.nat.packets import PROBE_VNI
from tests.nodeagent.site import ISTHMUS, Flow, Node, Site
from tests.waiting import wait_for as until

needs_program = pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="wireguard-go is not installed")
at_length = pytest.mark.skipif(not os.environ.get("ISTHMUS_TEST_KEYS"), reason="ISTHMUS_TEST_KEYS=all")
"""Of tests that take long for what others hold, too, in parts: CONTRIBUTING.md."""
VXLAN = 8472
FAST_S = 0.004
"""Between two packets of a stream through the change of a key."""


class Wire:
    """Counts what node a sends and gets in the clear: packets in VXLAN form, and bare packets of pods."""

    def __init__(self, device: str = "v-a") -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.bind((device, 0))
        self._socket.settimeout(0.2)
        self._over = threading.Event()
        self.plain = self.encrypted = 0
        self.examples = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(OSError):  # nothing came, or the device is down
                frame = self._socket.recv(65535)
                if frame[12:14] != b"\x08\x00":
                    continue
                packet = frame[14:]
                datagram = packet[(packet[0] & 15) * 4 :]
                ports = datagram[:4]
                if packet[12] == 172 or packet[16] == 172:  # a container address on the underlay
                    self.seen(packet)
                elif packet[9] == socket.IPPROTO_UDP:
                    port = int.from_bytes(ports[2:], "big")
                    if port == VXLAN and int.from_bytes(datagram[12:15], "big") != PROBE_VNI:  # agents' own
                        self.seen(packet)
                    self.encrypted += 51820 <= port < 51824

    def seen(self, packet: bytes) -> None:
        self.plain += 1
        self.examples = f"{self.plain} packets, the last one: {packet[:110].hex()}"

    def stop(self) -> Wire:
        self._over.set()
        self._thread.join()
        self._socket.close()
        return self


@contextlib.contextmanager
def site(*names: str) -> Iterator[tuple[Site, list[Node]]]:
    """Nodes that share a machine but not the folder of WireGuard's sockets."""
    with tempfile.TemporaryDirectory() as folder:
        made = Site(Path(folder))
        made.up()
        nodes = made.add(*names)
        for node in nodes:
            wrap(node)
        try:
            yield made, nodes
        finally:
            for node in nodes:
                node.stop()
            made.down()


def wrap(node: Node) -> None:
    sockets = node.directory / "sockets"
    sockets.mkdir()
    script = node.directory / "own-sockets"
    script.write_text(f'#!/bin/sh\nmkdir -p /run/wireguard\nmount --bind {sockets} /run/wireguard\nexec "$@"\n')
    script.chmod(0o755)


def start(node: Node, *options: str, by: str = "") -> Node:
    return node.start("--wireguard", "userspace", *options, by=f"{node.directory / 'own-sockets'} {by}")


def stage(site: Site, scope: str) -> None:
    done = site.isthmus("cluster", "encrypt", scope)
    assert done.returncode == 0, done.stderr


def settled(site: Site, words: str) -> None:
    until(lambda: words in site.isthmus("cluster", "show").stdout, f"the cluster is {words}", 60)


def shown(site: Site) -> dict[str, str]:
    found: dict[str, str] = json.loads(site.isthmus("cluster", "show", "--json").stdout)["encryption"]
    return found


def lost(*flows: Flow) -> list[tuple[int, str]]:
    """Numbers of the packets that did not come back, each with when."""
    found = []
    for flow in flows:
        times = flow.stop().times
        found += [
            (number, time.strftime("%H:%M:%S", time.gmtime(times.get(number - 1, 0))))
            for number in range(1, max(times))
            if number not in times
        ]
    return found


def program_of(node: Node) -> int:
    """The process that serves the node's WireGuard device."""
    namespace = Path(f"/run/netns/{node.name}").stat().st_ino
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            ours = entry.name.isdigit() and (entry / "comm").read_text().strip() == "wireguard-go"
            if ours and (entry / "ns" / "net").stat().st_ino == namespace:
                return int(entry.name)
    return 0


def kill_program(node: Node) -> int:
    """As by ``kill -9``; the process that it was."""
    pid = program_of(node)
    assert pid, f"no WireGuard runs on {node.name}"  # zero would be the tests' own process group
    os.kill(pid, signal.SIGKILL)
    return pid


def other_key(node: Node) -> str:
    """Ask for another key, as people do; the public one."""
    told = subprocess.run(
        [ISTHMUS, "agent", "rotate-key", "--json", "--state-dir", str(node.directory / "state")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return str(json.loads(told.stdout)["key"])


def key_of(node: Node) -> str:
    return str(node.status()["encryption"]).rpartition(" ")[2]


def alone(node: Node, key: str) -> None:
    """That key is the node's only one: the change to it is over."""
    until(
        lambda: "valid, too" not in node.status()["encryption"] and key_of(node) == key,
        f"{node.name} has the key {key} alone\n{node.log()}",
        60,
    )


def devices_of(node: Node) -> set[str]:
    return set(re.findall(r"isthmus-wg\d", node.run("ip -brief link")))
