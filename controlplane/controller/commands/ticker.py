"""Decisions that time and reports bring: silent nodes, drained ranges, ended quarantines.

They go through the committer like any command, so that they are decided on the newest state, stored
before they are true, and subject to the same condition. Only the leading controller ticks; two that
do at once would race and one would find nothing left to decide.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress

from controlplane.cluster.decision import AdvanceDrains, MarkLiveness, Tick
from controlplane.controller.agents.gateway_reports import look
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.commands.committer import Committer
from controlplane.controller.commands.requests import Request
from controlplane.controller.replication.replica import Replica
from events.errors import IsthmusError
from events.ids import new_id

log = logging.getLogger("isthmus.controller")

TICK_S = 1.0
"""How often time is looked at. A quarantine ends at most this late."""

GATEWAY_TICK_S = 0.5
"""How often gateways are looked at, where there are any: a dead one is to be replaced within 5 s."""

COALESCE_S = 0.1
"""Reports of applied sequences gather this long before drains are looked at."""


class Ticker:
    """Submits the controller's own commands while :attr:`active` says so."""

    def __init__(
        self,
        committer: Committer,
        replica: Replica,
        liveness: Liveness,
        *,
        actor: str,
        active: Callable[[], bool],
        new_id: Callable[[], str] = new_id,
        tick_s: float = TICK_S,
    ) -> None:
        self._committer = committer
        self._replica = replica
        self._liveness = liveness
        self._actor = actor
        self._active = active
        self._new_id = new_id
        self._tick_s = tick_s

    async def run(self) -> None:
        """Tick for ever. A refused or failed tick is logged; the next one tries again."""
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            moved = self._liveness.moved
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_s):
                    while not (moved.is_set() and self._replica.state.draining and self._active()):
                        moved.clear()
                        await moved.wait()
                    await asyncio.sleep(COALESCE_S)
            moved.clear()
            if loop.time() >= next_s:
                pace_s = min(self._tick_s, GATEWAY_TICK_S) if self._replica.state.gateways else self._tick_s
                next_s = loop.time() + pace_s
                await self.tick()
            else:
                await self.drains()

    async def tick(self) -> None:
        """Look at everything once."""
        if not self._due():
            return
        await self._submit(
            MarkLiveness(last_seen=self._liveness.last_seen, watching_since=self._liveness.watching_since)
        )
        await self.holders()
        await self.drains()

    async def holders(self) -> None:
        """Look at the gateways."""
        state = self._replica.state
        if not self._due() or not state.gateways:
            return
        await self._submit(look(state, self._liveness))

    async def drains(self) -> None:
        """Look at drains and quarantines."""
        state = self._replica.state
        if self._due() and (state.draining or state.quarantined):
            await self._submit(AdvanceDrains(applied=self._liveness.applied, absent=self._liveness.absent))

    def _due(self) -> bool:
        state = self._replica.state
        return self._active() and state.definition is not None and not state.deleted

    async def _submit(self, tick: Tick) -> None:
        request = Request(
            command=tick,
            command_id=f"tick-{self._new_id()}",
            actor=self._actor,
            received_s=time.monotonic(),
        )
        try:
            await self._committer.submit(request)
        except IsthmusError as error:
            log.warning("%s: %s [%s]", tick.name, error.message, error.code)
