"""The remembered view held against the log: finds what no checksum can see, in caches of any release."""

from __future__ import annotations

import logging
from collections.abc import Callable

from events.errors import IsthmusError, VerificationFailed
from events.jetstream.snapshots import SnapshotBucket
from events.log import LogReader
from events.reading import verified
from nodeagent.membership.view import View

log = logging.getLogger("isthmus.agent.cache")


async def view_from_log(
    stream: LogReader,
    like: View,
    parked: frozenset[int],
    *,
    bucket: SnapshotBucket | None = None,
    heard: Callable[[], None] = lambda: None,
) -> View:
    """The view of the same node made anew: of the bus's snapshot (with ``bucket``), and the log up to ``like``.

    ``parked`` events are left out, so a snapshot that was made with some of them is no help. The view ends
    behind ``like`` when the snapshot does. ``heard`` is called with each batch. Raises Unavailable and
    VerificationFailed. Cancelled, it leaves nothing behind.
    """
    try:
        return await _view_from(stream, like, parked, bucket, heard)
    except VerificationFailed as error:
        if bucket is None or error.code != "events_parked":
            raise
    return await _view_from(stream, like, parked, None, heard)


async def _view_from(
    stream: LogReader,
    like: View,
    parked: frozenset[int],
    bucket: SnapshotBucket | None,
    heard: Callable[[], None],
) -> View:
    fresh = View(like.cluster, like.node, like.uid)
    if bucket is not None:
        try:
            snapshot = await bucket.latest()
        except IsthmusError as error:
            log.info("no snapshot is used: %s", error.message)
            snapshot = None
        if snapshot is not None:
            fresh.leap(snapshot)
            fresh.last_event_at = snapshot.made_at.timestamp()
    if fresh.sequence >= like.sequence:
        return fresh
    async for recorded, head, _ in verified(stream, fresh.head, parked, until=like.sequence):
        heard()
        for one in recorded:
            fresh.apply(one.sequence, one.event)
        fresh.head = head
    fresh.last_event_at = like.last_event_at
    return fresh


def difference(view: View, fresh: View) -> str:
    """What the view says that the log does not, in words; empty when they agree or end elsewhere."""
    if view.head != fresh.head:
        return ""
    if view.plan != fresh.plan and view.plan is not None and view.plan.range_size:
        return "the plan"
    if view.own != fresh.own:
        return "the own range"
    ours, theirs = ({peer.cidr: peer for peer in one.peers} for one in (view, fresh))
    wrong = [cidr for cidr in {**ours, **theirs} if ours.get(cidr) != theirs.get(cidr)]
    if wrong:
        return f"{len(wrong)} peers, the first: range {wrong[0]}"
    names = [
        name for name in {**view.members, **fresh.members} if view.members.get(name) != fresh.members.get(name)
    ]
    if names:
        return f"{len(names)} members, the first: {names[0]}"
    if view.traffic.holders != fresh.traffic.holders:
        return "the holders of CLB addresses"
    return "" if view.traffic.entries == fresh.traffic.entries else "the entries"
