"""One of the three servers that keep the log dies: what was acknowledged stays, and it goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from deploy.churn.replay import simulated_fleet
from deploy.lab.load import Load, compare
from deploy.lab.measure import Flows, judge_pairs, probe_all
from deploy.lab.report import ProofFailedError
from events import subjects

if TYPE_CHECKING:
    from deploy.lab.buses import Buses
    from deploy.lab.report import Report
    from deploy.lab.runtime import Lab

COMMANDS = 24
"""Acknowledged commands to wait for before the kill, between kill and restart, and after the restart."""
LEVEL_LIMIT_S = 45.0
FOLLOW_LIMIT_S = 60.0


async def server_killed(lab: Lab, report: Report, buses: Buses) -> None:
    """SIGKILL for the server that leads the log while commands run; then it comes back and catches up."""
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
                raise ProofFailedError(f"stream {stream} is led by {victim or 'nobody'}, not by one of ours")
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
