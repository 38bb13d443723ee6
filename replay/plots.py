"""Pictures of the past: pool use and churn over time, and the ring of ranges.

One pass over the events collects what a picture needs, in memory that follows the size of the picture
and not of the log; matplotlib draws, without a display, as SVG (text stays text) or PNG. It is imported
only here and only when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from events import types
from events.codes.extras import install_line
from events.errors import IsthmusError, Refused, Usage
from replay.history import History, Point, Progress
from replay.output_files import whole_file
from replay.queries.states import base
from replay.when import from_ns

Kind = Literal["pool", "churn", "ring"]

COLUMNS = 600
"""Steps of time in a picture, at most: about one for every pixel or two."""

BARS = 200
"""Of them where they are bars that people read one by one, at most."""

_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400)
"""Steps that people count in; longer ones are whole days."""

RING_ALLOCATIONS_MAX = 200_000
"""Allocations drawn as points in a ring; of more, every n-th."""

_STATES = ("allocated", "draining", "quarantined")
_COLOURS = {"allocated": "#2a6f97", "draining": "#e09f3e", "quarantined": "#9d9dab", "free": "#eef1f4"}
"""Distinguishable by lightness alone, so that a print in grey stays readable."""


class PlotResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was drawn, and from how much."""

    file: str
    kind: str
    begin: Point
    end: Point
    events: int
    size_bytes: int


class _Series:
    """Counts at equal steps of time. The last value before the end of a step is the step's."""

    def __init__(self, begin_ns: int, end_ns: int, names: tuple[str, ...], columns: int = COLUMNS) -> None:
        self.begin_ns = begin_ns
        self.step_ns = step_of(end_ns - begin_ns, columns)
        self.values: dict[str, list[int]] = {name: [] for name in names}
        self.edges: list[int] = []

    def close_until(
        self, now_ns: int, current: dict[str, int], after: Callable[[], None] | None = None
    ) -> None:
        """Fill all steps that end at or before ``now_ns`` with ``current``; ``after`` runs behind each."""
        while self.begin_ns + (len(self.edges) + 1) * self.step_ns <= now_ns and len(self.edges) <= COLUMNS:
            self.edges.append(self.begin_ns + (len(self.edges) + 1) * self.step_ns)
            for name, values in self.values.items():
                values.append(current[name])
            if after is not None:
                after()


def step_of(span_ns: int, columns: int) -> int:
    """The shortest step of time (ns) that people count in and of which ``columns`` fill the span.

    A stretch of which every step would be shorter than a second is cut evenly.
    """
    least_s = span_ns / 1e9 / columns
    if least_s <= 1 / 10:
        return max(1, span_ns // columns)
    known = next((step for step in _STEPS_S if step >= least_s), 0)
    return (known or 86400 * math.ceil(least_s / 86400)) * 1_000_000_000


class PlotRequest(NamedTuple):
    """What to draw: the stretch ``(begin, end]`` of a history, with times in the zone ``tz``."""

    history: History
    begin: Point
    end: Point
    tz: tzinfo
    progress: Progress | None = None


async def draw(request: PlotRequest, kind: Kind, path: str | Path) -> PlotResult:
    """Draw ``kind`` into ``path`` (``.svg`` or ``.png``).

    Raises Usage for another ending, Refused(not_in_history) when there is nothing to draw. Cancelled, no file
    is left.
    """
    if Path(path).suffix.lower() not in (".svg", ".png"):
        raise Usage("usage", f"{path}: a picture ends in .svg or .png")
    begin, end = request.begin, request.end
    if end.sequence <= begin.sequence:
        raise Refused("not_in_history", f"nothing lies between event {begin.sequence} and event {end.sequence}")
    pyplot = _pyplot()
    collect = {"pool": _pool, "churn": _churn, "ring": _ring}[kind]
    figure = await collect(pyplot, request)
    try:
        with whole_file(path) as beside:
            figure.savefig(beside, metadata={"Date": None} if Path(path).suffix.lower() == ".svg" else None)
    finally:
        pyplot.close(figure)
    return PlotResult(
        file=str(path),
        kind=kind,
        begin=begin,
        end=end,
        events=end.sequence - begin.sequence,
        size_bytes=Path(path).stat().st_size,  # noqa: ASYNC240  once, after the work
    )


def _pyplot() -> Any:
    """Raises IsthmusError(prerequisite_missing) where the extra is not installed."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError as error:
        raise IsthmusError(
            "prerequisite_missing",
            "drawing needs matplotlib, which is not installed here; it is the extra 'plots'. Install that "
            f"from where this copy came from: {install_line('plots')}",
        ) from error

    mpl.use("agg")
    mpl.rcParams.update(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "isthmus",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "figure.dpi": 120,
        }
    )
    from matplotlib import pyplot as plt

    return plt


async def _bounds(history: History, begin: Point, end: Point) -> tuple[int, int]:
    first = await history.message(max(begin.sequence, history.start + 1))
    last = await history.message(end.sequence)
    return first.recorded_ns, max(last.recorded_ns, first.recorded_ns + 1)


def _dates(edges: list[int], tz: tzinfo) -> list[datetime]:
    return [from_ns(edge).astimezone(tz) for edge in edges]


def _time_axis(axes: Any, tz: tzinfo) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=tz)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=tz))  # type: ignore[no-untyped-call]
    name = datetime.now(UTC).astimezone(tz).tzname() or str(tz)
    axes.set_xlabel(f"recorded, {name}")


async def _pool(pyplot: Any, request: PlotRequest) -> Any:
    history, begin, end, tz, progress = request
    begin_ns, end_ns = await _bounds(history, begin, end)
    series = _Series(begin_ns, end_ns, (*_STATES, "capacity"))
    before = base(history)
    now = {
        "allocated": len(before.owned),
        "draining": len(before.draining),
        "quarantined": len(before.quarantined),
        "capacity": before.capacity,
    }
    async for batch in history.facts(until=end.sequence, progress=progress):
        for fact in batch:
            if fact.seq > begin.sequence:
                series.close_until(fact.recorded_ns, now)
            match fact.body:
                case types.ClusterDefined() | types.CidrAppended() as event:
                    now["capacity"] += event.capacity
                case types.RangeAllocated():
                    now["allocated"] += 1
                case types.RangeDraining():
                    now["allocated"] -= 1
                    now["draining"] += 1
                case types.RangeQuarantined():
                    now["draining"] -= 1
                    now["quarantined"] += 1
                case types.RangeFreed():
                    now["quarantined"] -= 1
                case _:
                    pass
    series.close_until(end_ns + series.step_ns, now)
    figure, axes = pyplot.subplots(figsize=(9, 4.2), layout="constrained")
    dates = _dates(series.edges, tz)
    axes.stackplot(
        dates,
        *(series.values[name] for name in _STATES),
        labels=_STATES,
        colors=[_COLOURS[name] for name in _STATES],
        step="pre",
    )
    used = max(map(sum, zip(*(series.values[name] for name in _STATES), strict=True)), default=0)
    share = 100 * used / max(1, now["capacity"])
    axes.set_title(
        f"Ranges in use, cluster {history.cluster}: at most {used:,} of {now['capacity']:,} ({share:.3g} %)"
    )
    axes.set_ylabel("ranges")
    red = {"color": "#8f1414", "linewidth": 1}
    if used * 3 >= now["capacity"]:
        axes.step(dates, series.values["capacity"], **red, label="capacity", where="pre")
        top = float(max(series.values["capacity"]))
    else:  # to scale it would leave the use a line at the foot of the picture
        top = max(1, used) * 1.15
        axes.axhline(
            top, **red, linestyle=(0, (6, 4)), label=f"capacity {now['capacity']:,}: far above, not to scale"
        )
    axes.set_ylim(0, top * 1.15)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(loc="upper left", frameon=False, ncols=4)
    _time_axis(axes, tz)
    return figure


async def _churn(pyplot: Any, request: PlotRequest) -> Any:
    history, begin, end, tz, progress = request
    begin_ns, end_ns = await _bounds(history, begin, end)
    series = _Series(begin_ns, end_ns, ("joins", "leaves", "nodes"), BARS)
    now = {"joins": 0, "leaves": 0, "nodes": len(base(history).nodes)}

    def anew() -> None:
        now["joins"] = now["leaves"] = 0

    async for batch in history.facts(until=end.sequence, progress=progress):
        for fact in batch:
            counts = fact.seq > begin.sequence
            if counts:
                series.close_until(fact.recorded_ns, now, anew)
            if isinstance(fact.body, types.NodeJoined):
                now["nodes"] += 1
                now["joins"] += counts
            elif isinstance(fact.body, types.NodeLeft | types.NodeFenced):
                now["nodes"] -= 1
                now["leaves"] += counts
    series.close_until(end_ns + series.step_ns, now, anew)
    figure, (above, below) = pyplot.subplots(
        2, 1, figsize=(9, 5), layout="constrained", sharex=True, height_ratios=(2, 3)
    )
    # From the beginning of the first step: its bar is as wide as the others.
    dates = _dates([begin_ns, *series.edges], tz)
    for values in series.values.values():
        values.insert(0, values[0])
    above.step(dates, series.values["nodes"], where="pre", color="#1a1d21", linewidth=1)
    above.set_ylabel("live nodes")
    above.set_ylim(bottom=0)
    above.set_title(f"Churn, cluster {history.cluster}")
    below.fill_between(dates, series.values["joins"], step="pre", color="#2a6f97", label="joins")
    below.fill_between(
        dates, [-n for n in series.values["leaves"]], step="pre", color="#e09f3e", label="leaves"
    )
    below.axhline(0, color="#1a1d21", linewidth=0.6)
    below.set_ylabel(f"nodes per {_span(series.step_ns)}")
    below.margins(y=0.25)
    below.legend(loc="upper left", frameon=False, ncols=2)
    _time_axis(below, tz)
    return figure


def _span(step_ns: int) -> str:
    seconds = step_ns / 1e9
    for size, name in ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= size:
            return name if seconds == size else f"{seconds / size:.3g} {name}s"
    return f"{seconds * 1000:.3g} ms"


async def _ring(pyplot: Any, request: PlotRequest) -> Any:
    """Allocations as points: time outwards, index round the circle. The cyclic order is a spiral."""
    history, begin, end, tz, progress = request
    begin_ns, end_ns = await _bounds(history, begin, end)
    points: list[tuple[int, int]] = []
    before = base(history)
    held: dict[int, str] = {index: before.phase_of(index) or "" for index in before.ranges}
    capacity, seen, keep = before.capacity, 0, 1
    async for batch in history.facts(until=end.sequence, progress=progress):
        for fact in batch:
            match fact.body:
                case types.ClusterDefined() | types.CidrAppended() as event:
                    capacity += event.capacity
                case types.RangeAllocated() as event:
                    held[event.index] = "allocated"
                    if fact.seq > begin.sequence:
                        seen += 1
                        if seen % keep == 0:
                            points.append((fact.recorded_ns, event.index))
                        if len(points) > RING_ALLOCATIONS_MAX:
                            points, keep = points[::2], keep * 2
                case types.RangeDraining() as event:
                    held[event.index] = "draining"
                case types.RangeQuarantined() as event:
                    held[event.index] = "quarantined"
                case types.RangeFreed() as event:
                    held.pop(event.index, None)
                case _:
                    pass
    if not capacity:
        raise Refused("not_in_history", "no cluster is defined in this stretch: there is no ring to draw")
    figure = pyplot.figure(figsize=(7.4, 7.8), layout="constrained")
    axes = figure.add_subplot(projection="polar")
    axes.set_theta_zero_location("N")
    axes.set_theta_direction(-1)
    turn = 2 * math.pi
    # Of a pool that has only grown a small part was ever used: the circle is that part, else all is one line.
    behind = 1 + max((*(index for _, index in points), *held), default=0)
    shown = min(capacity, 1 << (behind - 1).bit_length()) if behind * 3 < capacity else capacity
    axes.scatter(
        [turn * index / shown for _, index in points],
        [0.25 + 0.65 * (when - begin_ns) / (end_ns - begin_ns) for when, _ in points],
        s=max(0.4, min(12.0, 4000 / max(1, len(points)))),
        c="#2a6f97",
        linewidths=0,
        rasterized=len(points) > 5_000,
    )
    from matplotlib.patches import Patch

    width = turn / shown
    marks: list[Patch] = []
    for state in _STATES:
        indices = [index for index, name in held.items() if name == state]
        axes.bar(
            [turn * index / shown for index in indices],
            0.08,
            width=max(width, 0.002),
            bottom=0.94,
            align="edge",
            color=_COLOURS[state],
            linewidth=0,
        )
        marks.append(Patch(color=_COLOURS[state], label=f"{state} at the end: {len(indices):,}"))
    axes.set_ylim(0, 1.02)
    axes.set_yticks([0.25, 0.9])
    axes.set_yticklabels([])
    axes.grid(color="#d9dde3", linewidth=0.5)
    axes.set_xticks([turn * part / 8 for part in range(8)])
    axes.set_xticklabels([f"{shown * part // 8:,}" for part in range(8)])
    axes.tick_params(axis="x", pad=9)
    from replay.when import show

    axes.spines["polar"].set_color("#c9ced6")
    figure.suptitle(
        (
            f"The ring of {capacity:,} ranges, cluster {history.cluster}: "
            if shown == capacity
            else f"Ranges 0 to {shown - 1:,} of {capacity:,} (the others were never used), "
            f"cluster {history.cluster}: "
        )
        + f"{'each' if keep == 1 else f'every {keep}th'} allocation\n"
        f"inside {show(from_ns(begin_ns), tz)[:16]}, outside {show(from_ns(end_ns), tz)[:16]} "
        f"({datetime.now(UTC).astimezone(tz).tzname()}); round the circle: index of the range",
        fontsize=9,
        x=0.02,
        ha="left",
    )
    figure.legend(handles=marks, loc="outside lower center", frameon=False, ncols=3)
    return figure
