"""``replay state``."""

from __future__ import annotations

from typing import Any

import click

from events.cli.options import awaited, json_option
from events.cli.tables import print_json, print_table
from replay.cli.session import LogSource, at_option, opened, progress, source_options


@click.command("state")
@source_options
@at_option
@click.option("--nodes", "list_nodes", is_flag=True, help="List all members.")
@click.option("--ranges", "list_ranges", is_flag=True, help="List all ranges that are not free.")
@json_option
@awaited
async def state_command(source: LogSource, at: str, list_nodes: bool, list_ranges: bool, as_json: bool) -> None:
    """The cluster's whole state at a moment: plan, pool, members, reservations, digest.

    \b
    isthmus replay state --at -2h
    isthmus replay state --at 4711 --nodes --archive prod.isthmus
    """
    from controlplane.controller.answers import UNREPORTED, node_view, show_cluster
    from controlplane.controller.presenters import range_view
    from events.protocol.queries import ShowCluster

    async with opened(source) as session:
        point = await session.point(at)
        with progress("folding", point.sequence) as tick:
            state, origin = await session.states().at(point.sequence, tick)
        view = show_cluster(state, ShowCluster(), UNREPORTED)
        nodes = (
            [node_view(state, state.nodes[name], UNREPORTED) for name in sorted(state.nodes)]
            if list_nodes
            else []
        )
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
            ("at", session.at(point)),
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
            *(
                (f"entry {name}", f"{', '.join(e.sources)} by {e.address}")
                for name, e in sorted(state.entries.items())
            ),
            ("digest", view.digest),
            ("found by", f"{origin.method}" + (f" of {origin.folded:,} events" if origin.folded else "")),
        ]
        rows += [(f"condition {item.code}", item.message) for item in view.conditions]
        print_table(("", ""), rows, title=f"cluster {view.cluster} ({session.history.source})")
        if list_nodes:
            print_table(
                ("node", "kind", "site", "underlay", "range", "epoch", "reachable", "behind NAT"),
                [
                    (
                        n.node,
                        n.kind,
                        n.site,
                        n.underlay,
                        n.cidr,
                        n.epoch,
                        "no" if n.unreachable else "yes",
                        f"since {n.behind_nat:,}" if n.behind_nat else "no",
                    )
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
