"""Events about ranges: from the pool to a node and back."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from events.types.base import Event


class _RangeEvent(Event, frozen=True, kw_only=True, gc=False):
    aggregate: ClassVar[str] = "range"
    cidr: str
    index: int

    @property
    def entity(self) -> str:
        return self.cidr


class RangeAllocated(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """A node was given the range. **The sequence of this event is the range's epoch.**

    ``cursor_after`` is where the next search starts: it is data, so that it survives everything.
    """

    verb: ClassVar[str] = "allocated"
    node: str
    uid: str
    cursor_after: int


class RangeAdopted(RangeAllocated, frozen=True, kw_only=True, gc=False):
    """A node of a running cluster keeps exactly the range that it has; **this event's sequence is its epoch**.

    In all else an allocation. Written only while the cluster is in adoption: between
    :class:`events.types.AdoptionBegun` and its end. ``source`` says from what the range was taken over,
    ``flannel`` for example. The cursor moves behind the range where it was not beyond it.
    """

    verb: ClassVar[str] = "adopted"
    source: str


class RangeDraining(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """The range lost its owner; peers may still hold rows for it until each has applied this sequence."""

    verb: ClassVar[str] = "draining"
    node: str
    uid: str
    epoch: int


class RangeQuarantined(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """Every live agent has applied the draining event; the range rests until ``until``.

    ``watermark`` is the lowest applied sequence among the live agents: the evidence.
    """

    verb: ClassVar[str] = "quarantined"
    epoch: int
    watermark: int
    until: datetime


class RangeFreed(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """The range is back in the pool."""

    verb: ClassVar[str] = "freed"
    epoch: int


class AllocationRefused(Event, frozen=True, kw_only=True, gc=False):
    """A node asked for a range and got none: one event per node and cause until it changes.

    The counts are ranges at the moment of the refusal; ``earliest_free`` is when quarantine next
    returns one, if any is under way.
    """

    aggregate: ClassVar[str] = "allocation"
    verb: ClassVar[str] = "refused"
    node: str
    uid: str
    code: str
    message: str
    capacity: int = 0
    allocated: int = 0
    draining: int = 0
    quarantined: int = 0
    earliest_free: datetime | None = None

    @property
    def entity(self) -> str:
        return self.node
