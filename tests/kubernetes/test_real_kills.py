"""SIGKILL of controller (with its bridge), API server and bus at any moment, all of them real processes.

At every moment: no two Nodes with one podCIDR, none with one that was never its member's. In the end every
Node says what the log says, and the log holds what was acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import aiohttp
import pytest

from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import IsthmusError
from events.jetstream.log import JetStreamLog
from events.protocol.commands import RemoveNode
from events.protocol.queries import ListNodes, NodePage
from events.reading import verified
from events.types import RangeAllocated
from tests.kubernetes.cluster import DEFINE, Agents
from tests.kubernetes.real import ASSETS, RealApiServer, serving
from tests.service.onbus import CLUSTER, client
from tests.waiting import until

pytestmark = [
    pytest.mark.bus,
    pytest.mark.skipif(not ASSETS, reason="KUBEBUILDER_ASSETS names no folder with kube-apiserver and etcd"),
]
ISTHMUS = Path(sys.executable).with_name("isthmus")
NODES, KILLS = 10, 9
GONE = (OSError, aiohttp.ClientError, TimeoutError)


class Process:
    """``isthmus controller --kubeconfig``, started anew when it was killed."""

    def __init__(self, folder: Path, bus: str, kubeconfig: Path) -> None:
        self.words = [
            str(ISTHMUS), "controller", "--bus", bus, "--cluster", CLUSTER,
            "--data", str(folder / "read-model"),
            "--kubeconfig", str(kubeconfig), "--http", "off", "--name", "c1",
        ]  # fmt: skip
        self.log = folder / "controller.log"
        self.running: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.running = await asyncio.create_subprocess_exec(*self.words, stdout=log, stderr=log)

    async def kill(self) -> None:
        assert self.running is not None
        assert self.running.returncode is None, self.log.read_text()[-2000:]
        self.running.kill()
        await self.running.wait()


class World:
    """What was acknowledged, and what Nodes may say."""

    def __init__(self, api: RealApiServer, agents: Agents, dice: random.Random) -> None:
        self.api, self.agents, self.dice = api, agents, dice
        self.seen: dict[str, set[str]] = {}
        """The podCIDRs that each Node has had, by name."""
        self.number = 0

    async def change(self) -> None:
        """One change of a member or a Node, as far as somebody answers."""
        name = f"n{self.dice.randrange(NODES)}"
        with suppress(IsthmusError, *GONE):
            match self.dice.randrange(4):
                case 0 if name in self.agents.alive:
                    del self.agents.alive[name]
                    await self.agents.operator.send(RemoveNode(node=name), timeout_s=3)
                case 1:
                    await self.api.ask("DELETE", f"/api/v1/nodes/{name}")
                    await self.api.add(name)
                case _:
                    if name not in self.agents.alive:
                        self.number += 1
                        self.agents.alive[name] = f"uid-{self.number}"
                        await self.agents.join(name, f"uid-{self.number}", self.number)

    async def look(self) -> dict[str, str]:
        """The Nodes' podCIDRs, checked."""
        code, found = await self.api.ask("GET", "/api/v1/nodes")
        assert code == 200
        said = {node["metadata"]["name"]: node["spec"].get("podCIDR", "") for node in found["items"]}
        for name, cidr in said.items():
            self.seen.setdefault(name, set()).update({cidr} if cidr else ())
        written = [cidr for cidr in said.values() if cidr]
        assert len(set(written)) == len(written), said
        return said


@asynccontextmanager
async def killing(what: Callable[[], Awaitable[None]], after_s: float) -> AsyncIterator[None]:
    """Something is killed in the middle of the block, at a moment that nobody chose."""

    async def later() -> None:
        await asyncio.sleep(after_s)
        await what()

    task = asyncio.create_task(later())
    try:
        yield
    finally:
        await task


async def ranges_by_node(bus: str) -> dict[str, set[str]]:
    """Every range that the log ever gave a node, its chain verified from the first event."""
    found: dict[str, set[str]] = {}
    connection = await connect(BusOptions(servers=(bus,)), name="reader")
    try:
        async for batch in verified(JetStreamLog(connection, CLUSTER)):
            for recorded in batch.events:
                if isinstance(recorded.event, RangeAllocated):
                    found.setdefault(recorded.event.node, set()).add(recorded.event.cidr)
    finally:
        await connection.close()
    return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_kills_of_everything_leave_no_wrong_pod_cidr(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    store = tmp_path / "jetstream"
    store.mkdir()
    async with serving(tmp_path) as api, EmbeddedServer(ServerOptions(store_dir=store)) as server:
        process = Process(tmp_path, server.url, api.kubeconfig())
        await process.start()
        try:
            async with client(BusOptions(servers=(server.url,))) as operator:
                agents = Agents(operator)

                async def defined() -> bool:
                    try:
                        await operator.send(DEFINE)
                    except IsthmusError:
                        return False
                    return True

                async def owned() -> dict[str, str]:
                    page = await operator.ask(ListNodes(), NodePage)
                    # Agents follow the log, also to a join whose answer was lost with the bus.
                    agents.applied = max(agents.applied, page.sequence)
                    return {node.node: node.cidr for node in page.nodes if node.cidr}

                await until(defined, within_s=60)
                reporting = asyncio.create_task(agents.run())
                world = World(api, agents, dice)
                for number in range(NODES):
                    await api.add(f"n{number}")

                async def kill_bus() -> None:
                    server.signal(signal.SIGKILL)

                async def kill_api() -> None:
                    api.kill()
                    api.start()

                async def kill_controller() -> None:
                    await process.kill()
                    await process.start()

                for kill in range(KILLS):
                    victim = (kill_controller, kill_api, kill_bus)[kill % 3]
                    async with killing(victim, dice.random() * 2):
                        for _ in range(6):
                            await world.change()
                    await api.ready()
                    await world.look()

                async def settled() -> bool:
                    try:
                        now = await owned()
                        said = await world.look()
                    except (IsthmusError, *GONE):
                        return False
                    for name, cidr in said.items():
                        own = now.get(name, "")
                        if not own:
                            wanted = {"IsthmusNoRange"}
                        elif cidr == own:
                            wanted = {"IsthmusIsUp"}
                        else:
                            wanted = {"IsthmusRangeConflict"} if cidr else set()
                        if (await api.network(name) or ("", ""))[1] not in wanted:
                            return False
                    return True

                await until(settled, within_s=120)
                reporting.cancel()
                await asyncio.wait({reporting})
            allocated = await ranges_by_node(server.url)
            for name, cidrs in world.seen.items():
                assert cidrs <= allocated.get(name, set()), (name, cidrs)
        finally:
            await process.kill()
