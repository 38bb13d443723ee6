"""Says how this node is: to the controllers over the bus, and to people by a file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
from nats.errors import Error as NatsError

from events import subjects
from events.bus.retry import happened
from events.codes.extras import our_version
from events.status import RANGES_MAX, AgentStatus, NatReport
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.fastpath.reconciler import FastPath
from nodeagent.firewall.reconciler import FirewallReconciler
from nodeagent.gateway.arp_announcer import BEAT_S
from nodeagent.gateway.reconciler import GatewayReconciler
from nodeagent.health.host_watch import HostWatch
from nodeagent.health.path_prober import PathProber
from nodeagent.local_files import LocalStatus, LocalWay, boot_id, running_s, write_status
from nodeagent.membership.session import BusSession
from nodeagent.membership.view import View
from nodeagent.mesh.prober import MeshProber
from nodeagent.pods.watch import PodWatch
from nodeagent.ways.table import LISTED_MAX, WayTable
from nodeagent.wireguard.keeper import Keeper

log = logging.getLogger("isthmus.agent")

CUT_OFF_LIMIT = 1000  # characters

STATUS_GAP_S = 0.1
"""Shortest time between two reports; a burst of changes makes one."""


def pod_fields(watch: PodWatch) -> dict[str, Any]:
    """What a report says of pods. More ranges than fit are not told in part: then nothing is known."""
    pods, ranges = watch.pods, watch.stray_ranges()
    if pods is None or len(ranges) > RANGES_MAX:
        return {}
    return {
        "pods": pods.own,
        "pods_sequence": pods.sequence,
        "stray_ranges": ranges,
        "stray_pods": pods.strays[:RANGES_MAX],
    }


class StatusReporter:
    """:meth:`run` reports at every heartbeat and soon after :meth:`due`."""

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        conditions: Conditions,
        session: BusSession,
        *,
        reconciler: Reconciler,
        gateway: GatewayReconciler,
        pods: PodWatch,
        firewall: FirewallReconciler,
        path: PathProber,
        host_watch: HostWatch,
        fastpath: FastPath,
        path_mtu: Callable[[], int],
        mesh: MeshProber,
        ways: WayTable,
        nat: Callable[[], NatReport],
        encryption: Keeper,
    ) -> None:
        self._config, self._view, self._conditions, self._session = config, view, conditions, session
        self._reconciler, self._gateway, self._pods = reconciler, gateway, pods
        self._firewall = firewall
        self._path, self._host_watch = path, host_watch
        self._fastpath, self._path_mtu = fastpath, path_mtu
        self._mesh, self._ways, self._nat, self._encryption = mesh, ways, nat, encryption
        self._due = asyncio.Event()
        self._started_at = time.time()
        self._stopping = False
        self._boot = boot_id()

    @property
    def span_subject(self) -> str:
        """Where this node's spans go."""
        return subjects.spans(self._config.cluster, self._config.node)

    @property
    def applied(self) -> int:
        """The last event that rows and firewall follow: a new member's packets pass, a leaver's do not."""
        return self._encryption.confirmed(self._firewall.confirmed(self._reconciler.applied))

    def due(self) -> None:
        """Something changed: report soon."""
        self._due.set()

    async def run(self) -> None:
        """Until cancelled."""
        await self.report()
        while True:
            if await happened(self._due, within_s=self._interval_s()):
                # The firewall follows in a moment: then this report says that the event is applied.
                await happened(self._firewall.settled, within_s=STATUS_GAP_S)
            self._due.clear()
            await self.report()
            await asyncio.sleep(STATUS_GAP_S)

    def stop(self) -> None:
        """Write the last status file: the agent is stopping."""
        self._stopping = True
        with contextlib.suppress(OSError):
            write_status(self._config.state_dir, self.status())

    def _interval_s(self) -> float:
        """A gateway is missed within seconds, so it reports every second."""
        return min(self._config.heartbeat_s, BEAT_S) if self._gateway.marked else self._config.heartbeat_s

    def not_ready_reason(self) -> str:
        """Why this node's pods should not be relied on, for ``/healthz``; empty while the agent is ready."""
        state = self.state()
        if state == "ready":
            return ""
        return "; ".join((f"the agent is {state}", *self._conditions.sentences()))

    def cut_off(self) -> str:
        """Why packets of this node's pods do not pass, for the container runtime; empty while they do."""
        if not (self._path.failing or self._host_watch.failing):
            return ""
        return "; ".join(("packets of pods do not pass", *self._conditions.sentences()))[:CUT_OFF_LIMIT]

    def state(self) -> str:
        """starting, ready, degraded, stopping or fenced."""
        view, reconciler = self._view, self._reconciler
        if self._stopping:
            return "stopping"
        if view.fenced or view.deleted:
            return "fenced"
        if view.left or self._session.held:
            return "degraded"
        if not view.joined or not reconciler.counters.resyncs or not self._firewall.begun:
            return "starting"
        cut_off = self._path.failing or self._host_watch.failing or not self._firewall.in_step
        healthy = reconciler.clean and not self._conditions.has("contested") and not cut_off
        return "ready" if healthy else "degraded"

    async def report(self) -> None:
        """Write the status file and, when the bus is there, send the status.

        Cancelled, the file is written and the report may be on its way.
        """
        folder = self._config.state_dir
        try:
            write_status(folder, self.status())
            self._conditions.clear("folder")
        except OSError as error:
            self._conditions.set(
                "folder",
                f"{folder} cannot be written ({error.strerror}): `isthmus agent status` shows what was written "
                "last, and a restart knows less. Packets go on as before; make room there",
            )
        client = self._session.client
        if client is None or not client.is_connected:
            return
        subject = subjects.status(self._config.cluster, self._config.node)
        try:
            await client.publish(subject, msgspec.json.encode(self._message()))
        except (NatsError, OSError) as error:
            log.debug("status not sent: %s", error)

    def _message(self) -> AgentStatus:
        # Sequences of a log that is gone say nothing about this one: nobody's range may be freed on them.
        replaced = self._session.replaced
        not_ready = self._gateway.readiness.not_ready_reason()
        spec, applied = self._reconciler.tunnel.spec, self.applied
        return AgentStatus(
            node=self._config.node,
            uid=self._view.uid,
            applied=0 if replaced else applied,
            sent_at=datetime.now(UTC),
            state=self.state(),  # type: ignore[arg-type]
            kernel_digest="" if replaced else self._digest(applied),
            peers=len(self._view.peers),
            conditions=self._conditions.sentences(),
            drift=self._reconciler.drift,
            agent_version=our_version(),
            interval_s=self._interval_s(),
            gateway=not not_ready,
            **pod_fields(self._pods),
            instance=self._session.instance,
            underlay=self._reconciler.tunnel.underlay_address(),
            boot=self._boot,
            gateway_hindrance=not_ready,
            path=self._path.standing,
            passed_age_s=round(self._path.confirmed_age_s(), 1),
            epoch=self._view.own.epoch if self._view.own else 0,
            mtu=spec.mtu if spec else 0,
            path_mtu=self._path_mtu(),
            fast_path="on" if self._fastpath.on else "off",
            mesh=self._mesh.report(),
            ways=self._ways.report(time.monotonic(), len(self._view.peers)),
            nat=self._nat(),
            encryption_waits=self._encryption.waits,
        )

    def _behind_nat(self) -> str:
        found = self._nat()
        return f"seen as {found.seen_as} by {', '.join(found.seen_by)}" if found.behind else ""

    def _digest(self, applied: int) -> str:
        """The rows' digest, if they are those of what is called applied."""
        return self._reconciler.digest() if applied == self._reconciler.applied else ""

    def status(self) -> LocalStatus:
        """Everything about this agent, as it is now."""
        view, reconciler, session = self._view, self._reconciler, self._session
        now = time.time()
        own, plan, underlay, spec = view.own, view.plan, reconciler.tunnel.underlay, reconciler.tunnel.spec
        return LocalStatus(
            node=self._config.node,
            uid=view.uid,
            cluster=self._config.cluster,
            pid=os.getpid(),
            started_at=self._started_at,
            written_at=now,
            written_running_s=running_s(),
            boot=self._boot,
            state=self.state(),
            range=own.cidr if own else "",
            epoch=own.epoch if own else 0,
            vtep_mac=own.vtep_mac if own else "",
            vni=plan.vni if plan else 0,
            port=plan.port if plan else 0,
            device=self._config.device,
            underlay=underlay.address if underlay else "",
            announced=self._config.announced,
            mtu=spec.mtu if spec else 0,
            peers=len(view.peers),
            sequence=view.sequence,
            applied=self.applied,
            chain=view.head.hex,
            behind=session.pending + max(0, view.sequence - self.applied),
            last_event_at=view.last_event_at,
            bus_connected=session.connected,
            bus_contact_at=now - (time.monotonic() - session.last_at) if session.last_at else 0.0,
            expected_digest=view.expected_digest(),
            kernel_digest=reconciler.digest(),
            counters={
                **msgspec.to_builtins(reconciler.counters),
                "firewall_repairs": self._firewall.repairs,
                "host_repairs": self._host_watch.repairs,
                **{f"fastpath_{name}": float(count) for name, count in self._fastpath.counters().items()},
                "fastpath_repaired": self._fastpath.counted.repaired,
                "fastpath_generations": self._fastpath.counted.generations,
            },
            fastpath=self._fastpath.line(),
            conditions=self._conditions.sentences(),
            gateway=self._gateway.status_line(),
            held=self._gateway.held(),
            path=self._path.standing,
            path_confirmed_at=self._path.confirmed_wall(),
            cni_dir=str(self._config.cni_dir),
            interval_s=self._interval_s(),
            pod_directory=str(self._config.pod_directory),
            pods=self._pods.pods.own if self._pods.pods is not None else -1,
            stray_pods=self._pods.strays,
            # A copy of a member that reports has no way to anybody, whatever the member's is.
            ways="" if self._session.held else self._ways.report(time.monotonic(), len(view.peers)).sentence(),
            nat=self._behind_nat(),
            encryption="" if self._session.held else self._encryption.line(),
            peer_ways=tuple(
                LocalWay(peer.node, way.kind, way.via, way.encrypted, time.time() - age_s, why)
                for peer, way, age_s, why in self._ways.newest(time.monotonic(), LISTED_MAX)
                if not self._session.held
            ),
        )
