"""Controllers of the simulated cluster: the real parts, put together as the real composition root does."""

from __future__ import annotations

import asyncio
import contextvars
import random
from datetime import UTC, datetime, timedelta
from typing import Any

from controlplane.controller.agents.liveness import Liveness, watch_members
from controlplane.controller.agents.report_intake import ReportIntake
from controlplane.controller.answers import ask
from controlplane.controller.clocks import ClockCheck, Watch
from controlplane.controller.commands.batch import CommitLimits, not_leading
from controlplane.controller.commands.committer import Committer
from controlplane.controller.commands.planner import Answer as GiveAnswer
from controlplane.controller.commands.ticker import Ticker
from controlplane.controller.leadership.leader import Leadership
from controlplane.controller.leadership.term import Term
from controlplane.controller.replication.read_barrier import ReadBarrier
from controlplane.controller.replication.replica import Replica
from controlplane.controller.requests import parse
from controlplane.controller.tasks import end
from events.errors import IsthmusError, Unavailable, VerificationFailed
from events.protocol.queries import Answer, Query
from events.status import AgentStatus
from tests.simulation import virtual
from tests.simulation.faults import Weather
from tests.simulation.in_memory import MemoryLease, MemoryOutcomes
from tests.simulation.truth import WatchedLog
from tests.simulation.wires import OutgoingAppend, WiredLease, WiredLog, WiredOutcomes

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = CommitLimits(queue=64, group_messages=40, append_timeout_s=0.5, commit_deadline_s=3.0, catch_up_s=2.0)


def now() -> datetime:
    """The virtual wall clock."""
    return EPOCH + timedelta(seconds=asyncio.get_running_loop().time())


class SimController:
    """One controller process; ``start`` and ``kill`` as often as the schedule wants."""

    def __init__(
        self,
        name: str,
        log: WatchedLog,
        place: MemoryLease.Slot,
        store: MemoryOutcomes.Store,
        weather: Weather,
        seed: int,
    ) -> None:
        self.name = name
        self._store = store
        self._disk = log
        self._place = place
        self._weather = weather
        self._seed = seed
        self._starts = 0
        self._late: set[asyncio.Task[None]] = set()
        self._tasks: list[asyncio.Task[Any]] = []
        self._all: list[asyncio.Task[Any]] = []
        self.serving = False
        self._opening = 0
        self._term: Term | None = None
        self.liveness = Liveness(watch=self._watch())
        self.replica: Replica | None = None

    def now(self) -> datetime:
        """This machine's wall clock, which may be wrong."""
        return now() + timedelta(seconds=self._weather.clock_off_s(self.name))

    def _watch(self) -> Watch:
        return Watch(monotonic=asyncio.get_running_loop().time, wall=self.now)

    def start(self) -> None:
        """A process that knows nothing but the log."""
        self._starts += 1
        loop = asyncio.get_running_loop()
        self._disk.started_s[self.name] = loop.time()
        self.context = contextvars.copy_context()
        self.context.run(virtual.PROCESS.set, f"{self.name}/{self._starts}")
        wire = WiredLog(self._disk, self._weather, self.name, self._later)
        dice = random.Random(f"{self._seed}/{self.name}/{self._starts}")
        replica = self.replica = Replica(wire)
        clocks = ClockCheck(wall=self.now, monotonic=loop.time, last_event=lambda: replica.last_time)
        clocks.bus(now(), loop.time())
        self.liveness = Liveness(watch=self._watch(), clocks=clocks)
        committer = self.committer = Committer(
            wire,
            replica,
            source=f"sim/{self.name}",
            now=self.now,
            monotonic=loop.time,
            limits=LIMITS,
            jitter=dice,
            outcomes=WiredOutcomes(self._store, self.name, self._weather),
            term=None,
        )
        self.barrier = ReadBarrier(wire, replica)
        leadership = self.leadership = Leadership(
            WiredLease(self._place, self.name, self._weather),
            self,
            name=self.name,
            ready=lambda: replica.live,
            on_change=lambda leading: replica.rest(alone=leading),
            jitter=dice,
            clock=asyncio.get_running_loop().time,
        )
        numbers = iter(range(10**9))
        ticker = Ticker(
            committer,
            replica,
            self.liveness,
            actor=f"controller/{self.name}",
            active=lambda: leadership.in_office,
            new_id=lambda: f"{self.name}-{self._starts}-{next(numbers)}",
        )
        parts = (replica.follow(), committer.run(), leadership.run(), ticker.run())
        self.door = ReportIntake(
            self.liveness, lambda: replica.state, clock=lambda: asyncio.get_running_loop().time()
        )
        parts = (*parts, watch_members(self.liveness, replica.changes), self.barrier.run())
        parts = (*parts, self.door.follow(replica.changes))
        self._tasks = [asyncio.create_task(part, context=self.context) for part in parts]
        self._all += self._tasks

    async def kill(self) -> None:
        """SIGKILL: nothing is said to anybody. It ends a process that stands still, too."""
        self.serving = False
        self._loop().resume(f"{self.name}/{self._starts}")
        place, self._place.holder = self._place.holder, self._place.holder
        until_s = self._place.until_s
        await end(self._tasks)
        # Cancelling lets the tasks tidy up, which a killed process does not: the lease stays held.
        self._place.holder, self._place.until_s = place, until_s
        self.replica = None

    async def live_and_die(self, end_s: float) -> None:
        """Run by the schedule until ``end_s``."""
        loop = asyncio.get_running_loop()
        self.start()
        for fault in self._weather.crashes(self.name):
            await asyncio.sleep(max(0.0, fault.at_s - loop.time()))
            await self.kill()
            await asyncio.sleep(fault.for_s)
            self.start()
        await asyncio.sleep(max(0.0, end_s - loop.time()))

    async def stand_still(self) -> None:
        """SIGSTOP and SIGCONT, when the schedule says so."""
        loop = self._loop()
        for fault in self._weather.pauses(self.name):
            await asyncio.sleep(max(0.0, fault.at_s - loop.time()))
            process = f"{self.name}/{self._starts}"
            loop.pause(process)
            await asyncio.sleep(fault.for_s)
            loop.resume(process)

    @staticmethod
    def _loop() -> virtual.VirtualLoop:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, virtual.VirtualLoop)
        return loop

    def ended(self) -> str:
        """Which part has ended by itself, in any of its lives, and why; empty when none has."""
        wrong = ""
        for task in self._all:
            if task.done() and not task.cancelled() and task.exception() is not None:
                wrong = wrong or f"controller {self.name} ended: {task.exception()!r}"
        return wrong

    # --- leading means serving (controlplane.controller.leadership.leader.LeaderDuties) ----------------------

    async def prepare(self) -> None:
        if not self.serving:
            self._opening += 1
            self.serving = True

    async def begin(self, term: Term) -> None:
        await self.committer.begin(term)
        self._term = term

    async def end(self) -> None:
        self.serving = False
        term, self._term = self._term, None
        if term is not None and term.valid:
            await self.committer.drained(timeout_s=2.0)
        self._opening += 1
        self.committer.end_term()

    async def ask(self, query: Query) -> Answer:
        """A question about the present, as the endpoint answers it. Raises IsthmusError."""
        await self.barrier.passed()
        if self.replica is None:
            raise Unavailable("no_controller", "it was killed")
        return ask(self.replica.state, query, self.liveness)

    # --- the wires to it --------------------------------------------------------------------------------

    def socket(self) -> int:
        """The subscription to which the bus routes what is sent now."""
        return self._opening

    def request(
        self, socket: int, subject: str, headers: dict[str, str], body: bytes, answer: GiveAnswer
    ) -> None:
        """A request as it arrives, by the subscription to which it was routed."""
        try:
            if socket != self._opening:
                raise not_leading()
            received_s = asyncio.get_running_loop().time()
            self.committer.offer(
                parse(self._disk.cluster, subject, headers, body, received_s=received_s), answer
            )
        except IsthmusError as error:
            answer(error)

    def report(self, status: AgentStatus) -> None:
        """An agent's report as it arrives."""
        if self.replica is not None and self.door.take(status):
            heard = self._disk.heard_s.setdefault((self.name, status.uid), [])
            heard.append(asyncio.get_running_loop().time())

    def _later(self, seconds: float, append: OutgoingAppend) -> None:
        """The wire holds an append back: it reaches the disk whatever has become of its sender."""

        async def arrive() -> None:
            await asyncio.sleep(seconds)
            messages, expected = append
            try:
                await self._disk.append(messages, expected=expected)
            except VerificationFailed:
                raise
            except IsthmusError:
                return  # its condition does not hold any more

        task = asyncio.get_running_loop().create_task(arrive())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
