"""Real agents in namespaces of this machine, and an operator who asks about them all the time."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import TimeoutError as LateError
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.errors import IsthmusError
from events.protocol.commands import Command
from events.protocol.mesh import FindingView, MeshView, ShowMesh
from tests.nodeagent.sandbox import sh
from tests.nodeagent.site import Node, Site

T = TypeVar("T")
Key = tuple[str, str, str]
THRESHOLD = Path("/proc/sys/net/ipv4/neigh/default/gc_thresh3")
"""Most neighbours that the kernel keeps, of all namespaces together."""
POLL_S = 0.1
WAVE = 4
"""Agents that start at a time: each takes about a second of a core for it."""


def say(text: str) -> None:
    """A line that is seen at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


@contextmanager
def room_for_neighbours(agents: int) -> Iterator[None]:
    """Everybody on one machine knows everybody: the kernel's limit is raised for that time, and put back."""
    before, needed = int(THRESHOLD.read_text()), 3 * agents * agents
    if before >= needed:
        yield
        return
    name = "net.ipv4.neigh.default.gc_thresh3"
    say(f"{name}: {before} -> {needed} for this run (back by hand: sysctl -w {name}={before})")
    THRESHOLD.write_text(str(needed))
    try:
        yield
    finally:
        THRESHOLD.write_text(str(before))
        say(f"{name}: back to {before}")


def inside(module: str, *arguments: str, agents: int, limit_s: float) -> int:
    """Run ``python -m module arguments… inside`` in namespaces that end with it; its exit code."""
    again = [sys.executable, "-m", module, *arguments, "inside"]
    with room_for_neighbours(agents):
        flags = ["unshare", "-nmpf", "--kill-child", "--mount-proc"]
        return subprocess.run([*flags, *again], check=False, timeout=limit_s).returncode


def prepare() -> None:
    """The first thing to do inside."""
    sh("mount --make-rprivate / && mount -t tmpfs none /run && mkdir -p /run/netns && ip link set lo up")


class Operator:
    """Asks the controllers, from a thread that keeps the connection."""

    def __init__(self, server: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._bus = self._do(connect(BusOptions(servers=(server,)), name="operator"))
        self._client = ControllerClient(self._bus, "default", actor="operator")

    def _do(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(timeout=30)

    def close(self) -> None:
        """The connection and the thread end."""
        with suppress(Exception):
            self._do(self._bus.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=30)

    def send(self, command: Command) -> None:
        """Raises IsthmusError."""
        self._do(self._client.send(command))

    def mesh(self, query: ShowMesh | None = None) -> MeshView | None:
        """None while nobody answers."""
        try:
            return self._do(self._client.ask(query or ShowMesh(), MeshView))
        except (IsthmusError, LateError):
            return None

    def recorded(self) -> dict[Key, FindingView]:
        """What is recorded as lost now."""
        view = self.mesh()
        return {(one.scope, one.a, one.b): one for one in view.findings if one.recorded} if view else {}


def wait(condition: Callable[[], object], what: str, within_s: float, *, poll_s: float = POLL_S) -> float:
    """Seconds until it holds. Raises AssertionError with what it waited for."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > within_s:
            raise AssertionError(f"waited {within_s:.0f} s: {what}")
        time.sleep(poll_s)
    return time.monotonic() - begun


def begin(place: Site, sites: dict[str, str]) -> None:
    """Start the agents of these nodes (node → site), a few at a time."""
    names = list(sites)
    for at in range(0, len(names), WAVE):
        wave = [place.nodes[name] for name in names[at : at + WAVE]]
        for node in wave:
            node.start("--heartbeat", "5", "--site", sites[node.name], "--machine-id", "none")
        wait(lambda some=wave: all(_member(node) for node in some), "agents report", 200, poll_s=0.5)  # type: ignore[misc]


def _member(node: Node) -> bool:
    with suppress(OSError, ValueError):
        return node.status()["state"] in {"ready", "degraded"}
    return False


def ticks(nodes: list[Node]) -> int:
    """CPU time of their agents so far, in ticks."""
    found = 0
    for node in nodes:
        fields = Path(f"/proc/{node.status()['pid']}/stat").read_text().rpartition(")")[2].split()
        found += int(fields[11]) + int(fields[12])
    return found


TICKS_PER_S = os.sysconf("SC_CLK_TCK")
