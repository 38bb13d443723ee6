"""A real API server, a real bus and a real controller with its bridge; agents are said by the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controlplane.controller.controller import Controller
from controlplane.kubernetes.bridge import Bridge
from controlplane.kubernetes.members import bridging
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import IsthmusError
from events.jetstream.status_stream import publish
from events.protocol.commands import DefineCluster, JoinNode
from events.status import AgentStatus
from tests.kubernetes.real import RealApiServer, serving
from tests.service.onbus import CLUSTER, client, controller
from tests.waiting import until

DEFINE = DefineCluster(container_cidr="10.200.0.0/16", pods_per_node=64, services=256, quarantine_s=0.0)
INTERVAL_S = 0.5


class Agents:
    """Reports of agents that live, in the place of agents."""

    def __init__(self, operator: ControllerClient) -> None:
        self.operator = operator
        self.alive: dict[str, str] = {}
        """Name → uid."""
        self.stray: dict[str, tuple[str, ...]] = {}
        self.applied = 0

    async def join(self, name: str, uid: str, number: int) -> str:
        """Join, and live from now on; the range."""
        reply = await self.operator.send(
            JoinNode(node=name, uid=uid, kind="cloud", underlay=f"192.168.9.{number}")
        )
        self.applied = max(self.applied, reply.sequence)
        self.alive[name] = uid
        return str(reply.result["cidr"])

    async def run(self) -> None:
        """Report, for ever."""
        while True:
            for name, uid in list(self.alive.items()):
                status = AgentStatus(
                    node=name, uid=uid, applied=self.applied, sent_at=datetime.now(UTC),
                    interval_s=INTERVAL_S, stray_ranges=self.stray.get(name, ()),
                )  # fmt: skip
                await publish(self.operator._nats, CLUSTER, status)
            await asyncio.sleep(INTERVAL_S / 2)


class Cluster:
    """All of it. Made by :func:`started`."""

    def __init__(self, api: RealApiServer, running: Controller, bridge: Bridge | None, agents: Agents) -> None:
        self.api, self.running, self.agents = api, running, agents
        self._bridge = bridge
        self.operator = agents.operator

    @property
    def bridge(self) -> Bridge:
        assert self._bridge is not None
        return self._bridge

    @property
    def state(self) -> Any:
        return self.running.replica.state

    async def says(self, name: str, status: str, reason: str, *, within_s: float = 60.0) -> None:
        """Wait until NetworkUnavailable says so."""

        async def said() -> bool:
            return await self.api.network(name) == (status, reason)

        await until(said, f"{name}: {status} {reason}", within_s=within_s)

    async def pod_cidr(self, name: str) -> str:
        found: str = (await self.api.node(name))["spec"].get("podCIDR", "")
        return found

    async def told(self, name: str, reason: str) -> str:
        """Wait for an Event about a Node; its note."""
        notes: list[str] = []

        async def found() -> bool:
            _, events = await self.api.ask("GET", "/apis/events.k8s.io/v1/events")
            notes[:] = [
                each["note"]
                for each in events["items"]
                if each["reason"] == reason and each["regarding"]["name"] == name
            ]
            return bool(notes)

        await until(found, f"an event {reason} of {name}", within_s=60)
        return notes[-1]


@asynccontextmanager
async def started(
    folder: Path, kubeconfig: Any = None, *, bridge: bool = True, **options: Any
) -> AsyncIterator[Cluster]:
    """Until the block is left. ``kubeconfig`` makes one of the API server [an administrator's].

    Without ``bridge`` the controller has none.
    """
    store = folder / "jetstream"
    store.mkdir()
    async with (
        serving(folder) as api,
        EmbeddedServer(ServerOptions(store_dir=store)) as server,
        controller(bus := BusOptions(servers=(server.url,)), folder / "a", leads=True) as running,
        client(bus) as operator,
    ):
        access = await kubeconfig(api) if kubeconfig else api.kubeconfig()
        await operator.send(DEFINE)
        agents = Agents(operator)
        reporting = asyncio.create_task(agents.run())
        try:
            async with bridging(running, access, **options) if bridge else nullcontext() as within:
                yield Cluster(api, running, within, agents)
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})


async def refused(sending: Any) -> str:
    """The code of what a command is refused with."""
    try:
        await sending
    except IsthmusError as error:
        return error.code
    return ""
