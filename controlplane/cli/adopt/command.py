"""``isthmus adopt``: plan the adoption of a running cluster, bring it into the log, look at it, end it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import click

from controlplane.cli.adopt import plan_file, planning, sources
from controlplane.cli.adopt.progress import NodeProgress, Progress
from controlplane.cli.adopt.rollout import Rollout, Ways
from controlplane.cli.node_import.encoding import SIZE_MAX_BYTES, text_of
from controlplane.kubernetes.flannel_nodes import Candidate
from controlplane.kubernetes.node_objects import Rules
from events.cli.options import BusContext, bus_options, confirm, controller, json_option, run
from events.cli.tables import print_json, print_table
from events.errors import BadRequest
from events.protocol.commands import AdoptedNode, EndAdoption
from events.protocol.queries import PAGE_LIMIT, ListNodes, NodePage, NodeView

Function = TypeVar("Function", bound=Callable[..., Any])
MTU_MIN = 576
SOURCES = ("flannel", "cilium", "podcidr")
FILE = click.File("rb")


@click.group()
def adopt() -> None:
    """Take over a running cluster's nodes with the ranges that they have.

    \b
    kubectl get nodes -o json | isthmus adopt plan --nodes - --to plan.json
    isthmus adopt run plan.json
    isthmus adopt run plan.json --on-node 'ssh root@{address}'
    isthmus adopt status plan.json
    isthmus adopt rollback plan.json --on-node 'ssh root@{address}'
    isthmus adopt end
    """


@adopt.command("plan")
@click.option("--from", "source", type=click.Choice(SOURCES),
              help="What the ranges are of [as the input shows].")  # fmt: skip
@click.option("--nodes", type=FILE, help="Node objects: kubectl get nodes -o json (- for standard input).")
@click.option("--leases", type=FILE,
              help="Flannel's leases: etcdctl get --prefix /coreos.com/network -w json.")  # fmt: skip
@click.option("--cilium", type=FILE, help="CiliumNode objects: kubectl get ciliumnodes -o json.")
@click.option("--hosts", type=FILE, help="Without Kubernetes: lines of ADDRESS NODE UID.")
@click.option("--subnet-env", "subnet_envs", type=click.Path(path_type=Path, exists=True, dir_okay=False),
              multiple=True, help="A node's /run/flannel/subnet.env. Repeatable.")  # fmt: skip
@click.option("--cidr", default="", help="Container CIDR [as the input says].")
@click.option("--range-size", type=int, default=0, help="Addresses per node [what most nodes have].")
@click.option("--services", type=int, default=256, show_default=True,
              help="Services; the last segment of the CIDR stays free for them.")  # fmt: skip
@click.option("--service-cidr", default="", help="The cluster's own Service range, to stay clear of.")
@click.option("--vni", type=int, default=0, help="VXLAN network identifier [what most nodes have].")
@click.option("--port", type=int, default=0, help="VXLAN UDP port [as the input says, or 8472].")
@click.option(
    "--mtu", type=click.IntRange(0, 65485), default=0, help="Inner MTU in bytes [FLANNEL_MTU, or followed]."
)
@click.option("--kind", type=click.Choice(["cloud", "external"]), default="cloud", show_default=True,
              help="Kind of nodes that do not say it.")  # fmt: skip
@click.option("--underlay-cidr", "underlay_cidrs", multiple=True, metavar="CIDR",
              help="A node's address is the one in this network. Repeatable.")  # fmt: skip
@click.option("--skip", multiple=True, metavar="NODE",
              help="Leave this node out: it joins as a new one later. Repeatable.")  # fmt: skip
@click.option("--cluster", envvar="ISTHMUS_CLUSTER", default="default", show_default=True)
@click.option("--to", "to", type=click.Path(path_type=Path, dir_okay=False), help="Where the plan goes.")
@json_option
def plan_command(
    *,
    source: str | None,
    nodes: BinaryIO | None,
    leases: BinaryIO | None,
    cilium: BinaryIO | None,
    hosts: BinaryIO | None,
    subnet_envs: tuple[Path, ...],
    kind: str,
    underlay_cidrs: tuple[str, ...],
    to: Path | None,
    as_json: bool,
    **wish: Any,
) -> None:
    """Report what of a running cluster fits, and what does not and why.

    Needs no bus and changes nothing; with --to and no finding, the plan is written there, and nothing else.
    Exit code 1 when something does not fit: then no plan is written.

    \b
    kubectl get nodes -o json | isthmus adopt plan --nodes - --to plan.json
    isthmus adopt plan --nodes nodes.json --cilium ciliumnodes.json
    isthmus adopt plan --leases etcd.json --hosts hosts.txt --subnet-env subnet.env
    """
    if nodes is None and hosts is None:
        raise BadRequest(
            "bad_request", "say who the nodes are: --nodes FILE, or --hosts FILE with --leases FILE"
        )
    if 0 < wish["mtu"] < MTU_MIN:
        raise BadRequest(
            "bad_request", f"--mtu {wish['mtu']}: {MTU_MIN} … 65485 bytes, or 0 to follow the underlay"
        )
    rules = Rules(kind=kind, underlay_cidrs=underlay_cidrs)
    found = sources.nodes_of(_text(nodes), rules) if nodes is not None else []
    if hosts is not None:
        found += sources.hosts_of(_text(hosts), kind)
    configured = sources.Network()
    if leases is not None:
        found, configured = sources.leases_of(_text(leases), found)
    if cilium is not None:
        found = sources.cilium_of(_text(cilium), found)
    report = planning.make(
        found,
        planning.Wish(source=source or _source(found), **wish),
        configured=configured,
        subnet_envs={str(path): sources.subnet_env_of(text_of(path.read_bytes())) for path in subnet_envs},
    )
    if to is not None and report.plan is not None:
        plan_file.save(to, report.plan)
    if as_json:
        print_json(report)
    else:
        _show(report, to)
    if report.findings:
        raise SystemExit(1)


def _text(file: BinaryIO) -> str:
    return text_of(file.read(SIZE_MAX_BYTES + 1))


def _source(found: Sequence[Candidate]) -> str:
    """What the nodes' ranges are of."""
    if any(each.backend == "cilium" for each in found):
        return "cilium"
    return "flannel" if any(each.backend for each in found) else "podcidr"


def _show(report: planning.Report, to: Path | None) -> None:
    if report.findings:
        rows = [(entry["node"], entry["code"], entry["message"]) for entry in report.findings]
        print_table(("node", "code", "what does not fit"), rows)
        several = {entry["node"] for entry in report.findings}
        click.echo(f"{len(rows)} findings about {len(several)} nodes: no plan was made")
    plan = report.plan
    if plan is not None:
        print_table(
            ("node", "range", "underlay", "vtep mac", "kind", "site"),
            [(n.node, n.range, n.announced or n.underlay, n.vtep_mac, n.kind, n.site) for n in plan.nodes],
        )
        define = plan.define
        click.echo(
            f"{len(plan.nodes):,} nodes of {plan.capacity:,} ranges fit: {define.container_cidr} in ranges of "
            f"{planning.size_text(plan)}; the next new node gets range {plan.cursor:,}"
        )
        mtu = f"{plan.mtu:,} bytes" if plan.mtu else "the underlay's less 50"
        click.echo(
            f"VNI {define.vni}, port {define.vxlan_port}, MTU {mtu}; "
            f"Service range kept free: {plan.service_cidr}"
        )
    for note in report.notes:
        click.echo(note)
    if plan is not None:
        where = f"the plan is in {to}; next: isthmus adopt run {to}" if to else "to keep the plan: --to FILE"
        click.echo(where)


STATES = ("taken over", "given back", "adopted", "differs", "absent")
PLAN = click.Path(path_type=Path, exists=True, dir_okay=False)


TAKE = "systemctl stop flanneld && systemctl start isthmus-agent"
GIVE = "systemctl stop isthmus-agent && isthmus agent give-back --yes && systemctl start flanneld"


def on_nodes(function: Function) -> Function:
    """The options of what is done on nodes."""
    for option in reversed((
        click.option("--on-node", default="", metavar="COMMAND",
                     help="How to run a line on a node: 'ssh root@{address}'. [the log only]"),
        click.option("--take", default=TAKE, show_default=True, metavar="LINE", help="Flannel off, agent on."),
        click.option("--give", default=GIVE, show_default=True, metavar="LINE", help="Agent off, flannel on."),
        click.option("--pods", type=FILE, help="kubectl get pods -A -o json: pods to probe [the bridges]."),
        click.option("--node", "only", multiple=True, metavar="NODE", help="Only this node. Repeatable."),
        click.option("--pings", type=click.IntRange(1, 100), default=5, show_default=True,
                     help="Packets of a probe; none may be lost."),
        click.option("--within", "within_s", type=click.FloatRange(1, 3600), default=120, show_default=True,
                     help="Seconds that an agent may take to be ready."),
    )):  # fmt: skip
        function = option(function)
    return function


@adopt.command("run")
@click.argument("plan", type=PLAN)
@on_nodes
@click.option("--dry-run", is_flag=True, help="Decide the first step only; write nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@json_option
@bus_options
def run_command(
    *, context: BusContext, plan: Path, dry_run: bool, yes: bool, as_json: bool, **how: Any
) -> None:
    """Bring the plan into the cluster's log, and with --on-node take its nodes over, one by one.

    In the log every node becomes a member with its own range and MAC; the cluster is defined if it is not yet.
    With --on-node each node is probed, taken over by the line of --take, and probed again when its agent is
    ready. If any packet is lost, it is given back by the line of --give, and the run halts. {node}, {address},
    {uid}, {kind}, {site}, {device} and {mtu} in these stand for the node's own.

    A run that was cut off is simply run again: PLAN.progress says how far it came.

    \b
    isthmus adopt run plan.json --bus nats://10.0.0.2:4222
    isthmus adopt run plan.json --on-node 'ssh root@{address}'
    """
    made = _of_cluster(plan, context)
    rollout, names = _rollout(plan, made, how), _names(made, how["only"])
    if not dry_run:
        what = "members as they are" + (", and take them over one by one" if rollout else "")
        confirm(f"Make {len(made.nodes):,} nodes of cluster {made.cluster} {what}?", yes=yes)
    commands = planning.commands(made)

    async def main() -> tuple[list[dict[str, Any]], int]:
        report: list[dict[str, Any]] = []
        async with controller(context) as client:
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
    isthmus adopt rollback plan.json --on-node 'ssh root@{address}' --node worker-3
    isthmus adopt rollback plan.json --on-node 'ssh root@{address}'
    """
    made = _of_cluster(plan, context)
    rollout = _rollout(plan, made, how)
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
    plan: Path, made: planning.AdoptionPlan, how: Mapping[str, Any]
) -> Callable[[Any], Rollout] | None:
    """What does it, given a client; None without a way to the nodes. Raises BadRequest."""
    if not how["on_node"]:
        return None
    if not made.device:
        raise BadRequest(
            "bad_request", f"a plan of {made.source} has no device to take over: leave out --on-node"
        )
    ways = Ways(**{key: how[key] for key in ("on_node", "take", "give", "pings", "within_s")})
    homes = {IPv4Network(node.range): node.node for node in made.nodes}
    length = 33 - made.define.pods_per_node.bit_length()
    pods: dict[str, list[str]] = {}
    for address in sources.pods_of(_text(how["pods"])) if how["pods"] is not None else ():
        name = homes.get(IPv4Network((address, length), strict=False))
        if name is not None:
            pods.setdefault(name, []).append(address)
    progress = Progress(plan, made.digest)
    return lambda client: Rollout(made, progress, client, ways, pods, lambda line: click.echo(line, err=True))


@adopt.command("status")
@click.argument("plan", type=PLAN)
@json_option
@bus_options
def status_command(*, context: BusContext, plan: Path, as_json: bool) -> None:
    """Show each node of the plan: whether it is a member as planned, and whether its agent reports.

    Exit code 1 while a node is no member as planned.

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

    members = run(main())
    progress = Progress(plan, made.digest)
    rows = [_state(node, members.get(node.node), progress.of(node.node)) for node in made.nodes]
    counts = {state: sum(1 for row in rows if row[2] == state) for state in STATES}
    if as_json:
        keys = ("node", "range", "state", "agent", "path", "finding")
        print_json(
            {"plan": made.digest, **counts, "nodes": [dict(zip(keys, row, strict=True)) for row in rows]}
        )
    else:
        print_table(("node", "range", "state", "agent", "packets", "halted because"), rows)
        click.echo(", ".join(f"{count:,} {state}" for state, count in counts.items() if count))
    if counts["absent"] or counts["differs"]:
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
