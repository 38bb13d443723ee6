"""Cold start, resync and one join: our engine against C, iproute2 and pyroute2, in one run.

Every figure is the median of RUNS runs, alternating, on an emptied vxlan device in a fresh network
namespace, by CPU time, the kernel's part of it included; a join takes microseconds, so that there the clock
and the calmest run count, with its own round trips.
The fast path's peers have a budget: the CPU time of one comparison of its empty map, the calmest of many.
"Cold start" is what passes until the agent calls the rows applied: read the empty kernel, compare, write all
rows of the desired state, each acknowledged. What it reads back of them soon afterwards has a row of its own.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from events.bus.connection import BusOptions
from nodeagent.netlink.rows import route_key
from tests.bench.agent_place import row, run_inside

RUNS = 9
JOINS = 400
PEERS = 10_000
MANY = 50_000
SAMPLE = 500
"""Peers written through pyroute2 call by call; it is linear, so the rest is multiplied."""


def run() -> list[dict[str, Any]]:
    """The rows that are about the kernel's tables."""
    found = run_inside(__name__)
    ours = found["ours"]
    many = "cold start of 50,000 peers / of 10,000"
    quiet = "resync of 10,000 peers, nothing to do / ip -j + bridge -j parsed"
    join = "one join: event received to rows in the kernel / 3 netlink round trips"
    return [
        row("cold start of 10,000 peers / C, packed batches", ours, found["c"], "s", 1.5),
        row("cold start of 10,000 peers, and read back / C", found["read"], found["c"], "s", None),
        row("cold start of 10,000 peers / ip -batch + bridge -batch", ours, found["batch"], "s", 0.7),
        row("cold start of 10,000 peers / pyroute2 call by call", ours, found["pyroute2"], "s", 1 / 40),
        row(many, found["many"], found["few"], "s", 5.8),
        row(f"{many}, in C", found["many in C"], found["few in C"], "s", None),
        row(quiet, found["resync"], found["json"], "s", 0.8),
        *([row("fast path: 10,000 peers on top of the rows (budget 30 ms)", found["fast"], 30, "ms", 1)]
          if found["fast"] else []),
        row(join, found["join"], found["trips"], "s", 8.0),
    ]  # fmt: skip


def body() -> dict[str, float]:
    """Runs inside the namespaces."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        program = directory / "rows"
        source = Path(__file__).with_name("agent_rows.c")
        subprocess.run(["cc", "-O2", "-o", program, source], check=True)
        ours, read, floor, batch, fast = [], [], [], [], []
        iproute = _iproute_files(directory)
        for _ in range(RUNS):
            applied, whole = _fresh(lambda index: _ours(PEERS, index))
            ours.append(applied)
            read.append(whole)
            floor.append(_fresh(lambda index: _c(program, PEERS, index)))
            batch.append(_fresh(lambda _: _batch(iproute)))
            fast.append(_fast_path())
        growth, kernels = [], []
        for _ in range(RUNS):
            few, _ = _fresh(lambda index: _ours(PEERS, index))
            many, _ = _fresh(lambda index: _ours(MANY, index))
            growth.append((many, few))
            few = _fresh(lambda index: _c(program, PEERS, index))
            kernels.append((_fresh(lambda index: _c(program, MANY, index)), few))
            fast.append(_fast_path())
        pyroute2 = statistics.median(_fresh(_pyroute2) for _ in range(3)) * PEERS / SAMPLE
        resync, by_json = _fresh(_resync)
        join, trips = min(_fresh(_join) for _ in range(RUNS))
    median = statistics.median
    return {
        "ours": median(ours),
        "read": median(read),
        "c": median(floor),
        "batch": median(batch),
        "pyroute2": pyroute2,
        "many": median([many for many, _ in growth]),
        "few": median([few for _, few in growth]),
        "many in C": median([many for many, _ in kernels]),
        "few in C": median([few for _, few in kernels]),
        "resync": resync,
        "json": by_json,
        "fast": min(fast),
        "join": join,
        "trips": trips,
    }


def _fresh(measure: Callable[[int], Any]) -> Any:
    from nodeagent.netlink import links
    from nodeagent.netlink.links import DeviceSpec

    links.remove_device("isthmus")
    spec = DeviceSpec(name="isthmus", vni=1, port=8472, mac="66:ff:ff:ff:ff:ff", local="192.0.2.1",
                      address="10.0.0.0", mtu=1450)  # fmt: skip
    index = links.ensure_device(spec).index
    gc.collect()
    gc.disable()
    try:
        return measure(index)
    finally:
        gc.enable()


def peers(count: int) -> Any:
    """The same peers as the C program's."""
    from nodeagent.netlink.rows import Rows

    rows = Rows.empty()
    for i in range(count):
        address = (0x0A000040 + i * 64).to_bytes(4, "big")
        mac = b"\x66\x00" + i.to_bytes(4, "big")
        rows.neighbours[address] = mac
        rows.fdb[mac] = (0x64400000 + i).to_bytes(4, "big")
        rows.routes[route_key(address, 26)] = address
    return rows


def _ours(count: int, index: int) -> tuple[float, float]:
    """Seconds until the rows are applied, and until they are read back."""
    from nodeagent.dataplane.reconcile import reconcile
    from nodeagent.netlink.socket import Engine, NetlinkChannel

    desired = peers(count)
    with Engine(NetlinkChannel()) as engine:
        started = time.process_time()
        outcome = reconcile(engine, index, desired)
        applied = time.process_time() - started
        again = reconcile(engine, index, desired)
        whole = time.process_time() - started
    assert outcome.clean
    assert outcome.written == 3 * count
    assert again.clean
    assert again.written == 0
    return applied, whole


def _c(program: Path, count: int, index: int) -> float:
    out = subprocess.run([program, str(count), str(index)], check=True, capture_output=True, text=True).stdout
    return float(out.split()[0])


def _iproute_files(directory: Path) -> tuple[Path, Path]:
    rows = peers(PEERS)
    ip, bridge = [], []
    for address, mac in rows.neighbours.items():
        text, metric = str(IPv4Address(address)), int.from_bytes(address, "big")
        ip.append(f"neigh replace {text} lladdr {mac.hex(':')} dev isthmus nud permanent protocol 84")
        bridge.append(f"fdb replace {mac.hex(':')} dev isthmus dst {IPv4Address(rows.fdb[mac])} self permanent")
        ip.append(f"route replace {text}/26 via {text} dev isthmus onlink proto 84 metric {metric}")
    files = directory / "ip", directory / "bridge"
    for path, lines in zip(files, (ip, bridge), strict=True):
        path.write_text("\n".join(lines) + "\n")
    return files


def _batch(files: tuple[Path, Path]) -> float:
    started = _used_s()
    subprocess.run([_tool("ip"), "-batch", files[0]], check=True, stdout=subprocess.DEVNULL)
    subprocess.run([_tool("bridge"), "-batch", files[1]], check=True, stdout=subprocess.DEVNULL)
    return _used_s() - started


def _used_s() -> float:
    """CPU seconds of this process and of those that it has started and seen end."""
    return sum(os.times()[:4])


def _tool(name: str) -> str:
    return shutil.which(name, path="/sbin:/usr/sbin:/bin:/usr/bin") or name


def _pyroute2(index: int) -> float:
    from pyroute2 import IPRoute

    rows = peers(SAMPLE)
    with IPRoute() as ip:
        started = time.process_time()
        for address, mac in rows.neighbours.items():
            text, lladdr = str(IPv4Address(address)), mac.hex(":")
            ip.neigh("replace", dst=text, lladdr=lladdr, ifindex=index, state="permanent", protocol=84)
            ip.fdb(
                "replace",
                lladdr=lladdr,
                dst=str(IPv4Address(rows.fdb[mac])),
                ifindex=index,
                flags=2,
                state=0xC0,
            )
            ip.route("replace", dst=f"{text}/26", gateway=text, oif=index, flags=["onlink"], proto=84,
                     priority=int.from_bytes(address, "big"))  # fmt: skip
        return time.process_time() - started


def _resync(index: int) -> tuple[float, float]:
    from nodeagent.dataplane.reconcile import reconcile
    from nodeagent.netlink.socket import Engine, NetlinkChannel

    desired = peers(PEERS)
    ours, theirs = [], []
    with Engine(NetlinkChannel()) as engine:
        reconcile(engine, index, desired)
        for _ in range(RUNS):
            started = _used_s()
            outcome = reconcile(engine, index, desired)
            ours.append(_used_s() - started)
            assert outcome.clean
            assert outcome.written == 0
            started = _used_s()
            found = [
                json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                for command in (
                    [_tool("ip"), "-j", "neigh", "show", "dev", "isthmus", "nud", "permanent"],
                    [_tool("bridge"), "-j", "fdb", "show", "dev", "isthmus"],
                    [_tool("ip"), "-j", "route", "show", "proto", "84"],
                )
            ]
            theirs.append(_used_s() - started)
            assert all(len(rows) == PEERS for rows in found)
    return statistics.median(ours), statistics.median(theirs)


def _fast_path() -> float:
    """Milliseconds of CPU time until the map has all peers; 0 where the kernel does not take the programs."""
    from nodeagent.conditions import Conditions
    from nodeagent.config import AgentConfig
    from nodeagent.dataplane.own_findings import OwnFindings
    from nodeagent.dataplane.tunnel_device import TunnelDevice
    from nodeagent.dataplane.underlay import Underlay
    from nodeagent.fastpath import start
    from nodeagent.fastpath.predecessors import Predecessors
    from nodeagent.fastpath.reconciler import FastPath
    from nodeagent.membership.peers import Peer
    from nodeagent.membership.view import View
    from nodeagent.netlink.links import DeviceSpec

    tunnel = TunnelDevice(AgentConfig(cluster="bench", node="n0", kind="cloud", bus=BusOptions()), Conditions())
    tunnel.spec = DeviceSpec(name="isthmus", vni=1, port=8472, mac="66:ff:ff:ff:ff:ff", local="192.0.2.1",
                             address="10.0.0.0", mtu=1450)  # fmt: skip
    tunnel.underlay = Underlay("192.0.2.1", "eth0", 2, 1500, up=True)
    took = []
    for _ in range(2):
        view = View("bench", "n0", "u0")
        for i in range(PEERS):
            mac, underlay = "66:00:" + i.to_bytes(4, "big").hex(":"), str(IPv4Address(0x64400000 + i))
            cidr = f"{IPv4Address(0x0A000040 + i * 64)}/26"
            view.peers.put(Peer(f"n{i + 1}", f"u{i + 1}", i + 1, cidr, mac, underlay))
        loaded = start.prepare("auto").loaded
        if loaded is None:
            return 0
        with tempfile.TemporaryDirectory() as name:
            owner = FastPath(Conditions(), tunnel, view, found=OwnFindings(), loaded=loaded, why_not="",
                             predecessors=Predecessors(Path(name)))  # fmt: skip
            gc.collect()
            started = time.process_time()
            assert owner._compare_peers(loaded)
            took.append((time.process_time() - started) * 1000)
        assert len(loaded.peers()) == PEERS
        loaded.close()
    return min(took)


def _join(_: int) -> tuple[float, float]:
    """Stored messages of a join through the agent's own path, against three acknowledged requests.

    The path: verify the hash chain, decode, fold, and the reconciler's direct way, up to the moment at which
    the kernel has confirmed the rows. What the agent does behind that (its journal, its figures) no packet
    waits for.
    """
    from nodeagent.netlink import messages
    from nodeagent.netlink.socket import NetlinkChannel

    channel, trips = NetlinkChannel(), []
    address, mac = bytes([11, 0, 0, 64]), bytes.fromhex("66ff00000001")

    def trip(ifindex: int) -> None:
        """Between two joins, so that both meet the same machine; every answer must be a success."""
        requests = [
            messages.put_neighbour(ifindex, 1, address, mac),
            messages.put_fdb(ifindex, 2, mac, bytes([100, 64, 0, 1])),
            messages.put_route(ifindex, 3, route_key(address, 26), address),
        ]
        acknowledged = [request[:6] + bytes([request[6] | 4]) + request[7:] for request in requests]
        started = time.perf_counter()
        for request in acknowledged:
            channel.send(request)
            answer = channel.receive()
        trips.append(time.perf_counter() - started)
        assert answer[16:20] == bytes(4)

    with tempfile.TemporaryDirectory() as name:
        times = asyncio.run(_joins(Path(name), trip))
    channel.close()
    return statistics.median(times), statistics.median(trips)


async def _joins(directory: Path, between: Callable[[int], None]) -> list[float]:
    from events.log import ReadBatch
    from events.telemetry.role import Telemetry
    from nodeagent.conditions import Conditions
    from nodeagent.config import AgentConfig
    from nodeagent.dataplane.reconciler import Reconciler
    from nodeagent.membership.cache import Cache
    from nodeagent.membership.log_follower import LogFollower
    from nodeagent.membership.view import View
    from nodeagent.netlink.socket import Engine

    confirmed: list[float] = []
    execute = Engine.execute

    def timed(self: Engine, operations: Any, ifindex: int) -> Any:
        refusals = execute(self, operations, ifindex)
        confirmed.append(time.perf_counter())
        return refusals

    Engine.execute = timed  # type: ignore[method-assign]  # this process is the benchmark's own
    config = AgentConfig(
        cluster="bench", node="n0", kind="cloud", bus=BusOptions(), underlay="192.0.2.1", mtu=1450
    )
    reconciler, view = Reconciler(config, Conditions()), View("bench", "n0", "u0")
    follower = LogFollower(config, view, Cache(directory), Conditions(), Telemetry.off(),
                        apply=reconciler.follow, underlay=lambda: "192.0.2.1")  # fmt: skip
    first, *joins = _log()
    await follower.take(ReadBatch(first, 0))
    assert await reconciler.resync({"start"})
    times = []
    for batch in joins:
        started = time.perf_counter()
        await follower.take(ReadBatch(batch, 0))
        times.append(confirmed[-1] - started)
        between(reconciler.tunnel.ifindex)
    assert reconciler.counters.direct == len(joins) == JOINS
    assert reconciler.applied == view.sequence
    assert await reconciler.resync({"check"})
    assert reconciler.counters.resyncs == 2
    assert reconciler.counters.repaired == 3, (
        "the rows of the round trips, which are not in the log, and nothing else"
    )
    return times


def _log() -> list[list[Any]]:
    """The events of a cluster as stored messages: its definition and n0's join; then JOINS more joins."""
    from events.bus.headers import parse_header_lines
    from events.chain import genesis
    from events.codec import Cause, StoredMessage, seal
    from events.ids import new_id
    from events.types import ClusterDefined, NodeJoined, RangeAllocated

    cause = Cause(command_id=new_id(), actor="bench", time=datetime.now(UTC), source="bench")
    defined = ClusterDefined(
        cluster="bench", container_cidr="10.0.0.0/9", max_pods_per_node=64, max_services=256, range_size=64,
        service_size=256, service_cidr="10.127.255.0/24", capacity=131068,
    )  # fmt: skip
    batches: list[list[Any]] = []
    for i in range(JOINS + 1):
        underlay = str(IPv4Address(0x64400000 + i))
        cidr = f"{IPv4Address(0x0A000000 + i * 64)}/26"
        batches.append([
            NodeJoined(node=f"n{i}", uid=f"u{i}", kind="cloud", underlay=underlay, announced=underlay,
                       vtep_mac="66:00:" + i.to_bytes(4, "big").hex(":")),
            RangeAllocated(cidr=cidr, index=i, node=f"n{i}", uid=f"u{i}", cursor_after=i + 1),
        ])  # fmt: skip
    batches[0].insert(0, defined)
    sealed, _ = seal("bench", genesis("bench"), [(cause, batch) for batch in batches])
    # With headers as a connection reads them: each name is one string, whatever message it is in.
    stored = iter([
        StoredMessage(n, m.subject, parse_header_lines(m.lines.encode()), m.body, 0)
        for n, m in enumerate(sealed, 1)
    ])  # fmt: skip
    return [[next(stored) for _ in batch] for batch in batches]
