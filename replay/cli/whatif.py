"""``replay whatif``."""

from __future__ import annotations

import click

from events.cli.options import awaited, json_option
from events.cli.tables import fields_line, print_json, print_table
from events.input_files import read_whole
from replay.cli.session import LogSource, opened, progress, source_options

_ROWS = 30


@click.command("whatif")
@source_options
@click.option(
    "--at", "fork", default="start", show_default=True, metavar="WHEN", help="Where the re-run begins."
)
@click.option("--to", "until", default="now", metavar="WHEN", help="End with this moment.")
@click.option("--cidr", default="", help="Another container CIDR.")
@click.option(
    "--pods",
    type=click.IntRange(0, 2**24),
    default=0,
    help="Another number of addresses per node (64 addresses, 61 pods).",
)
@click.option("--services", type=click.IntRange(0, 2**24), default=0, help="Another number of Services.")
@click.option(
    "--append", "appended", multiple=True, metavar="CIDR", help="A further container CIDR. Repeatable."
)
@click.option(
    "--commands",
    type=click.Path(exists=True, dir_okay=False),
    help='Extra commands at the fork: JSON lines like {"command": "remove-node", "node": "idc-7"}.',
)
@json_option
@awaited
async def whatif_command(  # noqa: PLR0917  click passes options by name
    source: LogSource,
    fork: str,
    until: str,
    cidr: str,
    pods: int,
    services: int,
    appended: tuple[str, ...],
    commands: str | None,
    as_json: bool,
) -> None:
    """Re-run the history under another plan, or with extra commands.

    Capacity, exhaustion, who would have been refused, which nodes would have other ranges. Another
    plan at a later moment means: the members of that moment join anew, in their order.

    \b
    isthmus replay whatif --cidr 10.200.0.0/18
    isthmus replay whatif --pods 128 --at 'monday'
    isthmus replay whatif --at -1d --append 10.201.0.0/16
    """
    from replay.queries.other_plan import OtherPlan, parse_commands
    from replay.queries.whatif import whatif

    extra = parse_commands(read_whole(commands)) if commands else ()
    plan = OtherPlan(
        container_cidr=cidr, pods_per_node=pods, services=services, appended=appended, commands=extra
    )
    async with opened(source) as session:
        begin, end = await session.point(fork), await session.point(until)
        with progress("re-running", end.sequence, start=begin.sequence) as tick:
            answer = await whatif(session.states(), begin, end, plan, tick)
        if as_json:
            print_json(answer)
            return
        rows: list[tuple[str, object, object]] = [
            (key, _text(answer.recorded_plan.get(key, "–")), _text(answer.plan.get(key, "–")))
            for key in answer.plan or answer.recorded_plan
            if key != "capacity"
        ]
        rows += [(name, f"{count:,}", f"{answer.imagined[name]:,}") for name, count in answer.recorded.items()]
        print_table(("", "recorded", "simulated"), rows, title=f"from {session.at(begin)} to {session.at(end)}")
        facts = [
            ("most ranges in use", f"{answer.peak_in_use:,} of {answer.plan.get('capacity', 0):,}"),
            (
                "exhausted",
                f"{session.show(answer.exhausted_at)} (event {answer.exhausted_sequence:,})"
                if answer.exhausted_at
                else "never",
            ),
            ("refused", f"{answer.refused:,} nodes"),
            ("other ranges", f"{answer.differing:,} nodes"),
        ]
        facts += [
            (f"extra: {item['command']}", item["refused"] or _text(item["result"])) for item in answer.extra
        ]
        print_table(("", ""), facts)
        if answer.unserved:
            print_table(
                ("refused", "since", "served", "why"),
                [
                    (u.node, session.show(u.since), session.show(u.served_at), u.code)
                    for u in answer.unserved[:_ROWS]
                ],
                title=f"the first {_ROWS}" if answer.refused > _ROWS else "",
            )
        if answer.moved:
            print_table(
                ("node", "recorded", "simulated"),
                [(m.node, m.recorded or "–", m.imagined or "–") for m in answer.moved[:_ROWS]],
                title=f"the first {_ROWS}" if answer.differing > _ROWS else "",
            )


def _text(value: object) -> str:
    if isinstance(value, dict):
        return fields_line(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
