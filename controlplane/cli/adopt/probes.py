"""Packets of real pods to and from a node: pings that are started inside of the pods' network namespaces.

Pods are found by looking, on the node itself, into each network namespace that it has: no container runtime
and no API server is asked, and nothing has to be installed besides ``nsenter``, ``ip`` and ``ping``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address, IPv4Network
from itertools import pairwise

from controlplane.cli.adopt.node_lines import NodeLines
from controlplane.cli.adopt.planning import AdoptionPlan
from controlplane.cli.adopt.progress import Pair

OTHERS = 16
"""Nodes that take part in the probes of one node, spread over the plan."""
PODS = 2
"""Pods of each node that take part."""

EACH_NAMESPACE = """\
seen=" $(stat -Lc %i /proc/self/ns/net) "
for f in /run/netns/* /proc/[0-9]*/ns/net; do
  i=$(stat -Lc %i "$f" 2>/dev/null) || continue
  case "$seen" in *" $i "*) continue;; esac
  seen="$seen$i "
  a=$(nsenter --net="$f" ip -4 -o addr show scope global 2>/dev/null) || continue
"""
"""For each network namespace besides the node's own: its file ``$f``, its addresses ``$a``."""
LOOK = EACH_NAMESPACE + '  echo "$a"\ndone\n'


class Probes:
    """The probes of a plan's nodes. ``pings`` packets each, none of which may be lost; 0: there are none."""

    def __init__(self, plan: AdoptionPlan, lines: NodeLines, pings: int) -> None:
        self._lines, self._pings = lines, pings
        self._ranges = {node.node: IPv4Network(node.range) for node in plan.nodes}
        self.said = ""
        """Last words of a node on which a probe could not be run, or did not pass."""

    async def pairs(self, name: str) -> tuple[Pair, ...]:
        """Probes to the node's pods and from them, by pods of others; where a node has none, by the node.

        Cancelled, it leaves nothing behind.
        """
        if not self._pings:
            return ()
        others = [other for other in self._ranges if other != name]
        chosen = others[:: max(1, -(-len(others) // OTHERS))]
        found = dict(zip([name, *chosen], await asyncio.gather(*map(self.pods, [name, *chosen])), strict=True))
        mine = found[name]
        pairs = [(name, "", target) for target in mine]
        for other in chosen:
            theirs = found[other]
            pairs += [
                (other, source, target) for source in theirs or [""] for target in mine or [self._bridge(name)]
            ]
            targets = theirs[:1] or [self._bridge(other)]
            pairs += [(name, source, target) for source in mine or [""] for target in targets]
        return tuple(pairs)

    async def pods(self, name: str) -> list[str]:
        """Addresses of pods that run on the node, a few. Cancelled, it leaves nothing behind."""
        ended = await self._lines.run(name, LOOK)
        if ended.code:
            self.said = f"{name}: {ended.shown}"
        home, found = self._ranges[name], dict[str, None]()
        for line in ended.said.splitlines():
            words = line.split()
            address = words[words.index("inet") + 1].partition("/")[0] if "inet" in words[:-1] else ""
            try:
                if IPv4Address(address) in home:
                    found[address] = None
            except AddressValueError:
                continue
        return list(found)[:PODS]

    def _bridge(self, name: str) -> str:
        """The address of the node's bridge, for a node without a pod."""
        return str(self._ranges[name][1])

    async def passing(self, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
        """Those of the pairs between which no packet is lost. Cancelled, it leaves nothing behind."""
        by_node: dict[str, list[Pair]] = {}
        for pair in pairs:
            by_node.setdefault(pair[0], []).append(pair)
        passed = await asyncio.gather(*(self._from(name, some) for name, some in by_node.items()))
        good = set().union(*passed) if passed else set()
        return tuple(pair for pair in pairs if pair in good)

    async def lost(self, passed: Sequence[Pair]) -> list[Pair]:
        """Those that passed before and do not any more, though the pods at both ends still run.

        Cancelled, it leaves nothing behind.
        """
        again = set(await self.passing(passed))
        missing = [pair for pair in passed if pair not in again]
        if not missing:
            return []
        homes = {pair: self._home(pair[2]) for pair in missing}
        looked = sorted({pair[0] for pair in missing} | {home for home in homes.values() if home})
        running: set[str] = set()
        for found in await asyncio.gather(*(self._running(name) for name in looked)):
            running |= found
        return [
            pair
            for pair in missing
            if (not pair[1] or pair[1] in running)
            and (pair[2] in running or not homes[pair] or pair[2] == self._bridge(homes[pair]))
        ]

    def _home(self, address: str) -> str:
        value = IPv4Address(address)
        return next((name for name, home in self._ranges.items() if value in home), "")

    async def _running(self, name: str) -> set[str]:
        ended = await self._lines.run(name, LOOK)
        return {after.partition("/")[0] for word, after in pairwise(ended.said.split()) if word == "inet"}

    async def _from(self, name: str, pairs: Sequence[Pair]) -> set[Pair]:
        ended = await self._lines.run(name, probe_line([pair[1:] for pair in pairs], self._pings))
        passed = {(name, *line.split()[1:]) for line in ended.said.splitlines() if line.startswith("passed ")}
        good = {pair for pair in pairs if (pair[0], pair[1] or "node", pair[2]) in passed}
        if len(good) < len(pairs):
            self.said = f"{name}: {ended.shown}"
        return good


def probe_line(probes: Sequence[tuple[str, str]], pings: int) -> str:
    """Pings from each source (a pod's address; empty: the node) to each target, all at once."""
    by_source: dict[str, list[str]] = {}
    for source, target in probes:
        by_source.setdefault(source, []).append(target)
    ping = f"ping -n -q -c {pings} -i 0.2 -W 1"
    judge = (
        'case "$r" in *" 0% packet loss"*) echo "passed {} $t";; *) echo "lost {} $t: $r" | tail -n 3;; esac'
    )
    own, lines = by_source.pop("", []), []
    if own:
        lines.append(_each(own, ping, judge.format("node", "node")))
    if by_source:
        lines.append(EACH_NAMESPACE + '  case "$a" in')
        for source, targets in by_source.items():
            each = _each(targets, f'nsenter --net="$f" {ping}', judge.format(source, source))
            lines.append(f'  *" inet {source}/"*) {each};;')
        lines += ["  esac", "done"]
    return "\n".join([*lines, "wait", ""])


def _each(targets: Sequence[str], ping: str, judge: str) -> str:
    return f"for t in {' '.join(targets)}; do ( r=$({ping} $t 2>&1); {judge} ) & done"
