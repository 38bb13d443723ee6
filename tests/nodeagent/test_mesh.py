"""Real agents measure each other through real tunnels, and the verdict names what a test has broken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import Site, site, until

pytestmark = pytest.mark.slow

DROP_TUNNEL = (
    "'add table inet t; add chain inet t c { type filter hook input priority -10; }; add rule inet t c "
)


def mesh(place: Site, *arguments: str, code: int | None = None) -> dict[str, Any]:
    found = place.isthmus("mesh", *arguments, "--json")
    assert found.returncode in ({0, 1} if code is None else {code}), found.stderr + found.stdout
    shown: dict[str, Any] = json.loads(found.stdout)
    return shown


def verdicts(place: Site) -> set[tuple[str, str, str]]:
    """What is recorded as lost: scope, fault, and the sentence."""
    shown = mesh(place)["findings"]
    return {(one["scope"], one["fault"], one["sentence"]) for one in shown if one.get("recorded")}


@inside
def test_the_verdict_names_what_was_broken() -> None:
    with site("a", "b", "c", "d") as place:
        a, _, c, d = place.nodes.values()
        until(lambda: sum(one["measured"] for one in mesh(place)["sites"]) == 12, "all measured all", 60)
        mesh(place, code=0)

        # The host of a does not forward, its tunnel whole; nothing of d's tunnel enters c, while c's enters d.
        a.run("nft 'add table ip t; add chain ip t c { type filter hook forward priority 0; policy drop; }'")
        c.run(f"nft {DROP_TUNNEL} ip saddr {d.underlay} udp dport 8472 drop'")
        wanted = {
            ("node", "pods", "the tunnel works, but node a does not forward packets to or from pods"),
            ("pair", "direction", "one direction only: nothing passes from d to c"),
        }
        until(lambda: verdicts(place) == wanted, "the verdict", 90)
        traces = until(lambda: mesh(place, "c", "d", code=1)["traces"], "the agents have traced it", 60)
        stops = {(trace["by"], trace["stops"]) for trace in traces}
        assert stops <= {("c", "filters"), ("c", "tunnel ping"), ("d", "tunnel ping")}, traces
        rows = [hop for trace in traces for hop in trace["hops"] if hop["name"] in {"route", "rows"}]
        assert rows
        assert all(hop["passed"] for hop in rows), traces

        a.run("nft delete table ip t")
        c.run("nft delete table inet t")
        until(lambda: mesh(place)["findings"] == [], "nothing is lost any more", 90)
        log = place.isthmus("events", "tail", "--from", "1", "--json").stdout
        assert log.count("path.lost.v1") == log.count("path.restored.v1") == 2
