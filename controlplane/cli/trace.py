"""``isthmus trace``: follow a command to the last node, in the terminal, without any tracing backend."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from controlplane.cli.common import ask
from events.cli.numbers import printed_number
from events.cli.options import BusContext, bus_options, json_option
from events.cli.output import listing_options
from events.cli.tables import console, print_json, print_table

if TYPE_CHECKING:
    from rich.text import Text

    from controlplane.controller.observability.waterfall import Waterfall, WaterfallRow

COLOURS = {"isthmus-cli": "yellow", "isthmus-controller": "cyan", "isthmus-agent": "green"}
EIGHTHS = " ▏▎▍▌▋▊▉█"
BEGINNINGS = " ▕▕▐▐▐▐██"
"""A cell that is filled from its right: there are few such characters."""
NAME_MIN = 12
"""Columns that a span's name keeps in a narrow terminal."""


@click.group()
def trace() -> None:
    """Traces of commands: from the operator who sent them to the netlink writes on every node.

    The controller keeps recent spans of every role by itself. To send them to a collector, too, set
    OTEL_EXPORTER_OTLP_ENDPOINT for each role.
    """


@trace.command("show")
@bus_options
@click.argument("reference", metavar="EVENT|COMMAND|NODE|TRACE")
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Show at most so many traces (of a node, say).",
)
@click.option("--attributes", is_flag=True, help="Print each span's attributes, too.")
@json_option
def show(context: BusContext, reference: str, limit: int, attributes: bool, as_json: bool) -> None:
    """Draw a trace as a waterfall.

    \b
    isthmus trace show 1234            the transaction that wrote event 1234
    isthmus trace show idc-7           the latest trace that touched node idc-7
    isthmus trace show 0190a3c2-…      a command, by its id
    """
    from controlplane.controller.observability.trace_query import TraceAnswer, TraceQuery

    number = printed_number(reference)
    asked = reference if number is None else str(number)
    answer = ask(context, TraceQuery(reference=asked, limit=limit), TraceAnswer)
    if as_json:
        print_json(answer)
        return
    for picture in answer.traces:
        draw(picture, attributes=attributes)


@trace.command("list")
@bus_options
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="At most so many.")
@click.option("--errors", is_flag=True, help="Only traces with an error or a refusal.")
@click.option("--node", default="", help="Only traces that touched this node.")
@listing_options
def list_traces(context: BusContext, limit: int, errors: bool, node: str, as_json: bool) -> None:
    """The latest traces, newest first: how many spans of how many processes (on).

    \b
    isthmus trace list --errors
    isthmus trace list --node idc-7
    """
    from controlplane.controller.observability.trace_query import TracesAnswer, TracesQuery

    answer = ask(context, TracesQuery(limit=limit, errors=errors, node=node), TracesAnswer)
    if as_json:
        print_json(answer)
        return
    print_table(
        ("id", "started", "spans", "on", "took ms", "errors", "trace", "begun by"),
        [
            (
                t.trace_id[:8],
                f"{datetime.fromtimestamp(t.start_ns / 1e9).astimezone():%m-%d %H:%M:%S}",
                t.spans,
                t.services,
                f"{t.duration_ms:.1f}",
                t.errors or "",
                _deed(t.name),
                f"{t.service.removeprefix('isthmus-')} {t.instance}",
            )
            for t in answer.traces
        ],
        right=("spans", "on", "took ms", "errors"),
        drop=("on", "spans", "errors"),
        shorten=("begun by", "trace"),
        empty="no trace is kept yet; every command leaves one",
    )


def _deed(name: str) -> str:
    """What was done, of a span's name."""
    return name.removeprefix("process command.").replace("-", " ") if "command." in name else name


def draw(picture: Waterfall, *, attributes: bool) -> None:
    """Print the waterfall, as wide as the terminal."""
    from rich.text import Text

    screen = console()
    started = datetime.fromtimestamp(picture.start_ns / 1e9).astimezone()
    head = Text()
    head.append(f"trace {picture.trace_id}", style="bold")
    head.append(
        f"  {started:%Y-%m-%d %H:%M:%S.%f}  {_took(picture.duration_ms)}  {len(picture.rows)} spans, "
        f"{len(picture.services)} processes",
        style="dim",
    )
    if picture.errors:
        head.append(f"  {picture.errors} refused or failed", style="bold red")
    screen.print(head)
    label_width = min(56, max(32, screen.width * 45 // 100))
    lane_width = max(16, screen.width - label_width - 11)
    for row in picture.rows:
        screen.print(line(row, picture.duration_ms, label_width, lane_width), no_wrap=True, overflow="crop")
        if row.span.status == "ERROR":
            screen.print(Text(f"{'  ' * row.depth}  {row.span.message}", style="red"))
        if attributes:
            for key, value in sorted(row.span.attributes.items()):
                screen.print(Text(f"{'  ' * row.depth}    {key} = {value}", style="dim"), soft_wrap=True)
    if picture.truncated:
        screen.print(Text("… the store holds more spans of this trace than are shown", style="dim"))


def line(row: WaterfallRow, total_ms: float, label_width: int, lane_width: int) -> Text:
    """One span: its name, indented; its bar, to an eighth of a column; how long it took."""
    from rich.text import Text

    span = row.span
    style = "red" if span.status == "ERROR" else COLOURS.get(span.service, "magenta")
    indent = "  " * min(row.depth, 12) + ("↪ " if row.joined == "link" else "")
    who = f"{span.service.removeprefix('isthmus-')} {span.instance}".strip()
    if len(indent) + len(span.name) + 2 + len(who) > label_width:
        who = span.instance or who  # of five agents that do the same, one wants to know which is which
    name = Text(span.name)
    name.truncate(max(NAME_MIN, label_width - len(indent) - 2 - len(who)), overflow="ellipsis")
    text = Text(indent)
    text.append(name.plain, style="bold" if row.depth == 0 else "")
    text.append(f"  {who}", style="dim")
    text.truncate(label_width, overflow="ellipsis", pad=True)
    text.append(" ")
    text.append(bar(row.offset_ms, row.duration_ms, total_ms, lane_width), style=style)
    text.append(f"{_took(row.duration_ms):>9}", style="dim")
    return text


def bar(offset_ms: float, duration_ms: float, total_ms: float, width: int) -> str:
    """A bar of block characters. A span shorter than an eighth of a column is still seen."""
    total = max(total_ms, 1e-6)
    start = int(offset_ms / total * width * 8)
    end = max(start + 1, int((offset_ms + duration_ms) / total * width * 8))
    start, end = min(start, width * 8 - 1), min(end, width * 8)
    first, last = start // 8, (end - 1) // 8
    cells = [" "] * width
    for place in range(first, last + 1):
        filled = min(end - place * 8, 8) - max(start - place * 8, 0)
        cells[place] = (BEGINNINGS if place == first < last else EIGHTHS)[filled]
    return "".join(cells)


def _took(milliseconds: float) -> str:
    if milliseconds < 1:
        return f"{milliseconds * 1000:.0f} µs"
    return f"{milliseconds:.1f} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.2f} s"
