"""A bridge to Kubernetes as a process of its own, beside the controllers: ``isthmus kubernetes``.

It folds the log and takes the agents' reports as a controller does, decides nothing, and sends what is to be
decided as commands on subjects of its own. Of several such processes the one that holds the Lease works; the
others are warm. It writes only while its fold has reached what a majority of the bus called the log's end a
moment ago: one that is cut off from the bus must not tell Kubernetes what was.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from controlplane.changes import Changes
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.liveness import Liveness, watch_members
from controlplane.controller.agents.report_intake import ReportIntake
from controlplane.controller.clocks import ClockCheck
from controlplane.controller.leadership.term import Term, running_s
from controlplane.controller.replication.read_barrier import ReadBarrier
from controlplane.controller.replication.replica import Replica
from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.lease import KubernetesLease
from controlplane.kubernetes.members import ControllerBackends, ControllerMembers, Following
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.retry import jittered_s
from events.errors import IsthmusError
from events.ids import new_id
from events.jetstream.log import JetStreamLog
from events.protocol.commands import Command, CommandReply
from events.subjects import BRIDGE

log = logging.getLogger("isthmus.kubernetes")

AGAIN_S = 5.0
FRESH_S, LOOK_S = 5.0, 1.0
"""For how long the fold counts as current after it was, and how often that is looked at."""


class BridgeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``name`` is for people; ``namespace`` has the Lease; ``following`` are arguments of
    :class:`controlplane.kubernetes.members.Following`."""

    cluster: str
    name: str
    bus: BusOptions = BusOptions()
    kubeconfig: Path | None = None
    namespace: str = "isthmus-system"
    following: dict[str, Any] = {}


class BesideBridge:
    """One process's bridge. Made by :func:`beside`."""

    def __init__(self, options: BridgeOptions, nats: Client, api: KubernetesClient) -> None:
        self._options = options
        self._nats = nats
        self._api = api
        self._commands = ControllerClient(nats, options.cluster, actor=f"{BRIDGE}/{options.name}")
        self._commands.bridge = True
        self.lease = KubernetesLease(api, options.namespace, f"{options.name}_{new_id()}")
        self._fresh = Term(0.0)
        self.replica: Replica | None = None
        self.following: Following | None = None

    @property
    def working(self) -> bool:
        """Whether it may write: it holds the Lease, and knows the log's last word."""
        return self.lease.held and self._current

    @property
    def _current(self) -> bool:
        return self._fresh.valid and self.replica is not None and self.replica.halted is None

    @property
    def unwell(self) -> str:
        """Why it could not work, in words; empty while it could, also while another one does."""
        if not self._nats.is_connected:
            return "the bus is away"
        if not self._current:
            return "the log has not been read to its end"
        return self.lease.problem or (self.following.bridge.problem if self.following is not None else "")

    async def run(self) -> None:
        """Fold, hold the Lease, follow, for ever; what fails is begun anew.

        Cancelled, the Lease is given up.
        """
        holding = asyncio.create_task(self.lease.run(), name="lease")
        try:
            while True:
                try:
                    await self._once()
                except Exception as error:  # a defect, told in the log: the next attempt reads all anew
                    told = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                    if isinstance(told, IsthmusError):
                        log.warning("the bridge is begun anew: %s [%s]", told.message, told.code)
                    else:
                        log.exception("the bridge is begun anew", exc_info=told)
                await asyncio.sleep(jittered_s(AGAIN_S))
        finally:
            self._fresh.end()
            holding.cancel()
            await asyncio.wait({holding})

    async def _once(self) -> None:
        event_log = await JetStreamLog.open(self._nats, self._options.cluster)
        changes = Changes()
        self.replica = replica = Replica(event_log, changes=changes)

        def state() -> ClusterState:
            return replica.state

        liveness = Liveness(clocks=ClockCheck(last_event=lambda: replica.last_time))
        reports = ReportIntake(liveness, state)
        barrier = ReadBarrier(event_log, replica)
        members = ControllerMembers(
            state, liveness, changes, lambda: self.working, self._send, current=barrier.passed
        )
        store = ControllerBackends(state, event_log, lambda: self.working, self._send)
        self.following = Following(
            self._api, members, store, instance=self._options.name, **self._options.following
        )
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(replica.follow(), name="log")
                tasks.create_task(barrier.run(), name="read barrier")
                tasks.create_task(watch_members(liveness, changes, state), name="members")
                tasks.create_task(reports.watch(self._nats, self._options.cluster), name="statuses")
                tasks.create_task(reports.follow(changes), name="late reports")
                tasks.create_task(self._look(barrier, liveness), name="freshness")
                tasks.create_task(self.following.run(), name="following")
        finally:
            self._fresh.end()
            changes.close()

    async def _look(self, barrier: ReadBarrier, liveness: Liveness) -> None:
        """Keep it known whether the fold is current. Before everything is folded it is not."""
        while True:
            if not liveness.watch.look():
                liveness.watch_anew()
            asked_s = running_s()
            try:
                await barrier.passed()
            except IsthmusError as error:
                log.info("the log's end is not reached: %s", error.message)
            else:
                if self._fresh.ended or not self._fresh.valid:
                    self._fresh = Term(asked_s + FRESH_S)
                else:
                    self._fresh.extend(asked_s + FRESH_S)
            await asyncio.sleep(LOOK_S)

    async def _send(self, command: Command) -> CommandReply:
        return await self._commands.send(command)


@asynccontextmanager
async def beside(options: BridgeOptions) -> AsyncIterator[BesideBridge]:
    """A bridge beside the controllers; its :meth:`~BesideBridge.run` is the caller's.

    Raises Refused(kubernetes_config), Unavailable(bus_unreachable). A cancellation inside of the block closes
    both connections, too.
    """
    async with AsyncExitStack() as stack:
        api = await KubernetesClient.open(options.kubeconfig)
        stack.push_async_callback(api.close)
        nats = await connect(options.bus, name=f"isthmus-kubernetes/{options.name}")
        stack.push_async_callback(nats.close)
        yield BesideBridge(options, nats, api)
