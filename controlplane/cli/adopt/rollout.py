"""Takes nodes over one by one, each between two rounds of probes, and gives one back by itself when it lost
any.

The node's side is done by lines that the operator gives. A node is over when its agent is ready and every probe
that passed before passes again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from controlplane.cli.adopt.node_lines import NodeLines
from controlplane.cli.adopt.planning import AdoptionPlan
from controlplane.cli.adopt.probes import Probes
from controlplane.cli.adopt.progress import NodeProgress, Pair, Progress
from controlplane.kubernetes.flannel_nodes import kernel_problem
from events.bus.client import ControllerClient
from events.errors import IsthmusError, Refused
from events.protocol.queries import NodeView, ShowNode

LOOK_S = 0.5


class Ways(msgspec.Struct, frozen=True, kw_only=True):
    """How things are done on a node: lines, and the command that takes a line as its last word.

    ``pings`` are the packets of a probe; ``within_s`` is how long an agent may take to be ready.
    """

    on_node: str
    take: str
    give: str
    pings: int = 5
    within_s: float = 120.0


class Rollout:
    """One run over the nodes of a plan. ``tell`` gets a line for each step.

    Cancelled or killed at any point, the next run goes on from what :class:`Progress` says.
    """

    def __init__(
        self,
        plan: AdoptionPlan,
        progress: Progress,
        client: ControllerClient,
        ways: Ways,
        tell: Callable[[str], None],
    ) -> None:
        self._plan, self._progress, self._client, self._ways = plan, progress, client, ways
        self._tell = tell
        self._lines = NodeLines(plan, ways.on_node)
        self._probes = Probes(plan, self._lines, ways.pings)

    async def check(self, names: Sequence[str]) -> None:
        """Look at each node that is to be taken over before anything is done on any.

        Raises Refused: ``adopt_halted`` when a node cannot be reached, ``adopt_kernel_old``, each with all such
        nodes. Cancelled, nothing was done.
        """
        waiting = [name for name in names if self._progress.of(name).state != "over"]
        ended = await asyncio.gather(*(self._lines.run(name, "uname -r") for name in waiting))
        found = list(zip(waiting, ended, strict=True))
        deaf = [f"{name} ({end.shown or end.code})" for name, end in found if end.code]
        if deaf:
            raise Refused(
                "adopt_halted",
                f"no line can be run on {len(deaf)} of {len(found)} nodes: {'; '.join(deaf[:4])}. "
                f"Nothing was done",
                nodes=deaf,
            )
        old = [
            {"node": name, "code": "adopt_kernel_old", "message": problem}
            for name, end in found
            if (problem := kernel_problem(end.said, keep_name=self._plan.keep_name))
        ]
        if old:
            raise Refused(
                "adopt_kernel_old",
                f"{old[0]['node']}: {old[0]['message']} ({len(old)} of {len(found)} nodes). Nothing was done",
                findings=old,
            )

    async def take_over(self, names: Sequence[str]) -> int:
        """How many nodes were taken over now. Raises Refused(adopt_halted), with the node as it was before."""
        done = 0
        for name in names:
            before = self._progress.of(name)
            if before.state == "over":
                continue
            passing = before.passing if before.state == "taking" else await self._before(name)
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
            if before.state == "over":
                passing = await self._probes.passing(await self._probes.pairs(name))
            else:
                passing = before.passing
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
        ended = await self._lines.run(name, self._ways.take)
        if ended.code:
            return f"the line that takes it over ended with {ended.code}: {ended.shown}"
        why = await self._ready(name)
        return why or await self._lost(passing)

    async def _given(self, name: str, passing: Sequence[Pair]) -> str:
        ended = await self._lines.run(name, self._ways.give)
        if ended.code:
            return f"the line that gives it back ended with {ended.code}: {ended.shown}"
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

    async def _before(self, name: str) -> tuple[Pair, ...]:
        """The probes that pass before the node is touched. Raises Refused(adopt_halted) when none does."""
        pairs = await self._probes.pairs(name)
        passing = await self._probes.passing(pairs)
        if pairs and not passing:
            raise _halted(
                name,
                f"none of {len(pairs)} probes passes, so that no loss could be seen ({self._probes.said})",
                "nothing was done to it. Mend that, or run it without probes: --pings 0",
            )
        return passing

    async def _lost(self, passing: Sequence[Pair]) -> str:
        lost = await self._probes.lost(passing)
        shown = ", ".join(f"{source or node} → {target}" for node, source, target in lost[:4])
        return f"{len(lost)} of {len(passing)} probes lost packets ({shown})" if lost else ""


def _halted(name: str, finding: str, then: str) -> Refused:
    return Refused("adopt_halted", f"{name}: {finding}; {then}. No further node was touched", node=name)
