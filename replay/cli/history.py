"""``replay history`` and ``replay blame``."""

from __future__ import annotations

from typing import Any, cast

import click

from events.cli.options import awaited
from events.cli.output import table_option
from events.cli.tables import fields_line, print_json, print_table
from replay.cli.session import LogSource, SuggestingChoice, at_option, opened, source_options


@click.command("history")
@source_options
@click.argument("kind", type=SuggestingChoice(["node", "range", "clb", "entry", "cluster"]))
@click.argument("name", default="")
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@table_option
@awaited
async def history_command(source: LogSource, kind: str, name: str, until: str, as_json: bool) -> None:
    """The life of a node, a range (CIDR), a CLB reservation, an entry or the cluster.

    \b
    isthmus replay history node idc-7
    isthmus replay history range 10.200.7.0/26
    isthmus replay history clb apiserver
    """
    if not name and kind != "cluster":
        raise click.UsageError(f"Missing argument 'NAME': which {kind}?")
    from replay.queries.lives import life

    async with opened(source) as session:
        stop = (await session.point(until)).sequence
        name = name or (session.history.cluster if kind == "cluster" else name)
        steps = await life(session.history, cast("Any", kind), name, until=stop)
        if as_json:
            print_json({"kind": kind, "name": name, "steps": steps})
            return
        rows = []
        for step in steps:
            fields = fields_line({key: value for key, value in step.event.items() if value != name})
            rows.append(
                (step.stamp.sequence, session.when(step.stamp), step.stamp.type, step.stamp.actor, fields)
            )
        print_table(
            ("seq", "recorded", "what", "by", "details"),
            rows,
            title=f"{kind} {name} ({session.history.source})",
            right=("seq",),
            drop=("by",),
            shorten=("details",),
        )


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
