"""What probing costs an agent, and how soon a verdict comes.

Of one agent among 100 and 1,000 peers: per cent of a core (schedule, book and packets at full budget, in CPU
time; the kernel's part is not in it) and bytes a second on the wire in both directions. Of 100 and 1,000 agents
in simulation: simulated seconds until a dead node, a cut site and a dead pair are told.

``python -m tests.bench.bench_mesh N`` runs N real agents in namespaces of this machine instead, as root: the
whole agents' share of a core, packets and bytes of their probe devices, and wall-clock seconds to the verdicts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nodeagent.mesh import packets, schedule
from nodeagent.mesh.book import Ask, Book
from tests.bench.agent_place import row
from tests.mesh.world import World

UNDERLAY_BYTES = 50 + 14
"""VXLAN, UDP, IP and Ethernet of the tunnel around an inner packet, and the Ethernet header outside."""
SECONDS, MEASURED_S = 60, 20.0
LARGE_BYTES = 1450


def share_of_a_core(peers: int) -> dict[str, Any]:
    """One agent among ``peers`` healthy ones in ten sites, all answering after 20 ms: CPU seconds a second."""
    members = [(2 * number + 2, f"s{number % 10}") for number in range(peers + 1)]
    ring, book = schedule.ring(members, 2), Book()
    book.follow(epoch for epoch, _ in members if epoch != 2)
    own, other, word = b"\x0a\x00\x00\x1f", b"\x0a\x00\x00\x3f", b"12345678"
    sent_bytes = sent = 0
    begun, token = time.process_time(), 0
    for slot in range(SECONDS * schedule.SLOTS_PER_S):
        now = 100 + slot / schedule.SLOTS_PER_S
        book.look(now)
        asks: list[Ask] = []
        epoch = schedule.asked(ring, slot)
        if epoch is not None:
            asks.append(Ask(epoch, "small"))
            if schedule.asked_large(ring, slot):
                asks.append(Ask(epoch, "large"))
        if slot % schedule.SLOTS_PER_S == 0:
            asks += [Ask(one, "small") for one in schedule.asked_of_sites(ring, slot // schedule.SLOTS_PER_S)]
        for ask in (*asks, *book.due()):
            token += 1
            name, large = token.to_bytes(8, "big"), ask.kind == "large"
            book.asking(ask, name, now)
            question = packets.message(
                own, other, packets.QUESTION, name, word, large=large, size=LARGE_BYTES if large else 0
            )
            understood = packets.understand(question, other)  # as we do with those of a peer
            if understood is None:
                raise RuntimeError("a question is none")
            answer = packets.message(
                other, own, packets.ANSWER, name, word, large=large, size=understood.size if large else 0
            )
            packets.understand(answer, own)
            book.answered(ask.kind, name, now + 0.02, ask.epoch)
            sent, sent_bytes = sent + 2, sent_bytes + len(question) + len(answer) + 2 * UNDERLAY_BYTES
        if slot % (5 * schedule.SLOTS_PER_S) == 0:
            book.report(now)
    used = time.process_time() - begun
    return {
        "peers": peers,
        "core_percent": round(100 * used / SECONDS, 2),
        "packets_per_s_sent": round(sent / SECONDS, 1),
        "bytes_per_s_sent": round(sent_bytes / SECONDS),
    }


def time_to_verdict(agents: int) -> dict[str, tuple[float, float]]:
    """Simulated seconds until each is told, and within which it must be, in one cluster of ten sites."""
    found: dict[str, tuple[float, float]] = {}

    def measure(what: str, key: tuple[str, str, str], bound_s: float, broken: Callable[[World], None]) -> None:
        world = World({f"s{number}": agents // 10 for number in range(10)})
        world.acquaint()
        world.run(1)
        broken(world)
        seconds, told = world.until_told(2 * bound_s)
        if [one.key for one in told] != [key]:
            raise RuntimeError(f"{what}: told was {told}")
        found[what] = seconds, bound_s

    def cut(world: World) -> None:
        world.passes = lambda a, b, _large: ("s7" in {a.site, b.site}) <= (a.site == b.site)

    def pair(world: World) -> None:
        world.passes = lambda a, b, _large: {a.name, b.name} != {"s1-1", "s2-2"}

    measure("a dead node", ("node", "s3-3", ""), 5.0, lambda world: setattr(world.agents["s3-3"], "up", False))
    measure("a cut site", ("site", "s7", ""), 5.0, cut)
    if agents <= 100:  # of 1,000 it is 62.5 s by the schedule, and minutes of this machine's time
        measure("a dead pair", ("pair", "s1-1", "s2-2"), agents / 16 + 8, pair)
    return found


def real(agents: int) -> dict[str, Any]:
    """So many agents in namespaces; wall-clock seconds."""
    from tests.nodeagent.site import site
    from tests.waiting import wait_for as until

    with site(*(f"n{number}" for number in range(agents)), start=False) as place:
        nodes = list(place.nodes.values())
        for at in range(0, agents, 8):
            for node in nodes[at : at + 8]:
                node.start("--machine-id", "none")
            until(lambda some=nodes[at : at + 8]: _states(some) <= {"ready", "degraded"}, "eight report", 200)  # type: ignore[misc]

        def ask() -> dict[str, Any]:
            shown: dict[str, Any] = json.loads(place.isthmus("mesh", "--json").stdout or "{}")
            return shown

        pairs = agents * (agents - 1)
        until(lambda: sum(one["measured"] for one in ask().get("sites", ())) > 0.95 * pairs, "all paths", 300)
        ticks, begun, before = _ticks(nodes), time.monotonic(), _carried(nodes)
        until(lambda: time.monotonic() - begun > MEASURED_S, "the time to measure", 2 * MEASURED_S)
        elapsed = time.monotonic() - begun
        after = _carried(nodes)
        carried = [(after[at] - before[at]) / elapsed / agents for at in (0, 1)]
        found: dict[str, Any] = {
            "agents": agents,
            "findings_while_healthy": [one["sentence"] for one in ask().get("findings", ())],
            "whole_agent_percent_of_a_core": round(
                100 * (_ticks(nodes) - ticks) / os.sysconf("SC_CLK_TCK") / elapsed / agents, 2
            ),
            "probe_packets_per_s": round(carried[0], 1),
            "probe_bytes_per_s": round(carried[1]),
        }

        def named(what: str, key: tuple[str, str, str]) -> None:
            started = time.monotonic()
            until(lambda: key in {(one["scope"], one["a"], one["b"]) for one in _recorded(ask())}, what, 120)
            found[what] = round(time.monotonic() - started, 1)

        nodes[3].run("ip link set eth0 down")
        named("dead_node_s", ("node", "n3", ""))
        nodes[5].run(f"ip route add blackhole {nodes[6].underlay}/32")
        named("dead_pair_s", ("pair", "n5", "n6"))
        found["dead_pair_bound_s"] = round(agents / 16 + 8, 1)
    return found


def _states(nodes: list[Any]) -> set[str]:
    return {
        node.status()["state"] if (node.directory / "state" / "status.json").exists() else "" for node in nodes
    }


def _recorded(shown: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"b": "", **one} for one in shown.get("findings", ()) if one.get("recorded")]


def _ticks(nodes: list[Any]) -> int:
    found = 0
    for node in nodes:
        fields = Path(f"/proc/{node.status()['pid']}/stat").read_text().rpartition(")")[2].split()
        found += int(fields[11]) + int(fields[12])
    return found


def _carried(nodes: list[Any]) -> tuple[int, int]:
    """Packets and bytes that went through the probe devices, both ways."""
    packets_ = bytes_ = 0
    for node in nodes:
        for link in json.loads(node.run("ip -j -s link show type tun")):
            packets_ += sum(link["stats64"][way]["packets"] for way in ("rx", "tx"))
            bytes_ += sum(link["stats64"][way]["bytes"] for way in ("rx", "tx"))
    return packets_, bytes_


def run() -> list[dict[str, Any]]:
    """The rows; see the module."""
    rows: list[dict[str, Any]] = []
    for peers in (100, 1000):
        found = share_of_a_core(peers)
        name = f"mesh: probing of {peers:,} peers"
        rows += [
            row(f"{name}, share of a core (budget 1 %)", found["core_percent"], 1.0, "%", 1.0),
            row(f"{name}, on the wire (budget 16 kB/s)", found["bytes_per_s_sent"], 16_000.0, "B/s", 1.0),
        ]
    for agents in (100, 1000):
        for what, (seconds, bound_s) in time_to_verdict(agents).items():
            rows.append(row(f"mesh: {what} of {agents:,} agents named (simulated)", seconds, bound_s, "s", 1.0))
    return rows


def main() -> None:
    """``N`` real agents, in namespaces that end with this process."""
    from tests.nodeagent.sandbox import sh

    agents, *where = sys.argv[1:]
    if where:
        sh("mount --make-rprivate / && mount -t tmpfs none /run && mkdir -p /run/netns && ip link set lo up")
        sys.stdout.write(json.dumps(real(int(agents))) + "\n")
        return
    again = [sys.executable, "-m", "tests.bench.bench_mesh", agents, "inside"]
    subprocess.run(["unshare", "-nmpf", "--kill-child", "--mount-proc", *again], check=True, timeout=1500)


if __name__ == "__main__":
    main()
