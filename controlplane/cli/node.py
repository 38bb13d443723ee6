"""``isthmus node``: list, show, remove, fence and import nodes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click

from controlplane.cli.common import ask, pages, send, show_written, write_options
from controlplane.cli.node_import.command import import_
from events.bus.client import ControllerClient
from events.cli.options import BusContext, asked, bus_options, confirm, controller, json_option, run
from events.cli.output import listing_options
from events.cli.tables import counted, print_json, print_table
from events.errors import IsthmusError
from events.protocol.commands import FenceNode, RemoveNode
from events.protocol.queries import ListNodes, NodePage, NodeView, ShowNode
from events.protocol.ways import PeerWayView, encrypted_words

COLUMNS = (
    *("node", "kind", "site", "range", "underlay", "epoch", "state", "behind", "last report"),
    *("announced", "vtep mac", "kernel", "uid"),
)


@click.group()
def node() -> None:
    """Nodes: members of the cluster and their ranges.

    \b
    isthmus node list --site shenzhen
    isthmus node show idc-7
    isthmus node remove idc-7 --reason 'returned to the vendor'
    kubectl get nodes -o json | isthmus node import -
    """


@node.command("list")
@click.option("--kind", type=click.Choice(["cloud", "external"]), help="Only nodes of this kind.")
@click.option("--site", help="Only nodes of this site.")
@click.option("--unreachable", is_flag=True, help="Only nodes that do not report.")
@listing_options
@bus_options
def list_(*, context: BusContext, kind: Any, site: str | None, unreachable: bool, as_json: bool) -> None:
    """List the nodes with their ranges and how far their agents have come.

    \b
    Example: isthmus node list -o wide
    """

    async def main() -> tuple[int, list[NodeView]]:
        async with controller(context) as client:
            return await _all_nodes(client, kind, site, unreachable=unreachable)

    sequence, nodes = run(main())
    if as_json:
        print_json({"sequence": sequence, "nodes": nodes})
        return
    print_table(
        COLUMNS,
        [
            (
                n.node,
                n.kind,
                n.site,
                n.cidr,
                n.underlay,
                n.epoch,
                _state(n),
                _lag(n),
                _age(n.last_seen) if n.agent_state or n.unreachable else "",
                n.announced + (" (NAT)" if n.behind_nat else ""),
                n.vtep_mac,
                n.kernel,
                n.uid,
            )
            for n in nodes
        ],
        title=f"{counted(len(nodes), 'node')} at sequence {sequence:,}",
        right=("epoch", "behind"),
        wide=COLUMNS[9:],
        drop=("behind", "epoch", "kind", "site", "last report"),
        shorten=("node", "site"),
        empty="no node has joined",
    )


async def _all_nodes(
    client: ControllerClient, kind: Any, site: str | None, *, unreachable: bool
) -> tuple[int, list[NodeView]]:
    """All pages. The sequence is that of the first; later pages may be newer."""
    query = ListNodes(kind=kind, site=site, unreachable=True if unreachable else None)
    found = [page async for page in pages(client, query, NodePage)]
    return found[0].sequence, [one for page in found for one in page.nodes]


def _state(view: NodeView) -> str:
    if view.unreachable:
        return "unreachable"
    if not view.agent_state:
        return "never-reported"
    if view.stale:
        return "silent"
    return f"{view.agent_state},unconfirmed" if view.path == "not confirmed" else view.agent_state


def _packets(view: NodeView) -> str:
    """Whether packets of its pods pass, and when one last did."""
    words = {"confirmed": "pass", "failing": "DO NOT PASS", "no peers": "no peers to ask yet"}
    if not view.path:
        return "unknown"
    last = f", one last passed {_age(view.passed_at)} ago" if view.passed_at is not None else ""
    return f"{words.get(view.path, view.path)}{last}{_stale(view)}"


def _way(way: PeerWayView) -> str:
    """Which way packets take to one peer, and since when."""
    via = f" via {way.via}" if way.via else ""
    since = f", since {_age(way.since)}" if way.since is not None else ""
    encrypted = encrypted_words(way.way, encrypted=way.encrypted)
    return f"{way.way}{via}{encrypted}{since}{f' ({way.why})' if way.why else ''}"


def _nat(view: NodeView) -> str:
    """Since when it is known to be behind NAT, and how."""
    how = f"then seen as {view.seen_as}" if view.seen_as else "its agent was told so"
    return f"since sequence {view.behind_nat:,}, {how}"


def _stale(view: NodeView) -> str:
    return " (stale: the agent is silent)" if view.stale else ""


def _lag(view: NodeView) -> str:
    return "" if view.lag is None else f"{view.lag:,}"


def _checked(view: NodeView) -> str:
    """When somebody last looked, so that an old answer is seen to be one."""
    if not view.kernel_at:
        return ""
    return f" (checked at event {view.kernel_at:,}" + (
        f", last report {_age(view.last_seen)} ago)" if view.last_seen else ")"
    )


def _age(moment: datetime | None) -> str:
    """In one word, as kubectl says it: 41s, 12m, 3h, 5d."""
    if moment is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for size, unit in ((172_800, "d"), (7200, "h"), (120, "m")):
        if seconds >= size:
            return f"{seconds // {'d': 86_400, 'h': 3600, 'm': 60}[unit]}{unit}"
    return f"{seconds}s"


@node.command()
@click.argument("name")
@json_option
@bus_options
def show(*, context: BusContext, name: str, as_json: bool) -> None:
    """Show one node, or why a node that asks gets nothing.

    \b
    Example: isthmus node show idc-7
    """
    view = ask(context, ShowNode(node=name), NodeView)
    if as_json:
        print_json(view)
        return
    if view.member:
        rows: list[tuple[str, object]] = [
            ("kind", view.kind),
            ("site", view.site or "none"),
            ("uid", view.uid),
            ("range", f"{view.cidr} (index {view.index}, epoch {view.epoch})"),
            ("underlay", view.underlay),
            ("announced", view.announced + ("" if view.announced == view.underlay else " (behind NAT)")),
            *([("behind NAT", _nat(view))] if view.behind_nat else []),
            ("VTEP MAC", view.vtep_mac),
            ("joined", f"sequence {view.joined}"),
            ("address changed", f"sequence {view.changed}" if view.changed != view.joined else "never"),
            ("state", _state(view)),
            (
                "last report",  # joining counts as word of it, but reported it has not then
                f"{_age(view.last_seen)} ago" if view.last_seen and view.agent_state else "never",
            ),
            ("applied", "unknown" if view.applied is None else f"{view.applied:,} ({_lag(view)} behind)"),
            (
                "kernel",
                {"agrees": f"in sync{_checked(view)}", "differs": f"DIFFERS from the log{_checked(view)}"}.get(
                    view.kernel, "unknown"
                )
                + _stale(view),
            ),
            ("packets", _packets(view)),
            *([("ways to peers", view.ways + _stale(view))] if view.ways else []),
            *((f"to {way.peer}", _way(way)) for way in view.peer_ways),
            *(("differs", row) for row in view.drift),
            *(("condition", condition) for condition in view.agent_conditions),
        ]
        print_table((f"node {view.node}", ""), rows)
    else:
        click.echo(f"{view.node} is not a member; its join was refused:")
    if view.refusals:
        print_table(
            ("since", "refused", "because"),
            [(r.since, r.code, r.message) for r in view.refusals],
            right=("since",),
        )


@node.command()
@click.argument("name")
@click.option("--reason", default="", help="Why; recorded for ever.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask. Without a terminal nothing is asked.")
@write_options
def remove(
    *, context: BusContext, name: str, reason: str, yes: bool, how: dict[str, Any], as_json: bool
) -> None:
    """Take a node out: its range drains and comes free. It may join again.

    New pods do not start on it from then on, and its range is not reused before those that run there are gone.
    For a node that is dead for good, and that others must not wait for, see `fence`.

    \b
    Example: isthmus node remove idc-7 --yes
    """
    running = _running(context, name)
    if not how["dry_run"]:
        what = f" {running} run on it." if running else ""
        confirm(f"Remove node {name}? Its range drains.{what}", yes=yes or not asked())
    reply = send(context, RemoveNode(node=name, reason=reason), how)
    cidr = reply.result.get("cidr", "its range")
    waits = ""
    if running:
        waits = (
            f". {running} still run on it: {cidr} is not reused before they are gone (there: isthmus agent "
            f"end-pods --yes; if the machine is gone: isthmus node fence {name} --yes)"
        )
    show_written(reply, f"{name} removed; {cidr} drains{waits}", as_json=as_json)


@node.command()
@click.argument("name")
@click.option("--reason", default="", help="Why; recorded for ever.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@write_options
def fence(
    *, context: BusContext, name: str, reason: str, yes: bool, how: dict[str, Any], as_json: bool
) -> None:
    """Declare a node dead: it is removed, nothing waits for it any more, and its uid can never join again.

    That includes the pods on it: their addresses may be given to others. Also for a node that was removed, when
    its range still waits for the end of its pods.

    \b
    Example: isthmus node fence idc-7 --yes
    """
    running = _running(context, name)
    told = f" {running} run on it: their addresses may be given to others." if running else ""
    if not how["dry_run"]:
        question = f"Fence node {name}? Its installation can never join again and its pods lose their network."
        confirm(f"{question}{told}", yes=yes)
    reply = send(context, FenceNode(node=name, reason=reason), how)
    uid, cidr = reply.result.get("uid", ""), reply.result.get("cidr", "")
    show_written(
        reply,
        f"{name} fenced: uid {uid} can never join again; {cidr} drains"
        + (f". {running} ran on it" if running else ""),
        as_json=as_json,
    )


def _running(context: BusContext, name: str) -> str:
    """What runs on the node, by its last report, in words; empty when nothing is known to run."""

    async def main() -> NodeView | None:
        async with controller(context) as client:
            try:
                return await client.ask(ShowNode(node=name), NodeView)
            except IsthmusError:
                return None  # whatever it is: the command itself says it

    view = run(main())
    if view is None or (view.pods <= 0 and not view.stray_pods):
        return ""
    words = [f"{view.pods} pods with addresses of {view.cidr}"] if view.pods > 0 else []
    words += [f"pods of an earlier range ({', '.join(view.stray_pods[:5])})"] if view.stray_pods else []
    return " and ".join(words)


node.add_command(import_)
