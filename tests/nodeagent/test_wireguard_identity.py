"""A copy of a node's disk beside it, in an encrypted cluster, and wall clocks that are set by days."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.nodeagent.encrypted import (
    Wire,
    at_length,
    devices_of,
    key_of,
    lost,
    needs_program,
    program_of,
    settled,
    site,
    stage,
    start,
)
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import Node
from tests.waiting import wait_for as until
from tests.wall_clocks import can_set, set_ahead

DAY_S = 86_400


def says(node: Node, words: str) -> None:
    try:
        until(lambda: words in str(node.status()["conditions"]), f"{node.name} says {words!r}", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{node.status()}\n{node.log()}\n{node.site.log()}") from error


def last_seen(node: Node) -> str:
    """When the controller heard of it last; later is larger."""
    return str(json.loads(node.site.isthmus("node", "show", node.name, "--json").stdout)["last_seen"])


@needs_program
@inside
def test_a_copy_of_a_disk_draws_no_packet_from_the_machine() -> None:
    """Peers of WireGuard follow whoever has the key: the copy must not begin, nor who is replaced go on."""
    with site("a", "b", "x") as (made, (a, b, x)):
        for node in (a, b):
            start(node)
        for node in (a, b):
            node.ready(1)
        stage(made, "all")
        settled(made, "all (required within sites, required between sites)")
        wires, flows = [Wire(f"v-{name}") for name in "abx"], [a.flow(b), b.flow(a)]
        shutil.copytree(
            a.directory / "state", x.directory / "state", ignore=shutil.ignore_patterns("*.sock", "status.json")
        )
        before = last_seen(a)
        made.down()
        start(x, "--node", "a")
        says(x, "the log has this node at 10.0.0.1, and it is at 10.0.0.3")
        # Whoever asks a controller first is the machine, as far as that controller knows.
        sh("ip link set v-x down")
        made.up()
        until(lambda: last_seen(a) > before, "the machine is heard of again", 60)
        sh("ip link set v-x up")
        says(x, "If 10.0.0.3 is a copy of that machine")
        until(
            lambda: not any(x.status()[what] for what in ("ways", "peer_ways", "encryption")), "it has no way"
        )
        assert "10.0.0.1" not in str(b.status()["conditions"])
        assert not devices_of(x)
        missing = lost(*flows)
        assert missing == [], f"{missing[:20]}\n{b.log()}\n{x.log()}"
        assert wires[2].encrypted == 0
        # The machine is silent, and the other one is let in: from now on this is it, whatever still runs there.
        a.stop()
        x.ready(1)
        start(a)
        says(a, "If 10.0.0.1 is a copy of that machine")
        until(lambda: not devices_of(a), "its WireGuard is gone", 30)
        flow = b.flow(x)
        before = wires[2].encrypted
        until(lambda: wires[2].encrypted > before + 100, "packets cross the wire", 30)
        assert flow.stop().lost == 0
        assert [wire.stop().plain for wire in wires] == [0, 0, 0], [wire.examples for wire in wires]


def clocks(seconds: int, *nodes: Node) -> None:
    """Of agents and of the programs in WireGuard's place."""
    for node in nodes:
        for pid in (node.status()["pid"], program_of(node)):
            assert set_ahead(pid, seconds)


@needs_program
@at_length
@pytest.mark.skipif(not can_set(), reason="no process's clock can be set here")
@inside
def test_clocks_that_are_set_by_days_replace_no_key_and_end_no_session() -> None:
    with site("a", "b") as (made, (a, b)):
        for node in (a, b):
            start(node, "--rotate-key", "1")
        for node in (a, b):
            node.ready(1)
        stage(made, "all")
        settled(made, "all (required within sites, required between sites)")
        keys, wire, flows = (key_of(a), key_of(b)), Wire(), [a.flow(b), b.flow(a)]
        for ahead in ((10, 10), (-10, 10), (0, 0)):
            for days, node in zip(ahead, (a, b), strict=True):
                clocks(days * DAY_S, node)
            before = wire.encrypted
            until(lambda: wire.encrypted > before + 400, "packets cross the wire", 30)  # noqa: B023
            for node in (a, b):
                assert "1 with a session" in node.status()["encryption"]
                assert node.status()["conditions"] == []
        assert (key_of(a), key_of(b)) == keys
        missing = lost(*flows)
        assert missing == [], f"{missing[:20]}\n{a.log()}\n{b.log()}"
        assert wire.stop().plain == 0, wire.examples
