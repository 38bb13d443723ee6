"""Ranges counted by container CIDR and phase, for metrics and the console. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import msgspec

from controlplane.cluster.state import Cidr, ClusterState


class RangeCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many ranges of one container CIDR are in each phase; the four add up to its capacity."""

    cidr: Cidr
    allocated: int
    draining: int
    quarantined: int

    @property
    def free(self) -> int:
        """Ranges that the next nodes can get."""
        return self.cidr.capacity - self.allocated - self.draining - self.quarantined


def range_counts(state: ClusterState) -> list[RangeCounts]:
    """One entry per container CIDR. O(ranges that are not free), and less with a single CIDR."""
    cidrs = state.cidrs
    starts = [cidr.first_index for cidr in cidrs]

    def by_cidr(indices: Iterable[int], total: int) -> list[int]:
        if len(cidrs) == 1:
            return [total]
        counts = [0] * len(cidrs)
        for index in indices:
            counts[bisect_right(starts, index) - 1] += 1
        return counts

    taken = by_cidr(state.ranges, len(state.ranges))
    draining = by_cidr(state.draining, len(state.draining))
    quarantined = by_cidr(state.quarantined, len(state.quarantined))
    return [
        RangeCounts(cidr=cidr, allocated=t - d - q, draining=d, quarantined=q)
        for cidr, t, d, q in zip(cidrs, taken, draining, quarantined, strict=True)
    ]
