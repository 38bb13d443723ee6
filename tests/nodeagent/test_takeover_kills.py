"""SIGKILL at each step of a takeover and of giving back: whatever runs next goes on, and no packet is lost.

Of the agent and of `give-back`, before and after each function that changes the node; of the run, the rollback
and, at the same moment, the controller, before each line on a node and each note of the progress; of the
controller, before and after each append. Every second and third step is left to ``ISTHMUS_TEST_KILLS=all``,
which takes some minutes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from deploy.lab.machines.flannel import DEVICE, kubernetes_list
from tests.nodeagent.flannel_site import (
    OldSite,
    adopting,
    device_of,
    filled,
    flannels_rules,
    give_back,
    install,
    old_node,
    old_pod,
    progress,
    running,
    settled,
)
from tests.nodeagent.sandbox import inside, sh
from tests.nodeagent.site import ISTHMUS, Flow, Node, Site, site
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

ALL = bool(os.environ.get("ISTHMUS_TEST_KILLS"))
LIMIT_S = 3000 if ALL else 300
patiently = partial(inside, limit_s=LIMIT_S)
whole = pytest.mark.skipif(not ALL, reason="ISTHMUS_TEST_KILLS=all")
KILLED_AT = f"{sys.executable} -m tests.nodeagent.killed_at"
TAKING = (
    "nodeagent.netlink.links:rename",
    "nodeagent.netlink.links:add_alternative_name",
    "nodeagent.dataplane.host_settings:answer_for_others",
    "nodeagent.netlink.links:ensure_device",
    "nodeagent.netlink.socket:Engine.execute",
    "nodeagent.dataplane.takeover:sweep",
    "nodeagent.firewall.predecessor:Predecessor._keep",
    "nodeagent.firewall.ruleset:replace",
    "nodeagent.firewall.predecessor:Predecessor.after",
    "nodeagent.pods.cni:write",
    "nodeagent.pods.cni:set_aside",
)
GIVING = (
    "nodeagent.clean:_remove_programs",
    "nodeagent.netlink.plain_routes:put_plain_routes",
    "nodeagent.netlink.socket:Engine.execute",
    "nodeagent.netlink.links:drop_alternative_name",
    "nodeagent.netlink.links:rename",
    "nodeagent.firewall.predecessor:_restore",
    "nodeagent.firewall.predecessor:Predecessor.restore",
    "nodeagent.firewall.ruleset:remove",
    "nodeagent.pods.cni:put_back",
    "nodeagent.pods.cni:remove",
    "nodeagent.dataplane.takeover:give_back",
)
STEPS = [
    (f"{taking}:{when}", f"{giving}:{when}")
    for taking, giving in zip(TAKING, GIVING, strict=True)
    for when in ("before", "after")
]
RUN_STEPS = ("controlplane.cli.adopt.node_lines:NodeLines.run", "controlplane.cli.adopt.progress:Progress.note")
APPEND = "events.jetstream.log:JetStreamLog.append"


@contextmanager
def flannels(*names: str) -> Iterator[tuple[OldSite, dict[str, Flow], Path]]:
    """Nodes on flannel with a pod each, all of them asking each other, and a plan; nothing may be lost."""
    with site(*names, start=False, kind=OldSite) as place:
        assert isinstance(place, OldSite)
        nodes = list(place.nodes.values())
        old = [old_node(node) for node in nodes]
        for node in nodes:
            install(node, old)
        pods = {node.name: (f"pod-{node.name}", old_pod(node, f"pod-{node.name}")) for node in nodes}
        listed, plan = place.directory / "nodes.json", place.directory / "plan.json"
        listed.write_text(kubernetes_list(old))
        sh(f"{ISTHMUS} adopt plan --nodes {listed} --to {plan}")
        flows = {
            f"{one} to {other}": Flow(pods[one][0], pods[one][1], pods[other][1], 0.02)
            for one in pods
            for other in pods
            if one != other
        }
        yield place, flows, plan
        for way, flow in flows.items():
            flow.stop()
            assert flow.lost == 0, f"{way}: lost {flow.lost} of {flow.sent}"


def as_it_was(node: Node, device: tuple[str, str], others: int) -> None:
    """Everything is as flannel left it."""
    assert device_of(node, DEVICE) == device
    routes = node.run("ip -4 route show")
    assert "proto 84" not in routes
    assert routes.count(f"dev {DEVICE} onlink") == others
    assert flannels_rules(node) == 6
    assert "inet isthmus" not in node.run("nft list tables")
    assert [each.name for each in (node.directory / "cni").iterdir()] == ["10-flannel.conflist"]


def on(node: Node, line: str) -> int:
    """Run a line on a node; its exit code."""
    return subprocess.run(["ip", "netns", "exec", node.name, "sh", "-c", line], check=False).returncode


def over(node: Node, step: str) -> None:
    """Wait until everything on it is ours; what its agent said, if it is not in time."""
    try:
        until(lambda: settled(node), f"{node.name} is over behind {step}", 90)
    except AssertionError as error:
        seen = node.run(
            "sh -c 'ip route; ip neigh show dev isthmus; iptables-legacy-save; iptables-nft-save; ls *'"
        )
        files = [each.name for each in (node.directory / "cni").iterdir()]
        raise AssertionError(f"{error}\n{seen}\n{files}\n{node.log()}") from error


def answers(place: Site) -> None:
    until(lambda: place.isthmus("cluster", "show").returncode == 0, "the controller answers", 60)


@patiently
def test_agents_and_give_backs_die_at_each_step() -> None:
    with flannels("a", "b") as (place, _, plan):
        answers(place)
        assert place.isthmus("adopt", "run", str(plan), "--yes").returncode == 0
        nodes = list(place.nodes.values())
        devices = [device_of(node, DEVICE) for node in nodes]
        # The first node's rules are of one form of iptables, the second's of the other.
        for number, (taking, giving) in enumerate(STEPS if ALL else STEPS[4:20:13]):
            node, device = nodes[number % 2], devices[number % 2]
            on(node, filled(place, node, f"{KILLED_AT} {taking}"))
            until(lambda: not running(node), f"the agent dies at {taking}: {node.log()}", 60)  # noqa: B023
            (node.directory / "pid").unlink()  # of a process that nobody waits for, and that seems to run
            on(node, filled(place, node))
            over(node, taking)
            sh(f"kill $(cat {node.directory}/pid)")
            until(lambda: not running(node), "the agent ended")  # noqa: B023
            (node.directory / "pid").unlink()
            killed = give_back(place, f"{KILLED_AT} {giving}").replace("{node}", node.name)
            reached = on(node, killed)
            assert reached in {-9, 137}, f"{giving} was not reached: {reached}"
            assert on(node, give_back(place).replace("{node}", node.name)) == 0
            as_it_was(node, device, 1)


@whole
@patiently
def test_runs_and_controllers_die_at_each_step() -> None:
    with flannels("a", "b") as (place, _, plan):
        answers(place)
        node = place.nodes["b"]
        device = device_of(node, DEVICE)
        assert place.isthmus("adopt", "run", str(plan), "--yes").returncode == 0

        def killed(verb: str, step: str, number: int) -> bool:
            """Whether it was, with the controller; at its end it was not."""
            line = adopting(place, verb, str(plan), "--node", "b")
            ended = subprocess.run(
                [*KILLED_AT.split(), f"{step}:before:{number}", *line[1:]], capture_output=True, text=True,
                timeout=120, check=False,
            )  # fmt: skip
            assert ended.returncode in {0, -9}, ended.stderr
            if ended.returncode:
                place.down(signal.SIGKILL)
                place.up()
                answers(place)
            return ended.returncode != 0

        for step in RUN_STEPS:
            for verb, end in (("run", "over"), ("rollback", "given")):
                number, state = 1, progress(plan, "b")
                while killed(verb, step, number):
                    now = progress(plan, "b")
                    number, state = (1 if now != state else number + 1), now
                    assert number < 20
                assert progress(plan, "b") == end
                if end == "over":
                    until(lambda: settled(node), "b is over", 60)
            until(lambda: flannels_rules(node) == 6, "flannel's rules are back")
            as_it_was(node, device, 1)


@whole
@patiently
def test_controllers_die_at_each_append() -> None:
    with flannels("a", "b") as (place, _, plan):
        number, reached = 1, True
        while reached:
            for when in ("before", "after"):
                place.down(signal.SIGKILL)
                shutil.rmtree(place.directory / "up", ignore_errors=True)
                program = place.directory / "controller"
                program.write_text(f'#!/bin/sh\nexec {KILLED_AT} {APPEND}:{when}:{number} "$@"\n')
                program.chmod(0o755)
                place.up(str(program))
                controller = place.controller
                assert controller is not None
                line = f"until {ISTHMUS} adopt run {plan} --yes --bus {place.bus}; do sleep 0.2; done"
                with subprocess.Popen(
                    ["timeout", "120", "sh", "-c", line], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
                ) as run:
                    until(lambda: controller.poll() is not None or run.poll() is not None, "either ends", 120)  # noqa: B023
                    reached = controller.poll() == -9
                    run.terminate()
                place.down(signal.SIGKILL)
                place.up()
                answers(place)
                assert place.isthmus("adopt", "run", str(plan), "--yes").returncode == 0
                status = place.isthmus("adopt", "status", str(plan))
                assert status.returncode == 0, status.stdout + status.stderr
                assert place.isthmus("replay", "verify").returncode == 0
            number += 1
        assert number > 3
