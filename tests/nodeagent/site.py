"""A small real site inside the sandbox: bus and controller, nodes in namespaces, agents as processes.

Nodes hang on one bridge (10.0.0.0/24, the bus at .254). Flows are real packets, each with its sequence,
so that a test says exactly how long nothing came through, and whether anything was lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests import prepared
from tests.nodeagent.sandbox import sh
from tests.waiting import wait_for as until

ISTHMUS = str(Path(sys.executable).with_name("isthmus"))
BUS = "nats://10.0.0.254:4222"
PLAN = ("172.16.0.0/16", 64, 256)
"""Container CIDR, addresses of a node's range, addresses for Services."""


class Flow:
    """Numbered echo requests from one node's namespace, with the time of each answer."""

    def __init__(self, place: str, source: str, target: str, interval_s: float = 0.02) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  a pipe that nobody reads stops ping after 64 KiB
        self._process = subprocess.Popen(
            ["ip", "netns", "exec", place, "ping", "-D", "-n", "-i", str(interval_s), "-I", source, target],
            stdout=self._said,
            stderr=subprocess.STDOUT,
        )
        self.interval_s = interval_s
        self.times: dict[int, float] = {}
        self.sent = 0

    def stop(self) -> Flow:
        """Stop sending; count what came back. The last half second may still be under way and is cut."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(timeout=60)
        with self._said:
            self._said.seek(0)
            out = self._said.read()
        for match in re.finditer(r"^\[([\d.]+)\] \d+ bytes from .*icmp_seq=(\d+)", out, re.MULTILINE):
            self.times[int(match[2])] = float(match[1])
        found = re.search(r"(\d+) packets transmitted", out)
        assert found, out
        self.sent = int(found[1])
        assert self.times, f"nothing ever came back: {out[-500:]}"
        return self

    @property
    def lost(self) -> int:
        """Requests before the last answer that were never answered."""
        return max(self.times) - len(self.times)

    @property
    def silence_s(self) -> float:
        """The longest time without an answer, its end included."""
        moments = sorted(self.times.values())
        gaps = [after - before for before, after in pairwise(moments)]
        tail = (self.sent - max(self.times)) * self.interval_s
        return max([*gaps, tail], default=0.0)


class Node:
    """One node: a namespace, an underlay address, an agent."""

    def __init__(self, site: Site, name: str, number: int) -> None:
        self.site, self.name, self.number = site, name, number
        self.underlay = f"10.0.0.{number}"
        self.directory = site.directory / name
        self.directory.mkdir()
        self.agent: subprocess.Popen[bytes] | prepared.Fork | None = None
        sh(f"ip netns add {name} && ip -n {name} link set lo up")
        self.plug()

    def plug(self) -> None:
        """Connect eth0 to the bridge."""
        sh(
            f"ip link add v-{self.name} type veth peer name eth0 netns {self.name} && "
            f"ip link set v-{self.name} master wire up && "
            f"ip -n {self.name} addr add {self.underlay}/24 dev eth0 && "
            f"ip -n {self.name} link set eth0 up && ip -n {self.name} route add default via 10.0.0.254"
        )

    def run(self, command: str) -> str:
        """A shell line in this node's namespace."""
        return sh(f"ip netns exec {self.name} {command}")

    def start(
        self,
        *options: str,
        underlay: str = "eth0",
        by: str = "",
        program: str = ISTHMUS,
        over: Mapping[str, str] = {},
    ) -> Node:
        """Start the agent (of the release ``program``), through the command line ``by`` if one is given.

        As a fork (:func:`tests.prepared.may_fork`) it finds other folders at the places in ``over``.
        """
        arguments = [
            "agent", "--bus", self.site.bus, "--node", self.name, "--underlay", underlay,
            "--state-dir", str(self.directory / "state"), "--cni-dir", str(self.directory / "cni"),
            "--heartbeat", "0.5", *options,
        ]  # fmt: skip
        env = {"ISTHMUS_LOG": "text"}
        with (self.directory / "agent.log").open("ab") as log:
            if program == ISTHMUS and not by and prepared.may_fork():
                self.agent = prepared.isthmus(arguments, log, log, namespace=self.name, env=env, over=over)
            else:
                assert not over, "only a fork does"
                self.agent = subprocess.Popen(
                    ["ip", "netns", "exec", self.name, *by.split(), program, *arguments],
                    stdout=log, stderr=log, env={**os.environ, **env},
                )  # fmt: skip
        return self

    def ready(self, peers: int | None = None) -> Node:
        """Wait until the agent is ready (with that many peers), and has applied what it knows."""

        def check() -> bool:
            status = self.status()
            assert self.agent is None or self.agent.poll() is None, self.log()
            fresh = self.agent is None or status["pid"] in _family(self.agent.pid)
            return (
                fresh
                and status["state"] == "ready"
                and peers in {None, status["peers"]}
                and not status["behind"]
            )

        try:
            until(check, f"{self.name} is ready with {peers} peers", 60)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}\n{self.site.log()}") from error
        return self

    def admits(self, members: int) -> None:
        """Wait until the firewall lets the packets of that many others in."""
        listing = "nft list set inet isthmus vteps"
        until(lambda: self.run(listing).count("10.0.0.") == members, f"the firewall of {self.name}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the agent and wait for it."""
        if self.agent is not None:
            for pid in _family(self.agent.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            self.agent.wait(timeout=60)
            self.agent = None

    def status(self) -> dict[str, Any]:
        """What `isthmus agent status --json` shows."""
        found: dict[str, Any] = json.loads((self.directory / "state" / "status.json").read_text())
        return found

    def log(self) -> str:
        """The agent's last words."""
        path = self.directory / "agent.log"
        return path.read_text()[-4000:] if path.exists() else ""

    @property
    def vtep(self) -> str:
        """The first address of the node's range."""
        return str(self.status()["range"]).partition("/")[0]

    def rows(self) -> dict[str, list[str]]:
        """Neighbours, FDB and routes of ours, as the tools print them, sorted."""
        return {
            "neighbours": sorted(self.run("ip neigh show dev isthmus nud permanent").splitlines()),
            "fdb": sorted(self.run("bridge fdb show dev isthmus").splitlines()),
            "routes": sorted(self.run("ip route show proto 84").splitlines()),
        }

    def flow(self, target: Node, interval_s: float = 0.02) -> Flow:
        """Packets from this node's VTEP address to another's, through the tunnel.

        None is lost once both are :meth:`ready` with each other: what is applied is in the firewall, too.
        """
        return Flow(self.name, self.vtep, target.vtep, interval_s)


def _family(pid: int) -> set[int]:
    """A process and its children (``ip netns exec`` becomes the agent itself)."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return {pid, *(int(child) for child in (children.read_text().split() if children.exists() else ()))}


class Site:
    """The bridge, bus and controller, and the nodes."""

    bus = BUS

    def __init__(self, directory: Path, plan: tuple[str, int, int] = PLAN) -> None:
        self.directory = directory
        self.nodes: dict[str, Node] = {}
        self._made = 0
        self.controller: subprocess.Popen[bytes] | prepared.Fork | None = None
        self._plan = plan
        # A bridge without an address of its own takes the lowest of its ports': a further node could change
        # it, and everybody's neighbour entry for the bus would be wrong for some seconds.
        sh("ip link add wire address 02:00:00:00:00:fe type bridge")
        sh("ip addr add 10.0.0.254/24 dev wire && ip link set wire up")
        sh("sysctl -qw net.ipv4.ip_forward=1")

    def up(self, program: str = ISTHMUS, *options: str) -> None:
        """Start bus and controller (of one release); the cluster is defined at the first time."""
        cidr, pods, services = self._plan
        arguments = [
            "up", "--data", str(self.directory / "up"), "--host", "10.0.0.254", "--cidr", cidr,
            "--pods", str(pods), "--services", str(services), "--quarantine", "0", *options,
        ]  # fmt: skip
        with (self.directory / "up.log").open("ab") as log:
            if program == ISTHMUS and prepared.may_fork():
                self.controller = prepared.isthmus(arguments, log, log)
            else:
                self.controller = subprocess.Popen([program, *arguments], stdout=log, stderr=log)

    def log(self) -> str:
        """The last words of bus and controller."""
        return (self.directory / "up.log").read_text()[-2000:]

    def down(self, number: int = signal.SIGTERM) -> None:
        """End bus and controller."""
        if self.controller is not None:
            self.controller.send_signal(number)
            self.controller.wait(timeout=60)
            self.controller = None

    def add(self, *names: str) -> list[Node]:
        """Further nodes, without agents."""
        for name in names:
            self._made += 1
            self.nodes[name] = Node(self, name, self._made)
        return [self.nodes[name] for name in names]

    def isthmus(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """An operator's command against this site's bus."""
        line = [*arguments, "--bus", self.bus]
        if not prepared.may_fork():
            return subprocess.run([ISTHMUS, *line], capture_output=True, text=True, timeout=60, check=False)
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            running = prepared.isthmus(line, out, err)
            try:
                code = running.wait(timeout=60)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()
                raise
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([ISTHMUS, *line], code, out.read(), err.read())


@contextlib.contextmanager
def site(
    *names: str,
    start: bool = True,
    program: str = ISTHMUS,
    plan: tuple[str, int, int] = PLAN,
    kind: type[Site] = Site,
) -> Iterator[Site]:
    """A site with these nodes, their agents (of the release ``program``) ready and knowing each other."""
    with tempfile.TemporaryDirectory() as name:
        place = kind(Path(name), plan)
        try:
            place.up(program)
            nodes = place.add(*names)
            if start:
                for node in nodes:
                    node.start(program=program)
                for node in nodes:
                    node.ready(len(nodes) - 1)
                    if program != ISTHMUS:  # agents before 0.3 are ready without their firewall
                        node.admits(len(nodes) - 1)
            yield place
        finally:
            for node in place.nodes.values():
                with contextlib.suppress(Exception):
                    node.stop(signal.SIGKILL)
            with contextlib.suppress(Exception):
                place.down()
