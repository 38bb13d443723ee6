"""The fast path carries what the stack has let through, and nothing else: by real agents, pods and packets."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.nodeagent.pods import Pod
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Node, site, until
from tests.nodeagent.talk import Talk, code, counters, fast, program_in, talk

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


@inside
def test_flows_become_fast_and_whole_programs_come_back_and_a_capture_sees_packets() -> None:
    with site("a", "b", start=False) as place:
        a, b = place.nodes.values()
        a.start("--resync", "1").ready()
        b.start().ready(1)
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        for node in (a, b):
            until(lambda: node.status()["fastpath"].startswith("on: 1 pod"), f"on\n{node.log()}")  # noqa: B023
        a_stream_arrives_whole(a, b, two)
        datagrams_sent_together_arrive_each(a, two)
        with talk(one, two) as flow:
            fast(a, b)
            what_somebody_removes_comes_back(a, flow)
            a_capture_sees_fast_flows_and_ends_by_itself(a, one, two)
        assert not any("fast path" in text for text in a.status()["conditions"])


def a_stream_arrives_whole(a: Node, b: Node, two: Pod) -> None:
    take = subprocess.Popen(
        ["ip", "netns", "exec", "pod-2", sys.executable, "-c", STREAM, "take", two.address, "81", "0"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert take.stdout is not None
    assert take.stdout.readline() == "ready\n"
    sent = sh(f"ip netns exec pod-1 {sys.executable} -c '{STREAM}' give {two.address} 81 600")
    assert take.communicate(timeout=60)[0] == sent

    def most() -> bool:
        return min(counters(a)["fast_out_bytes"], counters(b)["fast_in_bytes"]) > 600 * 65536 * 0.8

    until(most, "most of it was fast")


TOGETHER = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if sys.argv[1] == "take":
    s.bind((sys.argv[2], 82)); s.settimeout(30); s.setsockopt(1, 33, 1 << 24)  # SO_RCVBUFFORCE
    print("ready", flush=True)
    print(len({s.recv(2000)[:2] for _ in range(400)}), flush=True)
else:
    s.setsockopt(17, 103, 1200)  # UDP_SEGMENT
    for number in range(40):
        pieces = b"".join((number * 10 + part).to_bytes(2, "big") * 600 for part in range(10))
        s.sendto(pieces, (sys.argv[2], 82))
"""


def datagrams_sent_together_arrive_each(a: Node, two: Pod) -> None:
    """As QUIC sends them: ten in one buffer, which the stack cuts apart at the receiver (GSO)."""
    take = program_in("pod-2", TOGETHER, "take", two.address, wait=True)
    sh(f"ip netns exec pod-1 {sys.executable} -c '{TOGETHER}' give {two.address}")
    assert take.communicate(timeout=60)[0] == "400\n"


def what_somebody_removes_comes_back(a: Node, flow: Talk) -> None:
    first = flow.now()
    code(a, "import socket; from nodeagent.fastpath.programs import sweep; "
         "print(sweep([index for index, _ in socket.if_nameindex()]))")  # fmt: skip
    fast(a)
    until(lambda: counters(a)["repaired"] >= 4, "each program is counted")
    found = counters(a)["repaired"]
    code(a, "import socket; from nodeagent.fastpath import libbpf, layout; "
         'index = socket.if_nametoindex("eth0"); number, = libbpf.attached(index, 46); '
         'fd = libbpf.map_of(number, "peers"); keys = libbpf.dump(fd, 8, 16, 100); '
         "[libbpf.drop(fd, key) for key in keys]; assert keys")  # fmt: skip
    until(lambda: counters(a)["repaired"] > found, "the entry is back")
    fast(a)
    assert not flow.lost(first)


def a_capture_sees_fast_flows_and_ends_by_itself(a: Node, one: Pod, two: Pod) -> None:
    blind = a.run("sh -c 'timeout 1 tcpdump -i isthmus -nn -c 200 udp port 9000 2>/dev/null || true'")
    assert blind.count("9000") < 100, "fast packets pass the tunnel device by"
    seen = a.run(f"{ISTHMUS} agent capture --pod {one.address} --seconds 2 udp port 9000")
    assert seen.count(f"{one.address}.5000 > {two.address}.9000") > 50, seen[-2000:]
    assert counters(a)["held"] > 0
    two_captures_do_not_end_one_another(a, one)
    fast(a)
    read = f"bash -o pipefail -c '{ISTHMUS} agent capture --seconds 600 2>/dev/null | head -1'"
    assert " IP " in a.run(read), "it ends, and that is no error, when nobody reads any more"
    for words, answer in (("--device nope", "there is no device nope"), ("udp port 70000", "did not take")):
        said = a.run(f"sh -c '{ISTHMUS} agent capture {words} 2>&1 && echo taken || true'")
        assert answer in said
        assert "taken" not in said
    counts = a.run(f"{ISTHMUS} agent status --state-dir {a.directory / 'state'}")
    assert " taken off the path by a capture" in counts


def two_captures_do_not_end_one_another(a: Node, one: Pod) -> None:
    said = code(a, "import socket, time; from nodeagent.fastpath import libbpf, layout; "
        "from nodeagent.fastpath.capture import Held; "
        f'two = [Held(socket.inet_aton(pod)) for pod in ("{one.address}", "172.16.9.9")]; '
        "[held.renew() for held in (*two, *two)]; "
        "records = [*two[0]._records.values()]; two[1].close(); "
        "found = [layout.HELD.unpack(libbpf.read(fd, bytes(4), layout.HELD.size)) for fd in records]; "
        "now = time.clock_gettime_ns(time.CLOCK_MONOTONIC); "
        "assert records; print(all(until > now and pod == bytes(4) for until, pod in found))")  # fmt: skip
    assert said == "True\n"
