"""One agent at work: its parts in an order that never harms.

Start: wait a little for the log to bring the remembered view up to date; then compare with the kernel, with
whatever view there is. Stop: report, close, and leave every row where it is. The parts come complete from
:mod:`nodeagent.composition`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import msgspec

from events.bus.retry import happened
from events.errors import foremost
from events.telemetry.spans import Outbox, SpanRecord, encode_spans
from nodeagent import system
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.direct.paths import DirectPaths
from nodeagent.fastpath.reconciler import FastPath
from nodeagent.firewall.reconciler import FirewallReconciler
from nodeagent.gateway.reconciler import GatewayReconciler
from nodeagent.health.accept_in_others import AcceptInOthers
from nodeagent.health.host_watch import HostWatch
from nodeagent.health.path_prober import PathProber
from nodeagent.membership.cache import Cache
from nodeagent.membership.log_follower import LogFollower
from nodeagent.membership.peers import PeerChange
from nodeagent.membership.session import BusSession
from nodeagent.membership.view import View
from nodeagent.mesh.prober import MeshProber
from nodeagent.mesh.requests import TraceRequests
from nodeagent.mesh.tracing import PeerTracer
from nodeagent.nat.paths import NatPaths
from nodeagent.netlink import links
from nodeagent.node_configuration import NodeConfiguration
from nodeagent.path_mtu.tracker import PathMtuProber
from nodeagent.pods.plugin.keeper import PluginKeeper
from nodeagent.pods.reporter import PodReporter
from nodeagent.pods.watch import PodWatch
from nodeagent.reports import StatusReporter
from nodeagent.ways.table import WayTable
from nodeagent.wireguard.keeper import Keeper

log = logging.getLogger("isthmus.agent")

READY_S, READY_STEP_S = 30.0, 0.05


class ChangeDispatcher:
    """Hands what the log changed on to the kernel side and to what is derived from it.

    Until :meth:`begin` it only notes the causes: the first comparison covers everything up to there. Cancelled,
    it may be begun again, and the next resync brings what is missing.
    """

    def __init__(self, view: View, reconciler: Reconciler, node: NodeConfiguration, fastpath: FastPath) -> None:
        self._view, self._reconciler, self._node, self._fastpath = view, reconciler, node, fastpath
        self._begun = False
        self.begun = asyncio.Event()
        """Set once the kernel side has begun."""

    async def begin(self) -> None:
        """The view is as current as it gets: the kernel is compared with it."""
        self._begun = True
        self._view.be_at(await asyncio.to_thread(links.own_addresses))
        await self._reconciler.follow(self._view, ())
        self._reconciler.request("start")
        self._node.follow()
        self.begun.set()

    async def apply(self, view: View, changes: Sequence[PeerChange]) -> None:
        """Events up to ``view.sequence`` changed this of the peers."""
        if not self._begun:
            self._reconciler.note_cause()
            return
        self._fastpath.before(changes)
        await self._reconciler.follow(view, changes)
        self._fastpath.after(changes)
        self._node.follow()


class Agent(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """The complete parts of one node's agent. :meth:`run` does everything."""

    config: AgentConfig
    view: View
    cache: Cache
    conditions: Conditions
    session: BusSession
    reconciler: Reconciler
    firewall: FirewallReconciler
    others: AcceptInOthers
    gateway: GatewayReconciler
    fastpath: FastPath
    node: NodeConfiguration
    pods: PodWatch
    plugin: PluginKeeper
    pod_reporter: PodReporter
    dispatcher: ChangeDispatcher
    follower: LogFollower
    prober: PathMtuProber
    path: PathProber
    mesh: MeshProber
    tracer: PeerTracer
    ways: WayTable
    direct: DirectPaths
    encryption: Keeper
    nat: NatPaths
    trace_requests: TraceRequests
    host_watch: HostWatch
    reporter: StatusReporter
    outbox: Outbox | None = None

    async def run(self) -> None:
        """Until cancelled (SIGTERM); then the status and the view are written, and every row stays.

        Raises IsthmusError for what must stop a start.
        """
        underlay = await asyncio.to_thread(self.reconciler.tunnel.find_underlay)
        log.info(
            "agent of %s starts: underlay %s on %s, view at event %d",
            self.config.node,
            underlay.address,
            underlay.device or "no device",
            self.view.sequence,
        )
        await self.direct.begin()
        await self.nat.begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.follower.run(), name="follower")
                tasks.create_task(self._begin(), name="begin")
                tasks.create_task(self._tell_ready(member=self.view.joined), name="readiness")
                tasks.create_task(self.reconciler.run(), name="reconciler")
                if self.config.firewall:
                    tasks.create_task(self.firewall.run(), name="firewall")
                tasks.create_task(self.others.run(), name="others' chains")
                tasks.create_task(self.fastpath.run(), name="fast path")
                tasks.create_task(self.prober.run(), name="path mtu")
                tasks.create_task(self.path.run(), name="path")
                tasks.create_task(self.mesh.run(), name="mesh")
                tasks.create_task(self.tracer.run(), name="mesh traces")
                tasks.create_task(self.trace_requests.run(), name="requests for traces")
                tasks.create_task(self._direct(), name="direct ways")
                tasks.create_task(self._nat(), name="ways through NAT")
                tasks.create_task(self.host_watch.run(), name="host")
                tasks.create_task(self.encryption.run(), name="encryption")
                tasks.create_task(self._serve(), name="gateway")
                tasks.create_task(self.pods.run(), name="pods")
                tasks.create_task(self.plugin.run(), name="CNI plugin")
                tasks.create_task(self.pod_reporter.run(), name="pod facts")
                tasks.create_task(self.reporter.run(), name="report")
                if self.outbox is not None:
                    tasks.create_task(self.outbox.run(self._ship_spans), name="spans")
        except BaseExceptionGroup as group:
            raise foremost(group) from None
        finally:
            self._finish()

    def pods_changed(self) -> None:
        """Pods came or went: the firewall, new pods and the controller depend on whose addresses they have."""
        self.node.follow()
        self.reporter.due()

    def ways_changed(self) -> None:
        """Peers behind NAT are found, or are elsewhere: the firewall, and WireGuard where they are relayed."""
        self.node.follow()
        self.encryption.follow()

    async def _begin(self) -> None:
        """A remembered view may be older than the kernel's rows: let the log bring it up to date first.

        As long as the log is being read there is no hurry, since the rows stay as they are; without
        the bus the remembered view has to do.
        """
        session, patience_s = self.session, self.config.bus_patience_s
        while not session.caught_up.is_set():
            seen = session.last_at
            if await happened(session.caught_up, within_s=patience_s):
                break
            if session.last_at == seen:
                log.info("the bus is away: going on with the view at event %d", self.view.sequence)
                break
        if session.connected:
            await happened(session.asked, within_s=patience_s)
        if session.held:  # a copy of a machine that reports: nothing of the member's is set up here
            self.node.hold()
            await session.admitted.wait()
        await self.dispatcher.begin()

    async def _tell_ready(self, *, member: bool) -> None:
        """Pods start behind this: not before the rows of a remembered membership are in the kernel.

        Else packets between pods would leave by the host's own routes after a boot, in the clear where the
        cluster encrypts. After :data:`READY_S` at most: who cannot be a member must not hold up a machine.
        """
        clock = asyncio.get_running_loop().time
        until = clock() + READY_S if member else 0.0
        while clock() < until and not self.reconciler.clean:  # noqa: ASYNC110  once in a life
            await asyncio.sleep(READY_STEP_S)
        system.tell_ready()

    async def _direct(self) -> None:
        await self.dispatcher.begun.wait()
        await self.direct.run()

    async def _nat(self) -> None:
        await self.dispatcher.begun.wait()
        await self.nat.run()

    async def _serve(self) -> None:
        await self.dispatcher.begun.wait()
        await self.gateway.run()

    async def _ship_spans(self, spans: Sequence[SpanRecord]) -> None:
        """To the controllers' built-in store; without the bus they are lost."""
        client = self.session.client
        if client is not None and client.is_connected:
            await client.publish(self.reporter.span_subject, encode_spans(spans))

    def _finish(self) -> None:
        self.reporter.stop()
        try:
            self.cache.snapshot(self.view)
        except OSError as error:
            log.warning("the cache cannot be written: %s", error.strerror)
        log.info("agent of %s stopped; its rows stay", self.config.node)
