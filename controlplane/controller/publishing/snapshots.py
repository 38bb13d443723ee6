"""Snapshots of the membership for agents, published by the leading controller when enough has changed.

A snapshot is worth its cost when it spares agents a good part of the log, and never urgent: agents
read on from wherever it stands.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from controlplane.cluster.digest import state_digest
from controlplane.cluster.state import ClusterState
from controlplane.controller.replication.replica import Replica
from events.chain import Head
from events.errors import IsthmusError
from events.jetstream.snapshots import Snapshot, SnapshotBucket, SnapshotMember, SnapshotRange
from events.protocol.clb import Traffic

log = logging.getLogger("isthmus.controller")


class SnapshotSchedule(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot is due ``events`` after the last, or ``quiet_s`` after it if anything changed.

    Never more often than every ``least_s`` seconds: making one of ten thousand nodes holds the event
    loop for some tens of milliseconds.
    """

    events: int = 1000
    quiet_s: float = 30.0
    least_s: float = 5.0


def snapshot_of(state: ClusterState, head: Head, made_at: datetime) -> Snapshot:
    """What agents need of the state at ``head``. O(n log n), for the digest."""
    return Snapshot(
        cluster=state.name,
        sequence=head.sequence,
        chain=head.hex,
        made_at=made_at,
        definition=state.definition,
        networks=tuple(state.networks),
        cidrs=tuple(cidr.cidr for cidr in state.cidrs),
        members=tuple(
            SnapshotMember(
                n.name,
                n.uid,
                n.kind,
                n.underlay,
                n.announced,
                n.vtep_mac,
                n.site,
                *((known.key, known.port) if (known := state.keys.get(n.name)) is not None else ("", 0)),
                n.name in state.behind_nat,
                *((known.beside, known.slot) if known is not None else ()),
            )
            for n in state.nodes.values()
        ),
        ranges=tuple(SnapshotRange(r.cidr, r.epoch, r.node, r.uid) for r in state.owned.values()),
        fenced=tuple(state.fenced),
        deleted=bool(state.deleted),
        state_digest=state_digest(state),
        traffic=Traffic(
            reservations=tuple(state.clb.values()),
            gateways=dict(state.gateways),
            backends=tuple(state.backends.items()),
            holders=tuple(state.holders.values()),
            entries=dict(state.entries),
        ),
        encryption=state.encrypts,
    )


class SnapshotPublisher:
    """Publishes while ``active`` says so. A failed publication is logged; the next one is tried in time."""

    def __init__(
        self,
        bucket: SnapshotBucket,
        replica: Replica,
        *,
        active: Callable[[], bool],
        replicas: int | None = None,
        schedule: SnapshotSchedule | None = None,
    ) -> None:
        self._bucket = bucket
        self._replica = replica
        self._active = active
        self._replicas = replicas
        self._schedule = schedule or SnapshotSchedule()
        self._ensured = False
        self.published = 0
        """The sequence of the last snapshot that this controller published."""

    async def run(self) -> None:
        """Publish for ever. Cancelled, the last snapshot stays."""
        loop = asyncio.get_running_loop()
        last_s = loop.time() - self._schedule.quiet_s
        while True:
            await asyncio.sleep(self._schedule.least_s)
            if self._active() and self._due(loop.time() - last_s):
                try:
                    await self.publish()
                except IsthmusError as error:
                    log.warning("no snapshot for agents: %s [%s]", error.message, error.code)
                last_s = loop.time()

    async def publish(self) -> None:
        """Publish the present now. Raises Unavailable, Refused(log_settings_differ).

        Cancelled, the last snapshot stays the latest, or this one is it.
        """
        if not self._ensured:
            await self._bucket.ensure(replicas=self._replicas)
            self._ensured = True
        snapshot = snapshot_of(self._replica.state, self._replica.head, datetime.now(UTC))
        await self._bucket.publish(snapshot)
        self.published = snapshot.sequence

    def _due(self, since_s: float) -> bool:
        grown = self._replica.head.sequence - self.published
        return grown >= self._schedule.events or (grown > 0 and since_s >= self._schedule.quiet_s)
