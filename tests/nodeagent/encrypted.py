"""Nodes that encrypt: real agents, a real program, and a capture of what is on the wire.

The kernels of the tests have no WireGuard module: `wireguard-go` stands in for it, by the same port.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodeagent.nat.packets import PROBE_VNI
from tests import prepared
from tests.nodeagent.site import ISTHMUS, Flow, Node, Site
from tests.waiting import wait_for as until

needs_program = pytest.mark.skipif(shutil.which("wireguard-go") is None, reason="wireguard-go is not installed")
at_length = pytest.mark.skipif(not os.environ.get("ISTHMUS_TEST_KEYS"), reason="ISTHMUS_TEST_KEYS=all")
"""Of tests that take long for what others hold, too, in parts: CONTRIBUTING.md."""
VXLAN = 8472
PACKET = 110
"""So much of a packet is shown."""
FAST_S = 0.004
"""Between two packets of a stream through the change of a key."""


class Wire:
    """Counts what node a sends and gets in the clear: packets in VXLAN form, and bare packets of pods.

    In a process, because whoever has threads cannot fork: it would read all modules for each command.
    """

    def __init__(self, device: str = "v-a") -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)
        self._counts = memoryview(self._memory).cast("Q")  # whether it is over, plain packets, encrypted ones
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        wire.bind((device, 0))
        wire.settimeout(0.1)
        self._process = os.fork()
        if not self._process:
            prepared.leave(lambda: self._watch(wire))
        wire.close()

    plain = property(lambda self: self._counts[1])
    encrypted = property(lambda self: self._counts[2])

    @property
    def examples(self) -> str:
        last = self._memory[-PACKET:].rstrip(b"\0")
        return f"{self.plain} packets, the last one: {last.hex()}"

    def _watch(self, wire: socket.socket) -> int:
        while True:
            over = self._counts[0]
            if over:
                wire.setblocking(False)  # only what has come
            try:
                frame = wire.recv(65535)
            except OSError:  # nothing came, or the device is down
                if over:
                    return 0
                continue
            if frame[12:14] == b"\x08\x00":
                self._count(frame[14:])

    def _count(self, packet: bytes) -> None:
        datagram = packet[(packet[0] & 15) * 4 :]
        plain = packet[12] == 172 or packet[16] == 172  # a container address on the underlay
        if not plain and packet[9] == socket.IPPROTO_UDP:
            port = int.from_bytes(datagram[2:4], "big")
            plain = port == VXLAN and int.from_bytes(datagram[12:15], "big") != PROBE_VNI  # agents' own
            self._counts[2] += 51820 <= port < 51824
        if plain:
            self._memory[-PACKET:] = packet[:PACKET].ljust(PACKET, b"\0")
            self._counts[1] += 1

    def stop(self) -> Wire:
        """Returns once everything that has come is counted."""
        self._counts[0] = 1
        pid, status = os.waitpid(self._process, 0)
        assert (pid, status) == (self._process, 0), "the capture has failed"
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
    words = ("--wireguard", "userspace", *options)
    if by or not prepared.may_fork():
        return node.start(*words, by=f"{node.directory / 'own-sockets'} {by}")
    return node.start(*words, over={"/run/wireguard": str(node.directory / "sockets")})


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
        with contextlib.suppress(OSError):  # it ended meanwhile
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
