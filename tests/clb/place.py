"""A site with gateways and backends in namespaces: real bus, controller, agents, real packets.

The site's bridge is the VPC (10.0.0.0/24). Clients are the site's own namespace (the router), a
machine in a data centre behind it, and an external node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import nats

from events.bus.client import ControllerClient
from events.protocol.commands import MarkGateway
from events.protocol.queries import ClbAnswer, ShowClb
from tests.clb import question
from tests.nodeagent.sandbox import sh
from tests.nodeagent.site import Node, Site, site
from tests.waiting import wait_for as until

A = TypeVar("A")

HERE = Path(__file__).parent
SUBNET = "10.0.0.64/28"
PORT = 443
BACKENDS = {"b1": "10.0.0.101", "b2": "10.0.0.102"}


class Stream:
    """A helper program that writes JSON lines [time, word] until it is stopped."""

    def __init__(self, program: str, *arguments: str, within: str = "") -> None:
        inside = ["ip", "netns", "exec", within] if within else []
        self._process = subprocess.Popen(
            [*inside, sys.executable, "-m", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=HERE.parent.parent,
        )
        self.found: list[tuple[float, str]] = []

    def stop(self) -> Stream:
        """Stop it and take what it found, in order of time."""
        self._process.send_signal(signal.SIGTERM)
        out, _ = self._process.communicate(timeout=60)
        self.found = sorted((moment, word) for moment, word in map(json.loads, out.splitlines()))
        return self

    @property
    def silence_s(self) -> float:
        """The longest time between two answers."""
        good = [moment for moment, word in self.found if word]
        assert len(good) > 1, f"nothing ever came back in {len(self.found)} tries"
        return max(after - before for before, after in pairwise(good))

    @property
    def failed(self) -> int:
        """Tries without an answer."""
        return sum(not word for _, word in self.found)

    @property
    def words(self) -> set[str]:
        """The first words of all answers: the backends."""
        return {word.split()[0] for _, word in self.found if word}


class Lasting:
    """One connection that stays open, from the site's own namespace."""

    def __init__(self, address: str) -> None:
        self._socket = socket.create_connection((address, PORT), timeout=2)
        self._socket.settimeout(3)
        self.backend = self.ask()

    def ask(self) -> str:
        """One more question over it: the backend's name. Raises OSError when it is broken."""
        self._socket.sendall(b"?\n")
        answer = self._socket.recv(100).split()
        if not answer:
            raise ConnectionResetError("closed by the other side")
        return answer[0].decode()

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()


class Flow:
    """Datagrams from one port, as one flow."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.settimeout(0.3)
        self._socket.connect((address, PORT))

    def ask(self) -> str:
        """The name of the backend that answers, or empty."""
        try:
            self._socket.send(b"?\n")
            return self._socket.recv(100).split()[0].decode()
        except OSError:
            return ""

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()


class Pair:
    """The reserved pair on a running site."""

    def __init__(self, place: Site) -> None:
        self.place = place
        self.servers: dict[str, subprocess.Popen[bytes]] = {}
        self.addresses: list[str] = []

    def cli(self, *arguments: str) -> str:
        """An operator's command that must succeed."""
        done = self.place.isthmus(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def show(self) -> dict[str, Any]:
        """What `isthmus clb show --json` says."""
        shown: dict[str, Any] = json.loads(self.cli("clb", "show", "main", "--json"))
        return shown

    def holders(self) -> list[str]:
        """Who holds the two addresses."""
        view = self.talk(lambda client: client.ask(ShowClb(reservation="main"), ClbAnswer))
        return [holder.node for holder in view.holders]

    def health(self, purpose: str) -> dict[str, bool]:
        """Backend → what the log says of its health."""
        view = self.talk(lambda client: client.ask(ShowClb(reservation="main"), ClbAnswer))
        names = {address: name for name, address in BACKENDS.items()}
        return {
            names[b.address]: b.healthy for b in view.backends if (b.purpose, b.protocol) == (purpose, "tcp")
        }

    @contextlib.contextmanager
    def listening(self, node: Node, port: int) -> Iterator[None]:
        """A service of the node's own on all its addresses."""
        program = [sys.executable, "-S", str(HERE / "server.py"), node.name, str(port)]
        server = subprocess.Popen(["ip", "netns", "exec", node.name, *program])
        try:
            until(lambda: f":{port}" in node.run("ss -ltn"), f"port {port} is listened on")
            yield
        finally:
            server.kill()
            server.wait(timeout=5)

    def mark(self, node: str, *, on: bool) -> None:
        """What `isthmus clb gateway add|remove` sends, without its start."""
        self.talk(lambda client: client.send(MarkGateway(node=node, on=on)))

    def talk(self, what: Callable[[ControllerClient], Awaitable[A]]) -> A:
        """With the controller, by a connection of its own."""

        async def main() -> A:
            connection = await nats.connect(self.place.bus.split(","))
            try:
                return await what(ControllerClient(connection, "default", actor="tester"))
            finally:
                await connection.close()

        return asyncio.run(main())

    def serve(self, name: str) -> None:
        """Start a backend's server, with its namespace at the first time."""
        if name not in sh("ip netns list").split():
            sh(
                f"ip netns add {name} && ip -n {name} link set lo up && "
                f"ip link add v-{name} type veth peer name eth0 netns {name} && "
                f"ip link set v-{name} master wire up && ip -n {name} addr add {BACKENDS[name]}/24 dev eth0 && "
                f"ip -n {name} link set eth0 up && ip -n {name} route add default via 10.0.0.254"
            )
        self.servers[name] = subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, str(HERE / "server.py"), name, str(PORT)]
        )
        until(lambda: f":{PORT}" in sh(f"ip netns exec {name} ss -ltn"), f"{name} listens")

    def stop_server(self, name: str) -> None:
        """A backend dies."""
        self.servers[name].kill()
        self.servers.pop(name).wait(timeout=5)

    def ask(self, address: str, *, within: str = "", source: str = "", protocol: str = "tcp") -> str:
        """One question from a namespace: the backend's name and who it thinks asked, or the error's name."""
        if not within:
            return question.ask(address, PORT, source, protocol)
        program = [sys.executable, "-S", question.__file__, address, str(PORT), source, protocol]
        return subprocess.run(
            ["ip", "netns", "exec", within, *program], capture_output=True, text=True, check=True, timeout=30
        ).stdout.strip()

    def wait_served(self, address: str) -> None:
        """Until a connection to the address is answered."""
        until(lambda: self.ask(address).split()[0] in BACKENDS, f"{address} is served")


@contextlib.contextmanager
def pair(
    *external: str, kind: type[Site] = Site, options: Mapping[str, Sequence[str]] = MappingProxyType({})
) -> Iterator[Pair]:
    """Two gateways ``g1`` and ``g2``, a pair that they hold, two backends behind both addresses.

    ``options`` are further ones of a gateway's agent.
    """
    with site("g1", "g2", start=False, kind=kind) as place:
        made = Pair(place)
        try:
            for node in place.nodes.values():
                node.start("--gateway", "--heartbeat", "5", *options.get(node.name, ()))
            for node in [*place.nodes.values()]:
                node.ready(1)
            for node in place.add(*external):
                node.start("--kind", "external")
                node.ready(2)
            for name in BACKENDS:
                made.serve(name)
            for name in ("g1", "g2"):
                made.cli("clb", "gateway", "add", name)
            made.cli("clb", "reserve", "main", "--subnet", SUBNET, "--provider", "gateway")
            for purpose in ("apiserver", "public-services"):
                for backend in BACKENDS.values():
                    made.cli("clb", "backend", "add", "main", purpose, str(PORT), backend)
            made.addresses = [item["address"] for item in made.show()["reservation"]["addresses"]]
            until(lambda: all(made.holders()), "both addresses are held")
            for address in made.addresses:
                made.wait_served(address)
            yield made
        finally:
            for server in made.servers.values():
                server.kill()
                server.wait(timeout=5)


def cut(place: Site, name: str) -> None:
    """The machine vanishes: its cable is pulled and its agent is killed, its kernel keeps all it has."""
    sh(f"ip link set v-{name} down")
    place.nodes[name].stop(signal.SIGKILL)


def back(place: Site, name: str) -> None:
    """It comes back with everything it had."""
    sh(f"ip link set v-{name} up")
    place.nodes[name].start("--gateway", "--heartbeat", "5")
