"""What an exhausted pool looks like: the numbers, who is being waited for, and when it gets better.

It names no free CIDRs: to find them reads every member, and each of thousands of joins may meet an empty pool.
The refusal of an append names them.
"""

from __future__ import annotations

from datetime import datetime

from controlplane.cluster.addressing.plan import prefix_of
from controlplane.cluster.state import ClusterState
from events.errors import Refused


def earliest_free(state: ClusterState) -> datetime | None:
    """When quarantine next returns a range; None while none is quarantined.

    A range that still drains has no such moment: it waits for the agents' reports.
    """
    if not state.quarantined:
        return None
    if state.quarantine_ordered:
        return next(iter(state.quarantined.values())).until
    return min(event.until for event in state.quarantined.values())


def exhausted(state: ClusterState, now: datetime, asker: str, leaving: int = 0) -> Refused:
    """The refusal of a request for a range when none is free.

    ``leaving`` allocated ranges begin to drain by the same decision and are counted as draining.
    """
    allocated, draining = len(state.owned) - leaving, len(state.draining) + leaving
    moment = earliest_free(state)
    size = state.definition.range_size if state.definition else 0
    if moment is not None:
        wait_s = max(0.0, (moment - now).total_seconds())
        when = f"the next one is free at {moment.isoformat(timespec='seconds')} (in {wait_s:.0f} s)"
    elif draining:
        when = "those that drain wait until every live agent has applied their release"
    else:
        when = "none is on its way back"
    return Refused(
        "no_free_range",
        f"{asker} gets no range: of {state.capacity:,} ranges {allocated:,} are allocated, "
        f"{draining:,} draining, {len(state.quarantined):,} quarantined, 0 free; {when}. "
        f"`isthmus cluster append` with a /{prefix_of(size)} adds one range, a /{prefix_of(size) - 4} sixteen",
        capacity=state.capacity,
        allocated=allocated,
        draining=draining,
        quarantined=len(state.quarantined),
        free=state.pool.free,
        earliest_free=moment.isoformat() if moment else None,
    )
