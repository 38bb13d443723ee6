"""A leaf server at the IDC: it mirrors the log, and agents there start from it without the cloud.

The link that is cut is the link between the leaf's machine and the management network, the only way to the hub;
the road that the pods' packets take between the sites is another one and stays. Cancelled, the link may stay
down, the agent dead and without its cache, and the two nodes on paper members; mirrors that were made stay.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING

from deploy.churn.trace import simulated_uid
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.buses import LEAF
from deploy.lab.machines.kernel import OverlayRows, vxlan_device
from deploy.lab.machines.shell import run
from deploy.lab.traffic.measure import Flows, judge_pairs, probe_all
from events import subjects
from events.protocol.commands import JoinNode, LeaveNode

if TYPE_CHECKING:
    from deploy.lab.machines.buses import Buses
    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab, LabNode

INIT_LIMIT_S = 60
START_LIMIT_S = 30.0
MIRROR_LIMIT_S = 150.0
"""After the loss of the server that it read from, a mirror asks again ever more slowly, up to two minutes."""
RESTORE_LIMIT_S = 60.0
MIRROR_PACE_S = 0.5
FIRST_ADDRESS = 220  # in the VPC's subnet, above every node and the load
BEFORE, MEANWHILE = "before-the-cut", "during-the-cut"


async def bring_up(lab: Lab, report: Report, buses: Buses) -> None:
    """The mirrors are made the way an operator makes them. Runs before the first external node joins."""
    with report.stage("A leaf server at the IDC mirrors the log") as check:
        cluster = lab.log.cluster
        for stream in (subjects.stream(cluster), subjects.snapshot_stream(cluster)):
            # A mirror of a stream that is not there yet asks again ever more slowly.
            there = partial(buses.exists, lab.bus, stream)
            await lab.wait_until(there, START_LIMIT_S, f"{stream} at the hub")
        arguments = ("site", "init", "--bus", buses.leaf_url, "--wait", str(INIT_LIMIT_S), "--json")
        mirrors = json.loads(await lab.isthmus(*arguments, machine=LEAF, as_controller=True))
        check.measured = {"mirrors": mirrors}
        check.detail = (
            f"{LEAF} at {buses.leaf_url}, mirrors "
            + ", ".join(f"{each['stream']} at {each['sequence']}" for each in mirrors)
            + "; external nodes connect to it"
        )


async def link_cut(lab: Lab, report: Report, buses: Buses) -> None:
    """Without the hub an agent at the IDC starts, remembering nothing, and learns all from the mirror.

    Raises CheckFailedError.
    """
    name = next(node.name for node in lab.topology.nodes if node.kind == "external")
    title = f"Link to the hub cut: the agent of {name} starts without a cache, from the mirror, no packet lost"
    with report.stage(title) as check:
        victim = lab.nodes[name]
        report.progress("waiting for the mirror to be level")
        stored = lab.members.sequence
        await lab.wait_until(
            lambda: _mirror_at(lab, buses, stored), MIRROR_LIMIT_S, f"the mirror to hold event {stored}"
        )
        async with Flows(lab, None) as flows:
            await victim.agent.kill()
            await _join(lab, BEFORE, 0)
            at_cut = lab.members.sequence
            stale = (await lab.rows([name]))[name]
            wanted = OverlayRows.of(lab.peers_of(name))
            if stale == wanted:
                raise CheckFailedError(f"the kernel of {name} followed although its agent is dead")
            await lab.wait_until(
                lambda: _mirror_at(lab, buses, at_cut), START_LIMIT_S, f"the mirror to hold event {at_cut}"
            )
            await _link(up=False)
            await _join(lab, MEANWHILE, 1)  # the hub goes on
            _delete_cache(victim)
            await victim.agent.start()
            started_s = victim.agent.started_at_s
            took_s = await _caught_up(lab, victim, wanted)
            mirror = await _mirror(lab, buses)
            # The hub's own events (a range's rest ends) may come between the look and the cut.
            if mirror >= lab.members.live[MEANWHILE].epoch - 1:
                raise CheckFailedError(
                    f"the link is not cut: hub at event {lab.members.sequence}, mirror at {mirror}, "
                    f"cut at {at_cut}"
                )
            if await lab.reports(name, since_s=started_s):
                raise CheckFailedError(f"a report of {name} came through the cut link")
            missed = len(wanted) - len(stale)
        flows.judge(check)
        check.measured |= {
            "node": name, "mirror": mirror, "hub": lab.members.sequence, "caught_up_s": round(took_s, 3),
        }  # fmt: skip
        check.detail += (
            f"\n{missed} rows missed while it was dead are there {took_s:.1f} s after its start; "
            f"the mirror at event {mirror}, the hub at {lab.members.sequence}"
        )
    if check.ok:
        await _rebooted(lab, report, victim, wanted)
    if report.ok:
        await _restored(lab, report, buses)
    else:  # a failed check must not spoil those after it
        await _link(up=True)
        if not victim.agent.running:
            await victim.agent.start()


async def _rebooted(lab: Lab, report: Report, victim: LabNode, wanted: OverlayRows) -> None:
    """What a reboot takes from a machine of the IDC, its agent gets back at the site alone."""
    title = (
        f"Link still cut: {victim.name} reboots without device, rows and cache, and its pods are reached again"
    )
    with report.stage(title) as check:
        await victim.agent.kill()
        _delete_cache(victim)
        device = await vxlan_device(victim.machine)
        if device is None:
            raise CheckFailedError(f"{victim.name} has no tunnel to lose")
        await victim.machine.run("ip", "link", "delete", device["ifname"])
        if len((await lab.rows([victim.name]))[victim.name]):
            raise CheckFailedError("rows outlived their device")
        await victim.agent.start()
        took_s = await _caught_up(lab, victim, wanted)
        results = await probe_all(lab, victim.pods)
        judge_pairs(check, results)
        check.measured |= {"node": victim.name, "rows": len(wanted), "caught_up_s": round(took_s, 3)}
        check.detail = f"{len(wanted)} rows {took_s:.1f} s after the agent's start; {check.detail}"


def _delete_cache(node: LabNode) -> None:
    """An empty cache: of what an agent keeps, only the machine's identity stays."""
    kept = list((node.directory / "state").glob("view.*"))
    if not kept:
        raise CheckFailedError(f"{node.name} has no cache to lose")
    for file in kept:
        file.unlink()


async def _caught_up(lab: Lab, node: LabNode, wanted: OverlayRows) -> float:
    """Seconds until the node's kernel holds exactly these rows."""

    async def holds() -> bool:
        if not node.agent.running:
            raise CheckFailedError(f"the agent of {node.name} ended:\n{node.agent.log_tail()}")
        return (await lab.rows([node.name]))[node.name] == wanted

    return await lab.timed(holds, START_LIMIT_S, f"{node.name} to hold {len(wanted)} rows")


async def _restored(lab: Lab, report: Report, buses: Buses) -> None:
    with report.stage("Link to the hub restored: the site learns what it missed and follows again") as check:
        await _link(up=True)
        missed_s = await lab.wait_converged(RESTORE_LIMIT_S)
        for node in (BEFORE, MEANWHILE):
            member = lab.members.live[node]
            await lab.client.send(LeaveNode(node=node, uid=member.uid, reason="the lab's check ends"))
        gone = {BEFORE, MEANWHILE}
        await lab.members.wait_for(lambda: not gone & set(lab.members.live), 10, "both nodes to have left")
        follow_s = await lab.wait_converged(RESTORE_LIMIT_S)
        sequence = lab.members.sequence
        mirror_s = await lab.timed(
            lambda: _mirror_at(lab, buses, sequence), RESTORE_LIMIT_S, f"the mirror to hold event {sequence}"
        )
        check.measured = {
            "missed_s": round(missed_s, 3), "new_events_s": round(follow_s, 3), "mirror_s": round(mirror_s, 3),
        }  # fmt: skip
        check.detail = (
            f"what was missed is in every kernel after {missed_s:.1f} s, new events {follow_s * 1e3:.0f} ms "
            f"after they were stored, the mirror level at event {sequence}"
        )


async def _join(lab: Lab, node: str, number: int) -> None:
    """A node that exists on paper only: its rows in the others' kernels tell who has heard of it."""
    vpc = lab.topology.sites[0]
    address = str(vpc.subnet[FIRST_ADDRESS + number])
    await lab.client.send(
        JoinNode(node=node, uid=simulated_uid(node), kind="cloud", underlay=address, site=vpc.name)
    )
    await lab.members.wait_for(
        lambda: node in lab.members.live and bool(lab.members.live[node].range), 10, f"the join of {node}"
    )


async def _link(*, up: bool) -> None:
    """The switch's end of the leaf's link to the management network."""
    await run(["ip", "link", "set", f"m-{LEAF}", "up" if up else "down"])


async def _mirror(lab: Lab, buses: Buses) -> int:
    """The last event in the mirror, asked on the leaf's own machine."""
    arguments = ("site", "status", "--bus", buses.leaf_url, "--json")
    states = json.loads(await lab.isthmus(*arguments, machine=LEAF))
    return next(int(each["sequence"]) for each in states if each["stream"] == subjects.stream(lab.log.cluster))


async def _mirror_at(lab: Lab, buses: Buses, sequence: int) -> bool:
    """Asked again at once by who waits: each look is a command of its own, which computes for half a second."""
    if await _mirror(lab, buses) >= sequence:
        return True
    await asyncio.sleep(MIRROR_PACE_S)
    return False
