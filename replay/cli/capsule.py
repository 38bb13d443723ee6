"""``replay capsule``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, opened, progress, source_options


@click.command("capsule")
@source_options
@click.argument("file", type=click.Path(dir_okay=False))
@click.option("--from", "since", required=True, metavar="WHEN", help="The state at this moment comes along.")
@click.option("--to", "until", default="now", show_default=True, metavar="WHEN", help="The last event.")
@click.option("--reason", default="", help="What happened, for whoever opens it.")
@json_option
@awaited
async def capsule_command(  # noqa: PLR0917  click passes options by name
    source: LogSource, file: str, since: str, until: str, reason: str, as_json: bool
) -> None:
    """Pack an incident: a stretch of the log, the state before it, the agents' reports.

    A capsule is an archive: every replay command takes it with --archive. The lab re-runs it.

    \b
    isthmus replay capsule incident.isthmus --from 'yesterday 14:00' \\
        --to 'yesterday 14:20'
    isthmus lab --capsule incident.isthmus
    """
    from replay.capsule import make_capsule

    async with opened(source) as session:
        begin, end = await session.point(since), await session.point(until)
        with progress("packing", end.sequence) as tick:
            about = await make_capsule(session.states(), begin, end, file, reason=reason, progress=tick)
        if as_json:
            print_json(about)
            return
        rows: list[tuple[str, Any]] = [
            ("file", f"{file}, {Path(file).stat().st_size:,} bytes"),  # noqa: ASYNC240  once, after the work
            ("events", f"{about.begin.sequence + 1:,} to {about.end.sequence:,}"),
            ("from", session.at(about.begin)),
            ("to", session.at(about.end)),
            ("state before", f"{about.nodes:,} nodes, digest {about.digest}"),
            ("agents' reports", f"{about.reports:,}"),
        ]
        print_table(("", ""), rows, title=f"capsule of cluster {about.cluster}")
