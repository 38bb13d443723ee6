"""What ten thousand peers cost an agent in memory: resident set after the first comparison, less after imports.

The parts are the agent's own: view, desired rows, cache file, reconciler with a real netlink socket on a
real vxlan device in a fresh network namespace.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from tests.bench.agent_place import run_inside

PEERS = 10_000
LIMIT_MB = 40.0


def run() -> list[dict[str, Any]]:
    """One row: megabytes over the process after its imports."""
    found = run_inside(__name__)
    used = found["after"] - found["before"]
    return [
        {
            "name": "memory of an agent with 10,000 peers / over the process after imports",
            "ours": used,
            "baseline": LIMIT_MB,
            "unit": "MB",
            "ratio": used / LIMIT_MB,
            "target": 1.0,
            "better": "lower",
            "ok": used <= LIMIT_MB,
        }
    ]


def body() -> dict[str, float]:
    """Runs inside the namespaces."""
    import nodeagent.cli
    import nodeagent.composition
    from nodeagent.netlink import links
    from nodeagent.netlink.socket import Engine, NetlinkChannel

    assert nodeagent.composition.compose is not None
    assert nodeagent.cli.agent is not None
    links.links()  # pyroute2 loads its parts at first use
    Engine(NetlinkChannel()).close()
    gc.collect()
    before = _resident_mb()
    with tempfile.TemporaryDirectory() as name:
        after = asyncio.run(_agent(Path(name)))
    return {"before": before, "after": after}


async def _agent(directory: Path) -> float:
    from events.bus.connection import BusOptions
    from events.chain import genesis
    from events.codec import Cause, StoredMessage, seal
    from events.ids import new_id
    from events.log import ReadBatch
    from events.telemetry.role import Telemetry
    from events.types import ClusterDefined, Event, NodeJoined, RangeAllocated
    from nodeagent.conditions import Conditions
    from nodeagent.config import AgentConfig
    from nodeagent.dataplane.reconciler import Reconciler
    from nodeagent.membership.cache import Cache
    from nodeagent.membership.log_follower import LogFollower
    from nodeagent.membership.view import View
    from nodeagent.path_mtu.tracker import PathMtuTracker

    config = AgentConfig(
        cluster="bench", node="n0", kind="cloud", bus=BusOptions(), underlay="192.0.2.1", mtu=1450
    )
    view, conditions = View("bench", "n0", f"{0:036d}"), Conditions()
    reconciler = Reconciler(config, conditions)
    follower = LogFollower(config, view, Cache(directory), conditions, Telemetry.off(),
                        apply=reconciler.follow, underlay=lambda: "192.0.2.1")  # fmt: skip
    head, sequence = genesis("bench"), 0

    def batch(events: list[Event]) -> ReadBatch:
        nonlocal head, sequence
        cause = Cause(command_id=new_id(), actor="bench", time=datetime.now(UTC), source="bench")
        sealed, head = seal("bench", head, [(cause, events)])
        stored = [StoredMessage(sequence + n, m.subject, m.headers, m.body, 0) for n, m in enumerate(sealed, 1)]
        sequence += len(stored)
        return ReadBatch(stored, 1)

    await follower.take(batch([ClusterDefined(
        cluster="bench", container_cidr="10.0.0.0/9", max_pods_per_node=64, max_services=256, range_size=64,
        service_size=256, service_cidr="10.127.255.0/24", capacity=131068,
    )]))  # fmt: skip
    for start in range(0, PEERS + 1, 500):
        events: list[Event] = []
        for i in range(start, min(start + 500, PEERS + 1)):
            underlay = str(IPv4Address(0x64400000 + i))
            mac = "66:00:" + i.to_bytes(4, "big").hex(":")
            cidr = f"{IPv4Address(0x0A000000 + i * 64)}/26"
            events += [
                NodeJoined(node=f"n{i}", uid=f"{i:036d}", kind="cloud", underlay=underlay, announced=underlay,
                           vtep_mac=mac),
                RangeAllocated(cidr=cidr, index=i, node=f"n{i}", uid=f"{i:036d}", cursor_after=i + 1),
            ]  # fmt: skip
        await follower.take(batch(events))
    for _ in range(2):
        assert await reconciler.resync({"bench"})
    ways = PathMtuTracker()
    ways.follow(view.peers, 1500, {}, 0.0)
    assert len(view.peers) == PEERS
    assert reconciler.digest() == view.expected_digest()
    gc.collect()
    return _resident_mb()


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")
