"""``replay stats``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, opened, progress, source_options

if TYPE_CHECKING:
    from replay.queries.stats import Distribution, Stats


@click.command("stats")
@source_options
@click.option("--from", "since", default="start", metavar="WHEN", help="Count behind this moment only.")
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@json_option
@awaited
async def stats_command(source: LogSource, since: str, until: str, as_json: bool) -> None:
    """Joins, leaves, lifetimes, reuse distance of ranges, and when the pool will be full.

    \b
    isthmus replay stats --from '7d ago'
    """
    from replay.queries.stats import stats

    async with opened(source) as session:
        after, stop = (await session.point(since)).sequence, (await session.point(until)).sequence
        with progress("counting", stop) as tick:
            answer = await stats(session.history, after=after, until=stop, progress=tick)
        if as_json:
            print_json(answer)
            return
        share = f" ({answer.in_use / answer.capacity:.1%})" if answer.capacity else ""
        print_table(
            ("", ""),
            [
                ("events", f"{answer.first:,} to {answer.last:,}"),
                ("recorded", f"{session.show(answer.recorded_from)} to {session.show(answer.recorded_to)}"),
                ("joins, leaves, fenced", f"{answer.joins:,}, {answer.leaves:,}, {answer.fenced:,}"),
                ("nodes", f"{answer.nodes_at_end:,} at the end, {answer.nodes_at_most:,} at most"),
                ("ranges in use", f"{answer.in_use:,} of {answer.capacity:,}{share}"),
                *_forecast(answer, session.show),
                ("refusals", ", ".join(f"{n:,} {code}" for code, n in answer.refusals.items()) or "none"),
            ],
            title=f"cluster {session.history.cluster} ({session.history.source})",
        )
        spreads: list[tuple[str, Distribution]] = [
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


def _forecast(answer: Stats, show: Callable[[datetime | None], str]) -> list[tuple[str, str]]:
    """What the record lets one expect, with how far off that may be; nothing from too short a record."""
    from replay.queries.stats import FORECAST_MIN_S

    if answer.recorded_s < FORECAST_MIN_S:
        return [("trend", f"none: {answer.recorded_s / 3600:,.1f} h are recorded, a forecast needs 24 h")]
    trend = f"{answer.growth_per_day:+,.1f} ± {answer.growth_error_per_day:,.1f} ranges a day"
    if answer.growth_per_day <= answer.growth_error_per_day or answer.exhausted_at is None:
        return [("trend", trend), ("exhausted", "not by this trend")]
    left = answer.capacity - answer.in_use
    end = answer.recorded_to or answer.exhausted_at
    sooner = end + timedelta(days=left / (answer.growth_per_day + answer.growth_error_per_day))
    return [("trend", trend), ("exhausted", f"about {show(answer.exhausted_at)}, from {show(sooner)} on")]
