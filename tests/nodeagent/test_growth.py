"""The container network grows while nodes work: a second CIDR, appended; joins into it in one burst."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats
import pytest

from events.bus.client import ControllerClient
from events.protocol.commands import JoinNode
from tests.nodeagent.pods import OUTSIDE, Pod, ask, outside
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import BUS, Node, site
from tests.waiting import wait_for as until

pytestmark = pytest.mark.slow

OLD, NEW = "172.16.0.0/25", "172.20.0.0/22"
FULL = (OLD, 32, 64)
"""Two ranges of 32 addresses."""
BURST = 24


async def join_in_a_burst() -> None:
    """Members without a machine behind them, as many commands at once."""
    client = await nats.connect(BUS)
    try:
        controller = ControllerClient(client, "default", actor="test")
        async with asyncio.TaskGroup() as tasks:
            for number in range(BURST):
                join = JoinNode(
                    node=f"ghost-{number}", uid=f"g{number}", kind="external", underlay=f"10.9.0.{number + 1}"
                )
                tasks.create_task(controller.send(join))
    finally:
        await client.close()


def speak(*pods: Pod) -> None:
    """Each pod to each other, TCP and UDP: the answer says that the asker kept its own address."""
    for kind in ("tcp", "udp"):
        for one in pods:
            for other in pods:
                if one is not other:
                    answered(lambda: ask(one.name, kind, other.address), one.address)  # noqa: B023


def answered(question: Callable[[], str], seen_as: str) -> None:
    until(lambda: question().startswith(f"{seen_as} "), f"an answer to {seen_as}")


def containers(node: Node) -> str:
    return node.run("nft list set inet isthmus containers").partition("elements = {")[2]


@inside
def test_nodes_in_an_appended_network_reach_the_old_one_and_are_shielded_alike() -> None:
    with site("a", "b", plan=FULL) as place:
        a, b = place.nodes.values()
        first, flow = Pod(a, "pod-a"), a.flow(b)
        # c is too many for the pool: it says so and waits, until there is room.
        (c,) = place.add("c")
        c.start()
        until(lambda: any("gets no range" in text for text in c.status()["conditions"]), "it waits for room")
        servers = outside(a, OLD, NEW)
        appended = place.isthmus("cluster", "append", NEW)
        assert appended.returncode == 0, appended.stderr
        asyncio.run(join_in_a_burst())
        for node in (a, b, c):
            node.ready(2 + BURST)
            until(lambda: OLD in containers(node) and NEW in containers(node), "the firewall follows")  # noqa: B023
            until(
                lambda: node.run("nft list set inet isthmus vteps").count("10.9.0.") == BURST,  # noqa: B023
                "the firewall knows every VTEP",
            )
            status = node.status()
            assert status["kernel_digest"] == status["expected_digest"] != ""
        assert c.status()["range"].startswith("172.20.")
        late = Pod(c, "pod-c")
        speak(first, late)
        for asker, target, source in (("c", first, c.vtep), ("a", late, a.vtep)):
            assert ask(asker, "tcp", target.address).startswith(f"{source} ")
        # The rules hold for the new network as for the old one.
        for pod, node in ((first, a), (late, c)):
            answered(lambda: ask(pod.name, "tcp", OUTSIDE), node.underlay)  # noqa: B023
            assert ask("far", "udp", pod.address).startswith("none"), "no new connection from outside"
        assert flow.stop().lost == 0
        for server in servers:
            server.kill()
        for pod in (first, late):
            pod.delete()
