"""Controllers and agents of the previous release and of this one, together, in every order that an upgrade has.

Real processes of both releases, in namespaces, with packets that must not stop meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from importlib.metadata import version
from typing import Any

import pytest

from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.enrolment import JoinToken
from tests.deploy import previous
from tests.deploy.watch import watching
from tests.nodeagent.encrypted import alone, other_key, settled, shown, stage, start, wrap
from tests.nodeagent.nat_site import Branch, branch_nodes
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import BUS, ISTHMUS, Node, Site, site
from tests.waiting import wait_for as until

pytestmark = [pytest.mark.bus, pytest.mark.slow]

CLUSTER = "default"
NOW = version("isthmus")
PREVIOUS = "ISTHMUS_TEST_PREVIOUS"


@pytest.fixture(scope="module", autouse=True)
def release(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The command of the previous release, for the processes in the sandbox."""
    previous.skip_without_history()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(PREVIOUS, previous.install(tmp_path_factory.mktemp("previous")))
        yield


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def reported(place: Site) -> dict[str, str]:
    """The release of each agent, from its last report to the controllers."""

    async def ask() -> dict[str, str]:
        client = await connect(BusOptions(servers=(BUS,)), name="test")
        try:
            stream = client.jetstream()
            return {
                node: json.loads(
                    (
                        await stream.get_last_msg(
                            subjects.status_stream(CLUSTER), subjects.status(CLUSTER, node)
                        )
                    ).data
                    or b"{}"
                )["agent_version"]
                for node in place.nodes
            }
        finally:
            await client.close()

    return asyncio.run(asyncio.wait_for(ask(), 20))


def follow(place: Site, *nodes: Node) -> None:
    """These agents (all) are connected, and have nothing to complain about."""
    for node in nodes or place.nodes.values():
        try:
            until(lambda: content(node), f"{node.name} follows", 60)  # noqa: B023
        except AssertionError as error:
            raise AssertionError(f"{error}\n{node.status()['conditions']}\n{node.log()}") from error


def content(node: Node) -> bool:
    status = node.status()
    return bool(status["bus_connected"]) and status["state"] == "ready" and not status["conditions"]


def takes_in(place: Site, name: str, program: str) -> None:
    """A further node with an agent of that release joins, and all others learn of it."""
    others = len(place.nodes)
    (node,) = place.add(name)
    node.start(program=program).ready(others)
    for other in place.nodes.values():
        until(lambda: other.status()["peers"] == others, f"{other.name} knows {name}")  # noqa: B023
    first = next(iter(place.nodes.values()))
    until(lambda: first.run(f"ping -c1 -W1 -I {first.vtep} {node.vtep}"), f"packets pass to {name}")


def clean_for(node: Node, release: str) -> list[str]:
    """What is taken away that the release does not know, while no agent runs."""
    state = str(node.directory / "state")
    done = json.loads(node.run(f"{ISTHMUS} agent clean --for {release} --json --state-dir {state}"))
    return list(done["removed"])


def replace(place: Site, program: str, *nodes: Node, but: Node | None = None) -> None:
    """Agents one by one, as a package manager does it; no row is touched. All follow then, ``but`` one.

    That one is behind NAT: what only this release knows is taken away first, and rows of the second device,
    which lead there, are not looked at.
    """
    with watching(*nodes) as watches:
        for node in nodes:
            node.stop()
            if but is not None:
                removed = clean_for(node, previous.VERSION)
                assert any("isthmus-nat" in what for what in removed), removed
                assert clean_for(node, previous.VERSION) == [], "twice is harmless"
            node.start(program=program).ready(len(place.nodes) - 1)
        follow(place, *(node for node in place.nodes.values() if node is not but))
        second = re.compile(r"isthmus-nat|dev if\d+")  # by then it may have no name any more
        touched = [line for watch in watches for line in watch.rows() if but is None or not second.search(line)]
        assert touched == [], touched


def ways(a: Node, b: Node, wanted: str, *options: str) -> None:
    """Their agents are started again with these options, and then packets between them go that way."""
    for node in (a, b):
        node.stop()
        node.start(*options).ready(2)
    until(lambda: taken(a, b) == taken(b, a) == wanted, f"packets take this way: {wanted}")


def taken(node: Node, peer: Node) -> str:
    """Which way packets to the peer take, as the agent says it."""
    found = {way["peer"]: way["way"] for way in node.status()["peer_ways"]}
    return str(found.get(peer.name, "tunnel"))


def joins(place: Site, node: Node) -> None:
    """The machine that somebody set up by hand is joined by a token: it stays what it was, row for row."""
    uid, folder = node.status()["uid"], node.directory / "etc"
    folder.mkdir()
    (folder / "agent.toml").write_text(
        f'bus = "{BUS}"\nnode = "{node.name}"\nunderlay = "eth0"\nstate-dir = "{node.directory / "state"}"\n'
        f'cni-dir = "{node.directory / "cni"}"\nheartbeat = 0.5\n'
    )
    token = JoinToken(cluster=CLUSTER, node=node.name, servers=(BUS,))
    with watching(node) as (watch,):
        node.stop()
        with (node.directory / "agent.log").open("ab") as log:
            node.agent = subprocess.Popen(
                ["ip", "netns", "exec", node.name, ISTHMUS, "join", token.text(), "--folder", str(folder),
                 "--foreground"],
                stdout=log, stderr=log,
            )  # fmt: skip
        node.ready(len(place.nodes) - 1)
        follow(place)
        assert (node.status()["uid"], watch.rows()) == (uid, [])


@inside
def test_controllers_first_then_agents_and_all_the_way_back() -> None:
    old = os.environ[PREVIOUS]
    with site("a", "b", program=old) as place:
        a, b = place.nodes.values()
        flow = a.flow(b)

        place.down()
        place.up()
        follow(place)
        takes_in(place, "c", old)
        assert reported(place) == dict.fromkeys("abc", previous.VERSION)
        said(place.isthmus("clb", "reserve", "gw", "--subnet", "10.9.8.0/28", "--provider", "gateway"))
        early = place.isthmus("entry", "add", "api", "--from", "203.0.113.0/28", "--yes")
        assert early.returncode == 1, early.stdout + early.stderr
        assert "older_release" in early.stderr
        assert f"the agent of a ({previous.VERSION})" in early.stderr

        replace(place, ISTHMUS, a)
        joins(place, b)
        until(lambda: reported(place) == {"a": NOW, "b": NOW, "c": previous.VERSION}, "they say so")
        takes_in(place, "d", ISTHMUS)
        said(place.isthmus("node", "remove", "--yes", "d"))
        until(lambda: [n.status()["peers"] for n in (a, b, place.nodes["c"])] == [2, 2, 2], "d is gone")
        place.nodes.pop("d").stop()

        place.down()
        place.up(ISTHMUS, "--compatible-with", previous.VERSION)
        replace(place, ISTHMUS, place.nodes["c"])
        kept = place.isthmus("entry", "add", "api", "--from", "203.0.113.0/28", "--yes")
        assert "--compatible-with" in kept.stderr, kept.stdout + kept.stderr
        ways(a, b, "direct", "--direct", "auto")
        ways(a, b, "tunnel")

        place.down()
        place.up(old)
        follow(place)
        takes_in(place, "e", ISTHMUS)

        replace(place, old, a, b, place.nodes["c"])
        takes_in(place, "f", old)
        assert flow.stop().lost == 0
        said(place.isthmus("replay", "verify"))


def left_of_ours(node: Node) -> tuple[list[str], list[str]]:
    """Devices beside the tunnel and what 0.2.0 itself makes, and routes into them."""
    names = [line.split("@")[0].split()[0] for line in node.run("ip -brief link").splitlines()]
    ours = [name for name in names if name.startswith("isthmus") and name not in {"isthmus", "isthmus-probe"}]
    routes = [line for line in node.run("ip route show proto 84").splitlines() if "isthmus-" in line]
    return ours, routes


def pings(node: Node, to: Node) -> bool:
    try:
        return bool(node.run(f"ping -c1 -W1 -I {node.vtep} {to.vtep}"))
    except AssertionError:
        return False


def encrypted_for_a_while(place: Site, a: Node, b: Node) -> None:
    """All packets, with a change of a key meanwhile, and none at the end: the log has events of all that."""
    for node in (a, b):
        wrap(node)
        node.stop()
        start(node).ready(1)
    stage(place, "all")
    settled(place, "all (required within sites, required between sites)")
    alone(a, other_key(a))
    kept = place.isthmus("cluster", "prepare-rollback", previous.VERSION, "--dry-run")
    assert "`isthmus cluster encrypt --bus" in kept.stderr, kept.stdout + kept.stderr
    stage(place, "off")
    until(lambda: shown(place)["within_sites"] == "plain", "nothing is encrypted", 60)


@inside
def test_back_from_keys_encryption_nat_and_entries_and_forward_again() -> None:
    """What 0.2.0 cannot follow is parked: it takes over a log in which this release has written all that."""
    old = os.environ[PREVIOUS]
    with site("a", "b", program=old) as place:
        a, b = place.nodes.values()
        flow = a.flow(b)
        place.down()
        place.up()
        follow(place)
        replace(place, ISTHMUS, a, b)
        replace(place, ISTHMUS, a, b)  # whose keys were held back while one of them was of the other release
        if shutil.which("wireguard-go"):
            encrypted_for_a_while(place, a, b)
        (x,) = branch_nodes(place, Branch("r", 40), "x")
        x.start("--nat", "on").ready(2)
        said(place.isthmus("clb", "reserve", "gw", "--subnet", "10.9.8.0/28", "--provider", "gateway"))
        said(place.isthmus("entry", "add", "api", "--from", "203.0.113.0/28", "--yes"))
        until(lambda: pings(a, x), "x is reached through its router")
        until(lambda: pings(b, x), "by both")

        early = place.isthmus("cluster", "prepare-rollback", previous.VERSION, "--yes")
        assert "--compatible-with 0.2.0, or stop them" in early.stderr, early.stdout + early.stderr
        place.down()
        place.up(ISTHMUS, "--compatible-with", previous.VERSION)
        follow(place)
        refused = place.isthmus("cluster", "prepare-rollback", previous.VERSION, "--yes")
        for way_out in ("`isthmus entry remove --bus", "x is behind NAT", "--leave-behind-nat"):
            assert way_out in refused.stderr, refused.stdout + refused.stderr
        said(place.isthmus("entry", "remove", "api", "--yes"))
        with watching(a, b) as watches:
            done = place.isthmus("cluster", "prepare-rollback", previous.VERSION, "--leave-behind-nat", "--yes")
            assert "x is behind NAT" in said(done)
            assert "can follow the log up to event" in said(done)
            follow(place, a, b)
            touched = [line for watch in watches for line in watch.rows() if a.vtep in line or b.vtep in line]
            assert touched == []

            place.down()
            place.up(old)
            follow(place, a, b)
            takes_in(place, "e", old)
            replace(place, old, a, b, but=x)
            assert not pings(a, x), "0.2.0 knows no way through NAT"
            assert [left_of_ours(node) for node in (a, b)] == [([], [])] * 2
        subprocess.run([old, "replay", "verify", "--bus", BUS], check=True, timeout=60)

        place.down()
        place.up()
        for node in (place.nodes["e"], a, b, x, a):  # the key of the first is held back for a while
            node.stop()
            node.start(*(("--nat", "on") if node is x else ())).ready(3)
        until(lambda: pings(a, x), "x is reached again", 60)
        assert flow.stop().lost == 0
        said(place.isthmus("replay", "verify"))
