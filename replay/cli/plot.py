"""``replay plot``."""

from __future__ import annotations

from typing import Any, cast

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json
from replay.cli.session import LogSource, SuggestingChoice, opened, progress, source_options


@click.command("plot")
@source_options
@click.argument("kind", type=SuggestingChoice(["pool", "churn", "ring"]))
@click.option("--from", "since", default="start", metavar="WHEN", help="Begin with this moment.")
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@json_option
@click.option(
    "-o", "--output", "file", required=True, type=click.Path(dir_okay=False), help="The picture: .svg or .png."
)
@awaited
async def plot_command(  # noqa: PLR0917  click passes options by name
    source: LogSource, kind: str, since: str, until: str, file: str, as_json: bool
) -> None:
    """Draw the past: pool use, churn, or the ring of ranges with its cyclic order.

    \b
    isthmus replay plot pool --from '7d ago' -o pool.svg
    isthmus replay plot ring -o ring.png
    """
    from replay.plots import PlotRequest, draw

    async with opened(source) as session:
        begin, end = await session.point(since), await session.point(until)
        with progress("drawing", end.sequence) as tick:
            drawn = await draw(
                PlotRequest(session.history, begin, end, session.tz, tick), cast("Any", kind), file
            )
        if as_json:
            print_json(drawn)
        else:
            click.echo(f"{drawn.file}: {kind} of {drawn.events:,} events, {drawn.size_bytes:,} bytes")
