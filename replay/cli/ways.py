"""``replay ways``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, Session, at_option, opened, progress, source_options

if TYPE_CHECKING:
    from replay.queries.ways import End, WaysAnswer, WayStep


@click.command("ways")
@source_options
@click.argument("a")
@click.argument("b")
@at_option
@json_option
@awaited
async def ways_command(source: LogSource, a: str, b: str, at: str, as_json: bool) -> None:
    """Which way packets between two nodes took: tunnel, through NAT or relayed, plain or encrypted, since when.

    It follows from the log: who was behind NAT, which sites, what was encrypted, which gateways relayed.

    \b
    isthmus replay ways idc-7 branch-2
    isthmus replay ways idc-7 branch-2 --at 'yesterday 14:00' \\
        --archive prod.isthmus
    """
    from replay.queries.ways import ways

    async with opened(source) as session:
        point = await session.point(at)
        with progress("folding", point.sequence) as tick:
            state, _ = await session.states().at(point.sequence, tick)
        answer = await ways(session.history, a, b, point, state)
        if as_json:
            print_json(answer)
            return
        print_table(("", ""), _rows(session, answer), title=f"{a} and {b} at {session.at(point)}")
        print_table(
            ("seq", "recorded", "from then on"),
            [_line(session, step) for step in answer.steps if step.since is not None],
            title="How it came to be",
            right=("seq",),
        )


def _rows(session: Session, answer: WaysAnswer) -> list[tuple[str, str]]:
    now = answer.now
    via = ""
    if now.way == "relayed":
        via = ": NO GATEWAY RELAYS, there is no way"
        if answer.via:
            via = f" via {answer.via} (a gateway since event {answer.via_since:,})"
    since = f"event {now.since.sequence:,} · {session.when(now.since)}" if now.since else "before this archive"
    return [
        ("way", f"{now.words}{via}"),
        ("since", since),
        *((end.node, _end(session, end)) for end in (answer.a, answer.b)),
        *([("gateways", ", ".join(answer.gateways) or "none")] if now.way == "relayed" else []),
        ("note", answer.note),
    ]


def _end(session: Session, end: End) -> str:
    if not end.member:
        return "no member"
    site = f"site {end.site}" if end.site else "no site"
    if not end.nat:
        return f"{site}, not behind NAT"
    seen = f", then seen as {end.seen_as}" if end.seen_as else ""
    then = end.behind_nat
    since = f" since event {then.sequence:,} · {session.when(then)}" if then else ""
    return f"{site}, behind NAT{since}{seen}"


def _line(session: Session, step: WayStep) -> tuple[int, str, str]:
    since = step.since
    return (since.sequence, session.when(since), step.words) if since is not None else (0, "", step.words)
