"""``stats``: how the pool was used: joins and leaves, lifetimes, reuse of ranges, and when it will be full.

One pass over the events, no fold; memory follows the number of live things and of ended lives.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from statistics import fmean

import msgspec

from controlplane.cluster.state import ClusterState
from events.types import (
    AllocationRefused,
    CidrAppended,
    ClusterDefined,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    RangeAdopted,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)
from replay.history import History, Progress
from replay.queries.states import base
from replay.when import from_ns


class Distribution(msgspec.Struct, frozen=True, kw_only=True):
    """How some values are spread. ``unit`` says of what; all zero when there are none."""

    unit: str
    count: int
    minimum: float
    median: float
    mean: float
    p90: float
    p99: float
    maximum: float


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of ``(after, until]``.

    ``lifetimes`` of nodes that ended within; ``reuse_distance`` is how many other allocations lie
    between two of the same range; ``drain`` from draining to quarantine, ``rest`` from there to free.
    ``growth_per_day`` is the slope of a straight line through the number of ranges in use (least
    squares over server time); ``exhausted_at`` where it meets the capacity, or None.
    ``growth_error_per_day`` is twice the slope's standard error. From less than :data:`FORECAST_MIN_S`
    none of the three says anything of the future.
    """

    first: int
    last: int
    recorded_from: datetime | None
    recorded_to: datetime | None
    events: dict[str, int]
    joins: int
    leaves: int
    fenced: int
    nodes_at_end: int
    nodes_at_most: int
    refusals: dict[str, int]
    lifetimes: Distribution
    reuse_distance: Distribution
    drain: Distribution
    rest: Distribution
    in_use: int
    capacity: int
    growth_per_day: float
    exhausted_at: datetime | None
    growth_error_per_day: float = 0.0

    @property
    def recorded_s(self) -> float:
        """Between the first and the last counted event."""
        if self.recorded_from is None or self.recorded_to is None:
            return 0.0
        return (self.recorded_to - self.recorded_from).total_seconds()


FORECAST_MIN_S = 86_400
"""A shorter record says nothing of the next days: less than a day has no night."""


class _Regression:
    """A straight line through points by least squares, in constant memory."""

    def __init__(self) -> None:
        self.n = 0
        self.x = self.y = self.xx = self.xy = self.yy = 0.0
        self.origin = 0

    def add(self, recorded_ns: int, value: int) -> None:
        if not self.n:
            self.origin = recorded_ns
        x = (recorded_ns - self.origin) / 1e9
        self.n += 1
        self.x += x
        self.y += value
        self.xx += x * x
        self.xy += x * value
        self.yy += value * value

    def slope_per_s(self) -> float:
        spread = self.n * self.xx - self.x * self.x
        return (self.n * self.xy - self.x * self.y) / spread if spread > 0 else 0.0

    def error_per_s(self) -> float:
        """Twice the standard error of the slope: how far off it may well be."""
        spread = self.n * self.xx - self.x * self.x
        if self.n < 3 or spread <= 0:
            return 0.0
        slope = self.slope_per_s()
        residue = self.yy - self.y * self.y / self.n - slope * slope * spread / self.n
        return 2.0 * math.sqrt(max(0.0, residue) / (self.n - 2) * self.n / spread)


async def stats(
    history: History, *, after: int = 0, until: int | None = None, progress: Progress | None = None
) -> Stats:
    """Count; in a capsule from the state that it carries.

    What began before a capsule has no known beginning and counts in no spread. Raises VerificationFailed for
    events that cannot be decoded, Refused(not_in_history) for an incremental archive on its own. Cancelled, it
    leaves nothing behind.
    """
    c = _Counting(after, base(history))
    now_ns = 0
    async for batch in history.facts(until=until, progress=progress):
        for fact in batch:
            # Durations need a time that never runs backwards: where recorded times do, it stands still.
            now_ns = max(now_ns, fact.recorded_ns)
            c.take(fact.seq, now_ns, fact.body)
    return c.result()


class _Counting:
    def __init__(self, after: int, before: ClusterState) -> None:
        self.after = after
        self.first = self.last = self.first_ns = self.last_ns = 0
        self.types: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.born: dict[str, int | None] = {
            node.uid: None for node in before.nodes.values()
        }  # uid → ns of joining
        self.most = len(self.born)
        self.given: dict[int, int] = {}  # index → number of its last allocation
        self.allocations = 0
        self.in_use, self.capacity = len(before.ranges), before.capacity
        self.since: dict[int, int] = {}  # index → ns of the last change of phase
        self.lives, self.reuse = array("d"), array("d")
        self.drains, self.rests = array("d"), array("d")
        self.trend = _Regression()

    def take(self, sequence: int, now: int, event: object) -> None:
        counts = sequence > self.after
        kind = type(event)
        if kind is NodeJoined:
            self.born[event.uid] = now  # type: ignore[attr-defined]
            self.most = max(self.most, len(self.born)) if counts else self.most
        elif kind is NodeLeft or kind is NodeFenced:
            began = self.born.pop(event.uid, None)  # type: ignore[attr-defined]
            if began is not None and counts:
                self.lives.append((now - began) / 1e9)
        elif kind is RangeAllocated or kind is RangeAdopted:
            index = event.index  # type: ignore[attr-defined]
            before = self.given.get(index)
            self.allocations += 1
            if before is not None and counts:
                self.reuse.append(self.allocations - before - 1)
            self.given[index] = self.allocations
            self.in_use += 1
        elif kind is RangeDraining:
            self.since[event.index] = now  # type: ignore[attr-defined]
        elif kind is RangeQuarantined:
            self._phase(self.drains, event.index, now, counts)  # type: ignore[attr-defined]
            self.since[event.index] = now  # type: ignore[attr-defined]
        elif kind is RangeFreed:
            self._phase(self.rests, event.index, now, counts)  # type: ignore[attr-defined]
            self.in_use -= 1
        elif kind is ClusterDefined or kind is CidrAppended:
            self.capacity += event.capacity  # type: ignore[attr-defined]
        elif kind is AllocationRefused and counts:
            self.refusals[event.code] += 1  # type: ignore[attr-defined]
        if counts:
            self.first = self.first or sequence
            self.first_ns = self.first_ns or now
            self.last, self.last_ns = sequence, now
            self.types[kind.type_name()] += 1  # type: ignore[attr-defined]
            self.trend.add(now, self.in_use)

    def _phase(self, into: array[float], index: int, now: int, counts: bool) -> None:
        began = self.since.pop(index, None)
        if began is not None and counts:
            into.append((now - began) / 1e9)

    def result(self) -> Stats:
        slope = self.trend.slope_per_s()
        exhausted = None
        left = self.capacity - self.in_use
        if slope > 0 and self.last and 0 <= left / slope < 10 * 366 * 86_400:
            exhausted = from_ns(self.last_ns) + timedelta(seconds=left / slope)
        return Stats(
            first=self.first,
            last=self.last,
            recorded_from=from_ns(self.first_ns) if self.first else None,
            recorded_to=from_ns(self.last_ns) if self.last else None,
            events=dict(self.types.most_common()),
            joins=self.types["node.joined.v1"],
            leaves=self.types["node.left.v1"],
            fenced=self.types["node.fenced.v1"],
            nodes_at_end=len(self.born),
            nodes_at_most=self.most,
            refusals=dict(self.refusals.most_common()),
            lifetimes=spread(self.lives, "seconds"),
            reuse_distance=spread(self.reuse, "allocations"),
            drain=spread(self.drains, "seconds"),
            rest=spread(self.rests, "seconds"),
            in_use=self.in_use,
            capacity=self.capacity,
            growth_per_day=round(slope * 86_400, 3),
            exhausted_at=exhausted,
            growth_error_per_day=round(self.trend.error_per_s() * 86_400, 3),
        )


def spread(values: Sequence[float], unit: str) -> Distribution:
    """Summarise. Percentiles by the nearest rank."""
    if not values:
        return Distribution(unit=unit, count=0, minimum=0, median=0, mean=0, p90=0, p99=0, maximum=0)
    ordered = sorted(values)

    def rank(share: float) -> float:
        return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]

    return Distribution(
        unit=unit,
        count=len(ordered),
        minimum=ordered[0],
        median=rank(0.5),
        mean=round(fmean(ordered), 6),
        p90=rank(0.9),
        p99=rank(0.99),
        maximum=ordered[-1],
    )
