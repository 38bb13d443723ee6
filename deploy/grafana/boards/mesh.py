"""The mesh: do pods reach each other, and how fast?"""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.panels import SELECT, Query, board, graph, number, row

BETWEEN = "isthmus_cluster, site, peer_site"
NAMED = "{{site}} → {{peer_site}}"


def mesh() -> dashboard.Dashboard:
    """Do pods reach each other: what is lost, and round trips and loss by site."""
    return board(
        "isthmus-mesh",
        "Isthmus / Mesh",
        "What the agents measure of each other through the tunnel; `isthmus mesh` explains it.",
        row(
            "Now",
            number(
                "Sites lost",
                "Sites that are cut off, pairs of sites that do not reach each other, or all of them.",
                Query(_lost("cluster|site|sites")),
                alarm=1,
                span=8,
            ),
            number(
                "Nodes lost",
                "Nodes that nobody reaches, or that do not forward to their pods.",
                Query(_lost("node")),
                alarm=1,
                span=8,
            ),
            number(
                "Pairs lost",
                "Pairs of nodes that do not reach each other, in one direction or with large packets.",
                Query(_lost("pair")),
                alarm=1,
                span=8,
            ),
        ),
        row(
            "By site",
            graph(
                "Round trip",
                "Median of the last measurements from one site to another, or within one.",
                Query(
                    f"max by ({BETWEEN}) (isthmus_sites_rtt_seconds{{{SELECT}}})", "{{site}} → {{peer_site}}"
                ),
                unit="s",
            ),
            graph(
                "Round trip against the last day",
                "The present median divided by the mean of the day before; 2 raises the alert.",
                Query(
                    f"max by ({BETWEEN}) (isthmus_sites_rtt_seconds{{{SELECT}}}) / max by ({BETWEEN}) "
                    f"(avg_over_time(isthmus_sites_rtt_seconds{{{SELECT}}}[1d] offset 15m))",
                    NAMED,
                ),
            ),
            graph(
                "Loss",
                "Share of probes that were lost where packets pass.",
                Query(f"max by ({BETWEEN}) (isthmus_sites_loss{{{SELECT}}})", NAMED),
                unit="percentunit",
            ),
            graph(
                "Lost paths",
                "What is recorded as lost, by what is meant and how.",
                Query(f"max by (scope, fault) (isthmus_paths_lost{{{SELECT}}}) > 0", "{{scope}}: {{fault}}"),
            ),
        ),
    )


def _lost(scopes: str) -> str:
    return f'sum(max by (scope, fault) (isthmus_paths_lost{{{SELECT}, scope=~"{scopes}"}}))'
