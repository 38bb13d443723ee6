"""Recorded churn on top of the running lab: simulated nodes come and go, the real nodes' kernels follow."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from deploy.churn.replay import drive, plan_changes, simulated_fleet
from deploy.churn.trace import load
from deploy.lab.failures import CheckFailedError
from deploy.lab.traffic.kills import Killer, schedule
from deploy.lab.traffic.measure import Flows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from deploy.churn.drive import Tally
    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab

FOLLOW_LIMIT_S = 60.0


async def churn(lab: Lab, report: Report, files: Sequence[Path], *, seed: int, kills: int) -> None:
    """Every join and leave goes through the real command path; at the end each real kernel holds exactly
    the rows of those who are left, and no packet between the real pods was lost meanwhile. With `kills`,
    so many random processes die by SIGKILL on the way, and still nothing is lost and nothing is doubled.

    Raises CheckFailedError. Cancelled, simulated nodes may stay members and a process that was killed last may
    stay dead; streams, fleet and killer are ended.
    """
    meanwhile = f", {kills} processes killed meanwhile" if kills else ""
    with report.stage(f"Recorded churn: every kernel follows, no packet lost{meanwhile}") as check:
        traces = load(files)
        plan = plan_changes(traces, lab.members.ledger, "longest-lived", seed)
        before = (lab.members.ledger.joins, lab.members.ledger.leaves)
        killer = Killer(lab, schedule(len(plan), kills, sorted(lab.nodes), seed) if kills else [])

        def progress(tally: Tally) -> None:
            report.progress(f"{tally.done:,} of {len(plan):,} joins and leaves")
            killer.due(tally.done)

        async with (
            Flows(lab, None) as flows,
            simulated_fleet(lab.bus, lab.log, lab.members.ledger) as fleet,
            running(killer) as killing,
        ):
            outcome = await drive(lab.client, fleet, traces, plan, window=64, progress=progress)
            report.progress("waiting for the last of the killed")
            await killer.finished(killing)
            report.progress("waiting for the kernels")
            expected = set(fleet.live) | set(lab.nodes)
            await lab.members.wait_for(lambda: set(lab.members.live) == expected, 30, "the log to say the same")
            behind_s = await lab.wait_converged(FOLLOW_LIMIT_S)
            await lab.members.wait_for(
                lambda: len(lab.members.ledger.held) == len(lab.members.live), 30, "drained ranges to come back"
            )
        tally = outcome.tally
        report.table(
            "Recorded sites (the longest-lived node leaves first)",
            ("site", "kind", "ticks", "most at once", "live at the end"),
            [
                (t.site, t.kind, f"{len(t.counts):,}", max(t.counts, default=0), tally.sites[t.site])
                for t in traces
            ],
            right=("ticks", "most at once", "live at the end"),
        )
        acknowledged = (tally.joins, tally.leaves)
        stored = (lab.members.ledger.joins - before[0], lab.members.ledger.leaves - before[1])
        if stored != acknowledged:
            raise CheckFailedError(f"joins and leaves: {acknowledged} acknowledged, {stored} in the log")
        check.measured = {
            "killed": killer.killed,
            "joins": tally.joins,
            "leaves": tally.leaves,
            "commands_per_second": round(outcome.rate, 1),
        }
        flows.judge(check)
        pool = lab.members.ledger.pool()
        check.detail = (
            f"{tally.joins:,} joins and {tally.leaves:,} leaves, {outcome.rate:,.0f} a second; kernels exact "
            f"{behind_s:.1f} s after the last\n{pool['allocated']} of {pool['capacity']} ranges allocated, "
            f"{pool['free']} free, {lab.members.ledger.wraps} times around the pool\n{check.detail}"
            + (f"\nkilled by SIGKILL: {', '.join(killer.killed)}" if kills else "")
        )


@asynccontextmanager
async def running(killer: Killer) -> AsyncIterator[asyncio.Task[None]]:
    """The killer at work for as long as the block runs.

    A cancellation inside of the block ends the killer, too; whom it killed last may stay dead.
    """
    task = asyncio.create_task(killer.run(), name="lab: killer")
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
