"""Two nodes with pods and a world outside, over which a Service proxy's rules are tried, in one process.

Nodes 1 and 2 are made by the agent's own parts (:mod:`.host`), with and without the fast path at will. Hosts
66 and 67 on the same underlay are members of nothing, and route whatever they do not know through node 1
and node 2.
Servers answer with the pod's name and the address that they see.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from nodeagent.fastpath.programs import Programs
from tests.nodeagent import host
from tests.nodeagent.kube_proxy import BACKENDS, REMOVE, HostPort, NodeSide, Service
from tests.nodeagent.sandbox import sh
from tests.nodeagent.twins import within

ANSWER_S = 20.0
"""How long an answer may take on a machine however busy."""
PODS = {"p1": (1, "172.16.1.2"), "q1": (1, "172.16.1.3"), "p2": (2, "172.16.2.2"), "q2": (2, "172.16.2.3")}


@dataclass(frozen=True)
class Question:
    """Somebody asks an address: from a namespace, from a source address if one is named."""

    place: str
    target: str
    port: int = 80
    source: str = ""


@dataclass(frozen=True)
class Answer:
    """Who answered, and whom that pod saw asking."""

    pod: str
    seen: str


class Network:
    """The nodes are ``n1`` and ``n2``, the outside ``f66`` and ``f67``, the pods as in :data:`PODS`."""

    ADDRESSES: ClassVar[dict[str, str]] = {
        "n1": "10.0.0.1",
        "n2": "10.0.0.2",
        "f66": "10.0.0.66",
        "f67": "10.0.0.67",
    }

    def __init__(self) -> None:
        self.programs: dict[int, Programs] = {}
        self._rules = ""
        self._source_ports = iter(range(10000, 30000))
        sh("ip netns add wire && ip -n wire link add w type bridge && ip -n wire link set w up")
        for place, address in self.ADDRESSES.items():
            sh(f"""set -e; ip netns add {place}; ip -n {place} link set lo up
                ip link add v{place} netns wire type veth peer name u netns {place}
                ip -n wire link set v{place} master w up; ip -n {place} link set u up
                ip -n {place} addr add {address}/24 dev u
                ip netns exec {place} sysctl -qw net.ipv4.ip_forward=1""")
        for place, through in (("f66", "n1"), ("f67", "n2")):
            sh(f"ip -n {place} route add default via {self.ADDRESSES[through]}")
        for place in (
            "n1",
            "n2",
        ):  # a node reaches ClusterIPs only if some route leads there: its default route
            sh(f"ip -n {place} route add default via 10.0.0.66")
        for pod, (number, address) in PODS.items():
            here, gateway = f"n{number}", f"172.16.{number}.1"
            sh(f"""set -e; ip netns add {pod}; ip -n {pod} link set lo up
                ip link add veth{pod} netns {here} type veth peer name eth0 netns {pod}
                ip -n {here} link set veth{pod} mtu 1450 up; ip -n {pod} link set eth0 mtu 1450 up
                ip -n {here} addr add {gateway}/32 dev veth{pod}
                ip -n {here} route add {address}/32 dev veth{pod}
                ip -n {pod} addr add {address}/32 dev eth0; ip -n {pod} route add {gateway} dev eth0
                ip -n {pod} route add default via {gateway}""")
        for number in (1, 2):
            pods = {pod: f"veth{pod}" for pod, (place, _) in PODS.items() if place == number}
            with within(f"n{number}"):
                loaded = host.prepare(number, 3 - number, fast=True, pods=pods)
            assert loaded is not None
            self.programs[number] = loaded
        self._servers = {pod: self._serve(pod, address) for pod, (_, address) in PODS.items()}

    @staticmethod
    def _serve(pod: str, address: str) -> tuple[socket.socket, socket.socket]:
        with within(pod):
            datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            stream = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            for each in (datagrams, stream):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                each.bind((address, 80))
            stream.listen(256)
        return datagrams, stream

    def proxy(
        self, backend: str, mode: str, services: tuple[Service, ...], ports: tuple[HostPort, ...] = ()
    ) -> None:
        """Both nodes' Service rules from now on."""
        program, made = BACKENDS[backend]
        for number in (1, 2):
            node = f"n{number}"
            if self._rules:
                sh(f"ip netns exec {node} sh -ec '{REMOVE[self._rules]}'")
            side = NodeSide(number, mode, host.CONTAINERS, host.own_range(number), self.ADDRESSES[node])
            here = tuple(port for port in ports if any(PODS[pod] == (number, port.address) for pod in PODS))
            text = made(side, services, here)
            done = subprocess.run(
                ["ip", "netns", "exec", node, *program.split()],
                input=text,
                text=True,
                capture_output=True,
                check=False,
            )
            assert not done.returncode, f"{done.stderr}\n{text}"
        self._rules = backend

    def fast(self, on: bool) -> None:
        """Switch the fast path; verdicts of before are void."""
        for number, loaded in self.programs.items():
            told = struct.unpack_from("=III", loaded.told())
            record = host.record(
                number, told[1], told[2], generation=int(on) * (int(time.monotonic() * 1000) & 0xFFFFFF)
            )
            loaded.tell(record)

    def used(self) -> int:
        """Packets that have taken the fast path."""
        return sum(
            loaded.counters()["fast_out"] + loaded.counters()["fast_in"] for loaded in self.programs.values()
        )

    def ask(
        self, kind: str, passing: Iterable[Question], refused: Iterable[Question] = ()
    ) -> dict[Question, Answer]:
        """Ask all at once, those that must not arrive first; every passing one is answered.

        A refused one that arrives fails (``udp``): what arrives has overtaken nothing, because packets of this
        process are handled by one CPU in the order in which they were sent.
        """
        with contextlib.ExitStack() as stack:
            unheard = [stack.enter_context(self._client(kind, each, b"refused")) for each in refused]
            asking = {each: stack.enter_context(self._client(kind, each, b"asked")) for each in passing}
            found: dict[Question, Answer] = {}
            deadline = time.monotonic() + ANSWER_S
            while len(found) < len(asking):
                missing = [question for question in asking if question not in found]
                assert time.monotonic() < deadline, f"{kind}: not answered: {missing}"
                select.select(
                    [end for pair in self._servers.values() for end in pair]
                    + [asking[each] for each in missing],
                    [],
                    [],
                    0.2,
                )
                self._answer(kind)
                for question in missing:
                    with contextlib.suppress(BlockingIOError, OSError):
                        pod, seen = asking[question].recv(100).decode().split()
                        found[question] = Answer(pod, seen)
            for question, client in zip(refused, unheard, strict=True):
                with contextlib.suppress(OSError):
                    assert not client.recv(100), f"{kind}: {question} was answered"
            return found

    @contextlib.contextmanager
    def _client(self, kind: str, question: Question, word: bytes) -> Iterator[socket.socket]:
        form = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
        with within(question.place):
            client = socket.socket(socket.AF_INET, form | socket.SOCK_NONBLOCK)
        try:
            # A port that was used before may still have its connection, and the choice that was made for it.
            client.bind((question.source, next(self._source_ports)))
            with contextlib.suppress(BlockingIOError):
                client.connect((question.target, question.port))
            if kind == "udp":
                client.send(word)
            yield client
        finally:
            if kind == "tcp":  # leave no TIME_WAIT behind, nor a SYN that is sent again later
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()

    def _answer(self, kind: str) -> None:
        for pod, (datagrams, stream) in self._servers.items():
            with contextlib.suppress(BlockingIOError):
                while kind == "udp":
                    word, peer = datagrams.recvfrom(100)
                    assert word != b"refused", f"what must not arrive reaches {pod} from {peer}"
                    datagrams.sendto(f"{pod} {peer[0]}".encode(), peer)
            with contextlib.suppress(BlockingIOError):
                while True:
                    accepted, peer = stream.accept()
                    with accepted:
                        accepted.sendall(f"{pod} {peer[0]}".encode())


def network() -> Network:
    """All of it on one CPU; the namespaces end with the sandbox."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return Network()
