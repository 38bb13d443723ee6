"""``replay bisect``."""

from __future__ import annotations

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, opened, progress, source_options


@click.command("bisect")
@source_options
@click.argument("condition", default="")
@click.option("--from", "since", default="start", metavar="WHEN", help="Look behind this moment only.")
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@click.option("--list", "show", is_flag=True, help="Show the ready-made conditions, names and functions.")
@json_option
@awaited
async def bisect_command(  # noqa: PLR0917  click passes options by name
    source: LogSource, condition: str, since: str, until: str, show: bool, as_json: bool
) -> None:
    """The first event behind which CONDITION no longer holds. Exit code 1 when there is one.

    A condition is an expression over the state, or a ready-made one. Searched by halves where the
    condition cannot recover and a read model is at hand, else event by event.

    \b
    isthmus replay bisect 'nodes <= 500'
    isthmus replay bisect 'utilisation < 0.9 and unreachable == 0'
    isthmus replay bisect "range_of('idc-7') != '10.200.7.0/26'"
    isthmus replay bisect invariants
    """
    if show:
        _list(as_json=as_json)
        return
    if not condition:
        raise click.UsageError("Missing argument 'CONDITION' (--list shows what it may say).")
    from replay.queries.bisect import bisect

    async with opened(source) as session:
        after, stop = (await session.point(since)).sequence, (await session.point(until)).sequence
        with progress("looking", stop) as tick:
            answer = await bisect(session.states(), condition, after=after, until=stop, progress=tick)
        if as_json:
            print_json(answer)
        elif answer.failed is None:
            click.echo(
                f"{condition} holds up to event {answer.held_at:,} ({answer.looked_at:,} states looked at)"
            )
        else:
            failed = answer.failed
            rows = [
                ("first failure", f"event {failed.sequence:,} · {session.when(failed)}"),
                ("event", failed.type),
                ("details", " ".join(f"{key}={value}" for key, value in answer.event.items())),
                ("by", f"{failed.actor}, command {failed.command_id}"),
                ("why", answer.message),
                ("searched", f"{answer.method}, {answer.looked_at:,} states looked at"),
            ]
            print_table(("", ""), rows, title=condition)
    if answer.failed is not None:
        click.get_current_context().exit(1)


def _list(*, as_json: bool) -> None:
    from replay.queries.bisect import READY
    from replay.queries.expression import FUNCTIONS, VARIABLES

    rows = [("ready-made", name, text) for name, (text, _) in READY.items()]
    rows += [("name", name, text) for name, (_, _, text) in VARIABLES.items()]
    rows += [("function", name, text) for name, (_, text) in FUNCTIONS.items()]
    if as_json:
        print_json([{"kind": kind, "name": name, "meaning": text} for kind, name, text in rows])
    else:
        print_table(("", "name", "meaning"), rows)
