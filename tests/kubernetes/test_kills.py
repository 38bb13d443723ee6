"""The bridge and the API server end at any moment, as by kill -9: what Nodes say stays true, nothing is lost.

A bridge keeps nothing that another one needs, so one that is cancelled in the middle of its requests is as good
as killed: the API server may have carried them out.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from controlplane.kubernetes import bridge as bridge_module
from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.bridge import Bridge
from tests.kubernetes.apiserver import ApiServer
from tests.kubernetes.table import Table
from tests.waiting import until

NODES, KILLS = 24, 12


class World:
    """Nodes and members that come, go and come again, each time with a range that nobody had before."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.server, self.table = ApiServer(), Table()
        self.given: dict[str, set[str]] = {}
        self.count = 0
        for number in range(NODES):
            self.server.add(f"n{number}")

    def join(self, name: str) -> None:
        self.table.say(name, self.count, self.random.choice(["ready", "ready", "not ready"]))
        self.given.setdefault(name, set()).add(self.table.members[name].cidr)
        self.count += 1

    def happen(self) -> None:
        for _ in range(6):
            name = f"n{self.random.randrange(NODES)}"
            what = self.random.randrange(5)
            if name not in self.table.members:
                self.join(name)
            elif what == 0:
                self.table.remove(name)
            elif what == 1:
                self.join(name)
            elif what == 2:
                self.server.delete(name)
                self.server.add(name)
        self.server.broken = self.random.random() < 0.2
        if self.random.random() < 0.3:
            self.server.compact()

    def check(self) -> None:
        """At every moment: a podCIDR is on one Node, and was that member's range when it was written."""
        said = {name: str(node["spec"].get("podCIDR", "")) for name, node in self.server.nodes.items()}
        written = [cidr for cidr in said.values() if cidr]
        assert len(set(written)) == len(written)
        for name, cidr in said.items():
            assert not cidr or cidr in self.given[name], (name, cidr)

    def settled(self) -> bool:
        """Every Node says what the log says, and one whose podCIDR is not its range lets no pods in."""
        for name, node in self.server.nodes.items():
            member, cidr = self.table.members.get(name), node["spec"].get("podCIDR", "")
            if member is None:
                wanted = ("True", "IsthmusNoRange")
            elif cidr not in {"", member.cidr}:
                wanted = ("True", "IsthmusRangeConflict")
            elif not cidr:
                return False
            else:
                wanted = (
                    ("False", "IsthmusIsUp") if member.agent == "ready" else ("True", "IsthmusAgentNotReady")
                )
            if self.server.network(name) != wanted:
                return False
        return True


@pytest.mark.parametrize("seed", range(2))
async def test_no_moment_of_a_kill_leaves_a_wrong_pod_cidr(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_module, "PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(bridge_module, "PAUSE_LONGEST_S", 0.05)
    world = World(seed)
    async with world.server.serving(tmp_path) as kubeconfig:
        for kill in range(KILLS + 1):
            world.happen()
            client = await KubernetesClient.open(kubeconfig)
            running = asyncio.create_task(Bridge(client, world.table, instance=f"c{kill}").run())
            try:
                if kill == KILLS:
                    world.server.broken = False
                    await until(world.settled)
                else:
                    stop = world.server.requested + world.random.randrange(1, 30)
                    await until(lambda stop=stop: world.server.requested >= stop or world.settled())
            finally:
                running.cancel()
                await asyncio.wait({running})
                await client.close()
            world.check()
