"""One agent: puts the parts together, in an order that never harms, and takes them apart again.

Start: lock, cache, underlay; wait a little for the bus to be up to date; then compare with the
kernel, with whatever view there is. Stop: report, close, and leave every row where it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime

import msgspec
from nats.aio.client import Client
from nats.errors import Error as NatsError

from events import subjects
from events.errors import IsthmusError
from events.status import AgentStatus
from events.telemetry.logs import follow_position
from events.telemetry.role import Telemetry, our_version
from events.telemetry.spans import Outbox, SpanRecord, encode_spans
from nodeagent import cni
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.reconciler import Keeper
from nodeagent.dataplane.underlay import Underlay
from nodeagent.firewall.reconciler import Shield
from nodeagent.firewall.ruleset import Rules
from nodeagent.gateway.arp_announcer import BEAT_S
from nodeagent.gateway.reconciler import Gatekeeper
from nodeagent.local_files import LocalStatus, node_uid, only_one, prepare_directory, write_status
from nodeagent.membership.cache import Cache
from nodeagent.membership.log_follower import Follower
from nodeagent.membership.peers import Change
from nodeagent.membership.view import View
from nodeagent.path_mtu.tracker import Surveyor

log = logging.getLogger("isthmus.agent")

LEFT = (
    "this node was taken off the cluster's list, and its range goes to others; its rows stay, cut off. "
    "Restart the agent to join again, or stop it and `isthmus agent clean`"
)

STATUS_GAP_S = 0.1
"""Shortest time between two reports; a burst of changes makes one."""


class Agent:
    """The agent of one node. ``run`` does everything; the rest is for tests and the status."""

    def __init__(
        self,
        config: AgentConfig,
        *,
        uid: str = "",
        telemetry: Telemetry | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        self.config = config
        self._wished_uid = uid
        self._telemetry = telemetry or Telemetry.off("agent", config.node)
        self._outbox = outbox
        self.conditions = Conditions()
        self.keeper = Keeper(config, self.conditions, on_applied=self._changed, telemetry=self._telemetry)
        self.shield = Shield(self.conditions, self._telemetry)
        self.gatekeeper = Gatekeeper(config, self.conditions, self)
        self._surveyor = Surveyor(
            self.conditions, scene=self._scene, known=lambda: self.keeper.mtus, apply=self.keeper.narrow
        )
        self._report_due = asyncio.Event()
        self._started_at = time.time()
        self._stopping = False
        self._handed_on = False
        self._told_underlay = ""
        self._verified_at = 0
        self.view: View
        self.follower: Follower
        self._cache: Cache

    async def run(self) -> None:
        """Until cancelled (SIGTERM). Raises IsthmusError for what must stop a start."""
        prepare_directory(self.config.state_dir)
        with only_one(self.config.state_dir):
            try:
                await self._run()
            finally:
                self._stopping = True
                await self._last_words()

    async def _run(self) -> None:
        config = self.config
        uid = node_uid(config.state_dir, self._wished_uid)
        self._cache = Cache(config.state_dir)
        self.view = self._cache.load(config.cluster, config.node, uid)
        follow_position(lambda: self.view.sequence)
        member = self.view.members.get(config.node)
        if self.view.joined and member is not None:
            self.keeper.ground.assume_underlay(member.underlay)
        underlay = await asyncio.to_thread(self.keeper.ground.find_underlay)
        log.info(
            "agent of %s starts: underlay %s on %s, view at event %d",
            config.node,
            underlay.address,
            underlay.device or "no device",
            self.view.sequence,
        )
        self.follower = Follower(
            config,
            self.view,
            self._cache,
            self.conditions,
            self._telemetry,
            apply=self._apply,
            underlay=self._underlay_address,
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.follower.run(), name="follower")
                tasks.create_task(self._begin(), name="begin")
                tasks.create_task(self.keeper.run(), name="keeper")
                if config.firewall:
                    tasks.create_task(self.shield.run(), name="shield")
                tasks.create_task(self._surveyor.run(), name="surveyor")
                tasks.create_task(self.gatekeeper.run(), name="gateway")
                tasks.create_task(self._report_for_ever(), name="report")
                if self._outbox is not None:
                    tasks.create_task(self._outbox.run(self._ship_spans), name="spans")
        except BaseExceptionGroup as group:
            raise _first(group) from None

    async def _begin(self) -> None:
        """A remembered view may be older than the kernel's rows: let the log bring it up to date first.

        As long as the log is being read there is no hurry, since the rows stay as they are; without
        the bus the remembered view has to do.
        """
        patience_s = self.config.bus_patience_s
        while not self.follower.caught_up.is_set():
            seen = self.follower.contact.last_at
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self.follower.caught_up.wait()
                    break
            if self.follower.contact.last_at == seen:
                log.info("the bus is away: going on with the view at event %d", self.view.sequence)
                break
        self._handed_on = True
        await self.keeper.follow(self.view, ())
        self.keeper.request("start")
        self._surroundings()

    async def _apply(self, view: View, changes: Sequence[Change]) -> None:
        if not self._handed_on:
            self.keeper.because()
            return  # the first comparison covers everything up to here
        await self.keeper.follow(view, changes)
        self._surroundings()

    def _scene(self) -> tuple[View, str, int] | None:
        """For the surveyor: where packets leave from; None while they cannot."""
        ground = self.keeper.ground
        underlay, spec = ground.underlay, ground.spec
        ready = self.keeper.clean and self.view.own is not None
        if not ready or underlay is None or spec is None or not underlay.present:
            return None
        return self.view, underlay.address, spec.mtu

    def _underlay_address(self) -> str:
        underlay = self.keeper.ground.underlay
        return underlay.address if underlay is not None else ""

    def _surroundings(self) -> None:
        """Firewall, CNI and held addresses follow the plan, the members, the log and the MTU."""
        self.gatekeeper.wake()
        view, spec = self.view, self.keeper.ground.spec
        if view.own is None or view.plan is None:
            return
        rules = Rules(
            device=self.config.device, port=view.plan.port, own_range=view.own.cidr, cidrs=view.plan.cidrs
        )
        if self.config.firewall:
            self.shield.want(rules, view.vteps)
        if spec is not None and self.keeper.ifindex:
            self._write_cni(view.own.cidr, spec.mtu)

    def _write_cni(self, cidr: str, mtu: int) -> None:
        content = cni.conflist(
            network="isthmus",
            cidr=cidr,
            mtu=mtu,
            plugin=self.config.cni_plugin,
            data_dir=self.config.cni_data_dir or str(self.config.state_dir / "pod-addresses"),
        )
        started_ns = time.time_ns()
        try:
            if cni.write(self.config.cni_dir, content):
                attributes: dict[str, str | int] = {"isthmus.range": cidr, "isthmus.mtu": mtu}
                self._telemetry.tracer.start_span(
                    "cni write", start_time=started_ns, attributes=attributes
                ).end()
                log.info("CNI configuration written: %s, mtu %d", cidr, mtu)
            self.conditions.clear("cni")
        except OSError as error:
            self.conditions.set("cni", f"{self.config.cni_dir} cannot be written: {error.strerror}")

    # ------------------------------------------------------------------ reports

    def _changed(self) -> None:
        """Something about the kernel side changed: tell, and see to what depends on it."""
        self._report_due.set()
        if self._stopping:
            return
        self.conditions.set("membership", LEFT if self.view.left and not self.view.fenced else "")
        if self.keeper.figures.resyncs != self._verified_at:
            self._verified_at = self.keeper.figures.resyncs
            self.shield.verify()  # announcements can be lost: look at every comparison, too
        if self.keeper.clean:
            self._surroundings()
        underlay, own = self.keeper.ground.underlay, self.view.own
        if underlay is not None and own is not None and underlay.present:
            member = self.view.members.get(self.config.node)
            stale = member is not None and member.underlay != underlay.address
            if stale and self._told_underlay != underlay.address:
                self._told_underlay = underlay.address
                self.follower.moved()

    async def _report_for_ever(self) -> None:
        await self.report()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s()):
                    await self._report_due.wait()
            self._report_due.clear()
            await self.report()
            await asyncio.sleep(STATUS_GAP_S)

    def _interval_s(self) -> float:
        """A gateway is missed within seconds, so it reports every second."""
        return min(self.config.heartbeat_s, BEAT_S) if self.gatekeeper.marked else self.config.heartbeat_s

    def link(self) -> Underlay | None:
        """The underlay, as last seen."""
        return self.keeper.ground.underlay

    def bus(self) -> Client | None:
        """The connection to the bus, if there is one."""
        return self.follower.client if hasattr(self, "follower") else None

    def caught_up(self) -> bool:
        """Whether the view has reached the log's end in this life."""
        return self.follower.caught_up.is_set()

    def state(self) -> str:
        """starting, ready, degraded, stopping or fenced."""
        if self._stopping:
            return "stopping"
        if self.view.fenced or self.view.deleted:
            return "fenced"
        if self.view.left:
            return "degraded"
        if not self.view.joined or not self.keeper.figures.resyncs:
            return "starting"
        return "ready" if self.keeper.clean and not self.conditions.has("contested") else "degraded"

    async def report(self) -> None:
        """Write the status file and, when the bus is there, send the status."""
        local = self.status()
        try:
            write_status(self.config.state_dir, local)
        except OSError as error:
            log.warning("the status file cannot be written: %s", error.strerror)
        client = self.follower.client
        if client is None or not client.is_connected:
            return
        # Sequences of a log that is gone say nothing about this one: nobody's range may be freed on them.
        replaced = self.follower.contact.replaced
        status = AgentStatus(
            node=self.config.node,
            uid=self.view.uid,
            applied=0 if replaced else self.keeper.applied,
            sent_at=datetime.now(UTC),
            state=self.state(),  # type: ignore[arg-type]
            kernel_digest="" if replaced else self.keeper.digest(),
            peers=len(self.view.peers),
            conditions=self.conditions.sentences(),
            drift=self.keeper.drift,
            agent_version=our_version(),
            interval_s=self._interval_s(),
            gateway=not self.gatekeeper.fitness.hindrance(),
            gateway_hindrance=self.gatekeeper.fitness.hindrance(),
        )
        try:
            await client.publish(
                subjects.status(self.config.cluster, self.config.node), msgspec.json.encode(status)
            )
        except (NatsError, OSError) as error:
            log.debug("status not sent: %s", error)

    async def _ship_spans(self, spans: Sequence[SpanRecord]) -> None:
        """To the controllers' built-in store; without the bus they are lost."""
        client = self.follower.client
        if client is not None and client.is_connected:
            await client.publish(subjects.spans(self.config.cluster, self.config.node), encode_spans(spans))

    def population(self) -> int:
        """How many agents see the same events: decides which of them report a trace."""
        return len(self.view.peers) + 1 if hasattr(self, "view") else 1

    def status(self) -> LocalStatus:
        """Everything about this agent, as it is now."""
        view, keeper = self.view, self.keeper
        own, plan, underlay, spec = view.own, view.plan, keeper.ground.underlay, keeper.ground.spec
        contact = self.follower.contact
        return LocalStatus(
            node=self.config.node,
            uid=view.uid,
            cluster=self.config.cluster,
            pid=os.getpid(),
            started_at=self._started_at,
            written_at=time.time(),
            state=self.state(),
            range=own.cidr if own else "",
            epoch=own.epoch if own else 0,
            vtep_mac=own.vtep_mac if own else "",
            vni=plan.vni if plan else 0,
            port=plan.port if plan else 0,
            device=self.config.device,
            underlay=underlay.address if underlay else "",
            announced=self.config.announced,
            mtu=spec.mtu if spec else 0,
            peers=len(view.peers),
            sequence=view.sequence,
            applied=keeper.applied,
            chain=view.head.hex,
            behind=contact.pending + max(0, view.sequence - keeper.applied),
            last_event_at=view.last_event_at,
            bus_connected=contact.connected,
            bus_contact_at=contact.last_at,
            expected_digest=view.expected_digest(),
            kernel_digest=keeper.digest(),
            counters={
                **msgspec.to_builtins(keeper.figures),
                "firewall_repairs": self.shield.repairs,
            },
            conditions=self.conditions.sentences(),
            gateway=self.gatekeeper.says(),
            held=self.gatekeeper.held(),
        )

    async def _last_words(self) -> None:
        if not hasattr(self, "follower"):
            return
        with contextlib.suppress(OSError):
            write_status(self.config.state_dir, self.status())
        try:
            self._cache.snapshot(self.view)
        except OSError as error:
            log.warning("the cache cannot be written: %s", error.strerror)
        log.info("agent of %s stopped; its rows stay", self.config.node)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that matters of a task group: ours before a library's."""
    leaves: list[BaseException] = []
    for error in group.exceptions:
        leaves.extend([_first(error)] if isinstance(error, BaseExceptionGroup) else [error])
    return next((error for error in leaves if isinstance(error, IsthmusError)), leaves[0])
