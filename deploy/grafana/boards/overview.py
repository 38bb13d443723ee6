"""The overview: is the overlay well? Room, nodes, speed, trouble."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.panels import (
    SELECT,
    Query,
    bars,
    board,
    graph,
    number,
    per_second,
    quantile,
    quantiles,
    row,
)


def overview() -> dashboard.Dashboard:
    """Is the overlay well: room, nodes, speed, trouble."""
    return board(
        "isthmus-overview",
        "Isthmus / Overview",
        "The overlay at a glance.",
        row(
            "Now",
            number("Nodes", "Members.", Query(f"sum(max by (kind, reachable) (isthmus_nodes{{{SELECT}}}))")),
            number(
                "Free ranges",
                "What the next nodes can get. Below a tenth of the pool is a warning, none is an alarm.",
                Query(f'sum(max by (cidr) (isthmus_pool_ranges{{{SELECT}, state="free"}}))'),
                warn=1,
                alarm=1,
                below=True,
            ),
            number(
                "Pool in use",
                "Share of ranges that are not free.",
                Query(
                    f'1 - sum(max by (cidr) (isthmus_pool_ranges{{{SELECT}, state="free"}})) '
                    f"/ max(isthmus_pool_capacity{{{SELECT}}})"
                ),
                unit="percentunit",
                warn=0.8,
                alarm=0.95,
            ),
            number(
                "Convergence p99, all agents",
                "From a stored transaction to the report of the last agent.",
                Query(quantile(0.99, "isthmus_convergence_all_seconds", window="15m")),
                unit="s",
                warn=2,
                alarm=10,
            ),
            number(
                "Slowest agent is behind",
                "Events between the log's head and the lowest applied sequence of the live agents.",
                Query(f"max(isthmus_watermark_lag{{{SELECT}}})"),
                warn=1000,
                alarm=10000,
            ),
            number(
                "Leaders",
                "Exactly one controller leads.",
                Query(f"sum(isthmus_leader{{{SELECT}}})"),
                warn=2,
                alarm=2,
            ),
        ),
        row(
            "Address space",
            graph(
                "Ranges by state",
                "The four states add up to the capacity, always.",
                Query(f"sum by (state) (max by (cidr, state) (isthmus_pool_ranges{{{SELECT}}}))", "{{state}}"),
                stacked=True,
            ),
            graph(
                "Cursor",
                "Index at which the next search starts; it climbs and wraps.",
                Query(f"max by (isthmus_cluster) (isthmus_pool_cursor{{{SELECT}}})", "{{isthmus_cluster}}"),
            ),
            bars(
                "Ranges by CIDR",
                "How full each container CIDR is.",
                Query(
                    f"sum by (cidr, state) (max by (cidr, state) (isthmus_pool_ranges{{{SELECT}}}))",
                    "{{cidr}} {{state}}",
                ),
            ),
            graph(
                "Membership",
                "Joins, leaves and fencings a second.",
                Query(per_second("isthmus_events_total", only='type="node.joined.v1"', window="1m"), "joined"),
                Query(per_second("isthmus_events_total", only='type="node.left.v1"', window="1m"), "left"),
                Query(per_second("isthmus_events_total", only='type="node.fenced.v1"', window="1m"), "fenced"),
                unit="eps",
            ),
        ),
        row(
            "Convergence",
            graph(
                "From the log into the kernel, per agent",
                "How long one agent takes from a stored transaction to its report.",
                *quantiles("isthmus_convergence_agent_seconds", median=0.5, p99=0.99, slowest=1.0),
                unit="s",
            ),
            graph(
                "From the log into every kernel",
                "How long until the last agent has reported.",
                *quantiles("isthmus_convergence_all_seconds", median=0.5, p99=0.99),
                unit="s",
            ),
        ),
    )
