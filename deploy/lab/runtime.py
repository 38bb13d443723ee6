"""The running lab: machines, the controller with its bus, one agent per node, pods, and the operator's view.

    sandbox's own namespace: the operator (this process), on the management network
    controller:              isthmus up  (bus and controller)
    cloud-1 …, idc-1 …:      isthmus agent, and the pods

It starts real programs with the command lines an operator would type, and must never reach into them.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from nats.errors import Error as NatsError

from deploy.lab import commands
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.daemons import Daemon
from deploy.lab.machines.kernel import OverlayRows, overlay_rows
from deploy.lab.machines.machine import Fabric, Machine
from deploy.lab.machines.pods import Pod, start_pod
from deploy.lab.machines.secure import Security
from deploy.lab.machines.shell import run
from deploy.lab.members import Member, Members
from deploy.lab.topology.layout import CONTAINER_CIDR, MAX_PODS_PER_NODE, MAX_SERVICES, Node, Topology
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.errors import Refused, Unavailable
from events.jetstream.log import JetStreamLog
from events.jetstream.status_stream import StatusReader
from events.protocol.commands import LeaveNode
from events.status import AgentStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from nats.aio.client import Client

    from deploy.lab.machines.bare import Bare
    from deploy.lab.machines.buses import Buses
    from deploy.lab.reports.run_directory import RunDirectory
    from events.log import LogReader

T = TypeVar("T")

CLUSTER = "lab"
START_LIMIT_S = 60.0  # a mirror at a site may take the server a quarter of a minute to begin
COMMAND_LIMIT_S = 75.0  # `site init` waits a minute for a level mirror
CONVERGE_LIMIT_S = 15.0
POLL_S = 0.02
WATCH_S = 0.1


@dataclass(slots=True)
class LabNode:
    """One node of the running lab."""

    node: Node
    machine: Machine
    agent: Daemon
    directory: Path
    pods: list[Pod] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.node.name


class Lab:
    """Use as an async context manager; leaving it ends everything that it started.

    Cancelled, its coroutines only stop waiting: what they started runs until the lab is left, and what they
    asked of others may take effect.
    """

    def __init__(
        self,
        topology: Topology,
        directory: RunDirectory,
        plugins: str,
        *,
        quarantine_s: float,
        secure: bool = False,
        buses: Buses | None = None,
    ) -> None:
        self.topology = topology
        self.directory = directory
        self.plugins = plugins
        self.quarantine_s = quarantine_s
        self.fabric = Fabric(topology)
        self.nodes: dict[str, LabNode] = {}
        self.members = Members()
        self.buses = buses
        self.gateways = False
        """Whether the cloud nodes' agents run with --gateway."""
        self.direct = False
        """Whether all agents run with --direct on."""
        self.bare: Bare | None = None
        """Who joins by a token has only Python."""
        self.stand_ins: list[Daemon] = []
        """Other people's programs, for the checks of the CLB pair."""
        self.security = Security.prepare(directory.path, CLUSTER, str(topology.controller)) if secure else None
        self._issuer: Daemon | None = None
        self._console: Daemon | None = None
        self._stack = AsyncExitStack()
        self._controller: Daemon | None = None
        self._client: ControllerClient | None = None
        self._bus: Client | None = None
        self._log: LogReader | None = None
        self._follower: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._statuses: dict[str, tuple[float, AgentStatus]] = {}

    @property
    def bus_url(self) -> str:
        if self.buses is not None:
            return ",".join(self.buses.urls)
        return f"nats://{self.topology.controller}:{commands.BUS_PORT}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes every isthmus command of the lab find its cluster."""
        return self._environment(self.security.site.operator if self.security else None)

    @property
    def controllers_environment(self) -> dict[str, str]:
        """The same with a controller's credentials."""
        return self._environment(self.security.site.controllers[0] if self.security else None)

    def _environment(self, credentials: Path | None) -> dict[str, str]:
        found = {"ISTHMUS_BUS": self.bus_url, "ISTHMUS_CLUSTER": CLUSTER}
        if self.security is not None and credentials is not None:
            found |= self.security.environment(credentials)
        return found

    @property
    def controller(self) -> Daemon:
        """The controller, once it runs. Raises RuntimeError before."""
        return _started(self._controller)

    @property
    def client(self) -> ControllerClient:
        """The client, once it runs. Raises RuntimeError before."""
        return _started(self._client)

    @property
    def bus(self) -> Client:
        """The bus, once it runs. Raises RuntimeError before."""
        return _started(self._bus)

    @property
    def log(self) -> LogReader:
        """The log, once it runs. Raises RuntimeError before."""
        return _started(self._log)

    @property
    def pods(self) -> list[Pod]:
        return [pod for name in sorted(self.nodes) for pod in self.nodes[name].pods]

    @property
    def machines(self) -> dict[str, int]:
        """PIDs that `isthmus lab exec` enters: machines and pods."""
        return {
            **{name: machine.pid for name, machine in self.fabric.machines.items()},
            **{pod.name: pod.pid for pod in self.pods},
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in (self._follower, self._watcher):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._stack.aclose()
        await asyncio.gather(*(pod.kill() for pod in self.pods))
        await asyncio.gather(*(node.agent.stop() for node in self.nodes.values()))
        for helper in (self._issuer, self._console, *self.stand_ins):
            if helper is not None:
                await helper.stop()
        if self._controller is not None:
            await self._controller.stop()
        if self.buses is not None:
            await self.buses.stop()
        await self.fabric.close()

    # ------------------------------------------------------------------ the control plane

    async def start_controller(self) -> None:
        """Starts bus and controller, connects the operator and begins to follow the log."""
        data = self.directory.path / "controller"
        if self.buses is not None:
            await self.buses.build(self.fabric, self.security)
            await self._start_buses(self.buses)
            if self.security is not None:
                self.security.urls = self.buses.urls
                if self.buses.leaf is not None:
                    self.security.leaf = self.buses.leaf.machine, self.buses.leaf_url
                await self.security.announce_people()
            line = commands.controller(data, self.buses.replicas)
        else:
            extra = self.security.up_arguments() if self.security else ()
            line = commands.up(data, str(self.topology.controller), extra)
        self._controller = Daemon(
            "controller",
            self.fabric.machines["controller"],
            line,
            self.directory.log("controller"),
            self.controllers_environment,
        )
        await self._controller.start()
        await self.wait_until(self._connect, START_LIMIT_S, "the controller to answer")
        if self.security is not None:
            machine = self.fabric.machines["controller"]
            self._issuer = self.security.issuer(machine, self.directory.log("issuer"))
            await self._issuer.start()
        self._follower = asyncio.create_task(self._follow(), name="lab: follow the log")

    async def _start_buses(self, buses: Buses) -> None:
        await buses.start()
        await self.wait_until(buses.ready, START_LIMIT_S, "the bus servers to answer")

    async def open_console(self, descriptor: int) -> None:
        """Makes the controller's console reachable through a listening socket of the host."""
        self._console = Daemon(
            "console",
            self.fabric.machines["controller"],
            commands.forward(descriptor),
            self.directory.log("console"),
            descriptors=(descriptor,),
        )
        await self._console.start()

    async def define_cluster(self) -> dict[str, Any]:
        """Defines the cluster with the lab's plan; the reply's result."""
        reply = await self.client.send(
            commands.define(
                CONTAINER_CIDR, MAX_PODS_PER_NODE, MAX_SERVICES, self.topology.sites, self.quarantine_s
            ),
            timeout_s=START_LIMIT_S,
        )
        return reply.result

    async def _connect(self) -> bool:
        if not self.controller.running:
            raise CheckFailedError(f"the controller ended:\n{self.controller.log_tail()}")
        if self._client is None:
            try:
                bus = await connect(self._bus_options(), name="isthmus-lab")
            except Unavailable:
                return False
            self._stack.push_async_callback(_close, bus)
            self._bus = bus
            self._client = ControllerClient(bus, CLUSTER, actor="lab")
            # The lab kills bus servers itself: a new leader may take longer than a person should wait.
            self._log = JetStreamLog(bus, CLUSTER, patience_s=30.0)
            self._watcher = asyncio.create_task(self._watch(bus), name="lab: watch the reports")
        return await self.controller_is_there()

    def _bus_options(self) -> BusOptions:
        if self.security is None:
            return BusOptions(servers=tuple(self.bus_url.split(",")))
        return self.security.site.options(self.security.site.operator, *self.security.urls)

    async def controller_is_there(self) -> bool:
        """Whether a controller answers a question that changes nothing."""
        try:
            await self.client.send(LeaveNode(node="nobody", uid="nobody"), dry_run=True, timeout_s=1.0)
        except Refused:
            return True
        except Unavailable:
            return False
        return True

    async def _follow(self) -> None:
        await self.members.follow(self.log)

    async def _watch(self, bus: Client) -> None:
        """Look at the last report of each node, as whoever may read them can."""
        reader, seen = StatusReader(bus, CLUSTER), dict[str, int]()
        while True:
            with suppress(Unavailable):  # the lab takes the bus down, too
                for status, arrived_ns, _ in await reader.all():
                    if seen.get(status.node) != arrived_ns:
                        seen[status.node] = arrived_ns
                        self._statuses[status.node] = (asyncio.get_running_loop().time(), status)
            await asyncio.sleep(WATCH_S)

    async def reports_since_start(self, node: LabNode) -> bool:
        """Whether the agent, since its last start, has reported to be ready and up to date."""
        arrived_s, status = self._statuses.get(node.name, (0.0, None))
        return (
            status is not None
            and arrived_s > node.agent.started_at_s
            and status.state == "ready"
            and status.applied >= self.members.sequence
        )

    async def stop_control_plane(self) -> None:
        """SIGKILL for the process that holds bus and controller; the bus goes with it (all its servers)."""
        await self.controller.kill()
        if self.buses is not None:
            await self.buses.kill_hub()

    async def restart_control_plane(self) -> None:
        """Starts it again on the same data, and waits until it and every agent are back."""
        if self.buses is not None:
            await self._start_buses(self.buses)
        await self.controller.start()
        await self.wait_until(self.controller_is_there, START_LIMIT_S, "the controller to answer again")
        await self.wait_until(self._all_report, START_LIMIT_S, "all agents to report again")

    async def _all_report(self) -> bool:
        since_s = self.controller.started_at_s
        return all([await self.reports(name, since_s=since_s) for name in self.nodes])

    async def reports(self, name: str, *, since_s: float) -> bool:
        """Whether a report of that node arrived after `since_s` on the event loop's clock."""
        return self._statuses.get(name, (0.0, None))[0] > since_s

    # ------------------------------------------------------------------ nodes and pods

    async def start_node(self, node: Node, *, by: str = "") -> LabNode:
        """Makes the machine and starts its agent, or has it join ``by`` a token; it is a member at the end."""
        machine = await self.fabric.add_node(node)
        directory = self.directory.node(node.name)
        directory.mkdir(parents=True)
        credentials = await self.security.admit(node, machine, directory) if self.security else None
        environment = self._environment(credentials)
        if self.buses is not None:
            environment["ISTHMUS_BUS"] = self.buses.url_for(node.kind)
        line = commands.join(node, directory, by) if by else commands.agent(node, directory)
        if by and self.bare is not None:
            line = await self.bare.line(machine, directory, line[2:])
        if self.gateways and node.kind == "cloud":
            line.append("--gateway")
        if self.direct:
            line += ["--direct", "on"]
        agent = Daemon(node.name, machine, line, self.directory.log(node.name), environment)
        started = LabNode(node, machine, agent, directory)
        self.nodes[node.name] = started
        await agent.start()
        await self.wait_until(
            lambda: self._has_joined(started),
            START_LIMIT_S,
            f"{node.name} to join and write its CNI configuration",
        )
        return started

    async def _has_joined(self, node: LabNode) -> bool:
        self._check_follower()
        if not node.agent.running:
            raise CheckFailedError(f"the agent of {node.name} ended:\n{node.agent.log_tail()}")
        member = self.members.live.get(node.name)
        return bool(member and member.range) and commands.conflist(node.directory) is not None

    def _check_follower(self) -> None:
        for task in (self._follower, self._watcher):
            if task is not None and task.done():
                task.result()

    async def start_pods(self, node: LabNode) -> None:
        """Starts the node's pods by the CNI configuration that its agent wrote. Raises CheckFailedError."""
        path = commands.conflist(node.directory)
        if path is None:
            raise CheckFailedError(f"{node.name} has no CNI configuration")
        for name in node.node.pods:
            node.pods.append(await start_pod(name, node.machine, path.read_text(), self.plugins))

    async def retire(self, node: LabNode) -> None:
        """Ends the pods and the agent of a node that has left; the machine stays until the lab ends."""
        await asyncio.gather(*(pod.delete() for pod in node.pods))
        node.pods.clear()
        await node.agent.stop()
        del self.nodes[node.name]

    # ------------------------------------------------------------------ conditions

    def peers_of(self, name: str) -> list[Member]:
        """Everybody whom that node must know, from the log."""
        return [member for member in self.members.live.values() if member.node != name and member.range]

    async def rows(self, names: Iterable[str] | None = None) -> dict[str, OverlayRows]:
        """The overlay rows in each named node's kernel (default: all)."""
        chosen = list(self.nodes if names is None else names)
        found = await asyncio.gather(*(overlay_rows(self.nodes[name].machine) for name in chosen))
        return dict(zip(chosen, found, strict=True))

    async def converged(self) -> bool:
        """Whether each kernel holds exactly its peers' rows in the log."""
        rows = await self.rows()
        return all(rows[name] == OverlayRows.of(self.peers_of(name)) for name in rows)

    async def wait_converged(self, timeout_s: float = CONVERGE_LIMIT_S) -> float:
        """Seconds until `converged`. Raises CheckFailedError with wrong rows."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            await self.wait_until(self.converged, timeout_s, "all kernels to hold their peers' rows")
        except TimeoutError as error:
            lines = [
                f"{name}: {line}"
                for name, rows in (await self.rows()).items()
                for line in rows.differences(OverlayRows.of(self.peers_of(name)))
            ]
            raise CheckFailedError(f"{error}\n" + "\n".join(lines[:12])) from error
        return loop.time() - started

    async def wait_until(self, condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> None:
        """Raises TimeoutError that names `what`. The condition is asked again until it holds."""
        try:
            async with asyncio.timeout(timeout_s):
                while not await condition():  # noqa: ASYNC110 - a kernel table offers nothing to wait on
                    await asyncio.sleep(POLL_S)
        except TimeoutError as error:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}") from error

    async def timed(self, condition: Callable[[], Awaitable[bool]], timeout_s: float, what: str) -> float:
        """Seconds until the condition held."""
        started = asyncio.get_running_loop().time()
        await self.wait_until(condition, timeout_s, what)
        return asyncio.get_running_loop().time() - started

    async def isthmus(self, *arguments: str, machine: str = "controller", as_controller: bool = False) -> str:
        """What an operator types, on a machine of the lab: the command's output.

        `as_controller`: with a controller's credentials, which may make streams.
        """
        return await run(
            self.fabric.machines[machine].inside(commands.ISTHMUS, *arguments),
            env=self.controllers_environment if as_controller else self.environment,
            timeout_s=COMMAND_LIMIT_S,
        )


def _started(part: T | None) -> T:
    if part is None:
        raise RuntimeError("the controller is started first")
    return part


async def _close(bus: Client) -> None:
    """Closes a connection whose server may be gone already."""
    with suppress(NatsError, OSError, TimeoutError):
        await bus.close()
