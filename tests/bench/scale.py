"""What a cluster of 1,000, 10,000 and 100,000 nodes costs: ``python -m tests.bench.scale`` prints the table.

The figures of ARCHITECTURE.md, *Scale*, are from here. Each size runs in a process of its own, so that memory
is that size's (counted by tracemalloc, in a pass of its own). Real parts: the events are sealed as a controller
does, folded by the controller's state and by an agent's view, packed as a snapshot is; only bus and kernel are
left out (their figures are in the benchmarks).
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import Any, TypeVar

from controlplane.cluster.addressing.mac import vtep_mac
from controlplane.cluster.decide import decide
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.controller.publishing.snapshots import snapshot_of
from events.chain import genesis
from events.codec import Cause, OutgoingMessage, decode_event, seal
from events.ids import new_id
from events.jetstream.snapshots import pack
from events.protocol.commands import DefineCluster, JoinNode
from events.types import Event, NodeJoined, RangeAllocated
from nodeagent.dataplane.desired import Desired
from nodeagent.membership.peers import PeerChange
from nodeagent.membership.view import View

SIZES = (1_000, 10_000, 100_000)
NOW = datetime(2026, 1, 1, tzinfo=UTC)
MB = 1024 * 1024
T = TypeVar("T")


def allocated_mb(make: Callable[[], object]) -> float:
    """MiB that ``make``'s result holds."""
    gc.collect()
    tracemalloc.start()
    try:
        kept = make()
        gc.collect()
        assert kept is not None
        return tracemalloc.get_traced_memory()[0] / MB
    finally:
        tracemalloc.stop()


def joins(count: int) -> list[tuple[Event, Event]]:
    """What ``count`` joins write: names, uids and addresses of the usual length."""
    found: list[tuple[Event, Event]] = []
    for i in range(count):
        name, uid = f"node-{i}.ams.example.com", f"0b5c{i:08x}-7d1e-4c5a-9b1f-{i:012x}"
        underlay = str(IPv4Address(0x64400000 + i))
        joined = NodeJoined(
            node=name,
            uid=uid,
            kind="external",
            underlay=underlay,
            announced=underlay,
            vtep_mac=vtep_mac(uid),
            site="ams",
        )
        cidr = f"{IPv4Address(0x0A000000 + i * 64)}/26"
        found.append((joined, RangeAllocated(cidr=cidr, index=i, node=name, uid=uid, cursor_after=i + 1)))
    return found


def stored(message: OutgoingMessage) -> int:
    """Bytes of one message in the stream, without the server's own record."""
    headers = sum(len(key) + len(value) + 4 for key, value in message.headers.items())
    return len(message.subject) + headers + len(message.body)


def folded(bodies: Sequence[tuple[str, bytes]]) -> ClusterState:
    """The controller's state after these events."""
    state = ClusterState("bench")
    for sequence, (type_name, body) in enumerate(bodies, 1):
        evolve(state, sequence, decode_event(type_name, body, sequence))
    return state


def viewed(bodies: Sequence[tuple[str, bytes]]) -> tuple[View, Desired]:
    """The first node's view after these events, and the rows that it wants."""
    view = View("bench", "node-0.ams.example.com", f"0b5c{0:08x}-7d1e-4c5a-9b1f-{0:012x}")
    for sequence, (type_name, body) in enumerate(bodies, 1):
        view.apply(sequence, decode_event(type_name, body, sequence))
    desired = Desired()
    for peer in view.peers:
        desired.apply(PeerChange(None, peer))
    return view, desired


def timed(make: Callable[[], T]) -> tuple[float, T]:
    """CPU seconds of one call, and its result."""
    started = time.process_time()
    made = make()
    return time.process_time() - started, made


def measure(count: int) -> dict[str, Any]:
    """One size."""
    head = genesis("bench")
    plan = decide(
        ClusterState("bench"), DefineCluster(container_cidr="10.0.0.0/8", pods_per_node=64, services=64), NOW
    ).events
    bodies: list[tuple[str, bytes]] = []
    sizes: list[int] = []
    for events in (plan, *joins(count)):
        cause = Cause(command_id=new_id(), actor="node/x", time=NOW, source="isthmus/bench/controller/c1")
        sealed, head = seal("bench", head, [(cause, events)])
        sizes += map(stored, sealed)
        bodies += [(message.headers["ce-type"], message.body) for message in sealed]
    fold_s, state = timed(lambda: folded(bodies))
    digest_s, _ = timed(lambda: state_digest(state))
    newcomer = JoinNode(node="newcomer", uid="newcomer", kind="cloud", underlay="203.0.113.9")
    decide_s, _ = timed(lambda: [decide(state, newcomer, NOW) for _ in range(200)])
    snapshot_s, (_, chunks) = timed(lambda: pack(snapshot_of(state, head, NOW)))
    agent_s, (view, _) = timed(lambda: viewed(bodies))
    assert len(view.peers) == count - 1
    return {
        "nodes": count,
        "log_mb": sum(sizes) / MB,
        "join_bytes": sum(sizes[1:]) / count,
        "state_mb": allocated_mb(lambda: folded(bodies)),
        "fold_s": fold_s,
        "digest_ms": digest_s * 1e3,
        "decide_us": decide_s / 200 * 1e6,
        "snapshot_mb": sum(map(len, chunks)) / MB,
        "snapshot_s": snapshot_s,
        "agent_mb": allocated_mb(lambda: viewed(bodies)),
        "agent_s": agent_s,
        "rows": 3 * (count - 1),
    }


ROWS = (
    ("events and bytes of a join", lambda row: f"2, {row['join_bytes'] / 1024:.1f} KiB"),
    ("log after that many joins", lambda row: f"{row['log_mb']:,.1f} MiB"),
    ("deciding one join", lambda row: f"{row['decide_us']:,.0f} µs"),
    ("controller: state in memory", lambda row: f"{row['state_mb']:,.0f} MiB"),
    ("controller: folding it all", lambda row: f"{row['fold_s']:.2f} s"),
    ("state digest", lambda row: f"{row['digest_ms']:,.0f} ms"),
    ("snapshot for agents, packed", lambda row: f"{row['snapshot_mb']:.2f} MiB in {row['snapshot_s']:.2f} s"),
    ("rows in each kernel", lambda row: f"{row['rows']:,}"),
    ("agent: view and desired rows in memory", lambda row: f"{row['agent_mb']:,.0f} MiB"),
    ("agent: folding it all, without a snapshot", lambda row: f"{row['agent_s']:.2f} s"),
    (
        "bytes on the bus for one join, to all agents",
        lambda row: f"{row['join_bytes'] * row['nodes'] / MB:,.1f} MiB",
    ),
    ("reports at one per 5 s and node", lambda row: f"{row['nodes'] / 5:,.0f}/s"),
)


def main() -> None:
    """Print the table in Markdown."""
    if len(sys.argv) > 1:
        sys.stdout.write(json.dumps(measure(int(sys.argv[1]))))
        return
    found = []
    for size in SIZES:
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.scale", str(size)], capture_output=True, text=True, check=True
        )
        found.append(json.loads(done.stdout))
    print(f"| | {' | '.join(f'{size:,} nodes' for size in SIZES)} |")
    print(f"|---|{'---|' * len(SIZES)}")
    for title, show in ROWS:
        print(f"| {title} | {' | '.join(show(row) for row in found)} |")


if __name__ == "__main__":
    main()
