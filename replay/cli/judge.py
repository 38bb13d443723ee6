"""``replay bisect`` and ``stats``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from events.cli.options import json_option, run
from events.cli.tables import print_json, print_table
from replay.cli.source import Source, opened, progress, source_options

if TYPE_CHECKING:
    from replay.queries.stats import Spread


@click.command("bisect")
@source_options
@click.argument("condition", default="")
@click.option("--from", "since", default="start", metavar="WHEN", help="Look behind this moment only.")
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@click.option("--list", "show", is_flag=True, help="Show the ready-made conditions, names and functions.")
@json_option
def bisect_command(  # noqa: PLR0917  click passes options by name
    source: Source, condition: str, since: str, until: str, show: bool, as_json: bool
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
    if run(_bisect(source, condition, since, until, as_json=as_json)):
        sys.exit(1)


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


async def _bisect(source: Source, condition: str, since: str, until: str, *, as_json: bool) -> bool:
    from replay.queries.bisect import bisect

    async with opened(source) as asked:
        after, stop = (await asked.point(since)).sequence, (await asked.point(until)).sequence
        with progress("looking", stop) as tick:
            answer = await bisect(asked.states(), condition, after=after, until=stop, progress=tick)
        if as_json:
            print_json(answer)
        elif answer.failed is None:
            click.echo(
                f"{condition} holds up to event {answer.held_at:,} ({answer.looked_at:,} states looked at)"
            )
        else:
            failed = answer.failed
            rows = [
                ("first failure", f"event {failed.sequence:,} · {asked.when(failed)}"),
                ("event", failed.type),
                ("details", " ".join(f"{key}={value}" for key, value in answer.event.items())),
                ("by", f"{failed.actor}, command {failed.command_id}"),
                ("why", answer.message),
                ("searched", f"{answer.method}, {answer.looked_at:,} states looked at"),
            ]
            print_table(("", ""), rows, title=condition)
        return answer.failed is not None


@click.command("stats")
@source_options
@click.option("--from", "since", default="start", metavar="WHEN", help="Count behind this moment only.")
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@json_option
def stats_command(source: Source, since: str, until: str, as_json: bool) -> None:
    """Joins, leaves, lifetimes, reuse distance of ranges, and when the pool will be full.

    \b
    isthmus replay stats --from '7d ago'
    """
    run(_stats(source, since, until, as_json=as_json))


async def _stats(source: Source, since: str, until: str, *, as_json: bool) -> None:
    from replay.queries.stats import stats

    async with opened(source) as asked:
        after, stop = (await asked.point(since)).sequence, (await asked.point(until)).sequence
        with progress("counting", stop) as tick:
            answer = await stats(asked.history, after=after, until=stop, progress=tick)
        if as_json:
            print_json(answer)
            return
        share = f" ({answer.in_use / answer.capacity:.1%})" if answer.capacity else ""
        print_table(
            ("", ""),
            [
                ("events", f"{answer.first:,} to {answer.last:,}"),
                ("recorded", f"{asked.show(answer.recorded_from)} to {asked.show(answer.recorded_to)}"),
                ("joins, leaves, fenced", f"{answer.joins:,}, {answer.leaves:,}, {answer.fenced:,}"),
                ("nodes", f"{answer.nodes_at_end:,} at the end, {answer.nodes_at_most:,} at most"),
                ("ranges in use", f"{answer.in_use:,} of {answer.capacity:,}{share}"),
                ("trend", f"{answer.growth_per_day:+,.1f} ranges a day"),
                (
                    "exhausted",
                    f"{asked.show(answer.exhausted_at)} if the trend holds"
                    if answer.exhausted_at
                    else "not by this trend",
                ),
                ("refusals", ", ".join(f"{n:,} {code}" for code, n in answer.refusals.items()) or "none"),
            ],
            title=f"cluster {asked.history.cluster} ({asked.history.source})",
        )
        spreads: list[tuple[str, Spread]] = [
            ("lifetime of nodes", answer.lifetimes),
            ("draining", answer.drain),
            ("quarantine", answer.rest),
            ("reuse distance", answer.reuse_distance),
        ]
        print_table(
            ("", "count", "min", "median", "mean", "p90", "p99", "max"),
            [
                (
                    name,
                    f"{s.count:,}",
                    *(_value(v, s.unit) for v in (s.minimum, s.median, s.mean, s.p90, s.p99, s.maximum)),
                )
                for name, s in spreads
            ],
            right=("count", "min", "median", "mean", "p90", "p99", "max"),
        )
        print_table(
            ("event", "count"), [(kind, f"{n:,}") for kind, n in answer.events.items()], right=("count",)
        )


def _value(value: float, unit: str) -> str:
    if unit != "seconds":
        return f"{value:,.0f}"
    if value >= 2 * 86_400:
        return f"{value / 86_400:,.1f} d"
    if value >= 2 * 3600:
        return f"{value / 3600:,.1f} h"
    return f"{value / 60:,.1f} min" if value >= 120 else f"{value:,.1f} s"
