"""``replay history``, ``blame`` and ``explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import click

from events.cli.options import json_option, run
from events.cli.tables import fields_line, print_json, print_table
from replay.cli.log import brief
from replay.cli.source import Asked, Source, Word, at_option, opened, source_options

if TYPE_CHECKING:
    from replay.queries.explain import Applied, Explanation

_AGENTS_SHOWN = 30


@click.command("history")
@source_options
@click.argument("kind", type=Word(["node", "range", "clb", "cluster"]))
@click.argument("name", default="")
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@json_option
def history_command(source: Source, kind: str, name: str, until: str, as_json: bool) -> None:
    """The life of a node, a range (CIDR), a CLB reservation or the cluster.

    \b
    isthmus replay history node idc-7
    isthmus replay history range 10.200.7.0/26
    isthmus replay history clb apiserver
    """
    if not name and kind != "cluster":
        raise click.UsageError(f"Missing argument 'NAME': which {kind}?")
    run(_history(source, kind, name, until, as_json=as_json))


async def _history(source: Source, kind: str, name: str, until: str, *, as_json: bool) -> None:
    from replay.queries.lives import life

    async with opened(source) as asked:
        stop = (await asked.point(until)).sequence
        name = name or (asked.history.cluster if kind == "cluster" else name)
        steps = await life(asked.history, cast("Any", kind), name, until=stop)
        if as_json:
            print_json({"kind": kind, "name": name, "steps": steps})
            return
        rows = []
        for step in steps:
            fields = fields_line({key: value for key, value in step.event.items() if value != name})
            rows.append(
                (step.stamp.sequence, asked.when(step.stamp), step.stamp.type, step.stamp.actor, fields)
            )
        print_table(
            ("seq", "recorded", "what", "by", "details"),
            rows,
            title=f"{kind} {name} ({asked.history.source})",
            right=("seq",),
        )


@click.command("blame")
@source_options
@click.argument("kind", type=Word(["node"]))
@click.argument("name")
@at_option
@json_option
def blame_command(source: Source, kind: str, name: str, at: str, as_json: bool) -> None:
    """Which event last set each attribute of a node.

    \b
    isthmus replay blame node idc-7 --at -2h
    """
    run(_blame(source, kind, name, at, as_json=as_json))


async def _blame(source: Source, kind: str, name: str, at: str, *, as_json: bool) -> None:
    from replay.queries.lives import blame

    async with opened(source) as asked:
        point = await asked.point(at)
        attributes = await blame(asked.history, name, point)
        if as_json:
            print_json({"kind": kind, "name": name, "at": point, "attributes": attributes})
            return
        print_table(
            ("attribute", "value", "seq", "set at", "by", "event"),
            [
                (a.name, a.value, a.stamp.sequence, asked.when(a.stamp), a.stamp.actor, a.stamp.type)
                for a in attributes
            ],
            title=f"{kind} {name} at {asked.at(point)}",
            right=("seq",),
        )


@click.command("explain")
@source_options
@click.argument("kind", type=Word(["node", "range", "command", "sequence"]))
@click.argument("name")
@click.option("--all", "every", is_flag=True, help="Every command that concerned it, not only the last.")
@click.option("--to", "until", default="now", metavar="WHEN", help="As it was known at this moment.")
@click.option(
    "--spans", default="", metavar="FILE", help="A span store's file instead of the live controller's."
)
@json_option
def explain_command(  # noqa: PLR0917  click passes options by name
    source: Source, kind: str, name: str, every: bool, until: str, spans: str, as_json: bool
) -> None:
    """From the command to the kernels: who asked, what it caused, which agents applied it when.

    \b
    isthmus replay explain node idc-7
    isthmus replay explain range 10.200.7.0/26 --all
    isthmus replay explain sequence 4711
    """
    run(_explain(source, kind, name, until, spans, every=every, as_json=as_json))


async def _explain(
    source: Source, kind: str, name: str, until: str, spans: str, *, every: bool, as_json: bool
) -> None:
    from replay.queries.explain import explain

    async with opened(source) as asked:
        stop = (await asked.point(until)).sequence
        wanted = cast("Literal['node', 'range', 'command', 'sequence']", kind)
        reports = await asked.history.reports()
        found = await explain(asked.history, name, kind=wanted, until=stop, reports=reports)
        if not every:
            found = found[-1:]
        found = [await _with_spans(asked, item, spans, reports) for item in found]
        if as_json:
            print_json(found)
            return
        for item in found:
            _print(asked, item)


async def _with_spans(asked: Asked, item: Explanation, file: str, reports: list[Any]) -> Explanation:
    """The explanation with the moments of the agents' writes, where a span store tells them."""
    from replay.queries.explain import explain, from_spans

    if not item.trace_id:
        return item
    last = item.events[-1].stamp.sequence
    records = await (_stored(file, item.trace_id) if file else _kept(asked, item.trace_id))
    applied: list[Applied] = from_spans(records, last)
    if not applied:
        return item
    again = await explain(asked.history, str(last), kind="sequence", reports=reports, spans=applied)
    return again[0]


async def _stored(file: str, trace_id: str) -> list[Any]:
    """The spans of a trace in a span store's file."""
    from pathlib import Path

    from controlplane.controller.observability.span_store import SpanStore
    from events.errors import Usage

    if not Path(file).is_file():  # noqa: ASYNC240  a local file, once
        raise Usage("usage", f"there is no span store at {file}")
    async with SpanStore.open(file) as store:
        return list(await store.trace(trace_id))


async def _kept(asked: Asked, trace_id: str) -> list[Any]:
    """The spans of a trace that the live controller keeps; none offline, or when it keeps none."""
    if asked.source.archives:
        return []
    from controlplane.controller.observability.trace_query import TraceAnswer, TraceQuery
    from events.cli.options import controller
    from events.errors import IsthmusError

    try:
        async with controller(asked.source.context) as client:
            told = await client.ask(TraceQuery(reference=trace_id), TraceAnswer, timeout_s=2.0)
    except IsthmusError:  # no controller, no built-in store, or the trace is too old: reports must do
        return []
    return [row.span for picture in told.traces for row in picture.rows]


def _print(asked: Asked, item: Explanation) -> None:
    rows = [
        ("command", item.command_id),
        ("asked by", item.actor),
        ("decided", f"{asked.show(item.time)} by {item.source}"),
        ("trace", item.trace_id or "none"),
    ]
    if item.causation_id:
        rows.append(("because of", item.causation_id))
    if item.everywhere is not None:
        rows.append(
            (
                "in every kernel",
                (
                    f"by {asked.when(item.everywhere)} at the latest: event {item.everywhere.sequence:,} "
                    "states that every live agent had applied it"
                ),
            )
        )
    print_table(
        ("", ""), rows, title=f"events {item.events[0].stamp.sequence:,} to {item.events[-1].stamp.sequence:,}"
    )
    columns = ("seq", "recorded", "event", "about", "details")
    for title, entries in (("caused", item.events), ("followed by", item.followed_by)):
        if entries:
            print_table(
                columns,
                [(e.stamp.sequence, asked.when(e.stamp), e.stamp.type, e.entity, brief(e)) for e in entries],
                title=title,
                right=("seq",),
            )
    if item.applied:
        done = sum(agent.done for agent in item.applied)
        print_table(
            ("agent", "applied", "up to", "when", "evidence"),
            [
                (
                    a.node,
                    "yes" if a.done else "not yet",
                    a.applied,
                    asked.show(a.at) if a.evidence == "span" else f"by {asked.show(a.at)}",
                    a.evidence,
                )
                for a in item.applied[:_AGENTS_SHOWN]
            ],
            title=f"applied by {done:,} of {len(item.applied):,} agents"
            + (f"; the first {_AGENTS_SHOWN}, those behind first" if len(item.applied) > _AGENTS_SHOWN else ""),
            right=("up to",),
        )
    if item.note:
        click.echo(item.note)
