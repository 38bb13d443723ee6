"""Keys are replaced, and a node joins, while the cluster goes from one stage of encryption to the next."""

from __future__ import annotations

import os
import signal

from nodeagent.membership.node_key import OLD_FILE
from tests.nodeagent.encrypted import (
    FAST_S,
    Wire,
    alone,
    at_length,
    lost,
    needs_program,
    other_key,
    shown,
    site,
    stage,
    start,
)
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import Node, Site
from tests.waiting import wait_for as until

SETTLED = {"off": ("plain", "plain"), "sites": ("plain", "required"), "all": ("required", "required")}
"""By scope: within sites, and between them."""


def there(made: Site, scope: str) -> bool:
    found = shown(made)
    return (found["scope"], found["within_sites"], found["between_sites"]) == (scope, *SETTLED[scope])


def goes_on(made: Site, scope: str, late: Node, changes: Node, joins: Node | None = None) -> None:
    """The cluster sets out for that scope while one agent stands still, and another one's key is replaced: two
    are valid when the first step comes, and until all peers use the new one, which is some steps later.
    """
    pid = late.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    stage(made, scope)
    key = other_key(changes)
    until((changes.directory / "state" / OLD_FILE).exists, f"both keys are held\n{changes.log()}", 30)
    assert not there(made, scope), "not without the one that stands still"
    if joins is not None:
        start(joins, "--site", "y")
    os.kill(pid, signal.SIGCONT)
    if joins is not None:
        joins.ready(3)
    until(lambda: there(made, scope), f"the cluster is there: {scope}", 60)
    alone(changes, key)


@needs_program
@at_length
@inside
def test_keys_are_replaced_and_a_node_joins_in_the_middle_of_stages() -> None:
    with site("a", "b", "c", "d") as (made, (a, b, c, d)):
        for node, where in ((a, "x"), (b, "y"), (c, "x")):
            start(node, "--site", where)
        for node in (a, b, c):
            node.ready(2)
        flows = [a.flow(b, FAST_S), b.flow(a, FAST_S), a.flow(c), c.flow(a)]
        goes_on(made, "sites", c, a)
        goes_on(made, "all", c, b, joins=d)
        wires = [Wire(f"v-{name}") for name in "abcd"]
        for node in (a, b, c):
            node.ready(3)
        flows += [d.flow(a), b.flow(d), c.flow(d)]
        until(lambda: all(wire.encrypted > 100 for wire in wires), "packets cross the wires", 30)
        assert [wire.stop().plain for wire in wires] == [0] * 4, [wire.examples for wire in wires]
        goes_on(made, "sites", c, d)
        goes_on(made, "off", c, a)
        missing = lost(*flows)
        logs = "\n".join(node.log() for node in (a, b, c, d))
        assert missing == [], f"{len(missing)}: {missing[:20]}\n{logs}"
