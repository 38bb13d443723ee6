"""A peer that is away while keys are replaced: it gets packets again by itself, and none goes in the clear."""

from __future__ import annotations

import signal
import sys

from nodeagent.membership.node_key import OLD_FILE
from tests.nodeagent.encrypted import (
    Wire,
    alone,
    at_length,
    lost,
    needs_program,
    other_key,
    settled,
    site,
    stage,
    start,
)
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Node
from tests.waiting import wait_for as until

LIMITS = {"QUIET_S": 1, "SILENT_S": 2, "LONGEST_S": 5}
"""Ten minutes and a day, in seconds of a test."""
SOONER = f"{sys.executable} -m tests.nodeagent.sooner " + ",".join(
    f"nodeagent.wireguard.rotation:{name}={seconds}" for name, seconds in LIMITS.items()
)


def passes(source: Node, target: Node) -> bool:
    words = source.run(f"ping -n -c 2 -i 0.05 -W 1 -I {source.vtep} {target.vtep} || true")
    return ", 0% packet loss" in words


def meet(*nodes: Node) -> None:
    """Each reaches each."""
    for one in nodes:
        for other in nodes:
            if one is not other:
                until(lambda: passes(one, other), f"{one.name} → {other.name}\n{one.log()}\n{other.log()}", 60)  # noqa: B023


@needs_program
@at_length
@inside
def test_a_peer_that_was_away_while_keys_were_replaced_gets_packets_again() -> None:
    with site("a", "b", "c") as (made, (a, b, c)):
        for node in (a, b, c):
            start(node, by=SOONER)
        for node in (a, b, c):
            node.ready(2)
        stage(made, "all")
        settled(made, "all (required within sites, required between sites)")
        wires = [Wire(f"v-{name}") for name in "abc"]
        flows = [a.flow(b), b.flow(a)]
        # Its link is cut. Both others replace their keys, one of them twice, so that a slot has its third key.
        sh("ip link set v-c down")
        for node in (a, b, a):
            alone(node, other_key(node))
        own = other_key(c)
        sh("ip link set v-c up")
        meet(a, b, c)
        alone(c, own)
        # Its agent is away, and its kernel goes on with the old key: that is good for a day.
        c.stop(signal.SIGKILL)
        still = c.flow(a)
        alone(a, other_key(a))
        assert not passes(c, a), "who has the old key is not let in for ever"
        start(c, by=SOONER)
        meet(a, b, c)
        # Everything is taken away from it in the middle of a change, and it begins anew with another key.
        other_key(c)
        until((c.directory / "state" / OLD_FILE).exists, f"both keys are held\n{c.log()}", 30)
        c.stop()
        folders = f"--state-dir {c.directory}/state --cni-dir {c.directory}/cni"
        removed = c.run(f"{c.directory}/own-sockets {ISTHMUS} agent clean --yes {folders}")
        assert str(c.directory / "state" / OLD_FILE) in removed
        assert not list((c.directory / "state").glob("*key*"))
        start(c, by=SOONER)
        meet(a, b, c)
        assert still.stop().silence_s < 60
        missing = lost(*flows)
        assert missing == [], f"{len(missing)} of those who stayed: {missing[:20]}\n{a.log()}\n{b.log()}"
        assert [wire.stop().plain for wire in wires] == [0, 0, 0], [wire.examples for wire in wires]
        assert all(wire.encrypted for wire in wires)
