"""Bus servers killed: one of three is not noticed, two of three are refused in time, nothing is lost.

Cancelled, a check ends its streams and its load: killed servers may stay dead, and nodes that it let join
members.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from deploy.churn.replay import simulated_fleet
from deploy.churn.trace import simulated_uid
from deploy.lab.failures import CheckFailedError
from deploy.lab.traffic.load import PATIENCE_S, Load, compare
from deploy.lab.traffic.measure import Flows, judge_pairs, probe_all
from events import subjects
from events.errors import Unavailable
from events.ids import new_id
from events.protocol.commands import JoinNode, LeaveNode

if TYPE_CHECKING:
    from deploy.lab.machines.buses import Buses
    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab

COMMANDS = 24
"""Acknowledged commands to wait for before the kill, between kill and restart, and after the restart."""
LEVEL_LIMIT_S = 45.0
ANSWER_LIMIT_S, MARGIN_S = 6.0, 2.0
"""How long a command without a majority may wait, and how much later its refusal may come."""
ADDRESS = 230  # in the VPC's subnet, above every node and the load
FOLLOW_LIMIT_S = 60.0


async def server_killed(lab: Lab, report: Report, buses: Buses) -> None:
    """SIGKILL for the server that leads the log while commands run; then it comes back and catches up.

    Raises CheckFailedError.
    """
    name = "The log's leading bus server killed under load: no acknowledged command lost"
    with report.stage(name) as check:
        stream = subjects.stream(lab.log.cluster)
        loop = asyncio.get_running_loop()
        async with (
            Flows(lab, None) as flows,
            simulated_fleet(lab.bus, lab.log, lab.members.ledger) as fleet,
            Load(lab, fleet) as load,
        ):
            await load.more(COMMANDS)
            victim = await buses.leader(lab.bus, stream)
            if victim not in buses.hub:
                raise CheckFailedError(f"stream {stream} is led by {victim or 'nobody'}, not by one of ours")
            report.progress(f"SIGKILL for {victim}, which leads the log")
            before, killed_at = len(load.answers), loop.time()
            await buses.hub[victim].kill()
            await load.more(COMMANDS)
            answered_s = loop.time() - killed_at
            successor = await buses.leader(lab.bus, stream)
            results = await probe_all(lab)
            report.progress(f"{victim} starts again")
            without = len(load.answers) - before
            await buses.hub[victim].start()
            started_at = loop.time()
            await lab.wait_until(
                lambda: buses.level(lab.bus, stream, victim), LEVEL_LIMIT_S, f"{victim} to hold the whole log"
            )
            level_s = loop.time() - started_at
            await load.more(COMMANDS)
        answers = load.answers
        events = await compare(lab.log, answers)
        await lab.wait_converged(FOLLOW_LIMIT_S)
        flows.judge(check)
        streams = check.detail
        judge_pairs(check, results)
        check.measured |= {
            "killed": victim,
            "leader_after": successor,
            "acknowledged": len(answers),
            "acknowledged_without_it": without,
            "events": events,
            "lost": 0,
            "answered_again_s": round(answered_s, 3),
            "slowest_command_s": round(load.slowest_s, 3),
            "level_after_s": round(level_s, 3),
        }
        check.detail = (
            f"{victim} killed; {len(answers)} joins and leaves acknowledged, {without} of them without it, "
            f"all in the log once ({events} events)\n"
            f"{COMMANDS} more answers {answered_s:.1f} s after the kill, slowest command "
            f"{load.slowest_s:.1f} s; {victim} caught up {level_s:.1f} s after its start\n"
            f"{streams}\n{check.detail}"
        )


async def majority_gone(lab: Lab, report: Report, buses: Buses) -> None:
    """Two of three servers die: a command is refused in time, and repeated later it takes effect once.

    Raises CheckFailedError.
    """
    with report.stage(
        "Two of three bus servers killed: commands are refused in time, pods still reach each other"
    ) as check:
        loop, members = asyncio.get_running_loop(), dict(lab.members.live)
        victims = sorted(buses.hub)[:2]
        vpc = lab.topology.sites[0]
        node, command_id = "without-majority", new_id()
        join = JoinNode(
            node=node, uid=simulated_uid(node), kind="cloud", underlay=str(vpc.subnet[ADDRESS]), site=vpc.name
        )
        async with Flows(lab, None) as flows:
            await asyncio.gather(*(buses.hub[name].kill() for name in victims))
            asked_at = loop.time()
            try:
                await lab.client.send(join, command_id=command_id, timeout_s=ANSWER_LIMIT_S)
            except Unavailable as error:
                code, told_s = error.code, loop.time() - asked_at
            else:
                raise CheckFailedError("a command was acknowledged by one server of three")
            if told_s > ANSWER_LIMIT_S + MARGIN_S:
                raise CheckFailedError(f"the answer {code} took {told_s:.1f} s of {ANSWER_LIMIT_S:g} s")
            results = await probe_all(lab)
            if lab.members.live != members:
                raise CheckFailedError("the log went on without a majority")
            await asyncio.gather(*(buses.hub[name].start() for name in victims))
            started_at = loop.time()
            reply = await lab.client.send(join, command_id=command_id, timeout_s=PATIENCE_S)
            again_s = loop.time() - started_at
        await compare(lab.log, {command_id: reply})
        await lab.client.send(LeaveNode(node=node, uid=join.uid, reason="the lab's check ends"))
        await lab.members.wait_for(lambda: set(lab.members.live) == set(members), 10, f"{node} to have left")
        await lab.wait_converged(FOLLOW_LIMIT_S)
        flows.judge(check)
        streams = check.detail
        judge_pairs(check, results)
        check.measured |= {
            "killed": victims,
            "code": code,
            "told_s": round(told_s, 3),
            "answered_again_s": round(again_s, 3),
        }
        check.detail = (
            f"{' and '.join(victims)} killed: a join got `{code}` after {told_s:.1f} s; repeated with its id "
            f"it took effect once, {again_s:.1f} s after they were back\n{streams}\n{check.detail}"
        )
