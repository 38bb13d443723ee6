"""The bridge's view of what a controller knows: members by name, and what moved; and a bridge within one."""

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
from controlplane.cluster.decisions import adoption
from controlplane.cluster.decisions.holders import PROVIDER
from controlplane.cluster.state import ClusterState, Node, asker_node
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.controller import Controller
from controlplane.controller.requests import BRIDGE_IDS, Request
from controlplane.kubernetes import endpoints, flannel_nodes
from controlplane.kubernetes.api import KubernetesApi, KubernetesClient
from controlplane.kubernetes.bridge import Bridge
from controlplane.kubernetes.desired import Agent, Member
from controlplane.kubernetes.endpoints import ApiServers, FollowingBackends
from controlplane.kubernetes.node_objects import Rules
from controlplane.kubernetes.objects import flannel_annotations
from controlplane.kubernetes.services import PublicServices
from events.bus.retry import jittered_s
from events.codec import decode
from events.ids import new_id
from events.log import LogReader
from events.protocol.clb import BackendKey
from events.protocol.commands import (
    AddBackend,
    AdoptNodes,
    BindNodes,
    Command,
    FenceNode,
    RemoveBackend,
    RemoveNode,
)
from events.status import AgentStatus
from events.subjects import BRIDGE
from events.types import AdoptionBegun, AdoptionEnded

log = logging.getLogger("isthmus.kubernetes")

COMPLAINTS_SHOWN = 3
AGAIN_S = 5.0
ACTORS = ("controller/", f"{BRIDGE}/")
"""How the bridge signs, within a controller and beside it; with the id that says that it was the bridge."""


async def _at_once() -> None:
    return


class ControllerMembers:
    """:class:`controlplane.kubernetes.port.Members` on the parts of a controller."""

    def __init__(
        self,
        state: Callable[[], ClusterState],
        liveness: Liveness,
        changes: Changes,
        leading: Callable[[], bool],
        submit: Callable[[Command], Awaitable[object]],
        *,
        current: Callable[[], Awaitable[None]] = _at_once,
    ) -> None:
        """``current`` returns when the state has the log's last word; a leading controller's always has."""
        self._current = current
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

    async def still(self, name: str, cidr: str) -> bool:
        await self._current()
        owned = self._state().owned.get(name)
        return owned is not None and owned.cidr == cidr

    @property
    def adopting(self) -> str:
        state = self._state()
        known = state.adoption.get(state.name)
        return known.source if known is not None else ""

    async def adopt(self, item: Mapping[str, Any]) -> None:
        definition = self._state().definition
        found = flannel_nodes.read_candidate(item, 1, Rules(kind="cloud"))
        flannel_nodes.judge(found, keep_name=True)
        if definition is not None and found.vni not in {None, definition.vni}:
            found.found("adopt_vni_differs", f"its VNI is {found.vni}, the cluster's is {definition.vni}")
        if found.findings:
            told = [{"node": found.node, "code": one.code, "message": one.message} for one in found.findings]
            raise adoption.refused(told)
        await self._submit(AdoptNodes(nodes=(flannel_nodes.adopted(found, found.mac),)))

    async def take_out(self, name: str, uid: str, reason: str) -> None:
        await self._submit(RemoveNode(node=name, uid=uid, reason=reason))

    async def fence(self, name: str, uid: str, reason: str) -> None:
        await self._submit(FenceNode(node=name, uid=uid, reason=reason))

    def bound(self) -> Mapping[str, str]:
        """O(bound members)."""
        return {name: bound.node_uid for name, bound in self._state().bound.items()}

    async def bind(self, nodes: Sequence[tuple[str, str, str]]) -> None:
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
        submit: Callable[[Command], Awaitable[object]],
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
                return envelope.actor.startswith(ACTORS) and envelope.command_id.startswith(BRIDGE_IDS)
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
async def bridging(controller: Controller, kubeconfig: Path | None, **options: Any) -> AsyncIterator[Bridge]:
    """A bridge within a controller until the block is left. Raises Refused(kubernetes_config).

    ``options`` are those of :class:`Following`. Whatever happens to it, the controller goes on: the bridge is
    begun anew after a pause. A cancellation inside of the block ends the bridge, too.
    """
    client = await KubernetesClient.open(kubeconfig)

    async def submit(command: Command) -> None:
        await controller.committer.submit(
            Request(
                command=command,
                command_id=f"{BRIDGE_IDS}{new_id()}",
                actor=f"controller/{controller.name}",
                received_s=time.monotonic(),
            )
        )

    def state() -> ClusterState:
        return controller.replica.state

    def leading() -> bool:
        return controller.leadership.in_office and controller.replica.halted is None

    following = Following(
        client,
        ControllerMembers(state, controller.liveness, controller.changes, leading, submit),
        ControllerBackends(state, controller.log, leading, submit),
        instance=controller.name,
        **options,
    )

    async def run() -> None:
        while True:
            try:
                await following.run()
            except Exception:
                log.exception("the bridge to Kubernetes ended and is begun anew; members and packets go on")
            await asyncio.sleep(jittered_s(AGAIN_S))

    running = asyncio.create_task(run(), name="kubernetes")
    try:
        yield following.bridge
    finally:
        running.cancel()
        await asyncio.wait({running})
        await client.close()


class Following:
    """All that follows Kubernetes, on one API server. :meth:`run` until cancelled.

    ``fence_deleted_s`` is how long the Node of a silent member has been deleted before it is fenced; 0: never.
    ``evict_stale_pods``: pods with addresses of an earlier range are evicted, not only told of.
    ``apiserver_backends`` is the CLB reservation whose ``apiserver`` backends follow Kubernetes; empty: none.
    ``service_backends``: those of reservations' other addresses follow the Services that are annotated so.
    """

    def __init__(
        self,
        api: KubernetesApi,
        members: ControllerMembers,
        store: ControllerBackends,
        *,
        instance: str,
        fence_deleted_s: float = 0.0,
        evict_stale_pods: bool = False,
        apiserver_backends: str = "",
        service_backends: bool = False,
    ) -> None:
        self.bridge = Bridge(
            api,
            members,
            instance=instance,
            fence_deleted_s=fence_deleted_s,
            evict_stale_pods=evict_stale_pods,
        )
        self._backends: list[FollowingBackends] = []
        if apiserver_backends:
            servers = ApiServers(api, apiserver_backends)
            self._backends.append(FollowingBackends(servers, store, about=endpoints.PURPOSE))
        if service_backends:
            services = PublicServices(api, store)
            self._backends.append(FollowingBackends(services, store, about="annotated Services"))

    async def run(self) -> None:
        """Follow, for ever. Cancelled, what was written stands, and another one goes on."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.bridge.run(), name="bridge")
            for each in self._backends:
                tasks.create_task(each.run(), name="backends")
