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

    # Flannel adds one, removes one and gives one a new device: no new plan is typed.
    later = json.loads(given.k3s(4))
    del later["items"][1]
    later["items"][0]["metadata"]["annotations"] |= given.flannel(0x77, public_ip="192.0.2.1")
    nodes.write_text(json.dumps(later))
    status = isthmus("adopt", "status", str(plan), "--json")
    assert status.code == 1
    seen = {key: status.json["source"][key] for key in ("added", "changed", "removed")}
    assert seen == {"added": ["k3s-4"], "changed": ["k3s-1"], "removed": ["k3s-2"]}
    assert isthmus("adopt", "status", str(plan), "--no-follow").code == 0
    dry = isthmus("adopt", "run", str(plan), "--dry-run")
    assert "flannel has added k3s-4" in dry.err
    assert json.loads(plan.read_text())["digest"] == status.json["plan"]
    assert isthmus("adopt", "run", str(plan), "--yes", "--json").json["events"] == 5
    listed = {node["node"]: node["vtep_mac"] for node in isthmus("node", "list", "--json").json["nodes"]}
    assert listed == {"k3s-1": "8a:00:00:00:00:77", "k3s-3": "8a:00:00:00:00:03", "k3s-4": "8a:00:00:00:00:04"}
    assert isthmus("adopt", "status", str(plan)).code == 0
    assert isthmus("node", "remove", "--yes", "k3s-3").code == 0
    assert isthmus("adopt", "status", str(plan)).code == 1
    nodes.unlink()  # what cannot be read again is as the plan has it
    assert isthmus("adopt", "status", str(plan)).code == 1

    plan.write_text(plan.read_text().replace("10.42.2.0/24", "10.42.3.0/24"))
    assert "adopt_plan_invalid" in isthmus("adopt", "run", str(plan), "--yes").err
    assert "is ended" in isthmus("adopt", "end", "--reason", "all are over").out
    assert "no adoption was open" in isthmus("adopt", "end").out
    tail = isthmus("replay", "log", "--json")
    assert "range.adopted.v1" in tail.out
