"""Takes nodes over one by one, each between two rounds of probes, and gives one back by itself when it lost
any.

The node's side is done by lines that the operator gives, run on the node by ``ssh`` or the like. Probes are
pings from nodes to addresses of pods, to the node and from it. A node is over when its agent is ready and every
probe that passed before passes again.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network

import msgspec

from controlplane.cli.adopt.planning import AdoptionPlan
from controlplane.cli.adopt.progress import NodeProgress, Pair, Progress
from events.bus.client import ControllerClient
from events.errors import IsthmusError, Refused
from events.protocol.commands import AdoptedNode
from events.protocol.queries import NodeView, ShowNode

OTHERS = 16
"""Nodes that take part in the probes of one node, spread over the plan."""
AT_ONCE = 8
PODS = 2
LOOK_S = 0.5
LINE_S = 300.0
"""Longest time of one line on a node."""


class Ways(msgspec.Struct, frozen=True, kw_only=True):
    """How things are done on a node. In all of them ``{node}``, ``{address}``, ``{uid}``, … stand for the
    node's own.

    ``on_node`` takes the line as its last word; ``within_s`` is how long an agent may take to be ready.
    """

    on_node: str
    take: str
    give: str
    pings: int = 5
    within_s: float = 120.0


class Ended(msgspec.Struct, frozen=True):
    """How a line on a node ended."""

    code: int
    said: str


class Rollout:
    """One run over the nodes of a plan. ``tell`` gets a line for each step.

    Cancelled or killed at any point, the next run goes on from what :class:`Progress` says.
    """

    def __init__(  # noqa: PLR0917  what a run consists of
        self,
        plan: AdoptionPlan,
        progress: Progress,
        client: ControllerClient,
        ways: Ways,
        pods: Mapping[str, Sequence[str]],
        tell: Callable[[str], None],
    ) -> None:
        """``pods``: node → addresses of pods on it, as far as they are known."""
        self._plan, self._progress, self._client, self._ways = plan, progress, client, ways
        self._nodes = {node.node: node for node in plan.nodes}
        self._pods, self._tell = pods, tell

    async def take_over(self, names: Sequence[str]) -> int:
        """How many nodes were taken over now. Raises Refused(adopt_halted), with the node as it was before."""
        done = 0
        for name in names:
            before = self._progress.of(name)
            if before.state == "over":
                continue
            passing = before.passing if before.state == "taking" else await self._probe(self._pairs(name))
            self._progress.note(name, NodeProgress(state="taking", passing=passing))
            self._tell(f"{name}: {len(passing)} probes pass; taking it over")
            finding = await self._taken(name, passing)
            if finding:
                await self._halt(name, passing, finding)
            self._progress.note(name, NodeProgress(state="over"))
            self._tell(f"{name}: over, {len(passing)} probes pass again")
            done += 1
        return done

    async def give_back(self, names: Sequence[str]) -> int:
        """How many nodes were given back now, the last taken first. Raises Refused(adopt_halted)."""
        done = 0
        for name in reversed(names):
            before = self._progress.of(name)
            if before.state not in {"over", "taking", "giving"}:
                continue
            passing = before.passing if before.state == "giving" else await self._probe(self._pairs(name))
            self._progress.note(name, NodeProgress(state="giving", passing=passing))
            self._tell(f"{name}: {len(passing)} probes pass; giving it back")
            finding = await self._given(name, passing)
            if finding:
                self._progress.note(name, NodeProgress(state="giving", passing=passing, finding=finding))
                raise _halted(name, finding, "it is given back as far as it went; run this again")
            self._progress.note(name, NodeProgress(state="given"))
            self._tell(f"{name}: back, {len(passing)} probes pass again")
            done += 1
        return done

    async def _taken(self, name: str, passing: Sequence[Pair]) -> str:
        """Take it; what is wrong then, empty when nothing is."""
        ended = await self._line(name, self._ways.take)
        if ended.code:
            return f"the line that takes it over ended with {ended.code}: {ended.said}"
        why = await self._ready(name)
        return why or await self._lost(passing)

    async def _given(self, name: str, passing: Sequence[Pair]) -> str:
        ended = await self._line(name, self._ways.give)
        if ended.code:
            return f"the line that gives it back ended with {ended.code}: {ended.said}"
        return await self._lost(passing)

    async def _halt(self, name: str, passing: Sequence[Pair], finding: str) -> None:
        """Give the node back by itself, and stop the run."""
        self._tell(f"{name}: {finding}; giving it back")
        rest = await self._given(name, passing)
        halted = (
            NodeProgress(state="taking", passing=tuple(passing), finding=finding)
            if rest
            else NodeProgress(state="given", finding=finding)
        )
        self._progress.note(name, halted)
        raise _halted(name, finding, f"giving it back failed, too: {rest}" if rest else "it was given back")

    async def _ready(self, name: str) -> str:
        """Wait until its agent reports to be ready; why it does not in time."""
        loop = asyncio.get_running_loop()
        until, last = loop.time() + self._ways.within_s, "its agent was not heard"
        while loop.time() < until:
            try:
                view = await self._client.ask(ShowNode(node=name), NodeView)
                if view.agent_state == "ready" and not view.stale and view.kernel != "differs":
                    return ""
                said = f": {'; '.join(view.agent_conditions[:3])}" if view.agent_conditions else ""
                last = f"its agent is {view.agent_state or 'silent'}{said}"
            except IsthmusError as error:  # a controller that is just away is no reason to undo anything
                last = error.message
            await asyncio.sleep(LOOK_S)
        return f"not ready within {self._ways.within_s:g} s: {last}"

    async def _lost(self, passing: Sequence[Pair]) -> str:
        again = set(await self._probe(passing))
        lost = [pair for pair in passing if pair not in again]
        if not lost:
            return ""
        shown = ", ".join(f"{start} → {target}" for start, target in lost[:4])
        return f"{len(lost)} of {len(passing)} probes lost packets ({shown})"

    def _pairs(self, name: str) -> tuple[Pair, ...]:
        """Probes to the node's pods and from it to others'."""
        others = [other for other in self._nodes if other != name]
        step = max(1, -(-len(others) // OTHERS))
        chosen = others[::step]
        towards = [(other, target) for other in chosen for target in self._targets(name)]
        return (*towards, *((name, target) for other in chosen for target in self._targets(other)[:1]))

    def _targets(self, name: str) -> list[str]:
        """Pods on the node, else the bridge's own address in its range."""
        known = list(self._pods.get(name, ()))[:PODS]
        return known or [str(IPv4Network(self._nodes[name].range)[1])]

    async def _probe(self, pairs: Sequence[Pair]) -> tuple[Pair, ...]:
        """Those of the pairs between which no packet is lost."""
        bound = asyncio.Semaphore(AT_ONCE)

        async def one(pair: Pair) -> bool:
            line = f"ping -n -q -c {self._ways.pings} -i 0.2 -W 1 {pair[1]}"
            async with bound:
                ended = await self._line(pair[0], line)
            return ended.code == 0 and " 0% packet loss" in ended.said

        passed = await asyncio.gather(*map(one, pairs))
        return tuple(pair for pair, good in zip(pairs, passed, strict=True) if good)

    async def _line(self, name: str, line: str) -> Ended:
        """Run a line on a node. Cancelled or late, it is killed here; what it did there stays."""
        node = self._nodes[name]
        command = [_filled(word, node, self._plan) for word in shlex.split(self._ways.on_node)]
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                _filled(line, node, self._plan),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        except OSError as error:
            return Ended(127, f"{command[0]}: {error.strerror}")
        try:
            async with asyncio.timeout(LINE_S):
                out, _ = await process.communicate()
        except TimeoutError:
            return Ended(124, f"it took longer than {LINE_S:g} s")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return Ended(process.returncode or 0, out.decode(errors="replace").strip()[-400:])


def _filled(text: str, node: AdoptedNode, plan: AdoptionPlan) -> str:
    """The text with the node's own words; other braces are the shell's."""
    words = {
        "node": node.node, "address": node.underlay, "uid": node.uid, "kind": node.kind, "site": node.site,
        "device": plan.device, "mtu": str(plan.mtu),
    }  # fmt: skip
    for key, value in words.items():
        text = text.replace("{" + key + "}", value)
    return text


def _halted(name: str, finding: str, then: str) -> Refused:
    return Refused("adopt_halted", f"{name}: {finding}; {then}. No further node was touched", node=name)
