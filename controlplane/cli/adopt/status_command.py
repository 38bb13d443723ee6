"""``isthmus adopt status``: how far an adoption has come, and what its source says by now."""

from __future__ import annotations

from pathlib import Path

import click

from controlplane.cli.adopt import plan_file
from controlplane.cli.adopt.following import Changes
from controlplane.cli.adopt.following import follow as follow_
from controlplane.cli.adopt.planning import AdoptionPlan
from controlplane.cli.adopt.progress import NodeProgress, Progress
from controlplane.cli.adopt.reading import read, repeatable
from events.cli.options import BusContext, bus_options, controller, json_option, run
from events.cli.tables import print_json, print_table
from events.errors import IsthmusError
from events.protocol.commands import AdoptedNode
from events.protocol.queries import PAGE_LIMIT, ListNodes, NodePage, NodeView

STATES = ("taken over", "given back", "adopted", "differs", "absent")
PLAN = click.Path(path_type=Path, exists=True, dir_okay=False)
FOLLOW = click.option(
    "--follow/--no-follow", default=True, show_default=True,
    help="Read the plan's source again, and follow what it says now.",
)  # fmt: skip


async def looked(plan: AdoptionPlan, progress: Progress) -> Changes:
    """What the plan's source says by now; nothing new where it cannot be read again, which is told.

    Raises Refused(adoption_refused) when a node of the plan no longer fits. Cancelled, nothing is left behind.
    """
    if plan.origin is None or not repeatable(plan.origin):
        return Changes(plan=plan)
    try:
        found = await read(plan.origin)
    except (IsthmusError, OSError) as error:
        said = error.message if isinstance(error, IsthmusError) else f"{error.filename}: {error.strerror}"
        click.echo(f"the plan's source was not read again: {said}", err=True)
        return Changes(plan=plan)
    over = {name for name, node in progress.nodes.items() if node.state in {"taking", "over", "giving"}}
    return follow_(plan, found, over)


def tell(changes: Changes, source: str) -> None:
    """Say what has changed since the plan was made."""
    for what, names in (("added", changes.added), ("changed", changes.changed), ("removed", changes.removed)):
        if names:
            rest = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
            click.echo(f"{source} has {what} {', '.join(names[:10])}{rest}", err=True)
    for entry in changes.unfit:
        click.echo(f"left out: {entry['node']}: {entry['message']} [{entry['code']}]", err=True)


@click.command("status")
@click.argument("plan", type=PLAN)
@FOLLOW
@json_option
@bus_options
def status_command(*, context: BusContext, plan: Path, follow: bool, as_json: bool) -> None:
    """Show each node of the plan: whether it is a member as planned, and whether its agent reports.

    Exit code 1 while a node is no member as planned, or the plan's source says something else by now; the next
    run follows it.

    \b
    isthmus adopt status plan.json
    """
    made = plan_file.load(plan)

    async def main() -> dict[str, NodeView]:
        members: dict[str, NodeView] = {}
        async with controller(context) as client:
            after: str | None = ""
            while after is not None:
                page = await client.ask(ListNodes(after=after, limit=PAGE_LIMIT), NodePage)
                members |= {view.node: view for view in page.nodes}
                after = page.next_after
        return members

    progress = Progress(plan, made.digest)
    changes = run(looked(made, progress)) if follow else Changes(plan=made)
    members = run(main())
    rows = [_state(node, members.get(node.node), progress.of(node.node)) for node in made.nodes]
    counts = {state: sum(1 for row in rows if row[2] == state) for state in STATES}
    if as_json:
        keys = ("node", "range", "state", "agent", "path", "finding")
        print_json(
            {
                "plan": made.digest,
                **counts,
                "source": {
                    "added": changes.added,
                    "changed": changes.changed,
                    "removed": changes.removed,
                    "unfit": changes.unfit,
                },
                "nodes": [dict(zip(keys, row, strict=True)) for row in rows],
            }
        )
    else:
        print_table(("node", "range", "state", "agent", "packets", "halted because"), rows)
        click.echo(", ".join(f"{count:,} {state}" for state, count in counts.items() if count))
        tell(changes, made.source)
    if changes or changes.unfit or counts["absent"] or counts["differs"]:
        raise SystemExit(1)


def _state(node: AdoptedNode, view: NodeView | None, done: NodeProgress) -> tuple[str, ...]:
    if view is None or not view.member:
        return node.node, node.range, "absent", "", "", done.finding
    if (view.cidr, view.vtep_mac, view.uid) != (node.range, node.vtep_mac, node.uid):
        return node.node, node.range, "differs", view.agent_state, f"member with {view.cidr}", done.finding
    heard = view.agent_state not in {"", "unreported"}
    state = "given back" if done.state == "given" else "taken over" if heard else "adopted"
    agent = f"{view.agent_state}, silent" if heard and view.stale else view.agent_state
    return node.node, node.range, state, agent, view.path, done.finding
