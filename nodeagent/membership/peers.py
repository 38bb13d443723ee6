"""Other members as this node must reach them, and the rule that the newest epoch of a range wins.

Pure values and a pure fold; it must never touch the kernel, the clock or the bus.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from events.types import EncryptionStage
from nodeagent.netlink.rows import BLACKHOLE, Rows, address_bytes, mac_bytes, route_key, split_cidr


class Peer(msgspec.Struct, frozen=True, gc=False):
    """One member with its range.

    ``epoch`` is the sequence of the allocation event; ``underlay`` is the address by which this
    node reaches the peer (the announced one, when the peer is behind NAT).
    """

    node: str
    uid: str
    epoch: int
    cidr: str
    vtep_mac: str
    underlay: str
    key: str = ""
    """Its public key, and the port by which WireGuard reaches it with it; 0: it has none."""
    port: int = 0
    stage: EncryptionStage = "plain"
    """How far encryption between it and this node is."""
    beside: str = ""
    """The key before ``key`` that is still valid; empty: there is none. Its slot is the other one."""
    slot: int = 0

    @property
    def keys(self) -> tuple[tuple[int, str], ...]:
        """All keys by which it is known, each with its slot, the newest first."""
        newest = (self.slot, self.key)
        return (newest, (1 - self.slot, self.beside)) if self.beside else (newest,)

    def staged(self, key: str, port: int, beside: str, slot: int, stage: EncryptionStage) -> Peer:
        """The peer with that; itself if it has it already."""
        if (self.key, self.port, self.beside, self.slot, self.stage) == (key, port, beside, slot, stage):
            return self
        return msgspec.structs.replace(self, key=key, port=port, beside=beside, slot=slot, stage=stage)

    @property
    def encrypts(self) -> bool:
        """Whether WireGuard must know the peer: packets may come encrypted."""
        return self.stage != "plain"

    @property
    def sealed(self) -> bool:
        """Whether nothing goes to the peer in the clear: without WireGuard, nothing goes there at all."""
        return self.stage in {"sending", "required"}

    def rows(self) -> Rows:
        """The three rows that make the peer reachable: neighbour, FDB, route.

        That of a sealed peer leads nowhere: the route that is preferred to it goes into WireGuard, and
        whatever takes that away leaves a blackhole, not the tunnel.

        The first address of the range is the peer's VTEP address: next hop of its route and key of
        its neighbour entry.
        """
        first, mac, underlay, route = self.packed()
        return Rows({first: mac}, {mac: underlay}, {route: BLACKHOLE if self.sealed else first})

    def packed(self) -> tuple[bytes, bytes, bytes, bytes]:
        """What the rows are made of: VTEP address, VTEP MAC, underlay address, route key."""
        first, length = split_cidr(self.cidr)
        return first, mac_bytes(self.vtep_mac), address_bytes(self.underlay), route_key(first, length)


class PeerChange(NamedTuple):
    """What one step did to the peers. Both ``None``: nothing (old news)."""

    before: Peer | None
    after: Peer | None


NOTHING = PeerChange(None, None)
_new = tuple.__new__  # a named tuple's own constructor is a Python function


class PeerTable:
    """The peers by range, tolerant of any order of delivery.

    A range has at most one owner, the one with the highest epoch ever seen; ``_floors`` remembers
    the highest epoch that was removed, so that a late addition of an earlier owner stays out.
    Its size is bounded by the number of ranges of the cluster.
    """

    def __init__(self, floors: Mapping[str, int] | None = None) -> None:
        self._by_range: dict[str, Peer] = {}
        self._floors: dict[str, int] = dict(floors or {})  # range → highest epoch that is over
        self._by_node: dict[str, str] = {}  # node name → its range

    def __len__(self) -> int:
        return len(self._by_range)

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._by_range.values())

    def floors(self) -> dict[str, int]:
        """The highest epoch that has ended, by range."""
        return dict(self._floors)

    def get(self, cidr: str) -> Peer | None:
        """The owner of a range, if it has one."""
        return self._by_range.get(cidr)

    def of_node(self, node: str) -> Peer | None:
        """The peer of that name, if it holds a range."""
        cidr = self._by_node.get(node)
        return self._by_range.get(cidr) if cidr is not None else None

    def put(self, peer: Peer) -> PeerChange:
        """Add or replace the owner of a range; an older epoch than known changes nothing."""
        cidr, epoch = peer.cidr, peer.epoch
        before = self._by_range.get(cidr)
        if epoch <= self._floors.get(cidr, 0):
            return NOTHING
        if before is not None:
            if before.epoch > epoch or before == peer:
                return NOTHING
            if before.node != peer.node:
                self._forget_name(before)
        self._by_range[cidr] = peer
        self._by_node[peer.node] = cidr
        return _new(PeerChange, (before, peer))

    def remove(self, cidr: str, epoch: int) -> PeerChange:
        """End one epoch of a range; a newer owner of the same range stays."""
        self._floors[cidr] = max(epoch, self._floors.get(cidr, 0))
        before = self._by_range.get(cidr)
        if before is None or before.epoch > epoch:
            return NOTHING
        del self._by_range[cidr]
        self._forget_name(before)
        return PeerChange(before, None)

    def drop(self, cidr: str) -> PeerChange:
        """Take out whoever has the range, for a reason of this node's own: its epoch goes on in the log."""
        before = self._by_range.pop(cidr, None)
        if before is None:
            return NOTHING
        self._forget_name(before)
        return PeerChange(before, None)

    def _forget_name(self, peer: Peer) -> None:
        if self._by_node.get(peer.node) == peer.cidr:
            del self._by_node[peer.node]
