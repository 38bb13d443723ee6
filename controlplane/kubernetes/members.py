"""The bridge's view of a running controller: members by name, and what moved. Reads only."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from controlplane.changes import Changes, Lagged
from controlplane.cluster.decision import BindNodes, Tick
from controlplane.cluster.decisions import adoption
from controlplane.cluster.decisions.holders import PROVIDER
from controlplane.cluster.state import ClusterState, Node, asker_node
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.controller import Controller
from controlplane.controller.requests import Request
from controlplane.kubernetes import endpoints, flannel_nodes
from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.bridge import Bridge
from controlplane.kubernetes.desired import Agent, Member
from controlplane.kubernetes.endpoints import ApiServers, FollowingBackends
from controlplane.kubernetes.node_objects import Rules
from controlplane.kubernetes.objects import flannel_annotations
from controlplane.kubernetes.services import PublicServices
from events.codec import decode
from events.ids import new_id
from events.log import LogReader
from events.protocol.clb import BackendKey
from events.protocol.commands import AddBackend, AdoptNodes, Command, FenceNode, RemoveBackend, RemoveNode
from events.status import AgentStatus
from events.types import AdoptionBegun, AdoptionEnded

log = logging.getLogger("isthmus.kubernetes")

COMPLAINTS_SHOWN = 3
AGAIN_S = 5.0
ACTOR, COMMAND = "controller/", "kubernetes-"
"""What the actor and the id of each command of the bridge begin with: by them the log says that it was its."""


class ControllerMembers:
    """:class:`controlplane.kubernetes.port.Members` on the parts of a controller."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        liveness: Liveness,
        changes: Changes,
        leading: Callable[[], bool],
        submit: Callable[[Command | Tick], Awaitable[None]],
    ) -> None:
        self._state = state
        self._liveness = liveness
        self._changes = changes
        self._leading = leading
        self._submit = submit

    @property
    def leading(self) -> bool:
        return self._leading()

    def member(self, name: str) -> Member | None:
        state = self._state()
        node = state.nodes.get(name)
        owned = state.owned.get(name)
        if node is None or owned is None:
            return None
        status = self._liveness.statuses.get(node.uid)
        return Member(
            uid=node.uid,
            cidr=owned.cidr,
            epoch=owned.epoch,
            agent=_agent(status, silent=name in state.unreachable, epoch=owned.epoch),
            node_uid=bound.node_uid if (bound := state.bound.get(name)) is not None else "",
            complaint="; ".join(status.conditions[:COMPLAINTS_SHOWN]) if status is not None else "",
            stray_ranges=_former(status, owned.cidr),
            stray_pods=status.stray_pods if status is not None else (),
            elsewhere=bool(state.adoption) and (status is None or status.state == "stopping"),
            flannel=_flannel(state, node),
        )

    def refusal(self, name: str) -> str:
        known = self._state().refusals.get(asker_node(name), {})
        return max(known.values(), key=lambda refusal: refusal.since).message if known else ""

    def owner(self, cidr: str) -> str:
        state = self._state()
        try:
            first = int(IPv4Network(cidr).network_address)
        except ValueError:
            return ""
        for each in state.cidrs:
            place, rest = divmod(first - each.first, state.definition.range_size if state.definition else 1)
            owned = (
                state.ranges.get(each.first_index + place) if 0 <= place < each.capacity and not rest else None
            )
            if owned is not None and owned.cidr == cidr:
                return owned.node
        return ""

    @property
    def adopting(self) -> str:
        state = self._state()
        known = state.adoption.get(state.name)
        return known.source if known is not None else ""

    async def adopt(self, item: Mapping[str, Any]) -> None:
        """By the controller's own committer. Raises IsthmusError. Cancelled, it is decided all the same."""
        definition = self._state().definition
        found = flannel_nodes.read_candidate(item, 1, Rules(kind="cloud"))
        flannel_nodes.judge(found, keep_name=True)
        if definition is not None and found.vni not in {None, definition.vni}:
            found.found("adopt_vni_differs", f"its VNI is {found.vni}, the cluster's is {definition.vni}")
        if found.findings:
            told = [{"node": found.node, "code": one.code, "message": one.message} for one in found.findings]
            raise adoption.refused(told)
        await self._submit(AdoptNodes(nodes=(flannel_nodes.adopted(found, found.mac),)))

    async def take_out(self, name: str, reason: str) -> None:
        """By the controller's own committer. Cancelled, the command is decided all the same."""
        await self._submit(RemoveNode(node=name, reason=reason))

    async def fence(self, name: str, reason: str) -> None:
        """By the controller's own committer. Cancelled, the command is decided all the same."""
        await self._submit(FenceNode(node=name, reason=reason))

    def bound(self) -> Mapping[str, str]:
        """O(bound members)."""
        return {name: bound.node_uid for name, bound in self._state().bound.items()}

    async def bind(self, nodes: Sequence[tuple[str, str, str]]) -> None:
        """By the controller's own committer. Cancelled, it is decided all the same."""
        await self._submit(BindNodes(nodes=tuple(nodes)))

    async def moved(self) -> AsyncIterator[str]:
        """Names from the log's events and from reports that say something new. Cancelled, it is deaf."""
        names: dict[str, None] = {}
        wake = asyncio.Event()
        said: dict[str, tuple[object, ...]] = {}

        def reported(status: AgentStatus, _age_s: float) -> None:
            # Whose report it is, and whether it knows of its own range: the same words mean more then.
            owned = self._state().owned.get(status.node)
            reached = owned is not None and status.applied >= owned.epoch
            now = (
                status.uid, reached, status.state, status.conditions, status.stray_ranges, status.stray_pods
            )  # fmt: skip
            if said.get(status.node) != now:
                said[status.node] = now
                names[status.node] = None
                wake.set()

        self._liveness.listeners.append(reported)
        events = asyncio.create_task(self._events(names, wake), name="kubernetes events")
        try:
            while True:
                await wake.wait()
                wake.clear()
                due = list(names)
                names.clear()
                for name in due:
                    yield name
        finally:
            self._liveness.listeners.remove(reported)
            events.cancel()
            await asyncio.wait({events})

    async def _events(self, names: dict[str, None], wake: asyncio.Event) -> None:
        while True:
            with suppress(Lagged):
                async for run in self._changes.subscribe():
                    for recorded in run:
                        name = getattr(recorded.event, "node", None)
                        if isinstance(name, str):
                            names[name] = None
                        elif isinstance(recorded.event, AdoptionBegun | AdoptionEnded):
                            names[""] = None
                    wake.set()
                return  # the controller ends
            names[""] = None
            wake.set()


def _flannel(state: ClusterState, node: Node) -> tuple[tuple[str, str], ...]:
    """Flannel's annotations of a member, as long as nodes may still be on flannel."""
    adoption = state.adoption.get(state.name)
    if adoption is None or adoption.source != "flannel" or state.definition is None:
        return ()
    return flannel_annotations(state.definition.vni, node.vtep_mac, node.announced)


def _agent(status: AgentStatus | None, *, silent: bool, epoch: int) -> Agent:
    if silent:
        return "silent"
    if status is None:
        return "never heard"
    return "ready" if status.state == "ready" and status.applied >= epoch else "not ready"


def _former(status: AgentStatus | None, own: str) -> tuple[str, ...]:
    """The ranges of its earlier pods, as far as they are ranges: an agent may say anything."""
    found = []
    for cidr in status.stray_ranges if status is not None else ():
        with suppress(ValueError):
            if str(IPv4Network(cidr)) != own:
                found.append(cidr)
    return tuple(found)


class ControllerBackends:
    """:class:`controlplane.kubernetes.endpoints.Backends` on the parts of a controller."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        event_log: LogReader,
        leading: Callable[[], bool],
        submit: Callable[[Command | Tick], Awaitable[None]],
    ) -> None:
        self._state = state
        self._log = event_log
        self._leading = leading
        self._submit = submit

    @property
    def leading(self) -> bool:
        return self._leading()

    def found(self) -> Mapping[BackendKey, int]:
        return {key: backend.added for key, backend in self._state().backends.items()}

    def purposes(self, reservation: str) -> tuple[str, ...]:
        found = self._state().clb.get(reservation)
        if found is None or found.provider != PROVIDER:
            return ()
        return tuple(item.purpose for item in found.addresses)

    def underlay(self, node: str) -> str:
        found = self._state().nodes.get(node)
        return found.underlay if found is not None else ""

    async def followed(self, added: int) -> bool:
        """By the envelope: identities of actors are checked where commands come in. Raises IsthmusError.

        Cancelled, it leaves nothing behind.
        """
        async for batch in self._log.read(after=added - 1, until=added):
            for message in batch.messages:
                envelope = decode(message).envelope
                return envelope.actor.startswith(ACTOR) and envelope.command_id.startswith(COMMAND)
        return False

    async def add(self, backend: AddBackend) -> None:
        await self._submit(backend)

    async def remove(self, key: BackendKey) -> None:
        await self._submit(
            RemoveBackend(
                reservation=key.name,
                purpose=key.purpose,
                port=key.port,
                protocol=key.protocol,
                address=key.address,
                backend_port=key.backend_port,
            )
        )


@asynccontextmanager
async def bridging(
    controller: Controller,
    kubeconfig: Path | None,
    *,
    fence_deleted_s: float = 0.0,
    evict_stale_pods: bool = False,
    apiserver_backends: str = "",
    service_backends: bool = False,
) -> AsyncIterator[Bridge]:
    """A bridge beside a controller until the block is left. Raises Refused(kubernetes_config).

    ``fence_deleted_s`` is how long the Node of a silent member has been deleted before it is fenced; 0: never.
    ``evict_stale_pods``: pods with addresses of an earlier range are evicted, not only told of.
    ``apiserver_backends`` is the CLB reservation whose ``apiserver`` backends follow Kubernetes; empty: none.
    ``service_backends``: those of reservations' other addresses follow the Services that are annotated so.

    Whatever happens to it, the controller goes on: the bridge is begun anew after a pause. A cancellation
    inside of the block ends the bridge, too.
    """
    client = await KubernetesClient.open(kubeconfig)

    async def submit(command: Command | Tick) -> None:
        await controller.committer.submit(
            Request(
                command=command,
                command_id=f"{COMMAND}{new_id()}",
                actor=f"{ACTOR}{controller.name}",
                received_s=time.monotonic(),
            )
        )

    def state() -> ClusterState:
        return controller.replica.state

    def leading() -> bool:
        return controller.leadership.in_office and controller.replica.halted is None

    members = ControllerMembers(state, controller.liveness, controller.changes, leading, submit)
    bridge = Bridge(
        client,
        members,
        instance=controller.name,
        fence_deleted_s=fence_deleted_s,
        evict_stale_pods=evict_stale_pods,
    )

    async def work() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(bridge.run(), name="bridge")
            store = ControllerBackends(state, controller.log, leading, submit)
            if apiserver_backends:
                servers = FollowingBackends(
                    ApiServers(client, apiserver_backends), store, about=endpoints.PURPOSE
                )
                tasks.create_task(servers.run(), name="API server's backends")
            if service_backends:
                services = FollowingBackends(PublicServices(client, store), store, about="annotated Services")
                tasks.create_task(services.run(), name="Services' backends")

    async def run() -> None:
        while True:
            try:
                await work()
            except Exception:
                log.exception("the bridge to Kubernetes ended and is begun anew; members and packets go on")
            await asyncio.sleep(AGAIN_S)

    running = asyncio.create_task(run(), name="kubernetes")
    try:
        yield bridge
    finally:
        running.cancel()
        await asyncio.wait({running})
        await client.close()
