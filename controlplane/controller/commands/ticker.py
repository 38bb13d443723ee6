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
from dataclasses import dataclass
from datetime import datetime

from controlplane.cluster.decision import (
    AdvanceDrains,
    AdvanceEncryption,
    MarkLiveness,
    MarkNat,
    MarkPaths,
    Tick,
)
from controlplane.controller.agents.gateway_reports import look
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.nat_watch import NatWatch
from controlplane.controller.commands.committer import Committer
from controlplane.controller.mesh.collector import Collector
from controlplane.controller.replication.replica import Replica
from controlplane.controller.requests import Request
from events.errors import IsthmusError
from events.ids import new_id

log = logging.getLogger("isthmus.controller")

TICK_S = 1.0
"""How often time is looked at. A quarantine ends at most this late."""

GATEWAY_TICK_S = 0.5
"""How often gateways are looked at, where there are any: a dead one is to be replaced within 5 s."""

EARLY_S = 0.001
"""A timer may ring this much before its time, by the loop's resolution: then it is time all the same."""

COALESCE_S = 0.1
"""Reports of applied sequences gather this long before drains are looked at."""


@dataclass(eq=False)
class Ticker:
    """Submits the controller's own commands while :attr:`active` says so."""

    committer: Committer
    replica: Replica
    liveness: Liveness
    actor: str
    active: Callable[[], bool]
    new_id: Callable[[], str] = new_id
    tick_s: float = TICK_S
    mesh: Collector | None = None
    nat: NatWatch | None = None

    def __post_init__(self) -> None:
        self._watch = self.liveness.watch
        self._leading_since: datetime | None = None
        self._resting: dict[int, tuple[int, datetime]] = {}
        self._watched: dict[str, datetime] = {}
        self._failing: dict[str, str] = {}

    async def run(self) -> None:
        """Tick for ever. A refused or failed tick is logged; the next one tries again.

        Cancelled, what it has submitted is still decided.
        """
        loop = asyncio.get_running_loop()
        next_s = loop.time()
        while True:
            moved = self.liveness.moved
            with suppress(TimeoutError):
                async with asyncio.timeout_at(next_s):
                    while not (moved.is_set() and self.replica.state.draining and self.active()):
                        moved.clear()
                        await moved.wait()
                    await asyncio.sleep(COALESCE_S)
            moved.clear()
            if loop.time() >= next_s - EARLY_S:
                pace_s = min(self.tick_s, GATEWAY_TICK_S) if self.replica.state.gateways else self.tick_s
                next_s = loop.time() + pace_s
                await self.tick()
            else:
                await self.drains()

    async def tick(self) -> None:
        """Look at everything once. Cancelled, the decision is made all the same: it is in the queue."""
        if not self._watch.look():
            # Stopped by a signal, or the machine slept: what happened meanwhile nobody watched.
            log.warning("this controller stood still: silence and quarantines are watched anew")
            self.liveness.watch_anew()
            if self.mesh is not None:
                self.mesh.restart()
            if self.nat is not None:
                self.nat.restart()
            self._leading_since = None
        since = self._due()
        if since is None:
            return
        clocks = self.liveness.clocks
        await self._submit(
            MarkLiveness(
                last_seen=self.liveness.heard,
                watching_since=max(since, self.liveness.watching_since),
                watched=self._members(),
                at=self._watch.now(),
                removes=not (clocks.apart or clocks.ahead),
                came=self.liveness.ever_heard,
            )
        )
        await self.holders()
        await self.paths()
        await self.encryption()
        await self.behind_nat()
        await self.drains()

    async def encryption(self) -> None:
        """Look how far encryption is. Cancelled, the decision is made all the same: it is in the queue."""
        if self._due() is not None and not self.replica.state.encrypts.settled:
            await self._submit(AdvanceEncryption(applied=self.liveness.encrypts))

    async def behind_nat(self) -> None:
        """Look at who is behind NAT. Cancelled, the decision is made all the same: it is in the queue."""
        found = tuple(self.nat.settled()) if self.nat is not None and self._due() is not None else ()
        if found:
            await self._submit(MarkNat(found=found))

    async def holders(self) -> None:
        """Look at the gateways. Cancelled, the decision is made all the same: it is in the queue."""
        state = self.replica.state
        if self._due() is None or not state.gateways:
            return
        await self._submit(look(state, self.liveness))

    async def paths(self) -> None:
        """Look at what the agents measured. Cancelled, the decision is made all the same: it is in the
        queue."""
        mesh, lost = self.mesh, self.replica.state.lost_paths
        if mesh is None or self._due() is None:
            return
        found, over = mesh.settled(set(lost))
        if over or any(one.key not in lost or lost[one.key].fault != one.fault for one in found) or lost:
            await self._submit(MarkPaths(found=tuple(found), over=frozenset(over), at_s=mesh.now()))

    async def drains(self) -> None:
        """Look at drains and quarantines. Cancelled, the decision is made all the same: it is in the queue."""
        state = self.replica.state
        if self._due() is not None and (state.draining or state.quarantined):
            await self._submit(
                AdvanceDrains(
                    applied=self.liveness.applied,
                    absent=self.liveness.absent,
                    occupied=self.liveness.pods.occupied(state),
                    rested_s=self._rested_s(),
                    frees=not self.liveness.clocks.apart,
                )
            )

    def _due(self) -> datetime | None:
        """Since when this controller has led and watched; None when there is nothing for it to decide."""
        if not self.active():
            self._leading_since = None
        elif self._leading_since is None:
            self._leading_since = self._watch.now()
            self._resting.clear()
            self._watched.clear()
            if self.mesh is not None:
                self.mesh.restart()
        state = self.replica.state
        return self._leading_since if state.definition is not None and not state.deleted else None

    def _members(self) -> dict[str, datetime]:
        """uid → since when this leader has known the member, and would have noticed its silence."""
        members, now, watched = self.replica.state.by_uid, self._watch.now(), self._watched
        for uid in members:
            if uid not in watched:
                watched[uid] = now
        if len(watched) > len(members):
            for uid in [uid for uid in watched if uid not in members]:
                del watched[uid]
        return watched

    def _rested_s(self) -> dict[int, float]:
        """Index → for how long this leader has seen the range in quarantine, which is stored."""
        quarantined, now = self.replica.state.quarantined, self._watch.now()
        watched = self._resting
        self._resting = {
            index: known
            if (known := watched.get(index)) is not None and known[0] == rest.epoch
            else (rest.epoch, now)
            for index, rest in quarantined.items()
        }
        return {index: (now - since).total_seconds() for index, (_, since) in self._resting.items()}

    async def _submit(self, tick: Tick) -> None:
        request = Request(
            command=tick,
            command_id=f"tick-{self.new_id()}",
            actor=self.actor,
            received_s=time.monotonic(),
        )
        try:
            await self.committer.submit(request)
        except IsthmusError as error:
            if self._failing.get(tick.name) != error.code:  # every second until it ends: told once
                log.warning(
                    "%s has to wait: %s [%s]; tried again every %g s",
                    tick.task, error.message, error.code, self.tick_s,
                )  # fmt: skip
            self._failing[tick.name] = error.code
        else:
            self._failing.pop(tick.name, None)
