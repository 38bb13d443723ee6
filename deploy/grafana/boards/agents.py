"""The agents: do the kernels agree? State, drift, speed, age."""

from __future__ import annotations

from grafana_foundation_sdk.builders import dashboard

from deploy.grafana.panels import SELECT, Query, bars, board, graph, largest_and_median, number, per_second, row


def agents() -> dashboard.Dashboard:
    """Do the kernels agree: state, drift, speed, age."""
    return board(
        "isthmus-agents",
        "Isthmus / Agents",
        "The nodes' side: views, kernels, drift, tunnel.",
        row(
            "Now",
            bars(
                "Agents by state",
                "As the controllers hear them.",
                Query(f"max by (state) (isthmus_agents{{{SELECT}}})", "{{state}}"),
                span=8,
            ),
            number(
                "Kernels that disagree",
                "Agents whose kernel does not hold exactly the desired rows.",
                Query(f"sum(1 - isthmus_agent_kernel_agrees{{{SELECT}}})"),
                warn=1,
                alarm=5,
                span=8,
            ),
            number(
                "Agents without the bus",
                "Their rows stay as they are; new peers do not reach them.",
                Query(f"sum(1 - isthmus_agent_bus_connected{{{SELECT}}})"),
                warn=1,
                alarm=5,
                span=8,
            ),
        ),
        row(
            "Views",
            graph(
                "Age of views",
                "Since the log last brought an event or said that there is none; asked every 10 to 30 s.",
                *largest_and_median("isthmus_agent_view_age_seconds", "oldest"),
                unit="s",
            ),
            graph(
                "Behind",
                "Events known and not yet in the kernel.",
                Query(f"topk(10, isthmus_agent_behind{{{SELECT}}})", "{{service_instance_id}}"),
            ),
        ),
        row(
            "Kernel",
            graph(
                "Drift found and healed",
                "Differences that something else made, and those of them that the agent healed.",
                Query(per_second("isthmus_agent_drift_found_total", by="kind"), "{{kind}} found"),
                Query(per_second("isthmus_agent_drift_healed_total", by="kind"), "{{kind}} healed"),
                unit="eps",
            ),
            graph(
                "Rows written, removed, refused",
                "What the agents did to their kernels.",
                Query(per_second("isthmus_agent_rows_changed_total", by="change"), "{{change}}"),
                unit="eps",
            ),
            graph(
                "Direct apply",
                "The last direct change of the kernel: slowest and usual node.",
                *largest_and_median("isthmus_agent_apply_duration_seconds", "slowest"),
                unit="s",
            ),
            graph(
                "Comparison with the kernel",
                "The last full comparison: slowest and usual node; and how many there are a second.",
                *largest_and_median("isthmus_agent_resync_duration_seconds", "slowest"),
                unit="s",
            ),
            graph(
                "Comparisons and direct changes",
                "Direct changes are the rule; many comparisons mean that something disturbs.",
                Query(per_second("isthmus_agent_resyncs_total"), "comparisons"),
                Query(per_second("isthmus_agent_applies_total"), "direct changes"),
                Query(per_second("isthmus_agent_monitor_overflows_total"), "monitor overflows"),
                unit="eps",
            ),
            graph(
                "Rows by kind",
                "Desired rows over all nodes.",
                Query(f"sum by (kind) (isthmus_agent_rows{{{SELECT}}})", "{{kind}}"),
            ),
            graph(
                "Tunnel MTU",
                "The smallest and the largest: they differ where an underlay does.",
                Query(f"min(isthmus_agent_mtu_bytes{{{SELECT}}} > 0)", "smallest"),
                Query(f"max(isthmus_agent_mtu_bytes{{{SELECT}}})", "largest"),
                unit="decbytes",
            ),
        ),
        row(
            "Fast path",
            number(
                "Nodes without it",
                "Their packets all take the node's network stack: `isthmus doctor` there says why.",
                Query(f"sum(1 - isthmus_agent_fastpath_on{{{SELECT}}})"),
                warn=1,
                span=8,
            ),
            graph(
                "Packets by way",
                "Between pods and peers; a merged packet counts once.",
                Query(per_second("isthmus_agent_fastpath_packets_total", by="way"), "{{way}}"),
                unit="pps",
            ),
            graph(
                "Refused by reason",
                "Packets of peers that took the stack, and why.",
                Query(per_second("isthmus_agent_fastpath_refused_total", by="reason"), "{{reason}}"),
                unit="pps",
            ),
            graph(
                "Programs and entries repaired",
                "What others took off or changed, and the agent put back.",
                Query(per_second("isthmus_agent_fastpath_repaired_total"), "repaired"),
                unit="eps",
            ),
        ),
        row(
            "Complaints",
            graph(
                "Complaints",
                "Conditions that agents report of themselves.",
                Query(f"sum(isthmus_agent_conditions{{{SELECT}}})", "conditions"),
            ),
        ),
    )
