"""The fast path carries what the stack has let through, and nothing else: by real agents, pods and packets."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.nodeagent.pods import Pod
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Node, site, until

pytestmark = pytest.mark.slow

STREAM = """
import socket, sys, threading
mode, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
size = int(sys.argv[4])
if mode == "take":
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((address, port)); s.listen()
    print("ready", flush=True)
    c, _ = s.accept()
    import hashlib
    digest, got = hashlib.sha256(), 0
    while data := c.recv(1 << 16):
        digest.update(data); got += len(data)
    print(got, digest.hexdigest(), flush=True)
else:
    import hashlib
    s = socket.create_connection((address, port), timeout=30)
    digest = hashlib.sha256()
    for number in range(size):
        piece = number.to_bytes(4, "big") * 16384
        digest.update(piece); s.sendall(piece)
    s.close()
    print(size * 65536, digest.hexdigest(), flush=True)
"""

TALK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
s.connect((sys.argv[3], int(sys.argv[4])))
s.setblocking(False)
number = 0
while True:
    number += 1
    try:
        s.send(b"%d" % number)
        print("got", s.recv(100).decode(), flush=True)
    except OSError:
        pass
    time.sleep(0.005)
"""


def counters(node: Node) -> dict[str, float]:
    found = node.status()["counters"]
    return {name.removeprefix("fastpath_"): value for name, value in found.items() if "fastpath_" in name}


def isthmus(node: Node, *arguments: str) -> str:
    state = f"--state-dir {node.directory / 'state'}"
    return node.run(f"{ISTHMUS} agent {' '.join(arguments)} {state}")


@contextlib.contextmanager
def talking(source: Pod, target: Pod, port: int = 5000) -> Iterator[subprocess.Popen[str]]:
    """UDP packets every 5 ms from one pod to the other's echo on port 80, for as long as the context lasts."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", source.name, sys.executable, "-c", TALK,
         source.address, str(port), target.address, "80"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def fast(node: Node) -> None:
    """Wait until packets of a running flow leave and arrive by the fast path, both counted from now on."""
    before = counters(node)
    until(lambda: counters(node)["fast_out"] > before["fast_out"] + 20, "fast packets leave", 20)
    until(lambda: counters(node)["fast_in"] > before["fast_in"] + 20, "fast packets arrive", 20)


@inside
def test_a_flow_that_the_stack_lets_through_becomes_fast_and_arrives_whole() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        for node in (a, b):
            until(lambda: node.status()["fastpath"].startswith("on: 1 pod"), f"on\n{node.log()}", 20)  # noqa: B023
        take = subprocess.Popen(
            ["ip", "netns", "exec", "pod-2", sys.executable, "-c", STREAM, "take", two.address, "81", "0"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert take.stdout is not None
        assert take.stdout.readline() == "ready\n"
        sent = sh(f"ip netns exec pod-1 {sys.executable} -c '{STREAM}' give {two.address} 81 600")
        assert take.communicate(timeout=60)[0] == sent
        until(
            lambda: counters(a)["fast_out_bytes"] > 600 * 65536 * 0.8, f"fast: {counters(a)}\n{counters(b)}", 10
        )
        until(
            lambda: counters(b)["fast_in_bytes"] > 600 * 65536 * 0.8, f"fast: {counters(a)}\n{counters(b)}", 10
        )
        with talking(one, two):
            fast(a)
            fast(b)
        assert not any("fast path" in text for text in a.status()["conditions"])
