"""The firewall is rewritten without taking its sets away: packets that are under way keep finding them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def seen() -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.e2e.firewall_program"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
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
