"""Checks from the log alone that no two owners ever held overlapping addresses, and counts the pool.

This is a second opinion: it reads the stored events and shares no code with the controller. A range counts
as held from its allocation to the event that frees it, so draining and quarantined ranges are covered.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from typing import TYPE_CHECKING

from events import types
from events.errors import VerificationFailed

if TYPE_CHECKING:
    from events.codec import Recorded


@dataclass(slots=True)
class _Held:
    node: str
    uid: str
    last: int  # the range's last address
    epoch: int
    draining: bool = False
    quarantined: bool = False


@dataclass(slots=True)
class Ledger:
    """Fold `take` over the log from its first event; a violation raises at the event that makes it."""

    capacity: int = 0
    quarantine_s: float = 0.0
    allocations: int = 0
    frees: int = 0
    joins: int = 0
    leaves: int = 0
    refusals: int = 0
    most_held: int = 0
    wraps: int = 0
    sequence: int = 0
    cursor: int = 0
    last_index: int = -1
    live: dict[str, str] = field(default_factory=dict)  # node → uid
    underlays: dict[str, str] = field(default_factory=dict)  # node → the address its peers use
    held: dict[int, _Held] = field(default_factory=dict)  # first address → owner
    _starts: list[int] = field(default_factory=list)  # the keys of `held`, sorted
    _service: tuple[int, int] = (0, -1)

    def take(self, record: Recorded) -> None:
        """Raises VerificationFailed(invariant_violated) naming the event and both owners."""
        self.sequence = record.sequence
        match record.event:
            case types.ClusterDefined(capacity=capacity, service_cidr=service, quarantine_s=quarantine_s):
                self.capacity, self.quarantine_s = capacity, quarantine_s
                network = IPv4Network(service)
                self._service = (int(network[0]), int(network[-1]))
            case types.CidrAppended(capacity=capacity):
                self.capacity += capacity
            case types.NodeJoined(node=node, uid=uid, announced=announced):
                self.joins += 1
                self.live[node] = uid
                self.underlays[node] = announced
            case types.NodeUnderlayChanged(node=node, announced=announced):
                self.underlays[node] = announced
            case types.NodeLeft(node=node, uid=uid) | types.NodeFenced(node=node, uid=uid):
                if self.live.get(node) == uid:
                    self.leaves += 1
                    del self.live[node], self.underlays[node]
            case types.AllocationRefused():
                self.refusals += 1
            case types.RangeAllocated():
                self._allocate(record.sequence, record.event)
            case types.RangeDraining(cidr=cidr):
                self._owner(record.sequence, cidr).draining = True
            case types.RangeQuarantined(cidr=cidr):
                self._owner(record.sequence, cidr).quarantined = True
            case types.RangeFreed(cidr=cidr):
                self._free(record.sequence, cidr)
            case _:
                pass

    def _allocate(self, sequence: int, event: types.RangeAllocated) -> None:
        network = IPv4Network(event.cidr)
        first, last = int(network[0]), int(network[-1])
        place = bisect_left(self._starts, first)
        neighbours = [self._starts[i] for i in (place - 1, place) if 0 <= i < len(self._starts)]
        for start in neighbours:
            other = self.held[start]
            if start <= last and first <= other.last:
                raise VerificationFailed(
                    "invariant_violated",
                    f"event {sequence} gives {event.cidr} to {event.node} while {other.node} holds "
                    f"addresses of it since event {other.epoch}",
                    sequence=sequence,
                )
        if first <= self._service[1] and self._service[0] <= last:
            raise VerificationFailed(
                "invariant_violated",
                f"event {sequence} gives {event.cidr} to {event.node}; it overlaps the Service range",
                sequence=sequence,
            )
        insort(self._starts, first)
        self.held[first] = _Held(event.node, event.uid, last, sequence)
        self.allocations += 1
        self.most_held = max(self.most_held, len(self.held))
        self.wraps += event.index < self.last_index
        self.last_index = event.index
        self.cursor = event.cursor_after

    def _owner(self, sequence: int, cidr: str) -> _Held:
        owner = self.held.get(int(IPv4Network(cidr)[0]))
        if owner is None:
            raise VerificationFailed(
                "invariant_violated", f"event {sequence} is about {cidr}, which nobody holds", sequence=sequence
            )
        return owner

    def _free(self, sequence: int, cidr: str) -> None:
        owner = self._owner(sequence, cidr)
        if self.live.get(owner.node) == owner.uid and not owner.draining:  # it may have left and come back
            raise VerificationFailed(
                "invariant_violated",
                f"event {sequence} frees {cidr} while its owner {owner.node} lives",
                sequence=sequence,
            )
        first = int(IPv4Network(cidr)[0])
        del self.held[first]
        del self._starts[bisect_left(self._starts, first)]
        self.frees += 1

    def pool(self) -> dict[str, int]:
        """Ranges by state; the four states add up to the capacity, or a VerificationFailed says so.

        Raises VerificationFailed(invariant_violated).
        """
        quarantined = sum(owner.quarantined for owner in self.held.values())
        draining = sum(owner.draining and not owner.quarantined for owner in self.held.values())
        allocated = len(self.held) - draining - quarantined
        if allocated != len(self.live):
            raise VerificationFailed(
                "invariant_violated",
                f"at event {self.sequence} {allocated} ranges are allocated to {len(self.live)} live nodes",
                sequence=self.sequence,
            )
        return {
            "capacity": self.capacity,
            "allocated": allocated,
            "draining": draining,
            "quarantined": quarantined,
            "free": self.capacity - len(self.held),
        }
