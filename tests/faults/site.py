"""A whole deployment that can be hurt: servers, controllers and agents, each a process on a machine of its own.

    br-vpc ── cloud-1, cloud-2            br-mgmt ── bus-1 … bus-3, controller-1, controller-2, every node,
    br-idc ── idc-1, idc-2                           and the clients (this process)

The machines are the lab's: network and mount namespaces, links that can be pulled, the shipped server
configuration, the command lines that an operator types. Runs inside the lab's sandbox.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from controlplane.controller.leadership.lease import lease_stream
from deploy.lab import commands
from deploy.lab.failures import CommandFailedError
from deploy.lab.machines.buses import Buses
from deploy.lab.machines.daemons import Daemon
from deploy.lab.machines.machine import Fabric, Machine
from deploy.lab.machines.shell import run
from deploy.lab.reports.run_directory import RunDirectory
from deploy.lab.topology.layout import MANAGEMENT, Node, two_sites
from events import subjects
from events.errors import Unavailable
from events.jetstream.api import ApiError, call
from tests.faults.schedule import Fault, Role
from tests.wall_clocks import set_ahead

CLUSTER = "faults"
CONTROLLERS = ("controller-1", "controller-2")
FIRST_CONTROLLER = 230  # in the management network, above every node and below the servers
DISK_BYTES = 1 << 30
WATCH_S = 0.2
EXIT_UNREACHABLE = 3


@dataclass(slots=True)
class Part:
    """One process on one machine. ``hurt`` counts the faults that hold it at the moment.

    ``ahead_s`` is how far its machine's clock is off, also for a process that is started meanwhile.
    """

    daemon: Daemon
    hurt: int = 0
    cuts: int = 0
    ahead_s: int = 0
    _starting: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def ensure_running(self) -> None:
        """A supervisor's work. Of two that find it ended at one moment, one starts it."""
        async with self._starting:
            if not self.daemon.running:
                await self.daemon.start()

    @property
    def name(self) -> str:
        return self.daemon.name

    def set_clock(self) -> None:
        """Whatever runs there now sees the clock as it is set."""
        if self.daemon.process is not None and self.daemon.running:
            set_ahead(self.daemon.process.pid, self.ahead_s)


@dataclass(slots=True)
class Site:
    """Made by :func:`site`. ``events`` tells what really happened, ``wrong`` what must not have."""

    fabric: Fabric
    buses: Buses
    servers: dict[str, Part]
    controllers: dict[str, Part]
    agents: dict[str, Part]
    nodes: dict[str, Node]
    logs: Path
    events: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    _leads: dict[str, str] = field(default_factory=dict)  # "controller" and "server" → its name

    @property
    def parts(self) -> list[Part]:
        return [*self.servers.values(), *self.controllers.values(), *self.agents.values()]

    # --- who is who --------------------------------------------------------------------------------

    async def watch(self, client: Client) -> None:
        """Follow who leads, and start again what ends by itself, as a supervisor does. Runs until cancelled.

        What is started while no bus answers ends and says so; any other end is wrong.
        """
        while True:
            leader = await self.buses.leader(client, subjects.stream(CLUSTER))
            if leader:
                self._leads["server"] = leader
            with contextlib.suppress(Unavailable, ApiError):
                answer = await call(
                    client,
                    f"$JS.API.STREAM.MSG.GET.{lease_stream(CLUSTER)}",
                    {"last_by_subj": f"$KV.ISTHMUS_{CLUSTER}_LEADER.leader"},
                    timeout_s=1.0,
                )
                self._leads["controller"] = holder(answer)
            for part in self.parts:
                if part.ahead_s:
                    part.set_clock()
                if not part.hurt and not part.daemon.running:
                    code = part.daemon.process.returncode if part.daemon.process else None
                    tail = part.daemon.log_tail(5)
                    # A server that was started on a full disk says so and ends; it is started again.
                    if code != EXIT_UNREACHABLE and "no space left on device" not in str(tail):
                        self.wrong.append(f"{part.name} ended by itself ({code}): {tail}")
                    await part.ensure_running()
            await asyncio.sleep(WATCH_S)

    def victim(self, role: Role, pick: int) -> Part:
        """Who has that role now (the last known, when nobody answers)."""
        if role == "an agent":
            return _picked(list(self.agents.values()), pick)
        group, kind = (self.controllers, "controller") if "controller" in role else (self.servers, "server")
        leader = group.get(self._leads.get(kind, ""))
        if role.startswith("the leading"):
            return leader or _picked(list(group.values()), pick)
        return _picked([part for part in group.values() if part is not leader], pick)

    # --- faults ------------------------------------------------------------------------------------

    async def suffer(self, faults: list[Fault]) -> None:
        """Carry the schedule out; returns when the last fault is over."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with asyncio.TaskGroup() as group:
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at_s - loop.time()))
                part = self.victim(fault.role, fault.pick)
                self.events.append(f"{fault} → {part.name}")
                group.create_task(self._hit(part, fault))

    async def _hit(self, part: Part, fault: Fault) -> None:
        part.hurt += 1
        try:
            if fault.kind == "kill":
                await part.daemon.kill()
                await asyncio.sleep(fault.lasts_s)
                await part.ensure_running()
            elif fault.kind == "pause":
                part.daemon.send(signal.SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
                part.daemon.send(signal.SIGCONT)
            elif fault.kind == "cut off":
                await self._link(part, +1)
                await asyncio.sleep(fault.lasts_s)
                await self._link(part, -1)
            elif fault.kind == "set the clock of":
                part.ahead_s += fault.ahead_s
                part.set_clock()
                await asyncio.sleep(fault.lasts_s)
                part.ahead_s -= fault.ahead_s
                part.set_clock()
            else:
                await _fill_disk(part.daemon.machine, self.store(part))
                await asyncio.sleep(fault.lasts_s)
                # An operator makes room and starts the server again.
                await part.daemon.machine.run("rm", "-f", f"{self.store(part)}/ballast")
                await part.daemon.kill()
                await part.ensure_running()
        finally:
            part.hurt -= 1

    async def _link(self, part: Part, change: int) -> None:
        part.cuts += change
        await run(["ip", "link", "set", f"m-{part.daemon.machine.name}", "down" if part.cuts else "up"])

    def store(self, part: Part) -> str:
        return str(self.buses.store(part.name))


def holder(answer: dict[str, Any]) -> str:
    """The controller that the lease's message names."""
    return str(json.loads(base64.b64decode(answer["message"]["data"]))["holder"])


def _picked(parts: list[Part], pick: int) -> Part:
    return parts[pick % len(parts)]


async def _fill_disk(machine: Machine, store: str) -> None:
    """Nothing is left for the server, whose own files lie beside the ballast."""
    fill = f"fallocate -l $(($(stat -f -c '%a*%S' {store}))) {store}/ballast"
    for _ in range(3):  # the server takes and gives space meanwhile
        try:
            await machine.run("sh", "-c", fill)
        except CommandFailedError:
            continue
        return


async def build(directory: RunDirectory, *, servers: int) -> Site:
    """Make the machines and start everything; the agents wait for the cluster to be defined."""
    topology = two_sites(2, 2)
    fabric = Fabric(topology)
    await fabric.build()
    buses = Buses(servers, leaf=False, idc=topology.sites[1], directory=directory)
    await buses.build(fabric)
    for name, server in buses.hub.items():
        # A disk of its own, small enough to be filled.
        store = str(buses.store(name))
        await server.machine.run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", store)
    environment = {"ISTHMUS_BUS": ",".join(buses.urls), "ISTHMUS_CLUSTER": CLUSTER}
    controllers, agents = {}, {}
    for index, name in enumerate(CONTROLLERS):
        machine = await fabric.add_server(name, MANAGEMENT[FIRST_CONTROLLER + index])
        line = [
            commands.ISTHMUS, "controller", "--data", str(directory.path / "controller" / name), "--name", name,
            "--replicas", str(servers), "--log-level", "warning",
        ]  # fmt: skip
        controllers[name] = Part(Daemon(name, machine, line, directory.log(name), environment))
    for node in topology.nodes:
        machine = await fabric.add_node(node)
        own = directory.node(node.name)
        own.mkdir(parents=True)
        line = [*commands.agent(node, own), "--heartbeat", "1"]
        agents[node.name] = Part(Daemon(node.name, machine, line, directory.log(node.name), environment))
    return Site(
        fabric,
        buses,
        {name: Part(daemon) for name, daemon in buses.hub.items()},
        controllers,
        agents,
        {node.name: node for node in topology.nodes},
        directory.path / "logs",
    )


async def stop(made: Site) -> None:
    """End everything, whatever state it is in; the sandbox does the rest."""
    for part in made.parts:
        part.daemon.send(signal.SIGCONT)
    await asyncio.gather(*(part.daemon.kill() for part in made.parts))
    await made.fabric.close()
