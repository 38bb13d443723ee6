"""Recorded churn on top of the running lab: simulated nodes come and go, the real nodes' kernels follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.churn.replay import drive, plan_changes, simulated_fleet
from deploy.churn.trace import load
from deploy.lab.measure import Flows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploy.lab.report import Report
    from deploy.lab.runtime import Lab

FOLLOW_LIMIT_S = 60.0


async def churn(lab: Lab, report: Report, files: Sequence[Path], *, seed: int) -> None:
    """Every join and leave goes through the real command path; at the end each real kernel holds exactly
    the rows of those who are left, and no packet between the real pods was lost meanwhile."""
    with report.stage("Recorded churn: every kernel follows, no packet lost") as check:
        traces = load(files)
        plan = plan_changes(traces, lab.members.ledger, "longest-lived", seed)
        async with Flows(lab, None) as flows, simulated_fleet(lab.bus, lab.log, lab.members.ledger) as fleet:
            outcome = await drive(
                lab.client,
                fleet,
                traces,
                plan,
                window=64,
                progress=lambda tally: report.progress(f"{tally.done:,} of {len(plan):,} joins and leaves"),
            )
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
        check.measured = {
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
        )
