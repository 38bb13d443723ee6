"""The alert rules. Each says what is wrong, what it means for traffic, and where to look.

Thresholds are in time, not in counts, wherever a cluster of ten and one of ten thousand must both be
served. ``severity: page`` is for what a person must act on now.
"""

from __future__ import annotations

import json
from typing import NamedTuple


class Alert(NamedTuple):
    """One rule. ``hold`` is how long the expression must be true (Prometheus' ``for``)."""

    name: str
    expression: str
    hold: str
    severity: str
    summary: str
    action: str


_SILENT = 'sum by (isthmus_cluster) (max by (isthmus_cluster, kind) (isthmus_nodes{reachable="no"}))'
RUNBOOK = "deploy/ALERTS.md"

ALERTS = (
    Alert(
        "IsthmusPoolExhausted",
        'sum by (isthmus_cluster) (max by (isthmus_cluster, cidr) (isthmus_pool_ranges{state="free"})) == 0',
        "1m",
        "page",
        "No range is free in cluster {{ $labels.isthmus_cluster }}: new nodes are refused.",
        "isthmus cluster append --cidr …, or remove nodes. Running nodes are not affected.",
    ),
    Alert(
        "IsthmusPoolNearlyFull",
        'sum by (isthmus_cluster) (max by (isthmus_cluster, cidr) (isthmus_pool_ranges{state="free"})) '
        "< 0.1 * max by (isthmus_cluster) (isthmus_pool_capacity) and "
        'sum by (isthmus_cluster) (max by (isthmus_cluster, cidr) (isthmus_pool_ranges{state="free"})) > 0',
        "15m",
        "ticket",
        "Less than a tenth of the ranges of cluster {{ $labels.isthmus_cluster }} is free.",
        "Append a CIDR before nodes are refused: isthmus cluster append --cidr …",
    ),
    Alert(
        "IsthmusNoLeader",
        # A dead controller has no series at all: what was there within a day and does not lead now.
        "(count by (isthmus_cluster) (present_over_time(isthmus_leader[1d])) unless on (isthmus_cluster) "
        "(sum by (isthmus_cluster) (isthmus_leader) > 0)) or absent_over_time(isthmus_leader[1d])",
        "30s",
        "page",
        "No controller leads cluster {{ $labels.isthmus_cluster }}, or none is scraped: commands wait.",
        "Look at the controllers and the bus: isthmus status. Packets keep flowing meanwhile.",
    ),
    Alert(
        "IsthmusTwoLeaders",
        "sum by (isthmus_cluster) (isthmus_leader) > 1",
        "2m",
        "ticket",
        "{{ $value }} controllers claim leadership of cluster {{ $labels.isthmus_cluster }}.",
        "The append condition keeps the log safe; look for a partition between controllers and bus.",
    ),
    Alert(
        "IsthmusControllerUnwell",
        "isthmus_healthy == 0",
        "1m",
        "page",
        "Controller {{ $labels.service_instance_id }} raised an alarm: a broken chain or a stopped projection.",
        "Read its log; isthmus replay verify checks the whole log independently.",
    ),
    Alert(
        "IsthmusProjectionBehind",
        "isthmus_projection_lag > 1000",
        "5m",
        "ticket",
        "The read model of {{ $labels.service_instance_id }} is {{ $value }} events behind.",
        "Questions about the past are answered late; look at the disk of that controller.",
    ),
    Alert(
        "IsthmusAgentsBehind",
        "isthmus_watermark_lag > 0 and changes(isthmus_watermark[10m]) == 0",
        "10m",
        "ticket",
        "The slowest agent of cluster {{ $labels.isthmus_cluster }} has applied nothing for ten minutes.",
        "The console names who is behind. Released ranges wait for it; fence a node that is dead.",
    ),
    Alert(
        "IsthmusSlowConvergence",
        "histogram_quantile(0.99, sum by (isthmus_cluster, le) "
        "(rate(isthmus_convergence_all_seconds_bucket[15m]))) > 10",
        "15m",
        "ticket",
        "Changes take more than 10 s to reach the last agent of cluster {{ $labels.isthmus_cluster }}.",
        "isthmus trace list shows slow applies; the agents dashboard shows which nodes.",
    ),
    Alert(
        "IsthmusCommandsSlow",
        "histogram_quantile(0.99, sum by (isthmus_cluster, le) "
        "(rate(isthmus_command_duration_seconds_bucket[5m]))) > 1",
        "10m",
        "ticket",
        "The p99 command latency of cluster {{ $labels.isthmus_cluster }} is above 1 s.",
        "Compare the append time on the bus dashboard: the stream's disk, or its quorum.",
    ),
    Alert(
        "IsthmusKernelDisagrees",
        "isthmus_agent_kernel_agrees == 0",
        "5m",
        "page",
        "The kernel of node {{ $labels.service_instance_id }} does not hold the rows that it should.",
        "isthmus agent status on the node names the cause; isthmus doctor examines it.",
    ),
    Alert(
        "IsthmusDrift",
        "rate(isthmus_agent_drift_healed_total[15m]) > 0.05",
        "15m",
        "ticket",
        "Something on node {{ $labels.service_instance_id }} keeps changing our {{ $labels.kind }}.",
        "The agent heals it; find the other program (isthmus doctor).",
    ),
    Alert(
        "IsthmusAgentWithoutBus",
        "isthmus_agent_bus_connected == 0",
        "10m",
        "ticket",
        "Node {{ $labels.service_instance_id }} has no bus: its rows stay, new peers do not reach it.",
        "Look at the network between the node and the bus, and at its credentials.",
    ),
    Alert(
        "IsthmusRefusals",
        'sum by (isthmus_cluster, code) (increase(isthmus_refusals_total{code!="node_unknown"}[15m])) > 100',
        "15m",
        "ticket",
        "{{ $value }} commands were refused with {{ $labels.code }} in a quarter of an hour.",
        "The audit dashboard and isthmus trace list --errors show whose commands are refused.",
    ),
    Alert(
        "IsthmusTargetDown",
        'up{job=~"isthmus.*"} == 0',
        "5m",
        "ticket",
        "{{ $labels.job }} at {{ $labels.instance }} does not answer Prometheus.",
        "Look whether the process runs and its port is open; a node that also stopped reporting raises "
        "IsthmusNodesUnreachable.",
    ),
    Alert(
        "IsthmusNodesUnreachable",
        f"{_SILENT} > 0",
        "10m",
        "ticket",
        "{{ $value }} nodes of cluster {{ $labels.isthmus_cluster }} do not report; packets may well flow.",
        "`isthmus node list --unreachable` names them; look at each machine. Nothing is removed by itself.",
    ),
    Alert(
        "IsthmusManyNodesUnreachable",
        f"{_SILENT} > 0.1 * "
        "sum by (isthmus_cluster) (max by (isthmus_cluster, kind, reachable) (isthmus_nodes))",
        "2m",
        "page",
        "More than a tenth of the nodes of cluster {{ $labels.isthmus_cluster }} ({{ $value }}) do not report.",
        "Look at the bus and the network to it first: isthmus status. So many machines seldom fail at once.",
    ),
    Alert(
        "IsthmusNodesNeverReported",
        'max by (isthmus_cluster) (isthmus_agents{state="unreported"}) > 0',
        "1h",
        "ticket",
        "{{ $value }} members of cluster {{ $labels.isthmus_cluster }} have never reported.",
        "`isthmus node list` shows never-reported: start their agents, or `isthmus node remove NAME`.",
    ),
    Alert(
        "IsthmusClbWithoutHolder",
        'max by (isthmus_cluster) (isthmus_conditions{code="clb_no_holder"}) > 0',
        "1m",
        "page",
        "An address of a CLB (cloud load balancer) pair of cluster {{ $labels.isthmus_cluster }} has no "
        "holder: external nodes do not reach the API server by it.",
        "`isthmus clb show` names it; start a gateway's agent, or `isthmus clb gateway add`.",
    ),
    Alert(
        "IsthmusClbWithoutBackend",
        'max by (isthmus_cluster) (isthmus_conditions{code="clb_no_backend"}) > 0',
        "1m",
        "page",
        "A port of a CLB address of cluster {{ $labels.isthmus_cluster }} has no healthy backend.",
        "`isthmus clb show` has the reason of each check.",
    ),
    Alert(
        "IsthmusCredentialsExpire",
        "(isthmus_credentials_expire_time_seconds - time()) < 3 * 86400",
        "1h",
        "ticket",
        "The credentials of {{ $labels.service_instance_id }} end in {{ $value | humanizeDuration }}.",
        "A node renews its own through the issuer: look at its log. Others: isthmus credentials rotate.",
    ),
    Alert(
        "IsthmusClocksDisagree",
        'max by (isthmus_cluster) (isthmus_conditions{code="clocks_disagree"}) > 0',
        "5m",
        "ticket",
        "Clocks of cluster {{ $labels.isthmus_cluster }} are more than 10 s apart: no silent node is removed.",
        "`isthmus status` has the numbers; set the clocks (NTP) of the machines that it names.",
    ),
    Alert(
        "IsthmusPathLost",
        "sum by (isthmus_cluster) (max by (isthmus_cluster, scope, fault) "
        '(isthmus_paths_lost{scope=~"node|pair"})) > 0',
        "1m",
        "page",
        "Packets of pods do not pass between nodes of cluster {{ $labels.isthmus_cluster }}.",
        "`isthmus mesh` names the node, pair or direction, the evidence, and the events just before.",
    ),
    Alert(
        "IsthmusSitePartitioned",
        "sum by (isthmus_cluster) (max by (isthmus_cluster, scope, fault) "
        '(isthmus_paths_lost{scope=~"cluster|site|sites"})) > 0',
        "30s",
        "page",
        "A site of cluster {{ $labels.isthmus_cluster }} is cut off, or sites do not reach each other.",
        "`isthmus mesh` names the sites; look at the link between them, and at filters on UDP port 8472.",
    ),
    Alert(
        "IsthmusLatencyAboveBaseline",
        "max by (isthmus_cluster, site, peer_site) (isthmus_sites_rtt_seconds) "
        "> 2 * max by (isthmus_cluster, site, peer_site) "
        "(avg_over_time(isthmus_sites_rtt_seconds[1d] offset 15m)) "
        "and max by (isthmus_cluster, site, peer_site) (isthmus_sites_rtt_seconds) > 0.005",
        "10m",
        "ticket",
        "Pods of sites {{ $labels.site }} and {{ $labels.peer_site }} of cluster {{ $labels.isthmus_cluster }} "
        "take {{ $value | humanizeDuration }} for a round trip: more than twice the last day's mean.",
        "`isthmus mesh --site SITE --other SITE` shows which nodes; look at the link, and at what fills it.",
    ),
    Alert(
        "IsthmusBackupTooOld",
        "time() - max by (isthmus_cluster) (isthmus_backup_time_seconds) > 36 * 3600",
        "10m",
        "ticket",
        "The last backup of cluster {{ $labels.isthmus_cluster }} is {{ $value | humanizeDuration }} old.",
        "Look at the timer that runs isthmus replay export FILE --continue --metrics FILE.",
    ),
    Alert(
        "IsthmusNoBackup",
        "max by (isthmus_cluster) (isthmus_log_sequence) "
        "unless on (isthmus_cluster) isthmus_backup_time_seconds",
        "1h",
        "ticket",
        "Nothing says that the log of cluster {{ $labels.isthmus_cluster }} was ever backed up.",
        "Run isthmus replay export FILE --continue --metrics FILE from a timer, with node_exporter's folder.",
    ),
    Alert(
        "IsthmusOtherRelease",
        "max by (isthmus_cluster) (isthmus_agents_other_release) > 0",
        "1h",
        "ticket",
        "{{ $value }} agents of cluster {{ $labels.isthmus_cluster }} are not of the controller's release.",
        "Finish the upgrade: the console's list of nodes has each agent's version.",
    ),
)


def rules_text() -> str:
    """The rule file, as Prometheus reads it (JSON strings are YAML scalars)."""
    lines = [
        "# Made by `python -m deploy.prometheus` from rules.py; change it there.",
        "groups:",
        "  - name: isthmus",
        "    rules:",
    ]
    for alert in ALERTS:
        lines += [
            f"      - alert: {alert.name}",
            f"        expr: {json.dumps(alert.expression)}",
            f"        for: {alert.hold}",
            "        labels:",
            f"          severity: {alert.severity}",
            "        annotations:",
            f"          summary: {json.dumps(alert.summary, ensure_ascii=False)}",
            f"          action: {json.dumps(alert.action, ensure_ascii=False)}",
            f"          runbook_url: {json.dumps(f'{RUNBOOK}#{alert.name.lower()}')}",
        ]
    return "\n".join(lines) + "\n"


def runbook_text() -> str:
    """The page to which the rules' links lead: one section for each alert."""
    lines = [
        "# Alerts",
        "",
        "Made by `python -m deploy.prometheus` from the rules; `page` wakes a person, `ticket` can wait.",
        "Symptoms that raise no alert: [Troubleshooting](README.md#troubleshooting).",
    ]
    for alert in ALERTS:
        text = alert.summary
        for label in ("isthmus_cluster", "service_instance_id", "instance", "job", "kind", "code"):
            text = text.replace(f"{{{{ $labels.{label} }}}}", f"`{label.removeprefix('isthmus_').upper()}`")
        text = text.replace("{{ $value | humanizeDuration }}", "TIME").replace("{{ $value }}", "N")
        lines += [
            *("", f"## {alert.name}", ""),
            f"**Means** ({alert.severity}, after {alert.hold}): {text}",
            *("", f"**Do:** {alert.action}", ""),
            *("```promql", alert.expression, "```"),
        ]
    return "\n".join(lines) + "\n"


CONFIG = """\
# Made by `python -m deploy.prometheus`; a start for your own. Every series says whose it is by itself
# (isthmus_cluster, service_instance_id), whatever address it was scraped from.
global:
  scrape_interval: 10s
  evaluation_interval: 10s

rule_files:
  - isthmus.rules.yml

scrape_configs:
  # Controllers: the console's address. With a token: authorization: {credentials_file: …}.
  - job_name: isthmus-controller
    static_configs:
      - targets: ["127.0.0.1:7480"]

  # Agents: one file per site, or any discovery that lists your nodes. Start them with --metrics 0.0.0.0:7481.
  - job_name: isthmus-agent
    file_sd_configs:
      - files: ["isthmus-agents/*.json"]
"""
