"""Opens the way back to an earlier release: parks what it cannot follow, where the cluster is the same without.

It writes past the controllers, so it is safe by the append's condition alone: whatever somebody else writes
meanwhile is read first. A controller that meets the parkings folds the log anew, an agent makes its view anew.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec

from controlplane.cluster.rollback.comparison import SHOWN, Obstacle, Rollback
from events.bus.retry import jittered_s
from events.chain import Head, genesis
from events.codec import Cause, seal
from events.errors import Refused
from events.ids import new_id
from events.log import BATCH_LIMIT, EventLog
from events.parking import parked_in
from events.reading import verified

ATTEMPTS, AGAIN_S = 5, 0.3
SOURCE = "isthmus/rollback"


def utc_now() -> datetime:
    """The wall clock, which says only whether a token has ended."""
    return datetime.now(UTC)


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """What was done, or would be (``dry_run``): the log up to ``sequence`` can be followed by ``release``.

    ``left_out`` counts the events that are parked now, by type; ``written`` is how many events say so.
    """

    release: str
    sequence: int
    left_out: dict[str, int]
    written: int
    behind_nat: tuple[str, ...]
    dry_run: bool = False


async def prepare_rollback(
    log: EventLog, release: str, *, actor: str, leave_behind_nat: bool = False, dry_run: bool = False
) -> Prepared:
    """Park every event that ``release`` cannot follow. Repeated, it writes nothing.

    Raises Refused(older_release) with what is in the way, VerificationFailed for a log that cannot be followed,
    and Unavailable. Cancelled, a part may be written: the log can be followed, and the same call goes on.
    """
    for attempt in range(ATTEMPTS):
        try:
            return await _attempt(log, release, actor, leave_behind_nat=leave_behind_nat, dry_run=dry_run)
        except Refused as error:
            if error.code != "wrong_last_sequence" or attempt == ATTEMPTS - 1:
                raise
        await asyncio.sleep(jittered_s(AGAIN_S, 0.5))
    raise AssertionError("the last attempt returns or raises")


async def _attempt(
    log: EventLog, release: str, actor: str, *, leave_behind_nat: bool, dry_run: bool
) -> Prepared:
    rollback = Rollback(log.cluster, release)
    head, last_time = genesis(log.cluster), datetime.fromtimestamp(0, UTC)
    async for batch in verified(log, parked=await parked_in(log)):
        for recorded in batch.events:
            rollback.take(recorded)
            last_time = max(last_time, recorded.envelope.time)
        head = batch.head
    now = utc_now()
    found = rollback.obstacles(now, leave_behind_nat=leave_behind_nat)
    if found:
        raise refusal(release, found)
    parkings = rollback.parkings()
    if not dry_run:
        cause = Cause(command_id=f"park-{new_id()}", actor=actor, time=max(now, last_time), source=SOURCE)
        for start in range(0, len(parkings), BATCH_LIMIT):
            part = msgspec.structs.replace(cause, command_id=f"{cause.command_id}-{start}")
            head = await _write(log, head, part, parkings[start : start + BATCH_LIMIT])
    return Prepared(
        release=release,
        sequence=head.sequence,
        left_out=dict(rollback.left_out),
        written=len(parkings),
        behind_nat=tuple(sorted(rollback.state.behind_nat)),
        dry_run=dry_run,
    )


async def _write(log: EventLog, head: Head, cause: Cause, parkings: object) -> Head:
    messages, behind = seal(log.cluster, head, [(cause, parkings)])  # type: ignore[list-item]  # events
    await log.append(messages, expected=head.sequence, timeout_s=30)
    return behind


def refusal(release: str, found: list[Obstacle]) -> Refused:
    """What is in the way, with what opens it."""
    said = "; ".join(f"{one.what}{f' → {one.way_out}' if one.way_out else ''}" for one in found[:SHOWN])
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    closed = any(not one.way_out for one in found)
    return Refused(
        "older_release",
        f"{release} cannot take over{' any more' if closed else ' yet'}: {said}{more}. Nothing was written",
        release=release,
        obstacles=[one._asdict() for one in found],
    )
