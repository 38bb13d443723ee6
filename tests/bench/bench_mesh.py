"""What probing costs an agent, and how soon a verdict comes.

Of one agent among 100 and 1,000 peers: per cent of a core (schedule, book and packets at full budget, in CPU
time; the kernel's part is not in it) and bytes a second on the wire in both directions. Of 100 and 1,000 agents
in simulation: simulated seconds until a dead node, a cut site and a dead pair are told.

``python -m tests.bench.bench_mesh N`` runs N (8 at least) real agents in namespaces of this machine instead, as
root: the whole agents' share of a core, packets and bytes of their probe devices, and seconds of the monotonic
clock until a dead node, a cut site and a dead pair are recorded, each against its bound; it ends with 1 when
one is missed. For more than 18 agents it raises the kernel's limit of neighbours meanwhile, and says so. 40
agents take about five minutes on two idle cores.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from nodeagent.mesh import packets, schedule
from nodeagent.mesh.book import Ask, Book
from tests.bench.agent_place import row
from tests.mesh.real_agents import TICKS_PER_S, Key, Operator, begin, inside, prepare, say, ticks, wait
from tests.mesh.world import World
from tests.nodeagent.sandbox import sh
from tests.nodeagent.site import Node, site

UNDERLAY_BYTES = 50 + 14
"""VXLAN, UDP, IP and Ethernet of the tunnel around an inner packet, and the Ethernet header outside."""
SECONDS, MEASURED_S = 60, 20.0
LARGE_BYTES = 1450
PAIR_S = 10.0
"""Added to the schedule for a pair: three tries, the report, and the time that what two say must hold."""
TUNNEL, ALL = "udp dport 8472", ""


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

    def measure(
        what: str, key: Key, bound_s: float, broken: Callable[[World], None], *, few: bool = False
    ) -> None:
        world = World({f"s{number}": agents // 10 for number in range(10)})
        if few:  # all are on the ring and answer; two of each site ask, too
            world.only({name for name in world.agents if name.endswith(("-1", "-2"))})
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
    measure("a dead pair", ("pair", "s1-1", "s2-2"), agents / 16 + PAIR_S, pair, few=agents > 100)
    return found


def real(agents: int) -> bool:
    """So many agents in namespaces, at four sites. Prints as it goes; whether all bounds held."""
    where = {f"n{number}": "abcd"[number * 4 // agents] for number in range(agents)}
    good = True
    with site(*where, start=False) as place:
        nodes = list(place.nodes.values())
        wait(lambda: place.isthmus("cluster", "show").returncode == 0, "a cluster", 60)
        operator = Operator(place.bus)
        try:
            took = time.monotonic()
            begin(place, where)
            say(f"{agents} agents report after {time.monotonic() - took:.0f} s")
            pairs = agents * (agents - 1)
            wait(lambda: _measured(operator) > 0.98 * pairs, "all paths measured", 300, poll_s=1)
            wait(lambda: not operator.recorded(), "nothing is recorded as lost", 120, poll_s=1)
            _at_rest(nodes, operator)
            good &= _named(operator, "a dead node", ("node", "n1", ""), 5.0, *_cable(nodes[1]))
            good &= _named(
                operator, "a cut site (tunnels only)", ("site", "d", ""), 5.0, *_cut(nodes, where, TUNNEL)
            )
            good &= _named(operator, "a cut site (all of it)", ("site", "d", ""), 5.0, *_cut(nodes, where, ALL))
            pair = nodes[2], nodes[agents // 2]
            key = ("pair", *sorted(node.name for node in pair))
            bound_s = agents / 16 + PAIR_S
            good &= _named(operator, "a dead pair", key, bound_s, *_way(*pair))  # type: ignore[arg-type]
        finally:
            operator.close()
    return good


def _at_rest(nodes: list[Node], operator: Operator) -> None:
    used, begun, before = ticks(nodes), time.monotonic(), _carried(nodes)
    time.sleep(MEASURED_S)
    elapsed, after = time.monotonic() - begun, _carried(nodes)
    share = 100 * (ticks(nodes) - used) / TICKS_PER_S / elapsed / len(nodes)
    sent, carried = ((after[at] - before[at]) / elapsed / len(nodes) for at in (0, 1))
    say(f"at rest: a whole agent takes {share:.2f} % of a core")
    say(f"at rest: its probes are {sent:.1f} packets/s and {carried:.0f} B/s")
    view = operator.mesh()
    say(f"at rest: findings: {[one.sentence for one in view.findings] if view is not None else 'no answer'}")


def _named(
    operator: Operator,
    what: str,
    key: Key,
    bound_s: float,
    broken: Callable[[], None],
    mended: Callable[[], None],
) -> bool:
    """Break it, wait until it is recorded, mend it, and wait until that is recorded, too."""
    begun = time.monotonic()
    broken()
    wait(lambda: key in operator.recorded(), what, 120)
    seconds, seen = time.monotonic() - begun, operator.recorded()
    others = [one.sentence for name, one in seen.items() if name != key]
    mended()
    again = wait(lambda: not operator.recorded(), f"{what} is mended", 120)
    good = seconds <= bound_s and not others
    say(
        f"{what}: recorded after {seconds:.1f} s (bound {bound_s:.1f} s){'' if good else ' NOT GOOD'}: "
        f"{seen[key].sentence if key in seen else key}{f'; also {others}' if others else ''}; "
        f"mended: restored after {again:.1f} s"
    )
    return good


def _cable(node: Node) -> tuple[Callable[[], None], Callable[[], None]]:
    def plug() -> None:
        node.run("ip link set eth0 up")
        node.run("ip route replace default via 10.0.0.254")

    return lambda: void(node.run("ip link set eth0 down")), plug


def _way(a: Node, b: Node) -> tuple[Callable[[], None], Callable[[], None]]:
    there = f"blackhole {b.underlay}/32"
    return lambda: void(a.run(f"ip route add {there}")), lambda: void(a.run(f"ip route del {there}"))


def _cut(nodes: list[Node], where: dict[str, str], what: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Site d from the others, on the bridge: packets of tunnels, or all, those to bus and controller, too."""
    hosts = ", ".join(node.underlay for node in nodes if where[node.name] == "d")
    rules = f"add table bridge cut; add set bridge cut d {{ type ipv4_addr; elements = {{ {hosts} }}; }}; "
    for hook in ("forward", "input", "output"):
        rules += f"add chain bridge cut {hook} {{ type filter hook {hook} priority 0; }}; "
        for way in ("ip saddr @d ip daddr != @d", "ip daddr @d ip saddr != @d"):
            rules += f"add rule bridge cut {hook} {way} {what} drop; "
    return lambda: void(sh(f"nft '{rules}'")), lambda: void(sh("nft delete table bridge cut"))


def void(_: object) -> None:
    """For callbacks whose result nobody wants."""


def _measured(operator: Operator) -> int:
    view = operator.mesh()
    return sum(path.measured for path in view.sites) if view is not None else 0


def _carried(nodes: list[Node]) -> tuple[int, int]:
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


def main() -> int:
    """``N`` real agents, in namespaces that end with this process."""
    agents, *where = sys.argv[1:]
    if where:
        prepare()
        return int(not real(int(agents)))
    return inside("tests.bench.bench_mesh", agents, agents=int(agents), limit_s=1500)


if __name__ == "__main__":
    sys.exit(main())
