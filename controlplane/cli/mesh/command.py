"""``isthmus mesh``: whether pods of one node reach those of another, and the smallest explanation if not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import click
import msgspec

from events.cli.options import BusContext, bus_options, controller, json_option, run
from events.cli.tables import print_json, print_table
from events.errors import Usage
from events.protocol.mesh import FindingView, MeshView, NodePath, ShowMesh

LOST = 1
"""Exit code when something does not pass."""
NAMES_SHOWN = 5
TRACE_WAIT_S = 10.0
"""How long a trace is waited for: a round of packets that are not answered takes a few seconds."""


@click.command()
@click.argument("nodes", nargs=-1, metavar="[NODE [NODE]]")
@click.option("--site", default=None, metavar="SITE", help="Also what was measured between nodes of this site.")
@click.option("--other", default=None, metavar="SITE", help="With --site: between the nodes of both sites.")
@json_option
@bus_options
def mesh(
    *, context: BusContext, nodes: tuple[str, ...], site: str | None, other: str | None, as_json: bool
) -> None:
    """Whether pods reach each other, as the agents measure it through the tunnel, and what is in the way.

    \b
    isthmus mesh                      findings, and the matrix by site
    isthmus mesh --site sz            also between the nodes of a site
    isthmus mesh idc-7                what was measured of and by one node
    isthmus mesh idc-7 cloud-1        both agents trace the way to the other

    Exit code 0: all that is measured passes; 1: something does not (of the nodes named, if any are).
    """
    if len(nodes) > 2:
        raise Usage("usage", f"{len(nodes)} nodes are named: name none, one or two")
    if len(set(nodes)) < len(nodes):
        raise Usage("usage", f"{nodes[0]} is named twice: a pair is of two nodes")
    if other is not None and site is None:
        raise Usage("usage", f"--other {other} needs --site, the other end")
    a, b = (*nodes, "", "")[:2]

    async def ask() -> MeshView:
        async with controller(context) as client:
            query = ShowMesh(a=a, b=b, site=site, other=other, trace=bool(b))
            asked_at = time.monotonic()
            view = await client.ask(query, MeshView)
            later = msgspec.structs.replace(query, trace=False)
            while b and not _traced(view, {a, b}, time.monotonic() - asked_at):
                if time.monotonic() - asked_at > TRACE_WAIT_S:
                    break
                await asyncio.sleep(0.25)
                view = await client.ask(later, MeshView)
            return view

    view = run(ask())
    found = [one for one in view.findings if _concerns(one, set(nodes))]
    lost = bool(b) and (
        any(told.stops for told in view.traces)
        or any(path.state not in {"ok", "kernel only", "not measured"} for path in view.paths)
    )
    if as_json:
        print_json(view)
    else:
        _show(view, found, set(nodes), pair=bool(b), lost=lost)
    if found or lost:
        raise SystemExit(LOST)


def _traced(view: MeshView, nodes: set[str], elapsed_s: float) -> bool:
    """Whether both have traced the way since it was asked for, as far as they can."""
    silent = {*view.quiet, *view.unmeasured}
    return nodes - silent <= {told.by for told in view.traces if told.age_s <= elapsed_s}


def _concerns(one: FindingView, nodes: set[str]) -> bool:
    """Whether a finding is about one of these nodes; about sites and all of them it always is."""
    return not nodes or one.scope in {"cluster", "site", "sites"} or bool({one.a, one.b} & nodes)


def _names(names: Sequence[str], count: int = 0) -> str:
    """A few by name, and how many there are where that is known: the controller names only the first."""
    shown = ", ".join(names[:NAMES_SHOWN])
    if count > NAMES_SHOWN:
        return f"{shown} and {count - NAMES_SHOWN:,} more"
    return f"{shown} …" if len(names) > NAMES_SHOWN else shown


def _show(view: MeshView, found: list[FindingView], nodes: set[str], *, pair: bool, lost: bool) -> None:
    click.echo(f"{view.capable:,} of {view.nodes:,} nodes measure; sequence {view.sequence:,}")
    if view.unmeasured:
        unmeasured = _names(view.unmeasured, view.nodes - view.capable)
        click.echo(f"not measured (never heard, before 0.3, or unable): {unmeasured}")
    if view.quiet:
        click.echo(f"no report lately of: {_names(view.quiet)}")
    for one in found:
        since = f", since {one.since.astimezone():%Y-%m-%d %H:%M:%S}" if one.since else ""
        recorded = f" (event {one.recorded})" if one.recorded else ""
        click.echo(f"✗ {one.sentence}{since}{recorded}")
        for text in (*one.evidence, *one.before):
            click.echo(f"    {text}")
    if not found and lost:
        click.echo("✗ packets do not pass there, and no finding says so (yet)")
    elif not found and nodes & set(view.unmeasured):
        click.echo(f"? nobody can tell of {_names(sorted(nodes & set(view.unmeasured)))}: it does not measure")
    elif not found and view.capable:
        click.echo("✓ nothing is known that does not pass")
    elif not found:
        click.echo("? no node measures: whether pods reach each other is not known")
    if not pair:
        print_table(
            (
                "from", "to", "measured", "lost", "large lost", "rtt ms", "usual ms", "worst ms", "jitter ms",
                "loss",
            ),
            [
                (
                    one.a or "-", one.b or "-", one.measured, one.lost or "", one.large_lost or "",
                    _ms(one.rtt_us), _ms(one.usual_us), _ms(one.worst_rtt_us),
                    f"{one.jitter_us / 1000:.2f}", f"{one.loss:.1%}",
                )
                for one in view.sites
            ],
            right=("measured", "lost", "large lost", "rtt ms", "usual ms", "worst ms", "jitter ms", "loss"),
            drop=("jitter ms", "worst ms", "large lost", "usual ms"),
            empty="nothing is measured yet: agents of 0.3 begin when they know a peer",
        )  # fmt: skip
    if view.paths or pair:
        print_table(
            ("node", "asked", "state", "large", "rtt ms", "usual ms", "loss", "last answer"),
            [_path(one) for one in view.paths],
            right=("rtt ms", "usual ms", "loss", "last answer"),
            drop=("loss", "usual ms", "large"),
            empty="these two have not measured each other yet",
        )
    if pair:
        for name in sorted(nodes - {told.by for told in view.traces}):
            click.echo(f"no trace by {name}: its agent is away, is older than 0.3, or has not answered in time")
    for told in view.traces:
        verdict = f"stops at {told.stops}" if told.stops else "passes"
        click.echo(f"{told.by} → {told.of}, {told.age_s:.0f} s ago: {verdict}")
        for hop in told.hops:
            mark = {True: "✓", False: "✗", None: "?"}[hop.passed]
            click.echo(f"  {mark} {hop.name}{f': {hop.text}' if hop.text else ''}")


def _path(one: NodePath) -> tuple[object, ...]:
    answered = f"{one.age_s:.0f} s ago" if one.state in {"ok", "kernel only"} else f"none for {one.age_s:.0f} s"
    return one.by, one.of, one.state, one.large, _ms(one.rtt_us), _ms(one.usual_us), f"{one.loss:.0%}", answered


def _ms(us: int) -> str:
    return f"{us / 1000:.2f}" if us else ""
