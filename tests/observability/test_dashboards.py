"""Dashboards and alert rules against the truth: current, parsable, and about series that exist.

No Grafana is needed: what a dashboard can get wrong is its expressions, and those are asked of a real
Prometheus that scrapes a real controller and real agents.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from deploy.grafana import render
from deploy.grafana.boards import BOARDS
from deploy.prometheus.rules import ALERTS, CONFIG, rules_text, runbook_text
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import site
from tests.waiting import wait_for as until

RULES = Path(render.__file__).parent.parent / "prometheus"


def expressions(name: str) -> list[str]:
    """Every PromQL expression of a dashboard's panels."""
    rows = json.loads(render.render(name))["panels"]
    panels = [panel for row in rows for panel in (row, *row.get("panels", []))]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


@pytest.mark.parametrize("name", BOARDS)
def test_the_committed_dashboard_is_what_the_code_makes(name):
    assert render.path_of(name).read_text() == render.render(name), "run: python -m deploy.grafana"


def test_the_committed_rules_are_what_the_code_makes():
    assert (RULES / "isthmus.rules.yml").read_text() == rules_text(), "run: python -m deploy.prometheus"
    assert (RULES / "prometheus.yml").read_text() == CONFIG, "run: python -m deploy.prometheus"
    assert (RULES.parent / "ALERTS.md").read_text() == runbook_text(), "run: python -m deploy.prometheus"


def test_each_alert_has_a_severity_and_links_to_a_section_that_exists():
    rules = yaml.safe_load((RULES / "isthmus.rules.yml").read_text())["groups"][0]["rules"]
    assert len(rules) == len(ALERTS)
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        headings = re.findall(r"^#+ (.+)$", (RULES.parents[1] / page).read_text(), re.MULTILINE)
        assert anchor in {heading.lower() for heading in headings}, rule["alert"]
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_promtool_accepts_the_rules_and_the_configuration(tmp_path):
    for name in ("isthmus.rules.yml", "prometheus.yml"):
        (tmp_path / name).write_text((RULES / name).read_text())
    (tmp_path / "isthmus-agents").mkdir()
    (tmp_path / "isthmus-agents" / "a.json").write_text("[]")
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def filled(expression: str) -> str:
    """An expression as Grafana sends it, with the variable chosen."""
    return expression.replace("$cluster", ".+")


def selectors(expression: str) -> Iterator[str]:
    """Every series selector of an expression. Raises ValueError when it does not parse."""

    def walk(node: Any) -> Iterator[str]:
        if isinstance(node, promql_parser.VectorSelector):
            yield re.sub(r"\s+offset \S+", "", node.prettify())  # a selector's series are those of any time
        for part in ("lhs", "rhs", "expr", "param", "vector_selector"):
            inner = getattr(node, part, None)
            if inner is not None:
                yield from walk(inner)
        if isinstance(node, promql_parser.Call):
            for argument in node.args:
                yield from walk(argument)

    yield from walk(promql_parser.parse(expression))


def every_expression() -> dict[str, str]:
    """Where it stands → the expression."""
    found = {alert.name: alert.expression for alert in ALERTS}
    for name in BOARDS:
        for number, expression in enumerate(expressions(name)):
            found[f"{name} {number}"] = filled(expression)
    return found


def test_every_expression_parses_and_selects_something():
    for where, expression in every_expression().items():
        assert list(selectors(expression)), where


def test_panels_have_a_title_a_description_and_a_unit():
    for name in BOARDS:
        for panel in json.loads(render.render(name))["panels"]:
            if panel["type"] != "row":
                assert panel["title"], name
                assert panel["description"].endswith("."), panel["title"]


@contextmanager
def prometheus(directory: Path, targets: list[str]) -> Iterator[str]:
    """Debian's Prometheus, scraping these each half second, with our rules."""
    (directory / "isthmus.rules.yml").write_text(rules_text())
    (directory / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {
                    "scrape_interval": "500ms",
                    "scrape_timeout": "400ms",
                    "evaluation_interval": "500ms",
                },
                "rule_files": ["isthmus.rules.yml"],
                "scrape_configs": [{"job_name": "isthmus", "static_configs": [{"targets": targets}]}],
            }
        )
    )
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=data",
             "--web.listen-address=127.0.0.1:9099"],
            cwd=directory, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield "http://127.0.0.1:9099/api/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def ask(base: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{base}/{path}?{urllib.parse.urlencode(query)}", timeout=30) as response:
        answer = json.load(response)
    assert answer["status"] == "success", answer
    return answer["data"]


@pytest.mark.slow
@pytest.mark.bus
@inside
def test_every_selector_meets_a_series_of_a_real_scrape_and_a_healthy_site_raises_no_alert() -> None:
    with site(start=False) as place, tempfile.TemporaryDirectory() as name:
        until(lambda: place.isthmus("cluster", "show").returncode == 0, "the cluster is defined", 30)
        for node in place.add("a", "b", "c"):
            node.start("--metrics", f"{node.underlay}:7481")
        for node in place.nodes.values():
            node.ready(2)
        done = place.isthmus("clb", "reserve", "apiserver", "--subnet", "192.168.9.0/28")
        assert done.returncode == 0, done.stderr
        assert place.isthmus("clb", "release", "nothing", "--yes").returncode == 1
        targets = ["127.0.0.1:7480", *(f"{node.underlay}:7481" for node in place.nodes.values())]
        with prometheus(Path(name), targets) as base:
            until(lambda: len(ask(base, "query", query="up == 1")["result"]) == 4, "four healthy targets")
            # A rate needs two scrapes of every series.
            until(
                lambda: ask(base, "query", query="min(count_over_time(up[1m])) > 3")["result"],
                "four scrapes",
            )
            measured = {"match[]": "isthmus_sites_rtt_seconds"}
            until(lambda: ask(base, "series", **measured), "the agents have measured each other", 60)
            missing = [
                f"{where}: {selector}"
                for where, expression in every_expression().items()
                for selector in selectors(expression)
                # Backups are told by node_exporter, which is not here.
                if "isthmus_backup_" not in selector and not ask(base, "series", **{"match[]": selector})
            ]
            assert not missing, "\n".join(missing)
            for expression in every_expression().values():
                ask(base, "query", query=expression)
            assert ask(base, "query", query="sum(isthmus_leader)")["result"][0]["value"][1] == "1"
            assert ask(base, "query", query="sum(isthmus_nodes)")["result"][0]["value"][1] == "3"
            agrees = ask(base, "query", query="isthmus_agent_kernel_agrees")["result"]
            assert {(r["metric"]["service_instance_id"], r["value"][1]) for r in agrees} == {
                ("a", "1"), ("b", "1"), ("c", "1"),
            }  # fmt: skip
            # Nobody backs this site up, which is rightly pending; nothing else is.
            raised = {alert["labels"]["alertname"] for alert in ask(base, "alerts")["alerts"]}
            assert raised == {"IsthmusNoBackup"}
            absent = [
                f"{what}: {selector}"
                for what, wanted in PROMISED.items()
                for selector in wanted
                if not ask(base, "series", **{"match[]": selector})
            ]
            assert not absent, "\n".join(absent)
            # The same numbers by another way: the pool adds up.
            pool = ask(base, "query", query="sum(isthmus_pool_ranges) == max(isthmus_pool_capacity)")["result"]
            assert pool, "the four states do not add up to the capacity"
            # Every row that a kernel holds was written by its agent, in whichever way.
            rows = ask(
                base,
                "query",
                query="sum by (service_instance_id) (isthmus_agent_rows) == sum by (service_instance_id) "
                '(isthmus_agent_rows_changed_total{change="written"})',
            )["result"]
            assert len(rows) == 3, "rows written are not rows there"


_POOL = [
    f'isthmus_pool_ranges{{state="{state}"}}' for state in ("allocated", "draining", "quarantined", "free")
]
_DRIFT = [
    f'isthmus_agent_drift_{done}_total{{kind="{kind}"}}'
    for done in ("found", "healed")
    for kind in ("neighbour", "fdb", "route", "link", "firewall")
]
PROMISED: dict[str, list[str]] = {
    "pool by state and per CIDR": [*_POOL, 'isthmus_pool_ranges{cidr!=""}'],
    "capacity": ["isthmus_pool_capacity"],
    "paths": [
        'isthmus_paths_lost{scope="node",fault="silent"}',
        "isthmus_sites_rtt_seconds",
        "isthmus_sites_loss",
    ],
    "cursor": ["isthmus_pool_cursor"],
    "joins": ['isthmus_events_total{type="node.joined.v1"}'],
    "leaves": ['isthmus_events_total{type="node.left.v1"}', 'isthmus_events_total{type="node.fenced.v1"}'],
    "refusals by code": ['isthmus_refusals_total{code="clb_unknown"}'],
    "command latency": ['isthmus_command_duration_seconds_bucket{command="join",code="ok"}'],
    "batch size": ["isthmus_append_events_bucket"],
    "append conflicts": ["isthmus_append_conflicts_total"],
    "projection lag": ["isthmus_projection_lag"],
    "leader state": ["isthmus_leader"],
    "agents by state": ['isthmus_agents{state="ready"}', 'isthmus_agent_state{state="ready"}'],
    "convergence time": [
        "isthmus_convergence_agent_seconds_bucket",
        "isthmus_convergence_all_seconds_bucket",
        *(f'isthmus_convergence_latest_seconds{{agent="{one}"}}' for one in ("first", "median", "p99", "last")),
    ],
    "drift found and healed by kind": _DRIFT,
    "resync time": ["isthmus_agent_resync_duration_seconds"],
    "rows by kind": [f'isthmus_agent_rows{{kind="{kind}"}}' for kind in ("neighbour", "fdb", "route")],
    "tunnel MTU": ["isthmus_agent_mtu_bytes"],
    "chain verification": ["isthmus_chain_verified", "isthmus_healthy"],
}
"""Every metric that the product promises, by what it is for → the series that a scrape must have."""


CASES: dict[str, tuple[list[str], list[str]]] = {
    # alert → (series under which it fires, series under which it must not)
    "IsthmusPoolExhausted": (
        ['isthmus_pool_ranges{state="free",cidr="a",C}|0'],
        ['isthmus_pool_ranges{state="free",cidr="a",C}|1'],
    ),
    "IsthmusPoolNearlyFull": (
        ['isthmus_pool_ranges{state="free",cidr="a",C}|5', "isthmus_pool_capacity{C}|100"],
        ['isthmus_pool_ranges{state="free",cidr="a",C}|50', "isthmus_pool_capacity{C}|100"],
    ),
    "IsthmusNoLeader": (["isthmus_leader{C}|0"], ["isthmus_leader{C}|1"]),
    "IsthmusTargetDown": (['up{job="isthmus-agent"}|0'], ['up{job="isthmus-agent"}|1', 'up{job="other"}|0']),
    "IsthmusNodesUnreachable": (
        ['isthmus_nodes{reachable="no",kind="cloud",C}|1'],
        ['isthmus_nodes{reachable="no",kind="cloud",C}|0'],
    ),
    "IsthmusManyNodesUnreachable": (
        ['isthmus_nodes{reachable="no",kind="cloud",C}|2', 'isthmus_nodes{reachable="yes",kind="cloud",C}|10'],
        ['isthmus_nodes{reachable="no",kind="cloud",C}|1', 'isthmus_nodes{reachable="yes",kind="cloud",C}|10'],
    ),
    "IsthmusNodesNeverReported": (
        ['isthmus_agents{state="unreported",C}|3'],
        ['isthmus_agents{state="unreported",C}|0', 'isthmus_agents{state="ready",C}|3'],
    ),
    "IsthmusClbWithoutHolder": (
        ['isthmus_conditions{code="clb_no_holder",C}|1'],
        ['isthmus_conditions{code="clb_no_holder",C}|0', 'isthmus_conditions{code="clb_no_backend",C}|1'],
    ),
    "IsthmusClbWithoutBackend": (
        ['isthmus_conditions{code="clb_no_backend",C}|1'],
        ['isthmus_conditions{code="clb_no_backend",C}|0'],
    ),
    "IsthmusClocksDisagree": (
        ['isthmus_conditions{code="clocks_disagree",C}|1'],
        ['isthmus_conditions{code="clocks_disagree",C}|0'],
    ),
    "IsthmusPathLost": (
        ['isthmus_paths_lost{scope="node",fault="pods",C}|1'],
        [
            'isthmus_paths_lost{scope="node",fault="pods",C}|0',
            'isthmus_paths_lost{scope="site",fault="silent",C}|1',
        ],
    ),
    "IsthmusSitePartitioned": (
        ['isthmus_paths_lost{scope="sites",fault="direction",C}|1'],
        [
            'isthmus_paths_lost{scope="sites",fault="silent",C}|0',
            'isthmus_paths_lost{scope="pair",fault="silent",C}|1',
        ],
    ),
    # It grows by 1 ms a minute, so it is more than twice the mean of what was a quarter of an hour ago; or not.
    "IsthmusLatencyAboveBaseline": (
        ['isthmus_sites_rtt_seconds{site="a",peer_site="b",C}|0.01+0.001'],
        [
            'isthmus_sites_rtt_seconds{site="a",peer_site="b",C}|0.3',
            'isthmus_sites_rtt_seconds{site="a",peer_site="a",C}|0.00001+0.00001',
        ],
    ),
    # The tests' time begins at 1970.
    "IsthmusCredentialsExpire": (
        ["isthmus_credentials_expire_time_seconds{C}|200000"],
        ["isthmus_credentials_expire_time_seconds{C}|400000"],
    ),
    "IsthmusBackupTooOld": (["isthmus_backup_time_seconds{C}|-200000"], ["isthmus_backup_time_seconds{C}|0"]),
    "IsthmusNoBackup": (
        ["isthmus_log_sequence{C}|7"],
        ["isthmus_log_sequence{C}|7", "isthmus_backup_time_seconds{C}|0"],
    ),
    "IsthmusOtherRelease": (["isthmus_agents_other_release{C}|2"], ["isthmus_agents_other_release{C}|0"]),
    "IsthmusTwoLeaders": (
        ['isthmus_leader{service_instance_id="a",C}|1', 'isthmus_leader{service_instance_id="b",C}|1'],
        ['isthmus_leader{service_instance_id="a",C}|1', 'isthmus_leader{service_instance_id="b",C}|0'],
    ),
    "IsthmusControllerUnwell": (
        ['isthmus_healthy{service_instance_id="a",C}|0'],
        ['isthmus_healthy{service_instance_id="a",C}|1'],
    ),
    "IsthmusProjectionBehind": (
        ['isthmus_projection_lag{service_instance_id="a",C}|5000'],
        ['isthmus_projection_lag{service_instance_id="a",C}|5'],
    ),
    "IsthmusAgentsBehind": (
        ["isthmus_watermark_lag{C}|7", "isthmus_watermark{C}|100"],
        ["isthmus_watermark_lag{C}|7", "isthmus_watermark{C}|100+1"],
    ),
    "IsthmusSlowConvergence": (
        [
            'isthmus_convergence_all_seconds_bucket{le="10.0",C}|0',
            'isthmus_convergence_all_seconds_bucket{le="30.0",C}|0+10',
            'isthmus_convergence_all_seconds_bucket{le="+Inf",C}|0+10',
        ],
        [
            'isthmus_convergence_all_seconds_bucket{le="10.0",C}|0+10',
            'isthmus_convergence_all_seconds_bucket{le="30.0",C}|0+10',
            'isthmus_convergence_all_seconds_bucket{le="+Inf",C}|0+10',
        ],
    ),
    "IsthmusCommandsSlow": (
        [
            'isthmus_command_duration_seconds_bucket{le="1.0",C}|0',
            'isthmus_command_duration_seconds_bucket{le="2.5",C}|0+9',
            'isthmus_command_duration_seconds_bucket{le="+Inf",C}|0+9',
        ],
        [
            'isthmus_command_duration_seconds_bucket{le="1.0",C}|0+9',
            'isthmus_command_duration_seconds_bucket{le="2.5",C}|0+9',
            'isthmus_command_duration_seconds_bucket{le="+Inf",C}|0+9',
        ],
    ),
    "IsthmusKernelDisagrees": (
        ['isthmus_agent_kernel_agrees{service_instance_id="a",C}|0'],
        ['isthmus_agent_kernel_agrees{service_instance_id="a",C}|1'],
    ),
    "IsthmusDrift": (
        ['isthmus_agent_drift_healed_total{kind="route",C}|0+30'],
        ['isthmus_agent_drift_healed_total{kind="route",C}|3'],
    ),
    "IsthmusAgentWithoutBus": (
        ['isthmus_agent_bus_connected{service_instance_id="a",C}|0'],
        ['isthmus_agent_bus_connected{service_instance_id="a",C}|1'],
    ),
    "IsthmusRefusals": (
        ['isthmus_refusals_total{code="no_free_range",C}|0+60'],
        ['isthmus_refusals_total{code="no_free_range",C}|0+1'],
    ),
}


STOPPED = {
    # Every controller dies at minute 10: its series end, and the alert about the leader has to fire.
    "interval": "1m",
    "input_series": [{"series": 'isthmus_leader{isthmus_cluster="prod"}', "values": "1x10 stale"}],
    "promql_expr_test": [
        {
            "expr": 'count(ALERTS{alertname="IsthmusNoLeader", alertstate="firing"}) or vector(0)',
            "eval_time": when,
            "exp_samples": [{"labels": "{}", "value": value}],
        }
        for when, value in (("9m", 0), ("15m", 1), ("40m", 1))
    ],
}


def rule_tests() -> dict[str, Any]:
    """A promtool unit test: each alert once under what must fire it, once under what must not."""

    def series(lines: list[str]) -> list[dict[str, str]]:
        found = []
        for line in lines:
            selector, values = line.replace("C}", 'isthmus_cluster="prod"}').split("|")
            start, _, step = values.partition("+")
            found.append({"series": selector, "values": f"{start}+{step or 0}x90"})
        return found

    tests: list[dict[str, Any]] = [STOPPED]
    for name, (fires, rests) in CASES.items():
        tests += [
            {
                "interval": "1m",
                "input_series": series(lines),
                "promql_expr_test": [
                    {
                        "expr": f'count(ALERTS{{alertname="{name}", alertstate="firing"}}) or vector(0)',
                        "eval_time": "80m",
                        "exp_samples": [{"labels": "{}", "value": expected}],
                    }
                ],
            }
            for lines, expected in ((fires, 1), (rests, 0))
        ]
    return {"rule_files": ["isthmus.rules.yml"], "evaluation_interval": "1m", "tests": tests}


def test_each_alert_fires_when_it_must_and_only_then(tmp_path):
    assert set(CASES) == {alert.name for alert in ALERTS}
    (tmp_path / "isthmus.rules.yml").write_text(rules_text())
    (tmp_path / "tests.yml").write_text(json.dumps(rule_tests()))
    done = subprocess.run(
        ["promtool", "test", "rules", "tests.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
