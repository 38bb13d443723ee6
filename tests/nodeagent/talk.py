"""A pod that talks to another: numbered packets there and back, and which path they took."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.nodeagent.pods import Pod
from tests.nodeagent.site import Node
from tests.waiting import patient
from tests.waiting import wait_for as until

EVERY_S = 0.005
SECOND = int(1 / EVERY_S)
"""What is sent in a second: time is told by the sender's own packets, however busy the machine is."""

TAIL_BYTES = 4096

TALK = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
s.setblocking(False)
there = (sys.argv[3], int(sys.argv[4]))
more = b" " * int(sys.argv[5])
if more:
    s.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never cut
number = 0
with open(sys.argv[6], "w", buffering=1) as log:
    while True:
        number += 1
        try:
            s.sendto(b"%d" % number + more, there)
        except OSError:
            log.write(f"refused {number}\\n")
        log.write(f"sent {number}\\n")
        while True:
            try:
                data, who = s.recvfrom(2000)
                log.write(f"{'got' if who == there else 'wrong'} {int(data)}\\n")
            except OSError:
                break
        time.sleep(0.005)
"""

ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 9000))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(2000)
    s.sendto(data, peer)
"""


class Talk:
    """One pod sends numbered packets to others, which send them back, for as long as the context lasts.

    They go to ``to``: the first target's port 9000, if it is None. With ``more`` bytes each they must not be
    cut into pieces.
    """

    def __init__(
        self, source: Pod, targets: Sequence[Pod], port: int, to: tuple[str, int] | None, more: int
    ) -> None:
        self._file = source.node.directory / f"talk-{port}"
        self._file.unlink(missing_ok=True)
        self._ends = [program_in(target.name, ECHO, target.address, wait=True) for target in targets]
        address, there = to or (targets[0].address, 9000)
        words = source.address, str(port), address, str(there), str(more), str(self._file)
        self._ends.append(program_in(source.name, TALK, *words))

    def numbers(self, word: str) -> list[int]:
        """What was ``sent``, ``refused`` by the kernel, ``got``, or came from a ``wrong`` address so far."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [
            int(line.partition(" ")[2]) for line in lines if line.startswith(f"{word} ") and line[-1:].isdigit()
        ]

    def last(self, word: str) -> int:
        """The last number sent, or got; 0 before the first. Reads the file's end only: it is asked often."""
        if not self._file.exists():
            return 0
        with self._file.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            found = re.findall(rf"(?m)^{word} (\d+)\n", file.read().decode())
        if found or size <= TAIL_BYTES:
            return int(found[-1]) if found else 0
        return (self.numbers(word) or [0])[-1]

    def now(self) -> int:
        """The number of the last packet sent."""
        return self.last("sent")

    def pause(self, packets: int) -> None:
        """Until that many more were sent."""
        goal = self.now() + packets
        until(lambda: self.now() >= goal, f"{packets} packets are sent", 60)

    def flows(self) -> None:
        """Wait until answers come."""
        start = self.now()
        until(lambda: self.last("got") > start, "answers come")

    def ends_soon(self, what: str) -> None:
        """What was changed just now stops the flow within a second."""
        start = self.now()
        until(lambda: self.now() - max(start, self.last("got")) >= SECOND, f"{what}: answers end", 60)
        last = self.last("got")
        assert last - start < patient(SECOND), f"{what}: still answered {last - start} packets later"

    def lost(self, first: int) -> list[int]:
        """Numbers from ``first`` on that have not come back."""
        last = self.now()
        self.pause(SECOND // 2)
        got = set(self.numbers("got"))
        return [number for number in range(first, last) if number not in got]

    def close(self) -> None:
        """Stop both ends."""
        for end in self._ends:
            _end(end)


def program_in(place: str, program: str, *arguments: str, wait: bool = False) -> subprocess.Popen[str]:
    """Run a program in a namespace; ``wait``: until it says that it is ready."""
    process = subprocess.Popen(
        ["ip", "netns", "exec", place, sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE if wait else subprocess.DEVNULL, text=True,
    )  # fmt: skip
    if wait:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    return process


@contextlib.contextmanager
def talk(
    source: Pod, *targets: Pod, port: int = 5000, to: tuple[str, int] | None = None, more: int = 0
) -> Iterator[Talk]:
    """See :class:`Talk`; it flows when the context begins."""
    found = Talk(source, targets, port, to, more)
    try:
        found.flows()
        yield found
    finally:
        found.close()


def counters(node: Node) -> dict[str, float]:
    found = node.status()["counters"]
    return {name.removeprefix("fastpath_"): value for name, value in found.items() if "fastpath_" in name}


def fast(*nodes: Node) -> None:
    """Wait until packets leave and arrive by the fast path of these nodes, unless tests run without it."""
    if os.environ.get("ISTHMUS_FASTPATH") == "off":
        return
    before = [(node, counters(node)) for node in nodes]

    def there() -> bool:
        return all(
            counters(node)[way] > first[way] + 20 for node, first in before for way in ("fast_out", "fast_in")
        )

    try:
        until(there, "")
    except AssertionError as error:
        said = [f"{node.status()}\n{node.log()}" for node in nodes]
        raise AssertionError("not fast", *said) from error


@contextlib.contextmanager
def echo(place: str, address: str) -> Iterator[None]:
    """Datagrams to port 9000 are sent back there, for as long as the context lasts."""
    process = program_in(place, ECHO, address, wait=True)
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def code(node: Node, text: str) -> str:
    """Python in a node's namespace."""
    return node.run(f"{sys.executable} -c '{text}'")


def hanging(node: Node) -> list[str]:
    """Names of our programs at the underlay of a node."""
    text = (
        'import socket; from nodeagent.fastpath import libbpf; index = socket.if_nametoindex("eth0"); '
        "print(*(libbpf.name_of(n) for hook in (46, 47) for n in libbpf.attached(index, hook)))"
    )
    return [name for name in code(node, text).split() if name.startswith("isthmus_")]
