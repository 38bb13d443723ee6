"""The log is lost with its server and restored from an archive, under agents that are at work.

Real agents in namespaces, real packets between them, and everything that the kernel announces (links,
addresses, neighbours, FDB, routes, firewall) written down meanwhile.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from tests.deploy.watch import watching
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import ISTHMUS, Node, Site, site
from tests.waiting import wait_for as until

pytestmark = [pytest.mark.bus, pytest.mark.slow]


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def lose(place: Site) -> None:
    """The disk with the log is gone, and the controller's read model with it."""
    place.down(signal.SIGKILL)
    disk = place.directory / "up"

    def gone() -> bool:
        shutil.rmtree(disk, ignore_errors=True)  # the bus ends a moment later, and removes files of its own
        return not disk.exists()

    until(gone, "the disk is empty")


def restore(place: Site, archive: Path) -> None:
    """As the guide says: an empty bus, the archive, then the controller. Agents reach the empty bus, too."""

    async def fill() -> None:
        store = place.directory / "up" / "jetstream"
        store.mkdir(parents=True)
        async with EmbeddedServer(ServerOptions(store_dir=store, host="10.0.0.254", port=4222)):
            for node in place.nodes.values():
                await asyncio.to_thread(until, lambda: node.status()["bus_connected"], "it is found")  # noqa: B023
            await asyncio.to_thread(lambda: said(place.isthmus("replay", "import", "--archive", str(archive))))

    asyncio.run(asyncio.wait_for(fill(), 90))
    place.up()


def connected(node: Node) -> bool:
    status = node.status()
    return bool(status["bus_connected"]) and status["state"] == "ready" and not status["conditions"]


@inside
def test_agents_go_on_and_those_who_saw_more_than_was_saved_wait_for_a_decision() -> None:
    with site("a", "b") as place:
        a, b = place.nodes.values()
        archive = place.directory / "all.isthmus"
        said(place.isthmus("replay", "export", str(archive)))
        nothing_is_touched_when_all_was_saved(place, a, b, archive)
        (c,) = place.add("c")
        with watching(a, b) as watches:
            # The counter-proof of the watches, and that the restored log goes on: a third node is announced.
            c.start().ready(2)
            for node, watch in zip((a, b), watches, strict=True):
                until(lambda: node.status()["peers"] == 2, f"{node.name} knows c")  # noqa: B023
                until(lambda: c.vtep in "".join(watch.rows()), "and its kernel said so")  # noqa: B023
        until(lambda: a.run(f"ping -c1 -W1 -I {a.vtep} {c.vtep}"), "packets pass to the new node")
        who_saw_more_keeps_the_rows_until_told_to_forget(place, a, b, c, archive)


def nothing_is_touched_when_all_was_saved(place: Site, a: Node, b: Node, archive: Path) -> None:
    rows, written = (a.rows(), b.rows()), [node.status()["counters"]["written"] for node in (a, b)]
    with watching(a, b) as watches:
        flow = a.flow(b)
        lose(place)
        until(lambda: not a.status()["bus_connected"], "the loss is noticed")
        restore(place, archive)
        for node in (a, b):
            until(lambda: connected(node), f"{node.name} follows the restored log")  # noqa: B023
        assert [watch.everything() for watch in watches] == [[], []]
    assert (a.rows(), b.rows()) == rows
    assert [node.status()["counters"]["written"] for node in (a, b)] == written
    assert flow.stop().lost == 0


def who_saw_more_keeps_the_rows_until_told_to_forget(
    place: Site, a: Node, b: Node, c: Node, archive: Path
) -> None:
    """The node c is not in the archive: those who saw it join say so, and lose no packet on the way back."""
    rows = (a.rows(), b.rows())
    flow = a.flow(b)
    lose(place)
    until(lambda: not a.status()["bus_connected"], "the loss is noticed")
    restore(place, archive)
    for node in (a, b, c):
        until(lambda: "was replaced or restored" in str(node.status()["conditions"]), "it is said")  # noqa: B023
    assert (a.rows(), b.rows()) == rows
    refused = forget(a)
    assert refused.returncode == 1
    assert "agent_running" in refused.stderr
    with watching(a, b) as watches:
        for node in (c, a, b):
            node.stop()
            said(forget(node))
            node.start().ready(2)
        until(lambda: all(connected(node) for node in (a, b, c)), "all follow")
        # Any start of an agent writes its firewall whole, in one transaction; rows it compares first.
        untouched = [line for watch in watches for line in watch.rows() if a.vtep in line or b.vtep in line]
        assert untouched == [], "the rows between a and b were right all along"
    until(lambda: c.run(f"ping -c1 -W1 -I {c.vtep} {a.vtep}"), "packets pass to c")
    assert flow.stop().lost == 0
    said(place.isthmus("replay", "verify"))


def forget(node: Node) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ISTHMUS, "agent", "forget", "--yes", "--state-dir", str(node.directory / "state")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
