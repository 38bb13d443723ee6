"""Whom to ask when: a pure function of the members and a slot number, the same on every node.

There are :data:`SLOTS_PER_S` slots a second. In each, every node asks one peer: the members stand in a
ring, and
all go round it by the same offset, so every node is also asked once in each slot, each time by another
one. So a dead node is noticed by several peers within a second, whatever the size of the cluster, and

* each node asks each other one every ``(n - 1) / SLOTS_PER_S`` seconds (at most once a second), and of a pair
  one of the two asks the other in half of that: up to 241 nodes the whole mesh takes half a minute;
* where that takes more than a minute, one node of each site asks one of each other site in each minute, in
  turn, by at most :data:`SITES_PER_S` further questions a second.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import msgspec

SLOTS_PER_S = 8
SITES_PER_S = 4
MINUTE_S = 60


class Ring(msgspec.Struct, frozen=True):
    """The members as one of them sees them: epochs of ranges in ascending order, its own place among them.

    ``sites``: the members of each other site, and how this node takes turns with those of its own.
    """

    epochs: tuple[int, ...]
    own: int
    sites: tuple[tuple[int, ...], ...] = ()
    turn: int = 0
    turns: int = 1

    @property
    def peers(self) -> int:
        """How many others there are."""
        return len(self.epochs) - 1

    @property
    def bound_s(self) -> float:
        """Seconds within which this node asks each of its peers."""
        return max(1.0, self.peers / SLOTS_PER_S)

    @property
    def large_bound_s(self) -> float:
        """Seconds within which each of them is asked with a large packet."""
        return max(1.0, float(self.peers)) if self.peers < SLOTS_PER_S else self.bound_s * SLOTS_PER_S

    @property
    def site_bound_s(self) -> float:
        """Seconds within which each pair of sites is asked."""
        if self.bound_s <= MINUTE_S:
            return self.bound_s
        return MINUTE_S * -(-len(self.sites) // (SITES_PER_S * MINUTE_S))


def ring(members: Iterable[tuple[int, str]], own: int) -> Ring:
    """The ring of these members (epoch, site), seen by the one with the epoch ``own``. O(n log n)."""
    places = dict(members)
    epochs = tuple(sorted(places))
    by_site: dict[str, list[int]] = {}
    for epoch in epochs:
        by_site.setdefault(places[epoch], []).append(epoch)
    home = by_site.pop(places[own])
    return Ring(
        epochs, bisect_left(epochs, own), tuple(tuple(by_site[name]) for name in sorted(by_site)),
        bisect_left(home, own), len(home),
    )  # fmt: skip


def offset(position: int, members: int) -> int:
    """The offset on the ring at a position of the round: 1, 2, … to the middle, then as far the other way."""
    half = members // 2
    return position + 1 if position < half else members - 1 - (position - half)


def asked(places: Ring, slot: int) -> int | None:
    """The epoch of the peer that is asked in a slot; None when there is none to ask."""
    peers = places.peers
    position = slot % SLOTS_PER_S if peers < SLOTS_PER_S else slot % peers
    if position >= peers:
        return None
    return places.epochs[(places.own + offset(position, peers + 1)) % (peers + 1)]


def asked_large(places: Ring, slot: int) -> bool:
    """Whether the question of a slot is asked with a large packet, too: one a second, in turn all peers."""
    if places.peers < SLOTS_PER_S:
        return slot % SLOTS_PER_S == slot // SLOTS_PER_S % max(1, places.peers)
    # One position of each eight; the next round takes the next ones, so in eight rounds all have had it.
    return slot % places.peers % SLOTS_PER_S == slot // places.peers % SLOTS_PER_S


def asked_of_sites(places: Ring, second: int) -> list[int]:
    """Further peers to be asked in a second, so that all pairs of sites are asked each minute."""
    if places.bound_s <= MINUTE_S or not places.sites:
        return []
    minute, within = divmod(second, MINUTE_S)
    mine = [at for at in range(len(places.sites)) if (minute + at) % places.turns == places.turn]
    parts = -(-len(mine) // (SITES_PER_S * MINUTE_S))
    mine = mine[minute % parts :: parts] if parts else []
    first, last = len(mine) * within // MINUTE_S, len(mine) * (within + 1) // MINUTE_S
    round_ = minute // places.turns
    return [places.sites[at][(round_ + places.turn + at) % len(places.sites[at])] for at in mine[first:last]]
