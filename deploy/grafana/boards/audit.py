"""Audit: what was refused, what was alarmed, whether the chain holds."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.panels import SELECT, Query, bars, board, graph, listing, number, per_second, row


def audit() -> dashboard.Dashboard:
    """What was refused, what was overridden, whether the chain holds."""
    return board(
        "isthmus-audit",
        "Isthmus / Audit",
        "Integrity and refusals.",
        row(
            "Integrity",
            number(
                "Unverified events",
                "Between the log's head and the last event whose hash chain was checked.",
                Query(f"max(isthmus_log_sequence{{{SELECT}}} - isthmus_chain_verified{{{SELECT}}})"),
                warn=1000,
                alarm=100000,
                span=8,
            ),
            number(
                "Alarms",
                "Broken chain, stopped projection: each needs a person.",
                Query(f"sum(isthmus_alarms_total{{{SELECT}}})"),
                alarm=1,
                span=8,
            ),
            number(
                "Controllers that are well",
                "0 after an alarm.",
                Query(f"min(isthmus_healthy{{{SELECT}}})"),
                alarm=1,
                below=True,
                span=8,
            ),
        ),
        row(
            "Refusals",
            graph(
                "Refused commands",
                "By code; the code's meaning is in the documentation.",
                Query(per_second("isthmus_refusals_total", by="code"), "{{code}}"),
                unit="ops",
                stacked=True,
            ),
            bars(
                "Refused so far",
                "By code, since the controllers started.",
                Query(f"sum by (code) (isthmus_refusals_total{{{SELECT}}})", "{{code}}"),
            ),
        ),
        row(
            "Record",
            graph(
                "Recorded refusals and fencings",
                "Events of the log that say no.",
                Query(
                    per_second("isthmus_events_total", only='type="allocation.refused.v1"'),
                    "allocation refused",
                ),
                Query(per_second("isthmus_events_total", only='type="node.fenced.v1"'), "node fenced"),
                unit="eps",
            ),
            graph(
                "CLB reservations",
                "Pairs of addresses set aside.",
                Query(
                    f"max by (isthmus_cluster) (isthmus_clb_reservations{{{SELECT}}})", "{{isthmus_cluster}}"
                ),
            ),
            listing(
                "Alarms by name",
                "Since the controllers started.",
                Query(f"sum by (name) (isthmus_alarms_total{{{SELECT}}})"),
            ),
        ),
    )
