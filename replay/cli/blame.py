"""``replay blame``."""

from __future__ import annotations

import click

from events.cli.options import awaited
from events.cli.output import table_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, SuggestingChoice, at_option, opened, source_options


@click.command("blame")
@source_options
@click.argument("kind", type=SuggestingChoice(["node"]))
@click.argument("name")
@at_option
@table_option
@awaited
async def blame_command(source: LogSource, kind: str, name: str, at: str, as_json: bool) -> None:
    """Which event last set each attribute of a node.

    \b
    isthmus replay blame node idc-7 --at -2h
    """
    from replay.queries.lives import blame

    async with opened(source) as session:
        point = await session.point(at)
        attributes = await blame(session.history, name, point)
        if as_json:
            print_json({"kind": kind, "name": name, "at": point, "attributes": attributes})
            return
        print_table(
            ("attribute", "value", "seq", "set at", "by", "event"),
            [
                (a.name, a.value, a.stamp.sequence, session.when(a.stamp), a.stamp.actor, a.stamp.type)
                for a in attributes
            ],
            title=f"{kind} {name} at {session.at(point)}",
            right=("seq",),
            drop=("by", "event"),
        )
