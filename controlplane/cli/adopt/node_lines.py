"""Lines of shell that are run on the nodes of a plan, by ``ssh`` or the like."""

from __future__ import annotations

import asyncio
import shlex

import msgspec

from controlplane.cli.adopt.planning import AdoptionPlan
from events.protocol.commands import AdoptedNode

LINE_S = 300.0
"""Longest time of one line on a node."""
AT_ONCE = 8
OURS = "isthmus"
"""The tunnel device's name on a node that is over, unless it keeps the one that it had."""


class Ended(msgspec.Struct, frozen=True):
    """How a line on a node ended."""

    code: int
    said: str

    @property
    def shown(self) -> str:
        """Its last words."""
        return self.said[-400:]


class NodeLines:
    """Runs lines on nodes. ``on_node`` is the command that takes a line as its last word.

    In it and in each line ``{node}``, ``{address}``, ``{uid}``, ``{kind}``, ``{site}``, ``{device}``,
    ``{ours}`` and ``{mtu}`` stand for the node's own.
    """

    def __init__(self, plan: AdoptionPlan, on_node: str) -> None:
        self._plan, self._on_node = plan, on_node
        self._nodes = {node.node: node for node in plan.nodes}
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def run(self, name: str, line: str) -> Ended:
        """Run a line on a node. Cancelled or late, it is killed here; what it did there stays."""
        node = self._nodes[name]
        command = [filled(word, node, self._plan) for word in shlex.split(self._on_node)]
        async with self._slots:
            try:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    filled(line, node, self._plan),
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
        return Ended(process.returncode or 0, out.decode(errors="replace").strip())


def filled(text: str, node: AdoptedNode, plan: AdoptionPlan) -> str:
    """The text with the node's own words; other braces are the shell's."""
    words = {
        "node": node.node, "address": node.underlay, "uid": node.uid, "kind": node.kind, "site": node.site,
        "device": plan.device, "ours": plan.device if plan.keep_name else OURS, "mtu": str(plan.mtu),
    }  # fmt: skip
    for key, value in words.items():
        text = text.replace("{" + key + "}", value)
    return text
