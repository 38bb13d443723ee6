"""``isthmus adopt`` against a real bus and a real controller: plan, run, run again, status, end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.controlplane import adoption_inputs as given
from tests.controlplane.ran import Isthmus

pytestmark = pytest.mark.bus


def test_a_cluster_is_planned_adopted_looked_at_and_closed(isthmus: Isthmus, tmp_path: Path) -> None:
    nodes, plan = tmp_path / "nodes.json", tmp_path / "plan.json"
    wrong = json.loads(given.k3s())
    wrong["items"][1]["spec"]["podCIDRs"] = ["***HIDDEN***/25"]
    nodes.write_text(json.dumps(wrong))
    refused = isthmus("adopt", "plan", "--nodes", str(nodes), "--to", str(plan))
    assert refused.code == 1
    assert "adopt_range_unreadable" in refused.out
    assert not plan.exists()

    nodes.write_text(given.k3s())
    made = isthmus("adopt", "plan", "--nodes", str(nodes), "--to", str(plan), "--json")
    assert made.code == 0
    assert made.json["plan"]["nodes"][2]["range"] == "10.42.2.0/24"
    shown = isthmus("adopt", "plan", "--nodes", str(nodes), "--to", str(plan))
    assert f"isthmus adopt run {plan}" in shown.out

    assert isthmus("adopt", "run", str(plan)).code == 2  # it asks, and there is no terminal
    assert isthmus("adopt", "run", str(plan), "--dry-run", "--json").code == 0
    assert isthmus("cluster", "show", "--json").json["definition"] is None
    assert isthmus("adopt", "run", str(plan), "--yes", "--json").json["events"] == 8
    assert isthmus("adopt", "run", str(plan), "--yes", "--json").json["events"] == 0
    listed = {node["node"]: node["cidr"] for node in isthmus("node", "list", "--json").json["nodes"]}
    assert listed == {"k3s-1": "10.42.0.0/24", "k3s-2": "10.42.1.0/24", "k3s-3": "10.42.2.0/24"}

    status = isthmus("adopt", "status", str(plan), "--json")
    assert (status.code, status.json["adopted"], status.json["absent"]) == (0, 3, 0)
    assert isthmus("node", "remove", "--yes", "k3s-2").code == 0
    assert isthmus("adopt", "status", str(plan)).code == 1

    plan.write_text(plan.read_text().replace("10.42.2.0/24", "10.42.3.0/24"))
    assert "adopt_plan_invalid" in isthmus("adopt", "run", str(plan), "--yes").err
    assert "is ended" in isthmus("adopt", "end", "--reason", "all are over").out
    assert "no adoption was open" in isthmus("adopt", "end").out
    tail = isthmus("replay", "log", "--json")
    assert "range.adopted.v1" in tail.out
