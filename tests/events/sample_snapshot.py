"""A snapshot of as many members as one likes, no two alike."""

from __future__ import annotations

from datetime import UTC, datetime

from events.chain import Head
from events.jetstream.snapshots import Snapshot, SnapshotMember, SnapshotRange
from tests.contract.samples import CLUSTER


def snapshot(head: Head, members: int = 3) -> Snapshot:
    return Snapshot(
        cluster=CLUSTER,
        sequence=head.sequence,
        chain=head.hex,
        made_at=datetime(2026, 3, 1, tzinfo=UTC),
        cidrs=("10.0.0.0/8",),
        members=tuple(
            SnapshotMember(
                node=f"node-{n}.example",
                # no two alike, so that the size is not an artefact of compression
                uid=f"{n * 2654435761 % 2**32:08x}-{n * 40503 % 2**16:04x}",
                kind="cloud",
                underlay=f"192.168.{n >> 8 & 255}.{n & 255}",
                announced=f"192.168.{n >> 8 & 255}.{n & 255}",
                vtep_mac=f"02:{n * 2654435761 % 256:02x}:00:00:{n >> 8 & 255:02x}:{n & 255:02x}",
            )
            for n in range(members)
        ),
        ranges=tuple(
            SnapshotRange(f"10.{n >> 10 & 255}.{n >> 2 & 255}.{n % 4 * 64}/26", n + 2, f"node-{n}.example", "u")
            for n in range(members)
        ),
    )
