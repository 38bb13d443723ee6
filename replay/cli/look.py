"""``replay state``, ``who`` and ``diff``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from events.cli.options import json_option, run
from events.cli.tables import print_json, print_table
from replay.cli.source import Asked, Source, TimesAsArguments, at_option, opened, progress, source_options

if TYPE_CHECKING:
    from replay.queries.who import Holding, WhoAnswer


@click.command("state")
@source_options
@at_option
@click.option("--nodes", "list_nodes", is_flag=True, help="List all members.")
@click.option("--ranges", "list_ranges", is_flag=True, help="List all ranges that are not free.")
@json_option
def state_command(source: Source, at: str, list_nodes: bool, list_ranges: bool, as_json: bool) -> None:
    """The cluster's whole state at a moment: plan, pool, members, reservations, digest.

    \b
    isthmus replay state --at -2h
    isthmus replay state --at 4711 --nodes --archive prod.isthmus
    """
    run(_state(source, at, list_nodes=list_nodes, list_ranges=list_ranges, as_json=as_json))


async def _state(source: Source, at: str, *, list_nodes: bool, list_ranges: bool, as_json: bool) -> None:
    from controlplane.controller.answers import NO_REPORTS, node_view, show_cluster
    from controlplane.controller.presenters import range_view
    from events.protocol.queries import ShowCluster

    async with opened(source) as asked:
        point = await asked.point(at)
        with progress("folding", point.sequence) as tick:
            state, origin = await asked.states().at(point.sequence, tick)
        view = show_cluster(state, ShowCluster(), NO_REPORTS)
        nodes = [node_view(state, state.nodes[name]) for name in sorted(state.nodes)] if list_nodes else []
        ranges = (
            [range_view(state, state.ranges[index]) for index in sorted(state.ranges)] if list_ranges else []
        )
        if as_json:
            answer: dict[str, Any] = {"at": point, "origin": origin, "state": view}
            if list_nodes:
                answer["nodes"] = nodes
            if list_ranges:
                answer["ranges"] = ranges
            print_json(answer)
            return
        pool = view.pool
        rows: list[tuple[str, object]] = [
            ("at", asked.at(point)),
            ("container CIDRs", ", ".join(cidr.cidr for cidr in view.cidrs) or "not defined yet"),
            ("Service range", view.definition.service_cidr if view.definition else "–"),
            ("nodes", f"{view.nodes:,}, of which {view.external:,} external, {view.unreachable:,} unreachable"),
            (
                "ranges",
                (
                    f"{pool.allocated:,} allocated + {pool.draining:,} draining + "
                    f"{pool.quarantined:,} quarantined + {pool.free:,} free = {pool.capacity:,}"
                ),
            ),
            ("cursor", f"{pool.cursor:,} (next: {pool.next_range or 'none'})"),
            ("CLB reservations", ", ".join(sorted(state.clb)) or "none"),
            ("digest", view.digest),
            ("found by", f"{origin.method}" + (f" of {origin.folded:,} events" if origin.folded else "")),
        ]
        rows += [(f"condition {item.code}", item.message) for item in view.conditions]
        print_table(("", ""), rows, title=f"cluster {view.cluster} ({asked.history.source})")
        if list_nodes:
            print_table(
                ("node", "kind", "site", "underlay", "range", "epoch", "reachable"),
                [
                    (n.node, n.kind, n.site, n.underlay, n.cidr, n.epoch, "no" if n.unreachable else "yes")
                    for n in nodes
                ],
                right=("epoch",),
            )
        if list_ranges:
            print_table(
                ("index", "range", "phase", "node", "epoch"),
                [(r.index, r.cidr, r.phase, r.node, r.epoch) for r in ranges],
                right=("index", "epoch"),
            )


@click.command("who")
@source_options
@click.option(
    "--ip", "address", required=True, metavar="ADDR", help="A pod's, a node's or a balancer's address."
)
@at_option
@json_option
def who_command(source: Source, address: str, at: str, as_json: bool) -> None:
    """Whose an address was: node, uid, epoch, from when to when, who asked for it.

    For a pod's address: the node whose range held it. "Nobody" names the last one.

    \b
    isthmus replay who --ip 10.200.7.9
    isthmus replay who --ip 10.200.7.9 --at 'yesterday 14:00' --archive prod.isthmus
    """
    run(_who(source, address, at, as_json=as_json))


async def _who(source: Source, address: str, at: str, *, as_json: bool) -> None:
    from replay.queries.who import who

    async with opened(source) as asked:
        answer = await who(asked.history, address, await asked.point(at))
        if as_json:
            print_json(answer)
            return
        print_table(("", ""), _who_rows(asked, answer), title=f"{address} at {asked.at(answer.at)}")


def _who_rows(asked: Asked, answer: WhoAnswer) -> list[tuple[str, str]]:
    rows = [("kind", {"pod": "pod address", "outside": "not in this cluster"}.get(answer.kind, answer.kind))]
    if answer.range:
        rows.append(("range", answer.range + (f" ({answer.range_state})" if answer.range_state else "")))
    if answer.holder is not None:
        rows += _holding(asked, answer.holder, current=True)
    else:
        rows.append(("held by", "nobody" + (f": {answer.note}" if answer.note else "")))
        if answer.last is not None:
            rows.append(("the last one", ""))
            rows += _holding(asked, answer.last, current=False)
    return rows


def _holding(asked: Asked, held: Holding, *, current: bool) -> list[tuple[str, str]]:
    rows = [("node", held.node), ("uid", held.uid)] if held.node else [("balancer", held.balancer)]
    if held.purpose:
        rows.append(("purpose", held.purpose))
    if held.gateway:
        rows += [("held by gateway", held.gateway), ("its uid", held.gateway_uid)]
    if held.epoch:
        rows.append(("epoch", str(held.epoch)))
    if held.gateway_since is not None:
        rows.append(
            ("gateway since", f"event {held.gateway_since.sequence:,} · {asked.when(held.gateway_since)}")
        )
    before = f"before event {asked.history.start + 1:,}, the first one here"
    rows.append(("from", f"event {held.since.sequence:,} · {asked.when(held.since)}" if held.since else before))
    over = "still" if current else before
    rows.append(("to", f"event {held.to.sequence:,} · {asked.when(held.to)}" if held.to else over))
    if held.since is not None:
        rows.append(("asked for by", f"{held.since.actor}, command {held.since.command_id}"))
        if held.since.trace_id:
            rows.append(("trace", held.since.trace_id))
    return rows


@click.command("diff", cls=TimesAsArguments)
@source_options
@click.argument("a", metavar="WHEN")
@click.argument("b", metavar="WHEN", default="now")
@json_option
def diff_command(source: Source, a: str, b: str, as_json: bool) -> None:
    """What changed between two moments.

    \b
    isthmus replay diff -2h now
    isthmus replay diff 4000 5000 --archive prod.isthmus
    """
    run(_diff(source, a, b, as_json=as_json))


async def _diff(source: Source, a: str, b: str, *, as_json: bool) -> None:
    from replay.queries.difference import difference

    async with opened(source) as asked:
        first, second = await asked.point(a), await asked.point(b)
        with progress("folding", max(first.sequence, second.sequence)) as tick:
            answer = await difference(asked.states(), first, second, tick)
        if as_json:
            print_json(answer)
            return
        print_table(
            ("", "before", "after"),
            [(name, f"{x:,}", f"{y:,}") for name, (x, y) in answer.counts.items() if x != y],
            title=f"{asked.at(first)}  →  {asked.at(second)}",
            right=("before", "after"),
            empty="the numbers are the same",
        )
        print_table(
            ("what", "name", "", "before", "after"),
            [(c.kind, c.name, c.what, _pairs(c.before), _pairs(c.after)) for c in answer.changes],
            empty="nothing differs",
        )


def _pairs(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in values.items() if value not in ("", None))
