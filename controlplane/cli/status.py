"""``isthmus status``: the whole cluster in one look, and an exit code for monitoring."""

from __future__ import annotations

import time
from typing import Any

import click

from controlplane.cli.common import pages, show_conditions
from events.cli.hints import hint
from events.cli.options import BusContext, bus_options, controller, json_option, run
from events.cli.output import WATCH_S
from events.cli.tables import on_terminal, print_json, print_table
from events.errors import Unavailable
from events.protocol.queries import (
    ClbAnswer,
    ClbList,
    ClusterView,
    ListClb,
    ListNodes,
    NodePage,
    ShowClb,
    ShowCluster,
)

ORDER = ("ready", "degraded", "starting", "stopping", "silent", "unreachable", "unreported", "unknown")
WORDS = {"unreported": "never reported"}
STANDING = frozenset({"no_external_node", "conflict_overridden"})
"""Warnings about what somebody chose: they are shown, and count as healthy."""


@click.command()
@click.option("--watch", "-w", is_flag=True, help=f"Show it again every {WATCH_S:g} s, until Ctrl-C.")
@json_option
@bus_options
@click.pass_context
def status(click_context: click.Context, *, context: BusContext, watch: bool, as_json: bool) -> None:
    """Show bus, controller, log, nodes by state, pool, CLB pairs, and what needs a person.

    Exit code: 0 healthy, 1 something needs a person, 3 the bus or the controller does not answer.

    \b
    isthmus status
    isthmus status --watch
    isthmus status -o json
    """
    while True:
        try:
            healthy = _once(context, as_json=as_json, clear=watch)
        except Unavailable as error:
            if not watch:
                raise
            click.echo(f"{error.message} [{error.code}]")
            healthy = False
        if not watch:
            click_context.exit(0 if healthy else 1)
        time.sleep(WATCH_S)


def _once(context: BusContext, *, as_json: bool, clear: bool) -> bool:
    async def main() -> tuple[str, ClusterView, list[ClbAnswer], dict[str, int]]:
        async with controller(context) as client:
            view = await client.ask(ShowCluster(), ClusterView)
            names = (await client.ask(ListClb(), ClbList)).reservations
            pairs = [await client.ask(ShowClb(reservation=one.name), ClbAnswer) for one in names]
            agents = view.agents or await _counted(client)
            return client.server, view, pairs, agents

    server, view, pairs, agents = run(main())
    if clear and on_terminal():
        click.clear()
    urgent = [one for one in view.conditions if one.severity != "info" and one.code not in STANDING]
    if as_json:
        print_json({
            "healthy": not urgent, "bus": server, "controller": view.controller, "version": view.version,
            "sequence": view.sequence, "nodes": view.nodes, "agents": agents, "pool": view.pool,
            "clb": pairs, "conditions": view.conditions,
        })  # fmt: skip
    else:
        _show(context, server, view, pairs, agents)
    return not urgent


async def _counted(client: Any) -> dict[str, int]:
    """Members by state, of a controller that does not say it."""
    counts: dict[str, int] = {}
    async for page in pages(client, ListNodes(), NodePage):
        for node in page.nodes:
            reported = "silent" if node.stale else node.agent_state or "unreported"
            state = "unreachable" if node.unreachable else reported
            counts[state] = counts.get(state, 0) + 1
    return counts


def _show(
    context: BusContext, server: str, view: ClusterView, pairs: list[ClbAnswer], agents: dict[str, int]
) -> None:
    pool = view.pool
    phases = (
        f"{pool.allocated:,} allocated, {pool.draining:,} draining, {pool.quarantined:,} quarantined, "
        f"{pool.free:,} free of {pool.capacity:,}"
    )
    answered = " ".join(part for part in (view.controller or "answers", view.version) if part)
    rows: list[tuple[str, str]] = [
        ("bus", server),
        ("controller", f"{answered} (leads)"),
        ("log", f"event {view.sequence:,}"),
    ]
    if view.definition is None:
        rows.append(
            ("cluster", "not defined yet: " + hint(context.cluster, "isthmus cluster define --cidr CIDR"))
        )
    else:
        rows += [
            ("nodes", _nodes(view, agents)),
            (
                "ranges",
                phases,
            ),
            ("next range", pool.next_range or "none is free"),
            *((f"CLB {pair.reservation.name}", _pair(pair)) for pair in pairs),
        ]
        if not pairs:
            rows.append(("CLB", "no pair is reserved (CLB: the private load balancer's two addresses)"))
    print_table((f"cluster {view.cluster}", ""), rows)
    click.echo()
    show_conditions(view.conditions, context=context)


def _nodes(view: ClusterView, agents: dict[str, int]) -> str:
    known = [f"{agents[name]:,} {WORDS.get(name, name)}" for name in ORDER if agents.get(name)]
    return f"{agents.get('ready', 0):,} of {view.nodes:,} up" + (f" ({', '.join(known)})" if known else "")


def _pair(pair: ClbAnswer) -> str:
    if not pair.holders:
        addresses = ", ".join(f"{one.purpose} {one.address}" for one in pair.reservation.addresses)
        return f"{addresses} (realised by {pair.reservation.provider})"
    good = sum(one.healthy for one in pair.backends)
    held = ", ".join(f"{one.purpose} {one.address} on {one.node or 'no gateway'}" for one in pair.holders)
    return f"{held}; {good} of {len(pair.backends)} backends healthy"
