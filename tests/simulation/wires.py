"""The log and the lease as one process reaches them: over wires that lose, delay and cut."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

from controlplane.controller.replication.outcomes import Outcome
from events.chain import Head
from events.codec import OutgoingMessage
from events.errors import IsthmusError, OutcomeUnknown, Unavailable
from events.log import ReadBatch
from events.memory import MemoryLog
from tests.simulation.faults import Weather
from tests.simulation.in_memory import MemoryLease, MemoryOutcomes

LATENCY_S = 0.002


class WiredLog:
    """An EventLog that behaves as the production one may: acknowledgements get lost, messages come late."""

    def __init__(
        self,
        log: MemoryLog,
        weather: Weather,
        owner: str,
        later: Callable[[float, OutgoingAppend], None],
    ) -> None:
        self._log = log
        self._weather = weather
        self._owner = owner
        self._later = later

    @property
    def cluster(self) -> str:
        return self._log.cluster

    async def head(self) -> Head:
        self._check()
        await asyncio.sleep(LATENCY_S)
        self._check()
        return await self._log.head()

    async def vouched_end(self, *, timeout_s: float = 3.0) -> int:
        self._check()
        await asyncio.sleep(LATENCY_S)
        sequence = await self._log.vouched_end()
        self._check()
        return sequence

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        weather, owner = self._weather, self._owner
        self._check()
        if weather.strikes("lose appends", owner):
            await asyncio.sleep(timeout_s)
            raise _unknown()
        if weather.strikes("late appends", owner):
            late_s = timeout_s * weather.dice("late appends", owner).uniform(0.2, 12.0)
            self._later(late_s, (tuple(messages), expected))
            await asyncio.sleep(timeout_s)
            raise _unknown()
        await asyncio.sleep(LATENCY_S)
        sequence = await self._log.append(messages, expected=expected)
        if weather.strikes("lose acks", owner) or weather.until("cut", owner):
            await asyncio.sleep(timeout_s)
            raise _unknown()
        return sequence

    async def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        weather, owner = self._weather, self._owner
        if not follow:
            self._check()
        async for batch in self._log.read(after=after, until=until, follow=follow):
            while (cut_s := weather.until("cut", owner)) > 0:
                if not follow:
                    raise Unavailable("log_unavailable", "cut off")
                await asyncio.sleep(cut_s)
            if weather.strikes("delay log", owner):
                await asyncio.sleep(weather.dice("delay log", owner).uniform(0.05, 2.0))
            yield batch

    def _check(self) -> None:
        if self._weather.until("cut", self._owner):
            raise Unavailable("log_unavailable", "cut off")


class WiredOutcomes(MemoryOutcomes):
    """The outcomes over the same wires."""

    def __init__(self, store: MemoryOutcomes.Store, owner: str, weather: Weather) -> None:
        super().__init__(store)
        self._owner = owner
        self._weather = weather

    async def begin(self) -> Sequence[Outcome]:
        await self._wire()
        return await super().begin()

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        await self._wire()
        await super().record(outcomes)
        if self._weather.strikes("lose acks", self._owner):
            raise Unavailable("log_unavailable", "no acknowledgement")

    async def _wire(self) -> None:
        await asyncio.sleep(LATENCY_S)
        if self._weather.until("cut", self._owner):
            raise Unavailable("log_unavailable", "cut off")


OutgoingAppend = tuple[tuple[OutgoingMessage, ...], int]


class WiredLease(MemoryLease):
    """The lease over the same wires."""

    def __init__(self, place: MemoryLease.Slot, holder: str, weather: Weather) -> None:
        super().__init__(place, holder)
        self._weather = weather
        self._owner = holder

    async def acquire(self) -> bool:
        await self._wire()
        return await super().acquire()

    async def renew(self) -> bool:
        await self._wire()
        return await super().renew()

    async def release(self) -> None:
        await self._wire()
        await super().release()

    async def _wire(self) -> None:
        await asyncio.sleep(LATENCY_S)
        if self._weather.until("cut", self._owner):
            raise Unavailable("log_unavailable", "cut off")


def _unknown() -> IsthmusError:
    return OutcomeUnknown("outcome_unknown", "no acknowledgement")
