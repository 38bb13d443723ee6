"""Keys are replaced while packets go on: real agents, counted packets, a capture of what is on the wire."""

from __future__ import annotations

import json
import signal

from nodeagent.membership.node_key import AGE_FILE, NEXT_FILE, OLD_FILE, new_key
from tests.nodeagent.encrypted import (
    FAST_S,
    Wire,
    alone,
    devices_of,
    key_of,
    lost,
    needs_program,
    other_key,
    settled,
    site,
    stage,
    start,
)
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import Node, Site
from tests.waiting import wait_for as until


@needs_program
@inside
def test_keys_are_replaced_without_a_lost_packet_and_nothing_in_the_clear() -> None:
    """By command, by age, on both ends at once, and with the agent killed in the middle."""
    with site("a", "b") as (made, (a, b)):
        for node in (a, b):
            start(node)
        a.ready(1)
        b.ready(1)
        stage(made, "all")
        settled(made, "all (required within sites, required between sites)")
        wire, flows = Wire(), [a.flow(b, FAST_S), b.flow(a, FAST_S)]
        until(lambda: wire.encrypted > 500, "packets cross the wire", 30)
        first = key_of(a)
        held = a.directory / "state" / OLD_FILE
        held.mkdir()  # the folder does not take the present key under that name, as where a disk is full
        new = new_key(a.directory / "state", NEXT_FILE).public
        until(lambda: "key: the node's key is not replaced" in str(a.status()["conditions"]), a.log())
        assert "nothing is sent in its place" not in str(a.status()["conditions"]), "WireGuard is followed"
        held.rmdir()
        assert other_key(a) == new, "asked for twice, also while both are valid, it is the same"
        alone(a, new)
        assert first != new
        until(lambda: (devices_of(a), devices_of(b)) == ({"isthmus-wg2"}, {"isthmus-wg1"}), "a device each")
        assert not list((a.directory / "state").glob("node.*.key"))
        # The peer's agent is away, and the own one is killed as soon as it has both keys: what is in the
        # kernels goes on. Then both are there, and the peer's key is as old as it may be.
        old = key_of(b)
        b.stop(signal.SIGKILL)
        third = other_key(a)
        until(held.exists, f"both keys are held\n{a.log()}", 30)
        a.stop(signal.SIGKILL)
        assert held.stat().st_mode & 0o777 == 0o600
        start(a)
        until(lambda: f"1 still without one by the new key, so {new} is" in a.status()["encryption"], a.log())
        (b.directory / "state" / AGE_FILE).write_text(json.dumps({"key": old, "seconds": 86_400}))
        start(b, "--rotate-key", "1")
        alone(a, third)
        until(lambda: key_of(b) != old, f"the key was replaced by its age\n{b.log()}", 60)
        alone(b, key_of(b))
        until(lambda: (devices_of(a), devices_of(b)) == ({"isthmus-wg1"}, {"isthmus-wg2"}), "a device each")
        the_bus_is_away(made, a, b)
        missing = lost(*flows)
        assert missing == [], f"{len(missing)}: {missing[:20]}\n{a.log()}\n{b.log()}"
        assert sum(flow.sent for flow in flows) > 5000
        assert wire.stop().plain == 0, wire.examples


def the_bus_is_away(made: Site, a: Node, b: Node) -> None:
    """Nobody hears of other keys, asked for by command and by age: the present ones go on until it is back."""
    keys = key_of(a), key_of(b)
    made.down()
    until(lambda: any("bus" in one for one in a.status()["conditions"]), "the bus is away")
    new = other_key(a)
    until(lambda: f"{new} is to be in the log in its place" in a.status()["encryption"], a.log())
    b.stop()
    (b.directory / "state" / AGE_FILE).write_text(json.dumps({"key": keys[1], "seconds": 86_401}))
    start(b, "--rotate-key", "1")
    until(lambda: "is to be in the log in its place" in b.status()["encryption"], b.log())
    assert (key_of(a), key_of(b)) == keys
    made.up()
    alone(a, new)
    until(lambda: key_of(b) != keys[1], f"the key was replaced by its age\n{b.log()}", 60)
    alone(b, key_of(b))
