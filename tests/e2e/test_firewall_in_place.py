"""The firewall is rewritten without taking its sets away: packets that are under way keep finding them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from nodeagent.firewall.ruleset import Rules

pytestmark = pytest.mark.netns

PROGRAM = """
import asyncio, json, subprocess, sys
from deploy.lab.machines import sandbox
from nodeagent import firewall
from tests.e2e.test_firewall_in_place import RULES, WIDER, look

async def main():
    seen = []
    await firewall.replace(RULES, ["192.0.2.1", "192.0.2.2", "2001:db8::1"])
    seen.append(look())
    await firewall.replace(RULES, ["192.0.2.2", "192.0.2.3"])
    seen.append(look())
    await firewall.replace(WIDER, ["192.0.2.2", "192.0.2.3"])
    seen.append(look())
    await firewall.replace(RULES, ["192.0.2.2"])
    seen.append(look())
    subprocess.run(["nft", "-f", "-"], check=True, text=True, input="delete table inet isthmus\\n"
        "table inet isthmus { set vteps { type inet_service; elements = { 80 }; }\\n"
        "chain forwarded { type filter hook input priority 7; policy drop; }; }\\n")
    await firewall.replace(RULES, ["192.0.2.9"])
    seen.append(look())
    print(json.dumps(seen), flush=True)
    return 0

sys.exit(sandbox.run(lambda: asyncio.run(main()), lambda init, user_namespace: None))
"""

RULES = Rules(device="isthmus", port=8472, own_range="10.200.0.0/26", cidrs=("10.200.0.0/16",))
WIDER = Rules(device="isthmus", port=8472, own_range="10.200.0.0/26", cidrs=("10.200.0.0/16", "10.210.0.0/16"))


def look() -> dict[str, Any]:
    """Handles tell whether a thing is still the one it was; a thing made anew has another."""
    text = subprocess.run(
        ["nft", "--json", "--handle", "list", "table", "inet", "isthmus"], capture_output=True, check=True
    ).stdout
    found = json.loads(text)["nftables"]
    sets = {entry["set"]["name"]: entry["set"] for entry in found if "set" in entry}
    return {
        "table": next(entry["table"]["handle"] for entry in found if "table" in entry),
        "sets": {name: entry["handle"] for name, entry in sets.items()},
        "vteps": sorted(sets["vteps"].get("elem", [])),
        "vteps6": sets["vteps6"].get("elem", []),
        "containers": len(sets["containers"]["elem"]),
        "chains": sorted(entry["chain"]["name"] for entry in found if "chain" in entry),
        "rules": sum("rule" in entry for entry in found),
    }


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_members_and_networks_change_while_table_and_sets_stay(seen: list[dict[str, Any]]) -> None:
    first, second, wider, *_ = seen
    assert (first["vteps"], first["vteps6"]) == (["192.0.2.1", "192.0.2.2"], ["2001:db8::1"])
    assert (second["vteps"], second["vteps6"]) == (["192.0.2.2", "192.0.2.3"], [])
    assert (first["containers"], wider["containers"]) == (1, 2)
    for later in (second, wider):
        assert (later["table"], later["sets"]) == (first["table"], first["sets"])


def test_the_rules_are_the_same_however_often_they_are_written(seen: list[dict[str, Any]]) -> None:
    assert {(tuple(state["chains"]), state["rules"]) for state in seen} == {
        (tuple(seen[0]["chains"]), seen[0]["rules"])
    }


def test_a_network_that_is_gone_leaves_its_set(seen: list[dict[str, Any]]) -> None:
    assert seen[3]["containers"] == 1


def test_a_table_of_another_kind_is_made_anew(seen: list[dict[str, Any]]) -> None:
    assert seen[4]["table"] != seen[3]["table"]
    assert seen[4]["vteps"] == ["192.0.2.9"]
