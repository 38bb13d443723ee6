"""Bus and controllers: the path of a command. Queue, append, projection."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.panels import SELECT, Query, board, graph, per_second, quantile, quantiles, row


def bus() -> dashboard.Dashboard:
    """The path of a command."""
    return board(
        "isthmus-bus",
        "Isthmus / Bus and controllers",
        "The path of a command.",
        row(
            "Commands",
            graph(
                "Commands",
                "Answered a second, by answer.",
                Query(per_second("isthmus_commands_total", by="code", window="1m"), "{{code}}"),
                unit="ops",
                stacked=True,
            ),
            graph(
                "Answer time",
                "From receipt to answer, the append included: the slowest command of each group commit.",
                *quantiles("isthmus_command_duration_seconds", median=0.5, p90=0.9, p99=0.99),
                unit="s",
            ),
            graph(
                "Queue",
                "Commands that wait now, and how long they waited.",
                Query(f"max(isthmus_commands_waiting{{{SELECT}}})", "waiting"),
                Query(quantile(0.99, "isthmus_command_queued_seconds"), "p99 of the wait in seconds"),
            ),
            graph(
                "Answer time by command",
                "The 99th of each.",
                Query(quantile(0.99, "isthmus_command_duration_seconds", by="command"), "{{command}}"),
                unit="s",
            ),
        ),
        row(
            "Log",
            graph(
                "Append",
                "One atomic append to the stream.",
                *quantiles("isthmus_append_duration_seconds", median=0.5, p99=0.99),
                unit="s",
            ),
            graph(
                "Events per append",
                "Group commit: one fsync for so many events.",
                *quantiles("isthmus_append_events", median=0.5, p99=0.99),
            ),
            graph(
                "Events",
                "Stored a second, by type.",
                Query(per_second("isthmus_events_total", by="type", window="1m"), "{{type}}"),
                unit="eps",
                stacked=True,
            ),
            graph(
                "Appends lost to another controller",
                "Decided again. Harmless; many mean that two controllers claim leadership.",
                Query(per_second("isthmus_append_conflicts_total"), "conflicts"),
                unit="eps",
            ),
        ),
        row(
            "Controllers",
            graph(
                "Read model lag",
                "Events that each controller's read model is behind.",
                Query(f"isthmus_projection_lag{{{SELECT}}}", "{{service_instance_id}}"),
            ),
            graph(
                "Read model transactions",
                "How long one takes.",
                Query(quantile(0.99, "isthmus_projection_duration_seconds"), "p99"),
                unit="s",
            ),
            graph(
                "Who leads",
                "1 for the leader; a hand-over shows as a step.",
                Query(f"isthmus_leader{{{SELECT}}}", "{{service_instance_id}}"),
            ),
            graph(
                "Log head, read model, watermark",
                "The head grows; the others follow. The watermark is the slowest live agent.",
                Query(f"max(isthmus_log_sequence{{{SELECT}}})", "log"),
                Query(f"min(isthmus_projection_sequence{{{SELECT}}})", "read model"),
                Query(f"min(isthmus_watermark{{{SELECT}}})", "watermark"),
            ),
        ),
    )
