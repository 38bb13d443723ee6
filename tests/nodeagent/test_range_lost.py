"""A node that loses its range while pods run: no new pod, none stranded, and nobody gets their addresses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from nodeagent import identity
from tests.nodeagent.pods import Pod, ask
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import ISTHMUS, Node, Site, site
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

PLAN = ("172.16.0.0/23", 64, 64)
"""Seven ranges, so that a range that came free would be given out soon."""


def phase(place: Site) -> str:
    """Where the one released range is."""
    done = place.isthmus("cluster", "show", "--json")
    assert done.returncode == 0, done.stderr
    pool = json.loads(done.stdout)["pool"]
    return next((name for name in ("draining", "quarantined") if pool[name]), "free")


def counted(place: Site, node: Node) -> int:
    """How many pods run on the node, as the controllers know it."""
    return int(json.loads(place.isthmus("node", "show", node.name, "--json").stdout).get("pods", -1))


def conditions(place: Site) -> str:
    return place.isthmus("cluster", "show", "--json").stdout


def conflists(node: Node) -> list[str]:
    return [path.read_text() for path in (node.directory / "cni").glob("*.conflist")]


@inside
def test_a_range_is_not_reused_while_pods_of_its_last_owner_run() -> None:
    with site("a", "b", plan=PLAN) as place:
        a, b = place.nodes.values()
        old = str(a.status()["range"])
        one, two = Pod(a, "pod-1"), Pod(b, "pod-2")
        until(lambda: counted(place, a) == 1, "the pod is counted", 40)
        removed = place.isthmus("node", "remove", "--yes", "a", "--reason", "test")
        assert removed.returncode == 0, removed.stderr
        assert "1 pods" in removed.stdout, "whoever removes it is told"
        until(lambda: not conflists(a), "no new pod starts on a node without a range")
        until(lambda: a.status()["stray_pods"] == [one.address], "the agent says which pod runs")
        until(lambda: "pods_running" in conditions(place), "the controller says what waits")
        # Its own node's probes reach the pod, which is cut off from everybody else.
        assert not ask("a", "tcp", one.address).startswith("none")
        until(lambda: ask(two.name, "tcp", one.address).startswith("none"), "cut off from the others")
        # Joined again, it has another range: still the pod is probed, and nothing starts on a mixture.
        a.stop()
        a.start()
        until(lambda: a.status()["range"] not in {"", old} and a.status()["state"] == "ready", "rejoined", 30)
        until(lambda: a.status()["stray_pods"] == [one.address], "still said")
        assert not conflists(a)
        until(lambda: not ask("a", "tcp", one.address).startswith("none"), "probes of its own node pass")
        assert ask(two.name, "tcp", one.address).startswith("none")
        time_left = time.monotonic() + 3
        until(lambda: phase(place) == "draining" and time.monotonic() > time_left, "the range is kept")
        # The way out is one command, and works as quoted.
        (said,) = [text for text in a.status()["conditions"] if text.startswith("pods:")]
        command = said.rpartition(": ")[2]
        assert re.fullmatch(r"isthmus agent [\w ./-]+", command)
        done = subprocess.run(
            ["ip", "netns", "exec", "a", ISTHMUS, *command.split()[1:]],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert one.address in done.stdout
        for server in one.servers:
            server.wait(timeout=60)
        until(lambda: conflists(a), "new pods start")
        until(
            lambda: not [text for text in a.status()["conditions"] if text.startswith("pods:")], "no word more"
        )
        three = Pod(a, "pod-3")
        assert three.address.rpartition(".")[0] == str(a.status()["range"]).rpartition(".")[0]
        assert not ask(two.name, "tcp", three.address).startswith("none"), "the new pod is reached"
        until(lambda: phase(place) in {"quarantined", "free"}, "and the range goes on", 30)


@inside
def test_a_machine_that_is_gone_is_fenced_by_name() -> None:
    with site("a", "b", plan=PLAN) as place:
        a = place.nodes["a"]
        Pod(a, "pod-1")
        until(lambda: counted(place, a) == 1, "the pod is counted", 40)
        a.stop(9)
        assert "1 pods" in place.isthmus("node", "fence", "a").stderr, "whoever fences is told"
        assert phase(place) == "free", "and nothing was done"
        removed = place.isthmus("node", "remove", "--yes", "a")
        assert removed.returncode == 0
        assert "isthmus node fence a --yes" in removed.stdout
        until(lambda: "has not said yet" in conditions(place), "the range waits for a word of the node")
        assert phase(place) == "draining"
        fenced = place.isthmus("node", "fence", "a", "--yes", "--reason", "the machine is gone")
        assert fenced.returncode == 0, fenced.stderr
        until(lambda: phase(place) in {"quarantined", "free"}, "nothing waits for it any more", 30)


@inside
def test_a_node_that_leaves_says_that_no_pod_runs() -> None:
    with site("a", "b", plan=PLAN) as place:
        a = place.nodes["a"]
        one = Pod(a, "pod-1")
        a.stop()
        leave = ["ip", "netns", "exec", "a", ISTHMUS, "agent", "leave", "--bus", place.bus,
                 "--state-dir", f"{a.directory}/state", "--cni-dir", f"{a.directory}/cni"]  # fmt: skip
        refused = subprocess.run(leave, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert (
            f"1 pod still runs on a with addresses of the container network ({one.address})" in refused.stderr
        )
        one.delete()
        point = "nodeagent.pods.leaving:subjects.status:before"  # behind the controller's answer
        killed = [*leave[:4], sys.executable, "-m", "tests.nodeagent.killed_at", point, *leave[5:], "--yes"]
        assert subprocess.run(killed, check=False).returncode == -signal.SIGKILL
        done = subprocess.run([*leave, "--yes"], capture_output=True, text=True, check=False)
        assert (done.returncode, "no member any more" in done.stdout) == (0, True), done.stderr
        assert getattr(identity.known_of(a.directory / "state"), "node", None) == "", "its next name may differ"
        assert not conflists(a)
        until(lambda: phase(place) in {"quarantined", "free"}, "the range goes on", 30)
