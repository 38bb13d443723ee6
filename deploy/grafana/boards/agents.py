"""The agents: do the kernels agree? State, drift, speed, age."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.panels import SELECT, Query, bars, board, graph, number, per_second


def agents() -> dashboard.Dashboard:
    """Do the kernels agree: state, drift, speed, age."""
    return (
        board("isthmus-agents", "Isthmus / Agents", "The nodes' side: views, kernels, drift, tunnel.")
        .with_row(dashboard.Row("Now"))
        .with_panel(
            bars(
                "Agents by state",
                "As the controllers hear them.",
                Query(f"max by (state) (isthmus_agents{{{SELECT}}})", "{{state}}"),
                span=8,
            )
        )
        .with_panel(
            number(
                "Kernels that disagree",
                "Agents whose kernel does not hold exactly the desired rows.",
                Query(f"sum(1 - isthmus_agent_kernel_agrees{{{SELECT}}})"),
                warn=1,
                alarm=5,
                span=8,
            )
        )
        .with_panel(
            number(
                "Agents without the bus",
                "Their rows stay as they are; new peers do not reach them.",
                Query(f"sum(1 - isthmus_agent_bus_connected{{{SELECT}}})"),
                warn=1,
                alarm=5,
                span=8,
            )
        )
        .with_row(dashboard.Row("Views"))
        .with_panel(
            graph(
                "Age of views",
                "Since the log last brought an event or said that there is none; asked every 10 to 30 s.",
                [
                    Query(f"max(isthmus_agent_view_age_seconds{{{SELECT}}})", "oldest"),
                    Query(f"quantile(0.5, isthmus_agent_view_age_seconds{{{SELECT}}})", "median"),
                ],
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Behind",
                "Events known and not yet in the kernel.",
                [Query(f"topk(10, isthmus_agent_behind{{{SELECT}}})", "{{service_instance_id}}")],
            )
        )
        .with_row(dashboard.Row("Kernel"))
        .with_panel(
            graph(
                "Drift found and healed",
                "Differences that something else made, and those of them that the agent healed.",
                [
                    Query(per_second("isthmus_agent_drift_found_total", by="kind"), "{{kind}} found"),
                    Query(per_second("isthmus_agent_drift_healed_total", by="kind"), "{{kind}} healed"),
                ],
                unit="eps",
            )
        )
        .with_panel(
            graph(
                "Rows written, removed, refused",
                "What the agents did to their kernels.",
                [
                    Query(
                        per_second("isthmus_agent_rows_changed_total", by="change"),
                        "{{change}}",
                    )
                ],
                unit="eps",
            )
        )
        .with_panel(
            graph(
                "Direct apply",
                "The last direct change of the kernel: slowest and usual node.",
                [
                    Query(f"max(isthmus_agent_apply_duration_seconds{{{SELECT}}})", "slowest"),
                    Query(f"quantile(0.5, isthmus_agent_apply_duration_seconds{{{SELECT}}})", "median"),
                ],
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Comparison with the kernel",
                "The last full comparison: slowest and usual node; and how many there are a second.",
                [
                    Query(f"max(isthmus_agent_resync_duration_seconds{{{SELECT}}})", "slowest"),
                    Query(f"quantile(0.5, isthmus_agent_resync_duration_seconds{{{SELECT}}})", "median"),
                ],
                unit="s",
            )
        )
        .with_panel(
            graph(
                "Comparisons and direct changes",
                "Direct changes are the rule; many comparisons mean that something disturbs.",
                [
                    Query(per_second("isthmus_agent_resyncs_total"), "comparisons"),
                    Query(per_second("isthmus_agent_applies_total"), "direct changes"),
                    Query(per_second("isthmus_agent_monitor_overflows_total"), "monitor overflows"),
                ],
                unit="eps",
            )
        )
        .with_panel(
            graph(
                "Rows by kind",
                "Desired rows over all nodes.",
                [Query(f"sum by (kind) (isthmus_agent_rows{{{SELECT}}})", "{{kind}}")],
            )
        )
        .with_panel(
            graph(
                "Tunnel MTU",
                "The smallest and the largest: they differ where an underlay does.",
                [
                    Query(f"min(isthmus_agent_mtu_bytes{{{SELECT}}} > 0)", "smallest"),
                    Query(f"max(isthmus_agent_mtu_bytes{{{SELECT}}})", "largest"),
                ],
                unit="decbytes",
            )
        )
        .with_row(dashboard.Row("Fast path"))
        .with_panel(
            number(
                "Nodes without it",
                "Their packets all take the node's network stack: `isthmus doctor` there says why.",
                Query(f"sum(1 - isthmus_agent_fastpath_on{{{SELECT}}})"),
                warn=1,
                span=8,
            )
        )
        .with_panel(
            graph(
                "Packets by way",
                "Between pods and peers; a merged packet counts once.",
                [Query(per_second("isthmus_agent_fastpath_packets_total", by="way"), "{{way}}")],
                unit="pps",
            )
        )
        .with_panel(
            graph(
                "Refused by reason",
                "Packets of peers that took the stack, and why.",
                [Query(per_second("isthmus_agent_fastpath_refused_total", by="reason"), "{{reason}}")],
                unit="pps",
            )
        )
        .with_panel(
            graph(
                "Programs and entries repaired",
                "What others took off or changed, and the agent put back.",
                [Query(per_second("isthmus_agent_fastpath_repaired_total"), "repaired")],
                unit="eps",
            )
        )
        .with_row(dashboard.Row("Complaints"))
        .with_panel(
            graph(
                "Complaints",
                "Conditions that agents report of themselves.",
                [Query(f"sum(isthmus_agent_conditions{{{SELECT}}})", "conditions")],
            )
        )
    )
