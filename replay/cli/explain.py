"""``replay explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import click

from events.cli.options import awaited
from events.cli.output import table_option
from events.cli.tables import print_json, print_table
from replay.cli.log import brief
from replay.cli.session import LogSource, Session, SuggestingChoice, opened, progress, source_options

if TYPE_CHECKING:
    from replay.queries.entries import Entry
    from replay.queries.explain import Applied, Explanation

_AGENTS_SHOWN = 30
_EVENTS_SHOWN = 30


@click.command("explain")
@source_options
@click.argument("kind", type=SuggestingChoice(["node", "range", "command", "sequence"]))
@click.argument("name")
@click.option("--all", "every", is_flag=True, help="Every command that concerned it, not only the last.")
@click.option("--to", "until", default="now", metavar="WHEN", help="As it was known at this moment.")
@click.option(
    "--spans", default="", metavar="FILE", help="A span store's file instead of the live controller's."
)
@table_option
@awaited
async def explain_command(  # noqa: PLR0917  click passes options by name
    source: LogSource, kind: str, name: str, every: bool, until: str, spans: str, as_json: bool
) -> None:
    """From the command to the kernels: who asked, what it caused, which agents applied it when.

    \b
    isthmus replay explain node idc-7
    isthmus replay explain range 10.200.7.0/26 --all
    isthmus replay explain sequence 4711
    """
    from replay.queries.explain import explain

    async with opened(source) as session:
        stop = (await session.point(until)).sequence
        wanted = cast("Literal['node', 'range', 'command', 'sequence']", kind)
        reports = await session.history.reports()
        found = await explain(session.history, name, kind=wanted, until=stop, reports=reports)
        if not every:
            found = found[-1:]
        found = [await _with_spans(session, item, spans, reports) for item in found]
        found = await _with_unheard(session, found)
        if as_json:
            print_json(found)
            return
        for item in found:
            _print(session, item, kind, name)


async def _with_spans(session: Session, item: Explanation, file: str, reports: list[Any]) -> Explanation:
    """The explanation with the moments of the agents' writes, where a span store tells them."""
    from replay.queries.explain import explain, from_spans

    if not item.trace_id:
        return item
    last = item.events[-1].stamp.sequence
    records = await (_stored(file, item.trace_id) if file else _kept(session, item.trace_id))
    applied: list[Applied] = from_spans(records, last)
    if not applied:
        return item
    again = await explain(session.history, str(last), kind="sequence", reports=reports, spans=applied)
    return again[0]


async def _with_unheard(session: Session, items: list[Explanation]) -> list[Explanation]:
    """With the members of whom nothing is known, where the log tells who was a member."""
    from events.errors import Refused, VerificationFailed
    from replay.queries.explain import with_unheard

    try:
        with progress("folding", items[-1].events[-1].stamp.sequence) as tick:
            return await with_unheard(session.states(), items, tick)
    except (Refused, VerificationFailed) as error:
        click.echo(f"note: which nodes were members then is not known here: {error.message}", err=True)
        return items


async def _stored(file: str, trace_id: str) -> list[Any]:
    """The spans of a trace in a span store's file."""
    from pathlib import Path

    from controlplane.controller.observability.span_store import SpanStore
    from events.errors import Usage

    if not Path(file).is_file():  # noqa: ASYNC240  a local file, once
        raise Usage("usage", f"there is no span store at {file}")
    async with SpanStore.open(file) as store:
        return list(await store.trace(trace_id))


async def _kept(session: Session, trace_id: str) -> list[Any]:
    """The spans of a trace that the live controller keeps; none offline, or when it keeps none."""
    if session.source.archives:
        return []
    from controlplane.controller.observability.trace_query import TraceAnswer, TraceQuery
    from events.cli.options import controller
    from events.errors import IsthmusError

    try:
        async with controller(session.source.context) as client:
            told = await client.ask(TraceQuery(reference=trace_id), TraceAnswer, timeout_s=2.0)
    except IsthmusError:  # no controller, no built-in store, or the trace is too old: reports must do
        return []
    return [row.span for picture in told.traces for row in picture.rows]


def _print(session: Session, item: Explanation, kind: str, name: str) -> None:
    rows = [
        ("command", item.command_id),
        ("asked by", item.actor),
        ("decided", f"{session.show(item.time)} by {item.source}"),
        ("trace", item.trace_id or "none"),
    ]
    if item.causation_id:
        rows.append(("because of", item.causation_id))
    if item.everywhere is not None:
        rows.append(
            (
                "in every kernel",
                (
                    f"by {session.when(item.everywhere)} at the latest: event {item.everywhere.sequence:,} "
                    "states that every live agent had applied it"
                ),
            )
        )
    print_table(
        ("", ""), rows, title=f"events {item.events[0].stamp.sequence:,} to {item.events[-1].stamp.sequence:,}"
    )
    columns = ("seq", "recorded", "event", "about", "details")
    for title, all_of_it in (("caused", item.events), ("followed by", item.followed_by)):
        if entries := _shown(all_of_it, kind, name):
            print_table(
                columns,
                [(e.stamp.sequence, session.when(e.stamp), e.stamp.type, e.entity, brief(e)) for e in entries],
                title=title if len(entries) == len(all_of_it) else f"{title} {len(all_of_it):,} events, here",
                right=("seq",),
                shorten=("details", "about"),
            )
    if len(item.events) > _EVENTS_SHOWN:
        click.echo(f"all of them: isthmus replay log --command-id {item.command_id} -n 0")
    _print_members(session, item)
    if item.note:
        click.echo(item.note)


def _shown(entries: list[Entry], kind: str, name: str) -> list[Entry]:
    """All that a command caused; of one for many nodes (an import) what is about the one asked of."""
    if len(entries) <= _EVENTS_SHOWN:
        return entries
    names: set[object] = {name}
    if kind == "sequence":
        number = int(name.lstrip("#"))
        names = {word for e in entries if e.stamp.sequence == number for word in _about(e)}
    about = [e for e in entries if names & _about(e)]
    return (about or entries)[:_EVENTS_SHOWN]


def _about(entry: Entry) -> set[object]:
    """What an event is about: a range's is about its node, too."""
    return {entry.entity, entry.event.get("node", entry.entity)}


def _print_members(session: Session, item: Explanation) -> None:
    """Of each node: yes, no, or not known. Those who lack it come first."""
    done = sum(agent.done for agent in item.applied)
    lacking, unheard = len(item.applied) - done, len(item.unheard)
    if not item.applied and not unheard:
        return
    rows: list[tuple[object, ...]] = [
        (
            agent.node,
            "yes" if agent.done else "no, not yet",
            agent.applied,
            session.show(agent.at) if agent.evidence == "span" else f"by {session.show(agent.at)}",
            "trace of the kernel write" if agent.evidence == "span" else "agent's report",
        )
        for agent in item.applied
    ]
    rows[lacking:lacking] = [
        (node, "not known", "", "", "no report of this agent here") for node in item.unheard
    ]
    print_table(
        ("node", "in its kernel", "up to event", "when", "evidence"),
        rows[:_AGENTS_SHOWN],
        title=f"In the kernels: yes {done:,}, no {lacking:,}, not known {unheard:,}"
        + (f" (the first {_AGENTS_SHOWN} nodes)" if len(rows) > _AGENTS_SHOWN else ""),
        right=("up to event",),
    )
