"""What direct ways cost an agent whose 1,000 peers are all on its link: CPU time and bytes on the wire.

The agent's own parts, with real netlink sockets on a real link: rows of the tunnel, preferred routes, questions
and answers. The peers are one process in a second namespace, which answers and asks as so many agents would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.bench.agent_place import row, run_inside

if TYPE_CHECKING:
    from nodeagent.dataplane.reconciler import Reconciler
    from nodeagent.direct.paths import DirectPaths
    from nodeagent.membership.log_follower import LogFollower
    from nodeagent.membership.view import View

PEERS = 1_000
SETTLED_S, MEASURED_S = 5.0, 30.0
FIRST, RANGES = IPv4Address("100.64.0.1"), IPv4Address("10.0.0.0")
PLACE = """
ip link add eth0 type veth peer name far
ip netns add far
ip link set far netns far
ip address add 100.64.0.1/16 dev eth0
ip link set eth0 up
ip netns exec far ip link set lo up
ip netns exec far ip link set far up
ip netns exec far ip address add 100.64.255.1/16 dev far
ip netns exec far ip route add local 100.64.0.0/17 dev lo
ip netns exec far ip route add 100.64.0.1/32 dev far
ip netns exec far ip route add local 10.0.0.0/9 dev lo
ip netns exec far ip route add 10.0.0.0/26 via 100.64.0.1
"""
ASKED_PER_S = 8.0


def run() -> list[dict[str, Any]]:
    """Two rows: per cent of a core, and bits a second in both directions, each against its budget."""
    found = run_inside(__name__)
    name = f"direct ways to {PEERS:,} peers on one link"
    return [
        row(f"{name}, share of a core (budget 1 %)", found["percent"], 1.0, "%", 1.0),
        row(f"{name}, on the wire (budget 20 kbit/s)", found["bits"], 20_000.0, "bit/s", 1.0),
    ]


def body() -> dict[str, float]:
    """Runs inside the namespaces."""
    make_link()
    others = subprocess.Popen(
        ["ip", "netns", "exec", "far", sys.executable, "-c", f"import {__name__} as b; b.be_the_peers()"]
    )
    try:
        with tempfile.TemporaryDirectory() as name:
            return asyncio.run(_agent(Path(name)))
    finally:
        others.kill()
        others.wait()


def make_link() -> None:
    """The agent's device, the peers' namespace behind it, and their MACs."""
    for line in PLACE.strip().splitlines():
        subprocess.run(line.split(), check=True)
    mac = json.loads(_output("ip", "-n", "far", "-j", "link", "show", "far"))[0]["address"]
    rows = "".join(f"neigh add {FIRST + i} lladdr {mac} dev eth0 nud permanent\n" for i in range(1, PEERS + 1))
    subprocess.run(["ip", "-batch", "-"], input=rows, text=True, check=True)


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def bytes_passed() -> int:
    """On the agent's device, in both directions."""
    (link,) = json.loads(_output("ip", "-j", "-s", "link", "show", "eth0"))
    return int(link["stats64"]["rx"]["bytes"]) + int(link["stats64"]["tx"]["bytes"])


async def _agent(directory: Path) -> dict[str, float]:
    from events.bus.connection import BusOptions
    from events.telemetry.role import Telemetry
    from nodeagent.conditions import Conditions
    from nodeagent.config import AgentConfig
    from nodeagent.dataplane.reconciler import Reconciler
    from nodeagent.direct.paths import DirectPaths
    from nodeagent.fastpath.predecessors import Predecessors
    from nodeagent.fastpath.reconciler import FastPath
    from nodeagent.membership.cache import Cache
    from nodeagent.membership.log_follower import LogFollower
    from nodeagent.membership.view import View
    from nodeagent.ways.table import WayTable

    config = AgentConfig(
        cluster="bench", node="n0", kind="cloud", bus=BusOptions(), underlay=str(FIRST), direct="auto"
    )
    view, conditions, ways = View("bench", "n0", f"{0:036d}"), Conditions(), WayTable()
    reconciler = Reconciler(config, conditions)
    follower = LogFollower(config, view, Cache(directory), conditions, Telemetry.off(),
                        apply=reconciler.follow, underlay=lambda: str(FIRST))  # fmt: skip
    await join_peers(follower)
    for _ in range(2):
        assert await reconciler.resync({"bench"})
    fastpath = FastPath(conditions, reconciler.tunnel, view, found=reconciler.found, loaded=None,
                        predecessors=Predecessors(directory), why_not="not measured here")  # fmt: skip
    direct = DirectPaths(config, view, conditions, reconciler=reconciler, fastpath=fastpath, ways=ways)
    while len(direct.book) < PEERS:  # the way to each peer is asked of the kernel in portions
        await direct.begin()
    for peer in view.peers:  # as after a restart: else the first round of questions would have to be waited for
        direct.book.adopt(peer, time.monotonic())
    running = asyncio.create_task(direct.run())
    try:
        await asyncio.sleep(SETTLED_S)
        return await _measured(direct, view, reconciler)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _measured(direct: DirectPaths, view: View, reconciler: Reconciler) -> dict[str, float]:
    bits, used, begun = bytes_passed(), time.process_time(), time.monotonic()
    await asyncio.sleep(MEASURED_S)
    used, bits, took = time.process_time() - used, bytes_passed() - bits, time.monotonic() - begun
    assert len(direct.book.used()) == len(reconciler.found.exits) == len(view.peers) == PEERS
    return {"percent": 100 * used / took, "bits": 8 * bits / took}


async def join_peers(follower: LogFollower, key: Callable[[int], str] = lambda _: "") -> None:
    """The log of a cluster of this node, n0, and PEERS others, with the public key of each."""
    from events.chain import genesis
    from events.codec import Cause, StoredMessage, seal
    from events.ids import new_id
    from events.log import ReadBatch
    from events.types import ClusterDefined, Event, NodeJoined, NodeKeyChanged, RangeAllocated

    events: list[Event] = [ClusterDefined(
        cluster="bench", container_cidr="10.0.0.0/9", max_pods_per_node=64, max_services=256, range_size=64,
        service_size=256, service_cidr="10.127.255.0/24", capacity=131068,
    )]  # fmt: skip
    for i in range(PEERS + 1):
        uid, address, cidr = f"{i:036d}", str(FIRST + i), f"{RANGES + 64 * i}/26"
        mac = "66:00:" + i.to_bytes(4, "big").hex(":")
        events += [
            NodeJoined(node=f"n{i}", uid=uid, kind="cloud", underlay=address, announced=address, vtep_mac=mac),
            RangeAllocated(cidr=cidr, index=i, node=f"n{i}", uid=uid, cursor_after=i + 1),
        ]
        events += [NodeKeyChanged(node=f"n{i}", uid=uid, key=key(i))] if key(i) else []
    cause = Cause(command_id=new_id(), actor="bench", time=datetime.now(UTC), source="bench")
    sealed, _ = seal("bench", genesis("bench"), [(cause, events)])
    stored = [StoredMessage(n, m.subject, m.headers, m.body, 0) for n, m in enumerate(sealed, 1)]
    await follower.take(ReadBatch(stored, 1))


def be_the_peers() -> None:
    """Runs in the second namespace until it is killed: answers, and asks as often as so many peers do."""
    import os
    import socket
    import struct

    from nodeagent.direct import packets

    packet_info = struct.Struct("=I4s4s")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IP, 8, 1)  # IP_PKTINFO
    sock.bind(("", packets.PROBE_PORT))
    sock.settimeout(0.05)
    own, port = str(RANGES), packets.PROBE_PORT

    def send(probe: packets.Probe, source: bytes) -> None:
        ancillary = [(socket.IPPROTO_IP, 8, packet_info.pack(0, source, bytes(4)))]
        with contextlib.suppress(OSError):  # the agent may not be there yet
            sock.sendmsg([packets.encode(probe)], ancillary, 0, (own, port))

    # Epochs are the sequences of the events that gave the ranges: see join_peers.
    peer, due = 0, time.monotonic()
    while True:
        if time.monotonic() >= due:
            due += 1 / ASKED_PER_S
            peer = peer % PEERS + 1
            source = (RANGES + 64 * peer).packed
            send(packets.Probe(packets.QUESTION, 2 * peer + 3, 3, os.urandom(packets.TOKEN_BYTES)), source)
        try:
            content, ancillary, _, (asker, _) = sock.recvmsg(packets.BYTES + 1, socket.CMSG_SPACE(12))
        except TimeoutError:
            continue
        probe = packets.decode(content)
        if probe is not None and probe.kind == packets.QUESTION and asker == own:
            target = packet_info.unpack(ancillary[0][2])[2]
            send(packets.Probe(packets.ANSWER, probe.receiver, probe.sender, probe.token), target)
