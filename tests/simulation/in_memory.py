"""The lease and the outcomes in one process, for controllers that a simulation runs side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from controlplane.controller.leadership.lease import LEASE_TTL_S
from controlplane.controller.replication.outcomes import Outcome, Succeeded


class MemoryLease:
    """The lease in one process: any number of holders share one :class:`MemoryLease.Slot`."""

    class Slot:
        """Who holds it, and until when by the event loop's clock."""

        def __init__(self) -> None:
            self.holder = ""
            self.until_s = 0.0

    def __init__(self, slot: Slot, holder: str, *, ttl_s: float = LEASE_TTL_S) -> None:
        self._slot = slot
        self._holder = holder
        self._ttl_s = ttl_s

    @property
    def ttl_s(self) -> float:
        return self._ttl_s

    async def acquire(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if self._slot.holder and self._slot.until_s > now_s:
            return self._slot.holder == self._holder
        self._slot.holder, self._slot.until_s = self._holder, now_s + self._ttl_s
        return True

    async def renew(self) -> bool:
        now_s = asyncio.get_running_loop().time()
        if self._slot.holder != self._holder or self._slot.until_s <= now_s:
            return False
        self._slot.until_s = now_s + self._ttl_s
        return True

    async def release(self) -> None:
        if self._slot.holder == self._holder:
            self._slot.holder = ""


class MemoryOutcomes:
    """In one process: any number of controllers share one :class:`MemoryOutcomes.Store`."""

    class Store:
        """What is kept, and by how many records and beginnings."""

        def __init__(self) -> None:
            self.kept: list[Outcome] = []
            self.last = 0

    def __init__(self, store: Store | None = None) -> None:
        self._store = store or MemoryOutcomes.Store()
        self._last = 0

    async def begin(self) -> Sequence[Outcome]:
        self._store.last += 1
        self._last = self._store.last
        return tuple(self._store.kept)

    async def record(self, outcomes: Sequence[Outcome]) -> None:
        if self._last != self._store.last:
            raise Succeeded
        self._store.last += 1
        self._last = self._store.last
        self._store.kept.extend(outcomes)
