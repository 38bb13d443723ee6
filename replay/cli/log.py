"""``replay log``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from events.cli.options import awaited
from events.cli.output import table_option
from events.cli.tables import fields_line, print_table
from replay.cli.session import LogSource, Session, opened, progress, source_options

if TYPE_CHECKING:
    from replay.queries.entries import Entry, Filter

_LOG_LINES = 50
_TABLE_ROWS = 500


@click.command("log")
@source_options
@click.option("--node", default="", help="Only events about this node.")
@click.option("--range", "range_", default="", metavar="CIDR", help="Only events about this range.")
@click.option(
    "--ip", "address", default="", metavar="ADDR", help="Only events about this address or its range."
)
@click.option("--type", "types", multiple=True, metavar="PREFIX", help="Only types that begin so. Repeatable.")
@click.option("--by", "by", default="", metavar="TEXT", help="Only events whose actor contains this.")
@click.option("--command-id", "command", default="", help="Only this command's events.")
@click.option("--trace", default="", help="Only this trace's events.")
@click.option("--from", "since", default="", metavar="WHEN", help="Begin behind this moment.")
@click.option("--to", "until", default="", metavar="WHEN", help="End with this moment.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    default=_LOG_LINES,
    show_default=True,
    help="The last so many; 0 for all.",
)
@click.option("-f", "--follow", is_flag=True, help="Wait for more, until Ctrl-C.")
@table_option
@awaited
async def log_command(  # noqa: PLR0917  click passes options by name
    source: LogSource,
    node: str,
    range_: str,
    address: str,
    types: tuple[str, ...],
    by: str,
    command: str,
    trace: str,
    since: str,
    until: str,
    lines: int,
    follow: bool,
    as_json: bool,
) -> None:
    """The events, filtered. With --json one object per line.

    \b
    isthmus replay log --node idc-7
    isthmus replay log --type range. --from -2h
    isthmus replay log --by ops@ --from 'yesterday 14:00' \\
        --to 'yesterday 15:00' -n 0
    """
    from replay.queries.entries import Filter, Matcher, entries, newest

    if follow and until:
        raise click.UsageError("--follow waits for what is still to come: leave out --to.")
    wanted = Filter(
        node=node, range=range_, address=address, types=types, actor=by, command=command, trace=trace
    )
    Matcher(wanted)  # a filter that cannot be is told of before anything is read
    async with opened(source) as session:
        after = (await session.point(since)).sequence if since else session.history.start
        stop = (await session.point(until)).sequence if until else session.history.end
        shown, holes = 0, list[tuple[int, int]]()

        def hole(first: int, last: int) -> None:
            holes.append((first, last))

        def show(some: list[Entry]) -> None:
            nonlocal shown
            shown += len(some)
            if follow or as_json:
                for entry in some:
                    _line(session, entry, as_json=as_json)
            elif some:
                _table(session, some)

        with progress("reading", stop, start=after) as tick:
            if lines:
                show(
                    await newest(
                        session.history, wanted, lines, after=after, until=stop, on_hole=hole, progress=tick
                    )
                )
            else:
                waiting: list[Entry] = []  # a table at a time: a whole log need not fit into memory
                async for batch in entries(
                    session.history, wanted, after=after, until=stop, on_hole=hole, progress=tick
                ):
                    waiting += batch
                    while len(waiting) >= _TABLE_ROWS:
                        show(waiting[:_TABLE_ROWS])
                        del waiting[:_TABLE_ROWS]
                show(waiting)
        for first, last in _joined(holes):
            _note_gap(first, last)
        if follow:
            async for batch in entries(
                session.history, wanted, after=session.history.end, follow=True, on_hole=_note_gap
            ):
                show(batch)
        elif not shown:
            if not as_json:
                click.echo("no such event")
            await _suggest(session, wanted)


def _joined(holes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Holes in order; what was met in two pieces is one."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(holes):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


def _note_gap(first: int, last: int) -> None:
    what = f"events {first:,} to {last:,} are missing" if last > first else f"event {first:,} is missing"
    click.echo(f"note: {what} from the stream; isthmus replay verify checks the rest", err=True)


async def _suggest(session: Session, wanted: Filter) -> None:
    """Nothing fits the filter: say so where a name or a type is one that the log does not know."""
    from replay.queries.unknown import hint, suggestions, types_like

    for kind, name in (("node", wanted.node), ("range", wanted.range)):
        if name:
            async for _ in session.history.about(kind, name, newest_first=True):
                break
            else:
                near = hint(await suggestions(session.history, kind, name))
                click.echo(f"note: no event is about {kind} {name!r}{near}", err=True)
    if types := types_like(wanted.types):
        click.echo(f"note: did you mean the type {' or '.join(types)}?", err=True)


def _table(session: Session, some: list[Entry]) -> None:
    print_table(
        ("seq", "recorded", "type", "about", "by", "details"),
        [_row(session, entry) for entry in some],
        right=("seq",),
        drop=("by",),
        shorten=("details", "about"),
    )


def _row(session: Session, entry: Entry) -> tuple[str, ...]:
    stamp = entry.stamp
    return (str(stamp.sequence), session.when(stamp), stamp.type, entry.entity, stamp.actor, brief(entry))


def brief(entry: Entry) -> str:
    """The event's fields in a line, without those that other columns show."""
    hidden = {"node", "cluster", "name"} if not entry.stamp.type.startswith("range") else {"cidr", "index"}
    return fields_line(entry.event, hidden=hidden)


def _line(session: Session, entry: Entry, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode(entry).decode())
    else:
        click.echo("  ".join(_row(session, entry)))
