"""A bare machine behind NAT becomes a node by one command, and is none any more by another.

Cancelled, the machine stays what it is until the lab ends.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING

from deploy.join.earlier import SUFFIX
from deploy.lab import commands
from deploy.lab.checks.waiting import POLL_S
from deploy.lab.failures import CheckFailedError
from deploy.lab.traffic.measure import judge_pairs, probe_all

if TYPE_CHECKING:
    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab

JOINED_S = 60.0
"""From the command to its last line: longer is a failure."""


async def by_one_command(lab: Lab, report: Report) -> None:
    """The topology's spare machine joins by a token, and its pods reach all others. Raises nothing."""
    spare = lab.topology.spare
    with report.stage(f"{spare.name}, behind its router, becomes a node by one command") as check:
        token = await lab.isthmus(
            *("token", "create", spare.name, "--open", "--kind", spare.kind, "--site", spare.site.name)
        )
        started = time.monotonic()
        node = await lab.start_node(spare, by=token.strip())
        said = await _last_line(lab, started)
        check.measured["joined_s"] = seconds = round(time.monotonic() - started, 1)
        member, peers = lab.members.live[spare.name], len(lab.members.live) - 1
        if said != f"node {spare.name} has {member.range}; {peers} of {peers} peers answer":
            raise CheckFailedError(f"it ended with {said!r}; the log has {member.range} and {peers} others")
        await lab.start_pods(node)
        judge_pairs(check, await probe_all(lab, node.pods))
        typed = "isthmus join TOKEN"
        if lab.bare is not None:
            typed = f"python3 {lab.bare.archive.name} TOKEN, with nothing of Isthmus there"
            check.measured["installed_s"] = installed = _installed_s(lab)
            said = f"{installed:.1f} s of it for installing: {said}"
        check.detail = f"{typed}, {seconds:.1f} s: {said}\n{check.detail}"


async def _last_line(lab: Lab, started: float) -> str:
    """The line by which the join ends. Raises CheckFailedError."""
    node = lab.nodes[lab.topology.spare.name]
    while True:
        found = [line for line in node.agent.log_tail(1000).splitlines() if line.endswith(" peers answer")]
        if found:
            return found[-1]
        if time.monotonic() - started > JOINED_S or not node.agent.running:
            raise CheckFailedError(f"not joined within {JOINED_S:g} s:\n{node.agent.log_tail()}")
        await asyncio.sleep(POLL_S)


def _installed_s(lab: Lab) -> float:
    """How long the installation took, as it says itself. Raises CheckFailedError."""
    text = lab.nodes[lab.topology.spare.name].agent.log_tail(1000)
    found = re.search(r"^✓ install +(\d+\.\d) s ", text, re.MULTILINE)
    if found is None:
        raise CheckFailedError(f"nothing was installed:\n{text}")
    return float(found[1])


async def undone(lab: Lab, report: Report) -> None:
    """The same machine leaves: nothing of ours is left on it, and nobody has rows about it. Raises nothing."""
    name = lab.topology.spare.name
    with report.stage(f"{name} leaves by one command") as check:
        node, member = lab.nodes[name], lab.members.live[name]
        await lab.retire(node)
        leave = ("leave", "--yes", *commands.folders(node.directory))
        if lab.bare is None:
            said = await lab.isthmus(*leave, machine=name)
        else:
            said = await node.machine.run(*lab.bare.inside("isthmus", *leave))
        await lab.members.wait_for(lambda: name not in lab.members.live, 10, f"the event that {name} left")
        seconds = await lab.wait_converged()
        left = await node.machine.run("ip", "-o", "link", "show", "type", "vxlan")
        there = (path.name for path in (node.directory / "etc").iterdir())
        kept = [name for name in there if name != f"{commands.SETTINGS}{SUFFIX}"]  # which the join had found
        if left or kept:
            raise CheckFailedError(f"left behind on {name}: {left or ', '.join(kept)}")
        check.detail = (
            f"{said.splitlines()[-1]}: {member.range} drains, no device and no file is left; "
            f"nobody has rows about it {seconds * 1e3:.0f} ms later"
        )
