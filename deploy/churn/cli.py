"""`isthmus churn`: replay recorded node churn against any controller, without namespaces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from events.cli.options import BusContext, awaited, bus_options, json_option
from events.cli.tables import console, print_json, print_table

if TYPE_CHECKING:
    from deploy.churn.replay import Outcome
    from deploy.churn.trace import LeaveOrder
    from deploy.churn.verify import VerifiedLog


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE…")
@click.option(
    "--external", multiple=True, metavar="PATTERN",
    help="Sites whose name matches are external, the others cloud (default: every second file).",
)  # fmt: skip
@click.option(
    "--leave", type=click.Choice(["longest-lived", "random"]), default="longest-lived", show_default=True,
    help="The recordings count nodes without naming them: who leaves when the number falls.",
)  # fmt: skip
@click.option("--seed", default=1, show_default=True, help="Seed of --leave random.")
@click.option(
    "--window", default=64, show_default=True, type=click.IntRange(1, 4096), help="Commands under way at once."
)
@click.option(
    "--define", is_flag=True,
    help="Define the cluster first: 10.200.0.0/16, 64 pods a node, 256 Services, no quarantine.",
)  # fmt: skip
@bus_options
@json_option
@awaited
async def churn(  # noqa: PLR0917 - click passes every option by name
    files: tuple[Path, ...], external: tuple[str, ...], leave: LeaveOrder, seed: int, window: int, define: bool,
    context: BusContext, as_json: bool,
) -> None:  # fmt: skip
    """Replay recorded node churn through the real command path of any controller.

    FILE is a recording ({"metadata": {"gap_seconds": 300}, "data": [n0, n1, …]}: how many nodes a zone
    had at each tick) or a directory of them. Each rise is that many joins, each fall that many leaves,
    sent as real commands as fast as the controller takes them. Simulated agents report what they have
    applied, so drained ranges come back; nodes that are there at the end stay, and a later replay reports
    for them too. At the end the whole log is read and verified: its hash chain, and that no two owners ever
    held overlapping addresses.

    \b
    isthmus up &
    isthmus churn --define tests/data/node-churn
    isthmus churn --leave random --seed 7 --external '*-west-*' \\
        tests/data/node-churn
    """
    from deploy.churn.replay import drive, plan_changes, read_ledger, settled, simulated_fleet
    from deploy.churn.trace import find_files, load
    from deploy.churn.verify import verify_log
    from events.bus.client import ControllerClient
    from events.bus.connection import connect
    from events.jetstream.log import JetStreamLog
    from events.protocol.commands import DefineCluster
    from replay.cli.session.progress import progress

    traces = load(find_files(list(files)), list(external))
    bus = await connect(context.bus, name=f"isthmus-churn/{context.actor}")
    try:
        controller = ControllerClient(bus, context.cluster, actor=context.actor)
        if define:
            await controller.send(
                DefineCluster(container_cidr="10.200.0.0/16", pods_per_node=64, services=256, quarantine_s=0.0)
            )
        log = await JetStreamLog.open(bus, context.cluster)
        ledger = await read_ledger(log)
        plan = plan_changes(traces, ledger, leave, seed)
        async with simulated_fleet(bus, log, ledger) as fleet:
            with progress("joins and leaves", len(plan), unit="commands") as tick:
                outcome = await drive(
                    controller, fleet, traces, plan, window=window, progress=lambda tally: tick(tally.done)
                )
            await settled(log, ledger, ledger.quarantine_s)
        with progress("verifying the log", ledger.sequence) as tick:
            verified = await verify_log(log, lambda done, _known: tick(done))
    finally:
        await bus.close()
    if as_json:
        print_json(outcome.document(verified, leave, seed))
    else:
        _show(outcome, verified, leave, seed)


def _show(outcome: Outcome, verified: VerifiedLog, order: LeaveOrder, seed: int) -> None:
    tally, ledger, pool = outcome.tally, verified.ledger, verified.ledger.pool()
    print_table(
        ("site", "kind", "ticks", "most at once", "live at the end"),
        [
            (
                trace.site,
                trace.kind,
                f"{len(trace.counts):,}",
                max(trace.counts, default=0),
                tally.sites[trace.site],
            )
            for trace in outcome.traces
        ],
        title="Recordings",
        right=("ticks", "most at once", "live at the end"),
    )
    print_table(
        ("capacity", "allocated", "draining", "quarantined", "free"),
        [[f"{pool[key]:,}" for key in ("capacity", "allocated", "draining", "quarantined", "free")]],
        title="Ranges at the end",
        right=("capacity", "allocated", "draining", "quarantined", "free"),
    )
    who = "the longest-lived node left first" if order == "longest-lived" else f"leavers drawn with seed {seed}"
    out = console()
    out.print(
        f"{tally.joins:,} joins and {tally.leaves:,} leaves in {outcome.seconds:.1f} s: "
        f"{outcome.rate:,.0f} a second, "
        f"median {tally.latency_s(0.5) * 1e3:.1f} ms, 99 % within {tally.latency_s(0.99) * 1e3:.1f} ms; {who}"
        + (f"; {tally.waits:,} joins waited for a free range" if tally.waits else "")
    )
    out.print(
        f"Verified from {verified.head.sequence:,} events: unbroken hash chain; "
        f"{ledger.allocations:,} allocations, "
        f"{ledger.wraps} times around the pool, at most {ledger.most_held:,} ranges held at once, "
        "and no two nodes ever shared one"
    )
