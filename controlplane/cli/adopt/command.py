"""``isthmus adopt``: plan the adoption of a running cluster, bring it into the log, look at it, end it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from controlplane.cli.adopt import plan_file, planning
from controlplane.cli.adopt.following import Changes
from controlplane.cli.adopt.plan_command import plan_command
from controlplane.cli.adopt.progress import Progress
from controlplane.cli.adopt.rollout import Rollout, Ways
from controlplane.cli.adopt.status_command import FOLLOW, PLAN, looked, status_command, tell
from events.bus.client import ControllerClient
from events.cli.options import BusContext, bus_options, confirm, controller, json_option, run
from events.cli.output import say
from events.cli.tables import print_json
from events.errors import BadRequest, Refused
from events.protocol.commands import EndAdoption, RemoveNode
from events.protocol.queries import NodeView, ShowNode

Function = TypeVar("Function", bound=Callable[..., Any])


@click.group()
def adopt() -> None:
    """Take over a running cluster's nodes with the ranges that they have.

    \b
    isthmus adopt plan --kubernetes --to plan.json
    isthmus adopt run plan.json
    isthmus adopt run plan.json --on-node 'ssh root@{address}'
    isthmus adopt status plan.json
    isthmus adopt rollback plan.json --on-node 'ssh root@{address}'
    isthmus adopt end
    """


adopt.add_command(plan_command)
adopt.add_command(status_command)

TAKE = "systemctl stop flanneld && systemctl start isthmus-agent"
GIVE = (
    "systemctl stop isthmus-agent && isthmus agent give-back --yes --device {ours} && systemctl start flanneld"
)


def on_nodes(function: Function) -> Function:
    """The options of what is done on nodes."""
    for option in reversed((
        click.option("--on-node", default="", metavar="COMMAND",
                     help="How to run a line on a node: 'ssh root@{address}'. [the log only]"),
        click.option("--take", default=TAKE, show_default=True, metavar="LINE", help="Flannel off, agent on."),
        click.option("--give", default=GIVE, show_default=True, metavar="LINE", help="Agent off, flannel on."),
        click.option("--node", "only", multiple=True, metavar="NODE", help="Only this node. Repeatable."),
        click.option("--pings", type=click.IntRange(0, 100), default=5, show_default=True,
                     help="Packets of a probe, none of which may be lost; 0: no probes."),
        click.option("--within", "within_s", type=click.FloatRange(1, 3600), default=120, show_default=True,
                     help="Seconds that an agent may take to be ready."),
    )):  # fmt: skip
        function = option(function)
    return function


@adopt.command("run")
@click.argument("plan", type=PLAN)
@on_nodes
@FOLLOW
@click.option("--dry-run", is_flag=True, help="Decide the first step only; write nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@bus_options
def run_command(
    *, context: BusContext, plan: Path, follow: bool, dry_run: bool, yes: bool, as_json: bool, **how: Any
) -> None:
    """Bring the plan into the cluster's log, and with --on-node take its nodes over, one by one.

    In the log every node becomes a member with its own range and MAC; the cluster is defined if it is not yet.
    With --on-node each node is probed, taken over by the line of --take, and probed again when its agent is
    ready. If any packet is lost, it is given back by the line of --give, and the run halts. {node}, {address},
    {uid}, {kind}, {site}, {device}, {ours} (its name then) and {mtu} in these stand for the node's own.

    Where the plan's source can be read again, what it says now counts: nodes that came are taken in, those that
    are gone leave, and the plan is written anew.

    A run that was cut off is simply run again: PLAN.progress says how far it came.

    \b
    isthmus adopt run plan.json --bus nats://10.0.0.2:4222
    isthmus adopt run plan.json --on-node 'ssh root@{address}'
    """
    planned = _of_cluster(plan, context)
    progress = Progress(plan, planned.digest)
    changes = run(looked(planned, progress)) if follow else Changes(plan=planned)
    made = changes.plan
    rollout, names = _rollout(made, progress, how), _names(made, how["only"])
    tell(changes, made.source)
    if not dry_run:
        what = "members as they are" + (", and take them over one by one" if rollout else "")
        confirm(f"Make {len(made.nodes):,} nodes of cluster {made.cluster} {what}?", yes=yes)
    commands = planning.commands(made)

    async def main() -> tuple[list[dict[str, Any]], int]:
        report: list[dict[str, Any]] = []
        async with controller(context) as client:
            if rollout is not None:
                await rollout(client).check(names)
            if changes and not dry_run:
                gone = await _take_out(client, changes, made.source)
                report.append({"command": "follow", "events": gone})
                plan_file.save(plan, made)
            for command in commands[:1] if dry_run else commands:
                reply = await client.send(command, dry_run=dry_run, timeout_s=30.0, try_timeout_s=10.0)
                done = {"command": command.name, "events": len(reply.events), "sequence": reply.sequence}
                report.append(done)
            over = 0 if dry_run or rollout is None else await rollout(client).take_over(names)
        return report, over

    steps, over = run(main())
    written = sum(step["events"] for step in steps)
    if as_json:
        print_json(
            {"plan": made.digest, "nodes": len(made.nodes), "events": written, "over": over, "steps": steps}
        )
    elif dry_run:
        click.echo("nothing was written; the controller would take the first step")
    else:
        click.echo(f"{len(made.nodes):,} nodes are members with the ranges that they had; {written:,} events")
        if rollout is not None:
            click.echo(f"{over:,} nodes were taken over now")


@adopt.command("rollback")
@click.argument("plan", type=PLAN)
@on_nodes
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@bus_options
def rollback_command(*, context: BusContext, plan: Path, yes: bool, as_json: bool, **how: Any) -> None:
    """Give nodes that were taken over back to flannel, the last one first, each between two rounds of probes.

    The nodes stay members, so that those that are still over reach them. Repeating it goes on.

    \b
    isthmus adopt rollback plan.json --on-node 'ssh root@{address}' \\
        --node worker-3
    isthmus adopt rollback plan.json --on-node 'ssh root@{address}'
    """
    made = _of_cluster(plan, context)
    rollout = _rollout(made, Progress(plan, made.digest), how)
    if rollout is None:
        raise BadRequest("bad_request", "say how to reach a node: --on-node 'ssh root@{address}'")
    names = _names(made, how["only"])
    confirm(f"Give up to {len(names):,} nodes back to {made.source}?", yes=yes)

    async def main() -> int:
        async with controller(context) as client:
            return await rollout(client).give_back(names)

    given = run(main())
    if as_json:
        print_json({"plan": made.digest, "given": given})
    else:
        click.echo(f"{given:,} nodes were given back")


def _of_cluster(plan: Path, context: BusContext) -> planning.AdoptionPlan:
    """The plan, if it is one of this cluster. Raises BadRequest."""
    made = plan_file.load(plan)
    if made.cluster != context.cluster:
        raise BadRequest(
            "wrong_cluster", f"{plan} is for cluster {made.cluster!r}, this run is for {context.cluster!r}"
        )
    return made


def _names(made: planning.AdoptionPlan, only: Sequence[str]) -> list[str]:
    """The nodes that are meant, in the plan's order. Raises BadRequest."""
    names = [node.node for node in made.nodes]
    unknown = sorted(set(only) - set(names))
    if unknown:
        raise BadRequest("bad_request", f"--node {', '.join(unknown)[:200]}: not in the plan")
    return [name for name in names if not only or name in only]


def _rollout(
    made: planning.AdoptionPlan, progress: Progress, how: Mapping[str, Any]
) -> Callable[[ControllerClient], Rollout] | None:
    """What does it, given a client; None without a way to the nodes. Raises BadRequest."""
    if not how["on_node"]:
        return None
    if not made.device:
        raise BadRequest(
            "bad_request", f"a plan of {made.source} has no device to take over: leave out --on-node"
        )
    ways = Ways(**{key: how[key] for key in ("on_node", "take", "give", "pings", "within_s")})
    return lambda client: Rollout(made, progress, client, ways, partial(say, err=True))


async def _take_out(client: ControllerClient, changes: Changes, source: str) -> int:
    """Members that the network before has removed leave, unless an agent of ours was ever heard on them."""
    written = 0
    for name in changes.removed:
        try:
            view = await client.ask(ShowNode(node=name), NodeView)
        except Refused as error:
            if error.code != "node_unknown":
                raise
            continue
        if not view.member:
            continue
        if view.agent_state not in {"", "unreported"}:
            click.echo(f"{name} stays a member, its agent was heard: isthmus node remove {name}", err=True)
            continue
        reply = await client.send(RemoveNode(node=name, reason=f"{source} has removed it"))
        written += len(reply.events)
    return written


@adopt.command("end")
@click.option("--reason", default="", help="For the record.")
@json_option
@bus_options
def end_command(*, context: BusContext, reason: str, as_json: bool) -> None:
    """End the adoption: from here on new nodes take free ranges in turn, and no other way leads to one.

    \b
    isthmus adopt end --reason 'all nodes are over'
    """

    async def main() -> int:
        async with controller(context) as client:
            return len((await client.send(EndAdoption(reason=reason))).events)

    written = run(main())
    if as_json:
        print_json({"events": written})
    else:
        click.echo("the adoption is ended" if written else "no adoption was open")
