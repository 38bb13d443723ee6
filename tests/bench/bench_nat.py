"""What NAT costs an agent that is behind one and has 1,000 peers: CPU time and bytes on the wire.

The agent's own parts, with real sockets and rows: questions and answers, sealed for each pair of nodes, and the
packets that keep the router's mappings. The peers are one process in a second namespace, with a key each, that
sees this node at an address and a port that it does not announce.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import subprocess
import sys
import tempfile
import time
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tests.bench.agent_place import row, run_inside
from tests.bench.bench_direct import FIRST, MEASURED_S, PEERS, RANGES, bytes_passed, join_peers, make_link
from tests.waiting import until

SEEN = bytes([198, 51, 100, 1]), 30_000
SETTLED_S = 3.0


def run() -> list[dict[str, Any]]:
    """Two rows: per cent of a core, and bits a second in both directions, each against its budget."""
    found = run_inside(__name__)
    name = f"a node behind NAT with {PEERS:,} peers"
    return [
        row(f"{name}, share of a core (budget 1 %)", found["percent"], 1.0, "%", 1.0),
        row(f"{name}, on the wire (budget 20 kbit/s)", found["bits"], 20_000.0, "bit/s", 1.0),
    ]


def private(number: int) -> bytes:
    """The key of a node: of this one and of all others, known to both processes."""
    return hashlib.sha256(number.to_bytes(4, "big")).digest()


def body() -> dict[str, float]:
    """Runs inside the namespaces."""
    make_link()
    others = subprocess.Popen(
        ["ip", "netns", "exec", "far", sys.executable, "-c", f"import {__name__} as b; b.be_the_peers()"],
        stdout=subprocess.PIPE,
    )
    try:
        assert others.stdout is not None
        assert others.stdout.readline() == b"ready\n"
        with tempfile.TemporaryDirectory() as name:
            return asyncio.run(_agent(Path(name)))
    finally:
        others.kill()
        others.wait()


async def _agent(directory: Path) -> dict[str, float]:
    from events.bus.connection import BusOptions
    from events.telemetry.role import Telemetry
    from nodeagent.conditions import Conditions
    from nodeagent.config import AgentConfig
    from nodeagent.dataplane.reconciler import Reconciler
    from nodeagent.fastpath.predecessors import Predecessors
    from nodeagent.fastpath.reconciler import FastPath
    from nodeagent.membership.cache import Cache
    from nodeagent.membership.log_follower import LogFollower
    from nodeagent.membership.node_key import PrivateKey, public_of
    from nodeagent.membership.view import View
    from nodeagent.nat.book import ASKED_PER_S
    from nodeagent.nat.paths import NatPaths
    from nodeagent.nat.wire import Wire
    from nodeagent.ways.table import WayTable

    config = AgentConfig(
        cluster="bench", node="n0", kind="external", bus=BusOptions(), underlay=str(FIRST), nat="on",
        state_dir=directory,
    )  # fmt: skip
    view, conditions, ways = View("bench", "n0", f"{0:036d}"), Conditions(), WayTable()
    reconciler = Reconciler(config, conditions)
    follower = LogFollower(config, view, Cache(directory), conditions, Telemetry.off(),
                        apply=reconciler.follow, underlay=lambda: str(FIRST))  # fmt: skip
    await join_peers(follower, lambda number: public_of(private(number)))
    for _ in range(2):
        assert await reconciler.resync({"bench"})
    fastpath = FastPath(conditions, reconciler.tunnel, view, found=reconciler.found, loaded=None,
                        predecessors=Predecessors(directory), why_not="not measured here")  # fmt: skip
    wire = Wire()
    nat = NatPaths(config, view, conditions, reconciler=reconciler, fastpath=fastpath, ways=ways,
                   secrets=PrivateKey(private(0)), wire=wire)  # fmt: skip
    running = asyncio.create_task(nat.run())
    try:
        await until(lambda: len(nat.book) == PEERS)
        nat.book.alarm(time.monotonic())  # as when a mapping has changed: all are asked within seconds
        await until(lambda: len(ways.peers("nat")) == PEERS and not nat.book.alarmed)
        now = time.monotonic()
        for number, pair in enumerate(nat.book._pairs.values()):  # as after hours: not all at once again
            nat.book._plan(pair, now + number / ASKED_PER_S)
        await asyncio.sleep(SETTLED_S)
        kept, heard = nat.book.counted["kept"], wire.heard
        bits, used, begun = bytes_passed(), time.process_time(), time.monotonic()
        await asyncio.sleep(MEASURED_S)
        used, bits, took = time.process_time() - used, bytes_passed() - bits, time.monotonic() - begun
        assert nat.book.counted["kept"] - kept > 0.9 * PEERS, "each mapping is kept once in 28 s"
        assert wire.heard - heard > took, "answers are part of what is measured"
        return {"percent": 100 * used / took, "bits": 8 * bits / took}
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


def be_the_peers() -> None:
    """Runs in the second namespace until it is killed: answers as so many agents would."""
    from nodeagent.membership.node_key import PrivateKey, public_of
    from nodeagent.membership.peers import Peer
    from nodeagent.nat import packets
    from nodeagent.nat.packets import Endpoint
    from nodeagent.nat.wire import Wire

    def peer(number: int) -> Peer:  # epochs are the sequences of the events that gave the ranges
        return Peer(f"n{number}", "", 3 * number + 3, f"{RANGES + 64 * number}/26", "", str(FIRST + number))

    own, wire = public_of(private(0)), Wire()
    keys = {
        one.epoch: packets.pair_key(PrivateKey(private(number)).shared_secret(own), peer(0), one)
        for number in range(1, PEERS + 1)
        for one in [peer(number)]
    }

    def received(target: bytes, source: Endpoint, content: bytes) -> None:
        asked = packets.read(content)
        if asked is None or asked.kind != packets.HELLO or not packets.is_sealed(content, keys[asked.receiver]):
            return
        network = (IPv4Address(RANGES) + 64 * ((asked.receiver - 3) // 3)).packed
        answer = packets.Message(
            packets.ANSWER, asked.receiver, asked.sender, network, 26, asked.number, Endpoint(*SEEN), known=True
        )
        wire.send(packets.seal(answer, keys[asked.receiver]), target, source, 8472)

    async def answer() -> None:
        wire.listen("far", 8472, received)
        print("ready", flush=True)
        await asyncio.Event().wait()

    asyncio.run(answer())
