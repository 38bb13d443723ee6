"""One controller process, put together: the only place where the parts of the control plane meet.

:class:`Controller` runs the replica, the committer, leadership, the read model and the rest as tasks
of one group: any that fails ends the controller with its reason, and stopping ends all of them within
:data:`STOP_S`. An event of the log that cannot be followed ends nothing
(:mod:`controlplane.controller.replication.halted_log`). The HTTP console and the metrics attach to its
``replica``, ``changes``, ``liveness`` and ``projector``; nothing here knows them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import msgspec
from nats.aio.client import Client

from controlplane.changes import Changes
from controlplane.cluster.conditions import poisoned
from controlplane.controller.agents.liveness import Liveness, watch_members
from controlplane.controller.agents.nat_watch import NatWatch
from controlplane.controller.agents.pod_facts import PodFacts
from controlplane.controller.agents.releases import WithReleases
from controlplane.controller.agents.report_intake import ReportIntake
from controlplane.controller.agents.reporting import WithReports
from controlplane.controller.agents.reports import LiveReports, agents_by_state
from controlplane.controller.agents.status_stream import StatusStreamMaintainer
from controlplane.controller.answers import answer
from controlplane.controller.clocks import TOLERANCE_S, ClockCheck
from controlplane.controller.commands.batch import CommitLimits, not_leading
from controlplane.controller.commands.budgets import NodeBudgets
from controlplane.controller.commands.committer import Committer
from controlplane.controller.commands.endpoint import Endpoint
from controlplane.controller.commands.other_clusters import OtherClusters
from controlplane.controller.commands.ticker import TICK_S, Ticker
from controlplane.controller.duties import Duties, ReadModelCommands
from controlplane.controller.hooks import Observer
from controlplane.controller.leadership.leader import Leadership, LeadershipTransfer
from controlplane.controller.leadership.lease import LEASE_TTL_S, BusLease
from controlplane.controller.mesh.answers import MeshAnswers
from controlplane.controller.mesh.collector import Collector
from controlplane.controller.publishing.checkpointer import Checkpointer, ListCheckpoints, SigningSchedule
from controlplane.controller.publishing.snapshots import SnapshotPublisher, SnapshotSchedule
from controlplane.controller.replication.command_dedup import CommandDedup
from controlplane.controller.replication.halted_log import HaltedLog
from controlplane.controller.replication.outcomes import BusOutcomes
from controlplane.controller.replication.parker import Parker
from controlplane.controller.replication.read_barrier import ReadBarrier
from controlplane.controller.replication.replica import Replica
from controlplane.controller.replication.restore import last_sequence_seen, restore
from controlplane.controller.tasks import end, failure
from controlplane.readmodel.projector import Projector
from controlplane.readmodel.store import lock_directory
from events import subjects
from events.bus.connection import BusOptions, connect
from events.codes.extras import our_version
from events.errors import Unavailable, VerificationFailed
from events.jetstream.bus_time import bus_time
from events.jetstream.log import JetStreamLog
from events.jetstream.snapshots import SnapshotBucket
from events.protocol.mesh import ShowMesh
from events.protocol.pods import ListPods, ShowPods
from events.protocol.queries import Condition
from events.telemetry.logs import follow_position

log = logging.getLogger("isthmus.controller")

OnPoison = Literal["stop", "park"]
"""At an event that cannot be followed: halt, or say in the log that it does not count."""

Queries = Mapping[str, Callable[[bytes], Awaitable[bytes]]]
"""Name of a question → request body → response body; raises IsthmusError."""

COMPARE_CLOCKS_S = 10.0

STOP_S = 4.0
"""Longest clean stop: handover, draining and closing together."""


class ControllerOptions(msgspec.Struct, frozen=True, kw_only=True):
    """One controller of one cluster. ``data`` is a directory of this controller alone.

    ``replicas`` is how many servers keep the log (None: as it is, 1 when new). ``verify_log`` folds
    the whole log at start instead of trusting the own read model up to its checkpoint. ``on_poison`` says
    what a leading controller does at an event that it cannot follow. While one leads, no event is written that
    the release ``compatible_with`` cannot follow (empty: all are).
    """

    cluster: str
    data: Path
    bus: BusOptions = BusOptions()
    name: str = ""
    replicas: int | None = None
    verify_log: bool = False
    on_poison: OnPoison = "stop"
    compatible_with: str = ""
    lease_ttl_s: float = LEASE_TTL_S
    tick_s: float = TICK_S
    limits: CommitLimits = CommitLimits()
    snapshots: SnapshotSchedule = SnapshotSchedule()
    checkpoints: SigningSchedule = SigningSchedule()


class Controller:
    """A running controller. Made by :meth:`start`; :meth:`run` until it fails or :meth:`stop` is called."""

    def __init__(
        self,
        options: ControllerOptions,
        client: Client,
        event_log: JetStreamLog,
        replica: Replica,
        *,
        observer: Observer,
        lock: int,
        queries: Callable[[Controller], Queries],
        conditions: Callable[[], Sequence[Condition]],
    ) -> None:
        cluster = options.cluster
        self.options = options
        self.name = options.name or f"{socket.gethostname()}-{os.getpid()}"
        self.client = client
        self.log = event_log
        self.replica = replica
        self.changes: Changes = replica.changes
        self.liveness = Liveness(clocks=ClockCheck(last_event=lambda: replica.last_time))
        self.budgets = NodeBudgets(lambda: replica.state)
        self.reports = ReportIntake(self.liveness, lambda: replica.state, exceeded=self.budgets.exceeded)
        self.liveness.exceeded = self.budgets.exceeded
        self.liveness.warnings = lambda: (
            *self.reports.conditions(),
            *self.budgets.conditions(),
            *self.checkpointer.conditions(),
        )
        self.liveness.pods.state = lambda: replica.state
        self.mesh = Collector(lambda: replica.state)
        self.liveness.listeners.append(self.mesh.take)
        self.nat = NatWatch(lambda: replica.state, lambda: self.liveness.watch.now().timestamp())
        self.liveness.listeners.append(self.nat.take)
        self.observer = observer
        self._lock = lock
        self._conditions = conditions
        self._stopped = asyncio.Event()
        self._stopping = asyncio.Event()
        source = f"isthmus/{cluster}/controller/{self.name}"
        self.projector = Projector(
            options.data / "readmodel",
            event_log,
            self.changes,
            observer=observer,
            on_projected=replica.dedup.projected,
        )
        self.committer = Committer(
            event_log,
            replica,
            source=source,
            observer=observer,
            command_table=ReadModelCommands(self.projector),
            context_source=WithReleases(
                WithReports(OtherClusters(client, cluster), lambda: replica.state, self.liveness),
                client,
                cluster,
                self.liveness,
                compatible_with=options.compatible_with,
            ),
            outcomes=BusOutcomes(client, cluster, self.name, replicas=options.replicas),
            term=None,
            limits=options.limits,
        )
        self._barrier = ReadBarrier(event_log, replica)
        self.pod_facts = PodFacts(
            client,
            cluster,
            state=lambda: replica.state,
            spend=self.budgets.spend_facts,
            replicas=options.replicas,
        )
        self.endpoint = Endpoint(
            client,
            cluster,
            self.committer,
            self._ask,
            instance=self.name,
            budgets=self.budgets,
            pods=self.pod_facts,
        )
        duties = Duties(self.endpoint, self.committer)
        self.leadership = Leadership(
            BusLease(client, cluster, self.name, ttl_s=options.lease_ttl_s, replicas=options.replicas),
            duties,
            name=self.name,
            ready=lambda: replica.live and replica.halted is None,
            halted=lambda: replica.halted is not None,
            on_change=lambda leading: replica.rest(alone=leading),
        )
        self._transfer = LeadershipTransfer(client, cluster, self.leadership, duties, name=self.name)
        self._parker = Parker(event_log, replica, source=source, actor=f"controller/{self.name}")
        self._halted_log = HaltedLog(
            replica,
            observer,
            yield_leadership=self._transfer.yield_leadership,
            park=self._park if options.on_poison == "park" else None,
        )
        self._status_keeper = StatusStreamMaintainer(client, cluster, replicas=options.replicas)
        self._ticker = Ticker(
            self.committer,
            replica,
            self.liveness,
            actor=f"controller/{self.name}",
            active=lambda: self.leadership.in_office and replica.halted is None,
            tick_s=options.tick_s,
            mesh=self.mesh,
            nat=self.nat,
        )

        self.snapshots = SnapshotPublisher(
            SnapshotBucket(client, cluster),
            replica,
            active=lambda: self.leadership.in_office,
            replicas=options.replicas,
            schedule=options.snapshots,
        )
        self.checkpointer = Checkpointer(
            options.data, replica, active=lambda: self.leadership.in_office, schedule=options.checkpoints
        )
        self.mesh_answers = MeshAnswers(self.mesh, replica, self._barrier, publish=client.publish)
        self._queries = {
            ListCheckpoints.name: self.checkpointer.answer,
            ShowMesh.name: self.mesh_answers.answer,
            ShowPods.name: self.pod_facts.answer,
            ListPods.name: self.pod_facts.page,
            **queries(self),
        }

    @classmethod
    async def start(
        cls,
        options: ControllerOptions,
        *,
        observer: Observer | None = None,
        queries: Callable[[Controller], Queries] = lambda _controller: {},
        conditions: Callable[[], Sequence[Condition]] = lambda: (),
    ) -> Self:
        """Lock the data directory, connect, open the log (making it if need be), restore the state.

        ``queries`` is called once with the controller and says which further questions it answers;
        ``conditions`` are what is to be said of this controller itself, besides the cluster.

        Raises Refused (``data_in_use``, ``log_settings_differ``), Unavailable (``bus_unreachable``,
        ``log_unavailable``), BadRequest for a bad name. Cancelled, the data directory is unlocked and the
        connection closed.
        """
        subjects.check_label(options.cluster, "cluster")
        observer = observer or Observer()
        lock = lock_directory(options.data / "readmodel")
        replicas: list[Replica] = []  # the one of this controller, once it is there
        follow_position(lambda: replicas[0].state.sequence if replicas else 0)
        client: Client | None = None
        reconnected: list[Callable[[], None]] = []

        async def on_reconnect() -> None:
            for callback in reconnected:
                callback()

        try:
            client = await connect(
                options.bus, name=f"isthmus-controller/{options.name}", on_reconnect=on_reconnect
            )
            event_log = await JetStreamLog.open(
                client,
                options.cluster,
                create=True,
                replicas=options.replicas,
                remembered=await last_sequence_seen(options.data / "readmodel", options.cluster),
            )
            changes, dedup = Changes(), CommandDedup()
            replica = await restore(
                event_log,
                options.data / "readmodel",
                changes=changes,
                dedup=dedup,
                trust=not options.verify_log,
            )
            replicas.append(replica)
            self = cls(
                options,
                client,
                event_log,
                replica,
                observer=observer,
                lock=lock,
                queries=queries,
                conditions=conditions,
            )
            reconnected += [self.liveness.restart, self._status_keeper.look]
        except BaseException:
            if client is not None:
                await client.close()
            os.close(lock)
            raise
        return self

    async def run(self) -> None:
        """Run until stopped. Raises the IsthmusError that ended it otherwise.

        Cancelled, it ends its tasks and closes everything all the same, without a handover.
        """
        tasks = [asyncio.create_task(part, name=name) for name, part in self._parts().items()]
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            await self._transfer.open()
            await asyncio.wait({*tasks, stop}, return_when=asyncio.FIRST_COMPLETED)
            if self._stopping.is_set():
                with suppress(TimeoutError):
                    async with asyncio.timeout(STOP_S):
                        await self._transfer.leave()
        finally:
            await end([*tasks, stop])
            self.changes.close()
            await self.projector.close()
            with suppress(Exception):
                await self.client.close()
            os.close(self._lock)
            self._stopped.set()
        reason = failure(tasks)
        if reason is not None:
            raise reason

    def _parts(self) -> dict[str, Coroutine[Any, Any, object]]:
        return {
            "replica": self._halted_log.run(),
            "committer": self.committer.run(),
            "answers": self.endpoint.run(),
            "read barrier": self._barrier.run(),
            "projector": self.projector.run(),
            "leadership": self.leadership.run(),
            "ticker": self._ticker.run(),
            "members": watch_members(self.liveness, self.changes, lambda: self.replica.state),
            "statuses": self.reports.watch(self.client, self.options.cluster),
            "clocks": self._compare_clocks(),
            "recent events": self.mesh_answers.recent.follow(self.changes),
            "late reports": self.reports.follow(self.changes),
            "status stream": self._status_keeper.run(),
            "pod facts": self.pod_facts.run(),
            "snapshots": self.snapshots.run(),
            "checkpoints": self.checkpointer.run(),
        }

    async def ready(self, *, timeout_s: float = 30.0, leading: bool = False) -> None:
        """Wait until the fold has met the end of the log (and until this controller leads).

        A controller whose fold has halted is ready at once: it answers questions, and says why no more. Raises
        Unavailable(no_controller) when it ends instead. Cancelled, only the waiting ends.
        """
        try:
            await self.replica.caught_up(timeout_s=timeout_s)
        except VerificationFailed:
            return
        if leading:
            try:
                async with asyncio.timeout(timeout_s):
                    while not self.leadership.serving:
                        await self.leadership.changed.wait()
            except TimeoutError:
                raise Unavailable(
                    "no_controller", f"another controller leads cluster {self.options.cluster!r}"
                ) from None

    async def stop(self) -> None:
        """Hand over, end every task, close everything. Returns when :meth:`run` has.

        Cancelled, it stops all the same.
        """
        self._stopping.set()
        await self._stopped.wait()

    def stopping(self) -> None:
        """Ask for the stop without waiting (for signal handlers)."""
        self._stopping.set()

    async def _park(self, poison: VerificationFailed) -> bool:
        """Park what the fold has halted at, if this controller leads."""
        event = await self._parker.park(poison) if self.leadership.in_office else None
        if event is not None:
            self.observer.alarmed("parked", poison)
        return event is not None

    async def _ask(self, name: str, body: bytes) -> bytes:
        further = self._queries.get(name)
        if further is not None:
            return await further(body)
        if self.replica.halted is None:
            with suppress(VerificationFailed):  # it has just halted: the answer says so
                await self._barrier.passed()
        halted = self.replica.halted
        if halted is not None and not self.leadership.in_office:
            raise not_leading()  # another one may have followed, and acknowledged more
        own = [poisoned(halted)] if halted is not None else []
        own += [*self.liveness.conditions(), *self._conditions()]
        return answer(self.replica.state, name, body, self.liveness, further=own, about=self._about)

    def _about(self) -> dict[str, Any]:
        reports = LiveReports(self.liveness, datetime.now(UTC))
        agents = agents_by_state(self.replica.state, reports)
        return {
            "agents": agents,
            "controller": self.name,
            "version": our_version(),
            "compatible_with": self.options.compatible_with,
        }

    async def _compare_clocks(self) -> None:
        """For ever: see how far the clock of the log's server is from this one."""
        clocks, stream, said = self.liveness.clocks, subjects.stream(self.options.cluster), ""
        while True:
            with suppress(Unavailable):
                found = await bus_time(self.client, stream)
                if found.within_s < TOLERANCE_S / 2:
                    clocks.bus(datetime.fromtimestamp(found.unix_ns / 1e9, UTC), found.at_s)
            now = "; ".join(condition.message for condition in clocks.conditions())
            if bool(now) != bool(said):
                log.warning("%s", now or "the clocks agree again")
            said = now
            await asyncio.sleep(COMPARE_CLOCKS_S)
