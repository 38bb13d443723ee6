"""``replay diff``."""

from __future__ import annotations

from typing import Any

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, TimesAsArguments, opened, progress, source_options


@click.command("diff", cls=TimesAsArguments)
@source_options
@click.argument("a", metavar="WHEN")
@click.argument("b", metavar="WHEN", default="now")
@json_option
@awaited
async def diff_command(source: LogSource, a: str, b: str, as_json: bool) -> None:
    """What changed between two moments.

    \b
    isthmus replay diff -2h now
    isthmus replay diff 4000 5000 --archive prod.isthmus
    """
    from replay.queries.difference import difference

    async with opened(source) as session:
        first, second = await session.point(a), await session.point(b)
        with progress("folding", max(first.sequence, second.sequence)) as tick:
            answer = await difference(session.states(), first, second, tick)
        if as_json:
            print_json(answer)
            return
        print_table(
            ("", "before", "after"),
            [(name, f"{x:,}", f"{y:,}") for name, (x, y) in answer.counts.items() if x != y],
            title=f"{session.at(first)}  →  {session.at(second)}",
            right=("before", "after"),
            empty="the numbers are the same",
        )
        print_table(
            ("what", "name", "", "before", "after"),
            [(c.kind, c.name, c.what, _pairs(c.before), _pairs(c.after)) for c in answer.changes],
            empty="nothing differs",
        )


def _pairs(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items() if value not in ("", None))
