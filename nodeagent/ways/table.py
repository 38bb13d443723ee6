"""The way to each peer, since when, and why the last other one ended. Pure: times are arguments.

The tunnel is what every peer has from the beginning: nothing is kept for it. So a table costs memory only for
peers that are, or were in this life of the agent, reached otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import msgspec

from events.status import KINDS, NAMED_MAX, PeerWay, WayKind, WaysReport
from nodeagent.membership.peers import Peer

LISTED_MAX = 1000
"""Most peers in the agent's own status file."""


class Exit(msgspec.Struct, frozen=True):
    """Where a preferred route leads. Addresses are packed.

    ``gateway`` is the next hop (four zero bytes: the peer is on the device itself), ``device`` an index (0: the
    tunnel device), ``source`` the address that the node's own packets carry (empty: the device's).
    """

    gateway: bytes
    device: int = 0
    source: bytes = b""


class Way(msgspec.Struct, frozen=True):
    """How packets get to a peer. ``via`` as :class:`events.status.PeerWay` defines it."""

    kind: WayKind = "tunnel"
    via: str = ""
    encrypted: bool = False


TUNNEL = Way()
PLAIN: tuple[WayKind, bool] = ("tunnel", False)


class _Entry(msgspec.Struct, gc=False):
    peer: Peer
    way: Way
    since: float
    why: str = ""


class WayTable:
    """The ways of one node. Whoever changes one says so here; nothing else decides it."""

    def __init__(self, since: Callable[[str, Way, float], float] = lambda _node, _way, now: now) -> None:
        """``since`` says of a node and the way to it, found at a time, since when it is so."""
        self._since = since
        self._entries: dict[str, _Entry] = {}  # range → the last change to or from another way than the tunnel
        self._counts: dict[tuple[WayKind, bool], int] = {}  # kind and encrypted, but not of the plain tunnel
        self.changed_at: float | None = None
        """When a way last changed (monotonic seconds)."""

    def of(self, peer: Peer) -> Way:
        """The way to a peer now."""
        entry = self._entries.get(peer.cidr)
        return entry.way if entry is not None and _same_place(entry.peer, peer) else TUNNEL

    def set(self, peer: Peer, way: Way, now: float, why: str = "") -> bool:
        """The peer is reached this way from now on (monotonic seconds); whether that is a change.

        ``why``: what ended the way before.
        """
        before = self.of(peer)
        if before == way:
            return False
        entry = self._entries.pop(peer.cidr, None)  # the newest change is the last one
        if entry is not None:
            self._count(entry.way, -1)
        self._count(way, 1)
        self._entries[peer.cidr] = _Entry(peer, way, self._since(peer.node, way, now), why)
        self.changed_at = now
        return True

    def forget(self, peer: Peer) -> None:
        """The peer is gone, or another one has its range."""
        entry = self._entries.get(peer.cidr)
        if entry is not None and _same_place(entry.peer, peer):
            self._count(entry.way, -1)
            del self._entries[peer.cidr]

    def keep(self, holder: Callable[[str], Peer | None]) -> None:
        """Forget the peers that hold their ranges no more. O(peers with another way than the tunnel)."""
        for entry in list(self._entries.values()):
            now = holder(entry.peer.cidr)
            if now is None or not _same_place(now, entry.peer):
                self.forget(entry.peer)

    def _count(self, way: Way, by: int) -> None:
        if (way.kind, way.encrypted) != PLAIN:
            self._counts[way.kind, way.encrypted] = self._counts.get((way.kind, way.encrypted), 0) + by

    def counts(self, peers: int) -> dict[tuple[WayKind, bool], int]:
        """Of so many peers those reached by each kind of way, encrypted or not; none where nobody is."""
        plain = {PLAIN: max(0, peers - sum(self._counts.values()))}
        return {kind: count for kind, count in (self._counts | plain).items() if count}

    def peers(self, kind: WayKind) -> list[Peer]:
        """The peers that are reached that way (not for the tunnel, which is everybody else's)."""
        return [entry.peer for entry in self._entries.values() if entry.way.kind == kind]

    def newest(self, now: float, limit: int) -> list[tuple[Peer, Way, float, str]]:
        """The last changes, the newest first: peer, way, seconds since then, what ended the way before."""
        entries = islice(reversed(self._entries.values()), limit)
        return [(entry.peer, entry.way, max(0.0, now - entry.since), entry.why) for entry in entries]

    def report(self, now: float, peers: int) -> WaysReport:
        """What to tell: counts over ``peers`` peers, and the newest changes."""
        counts = self.counts(peers)
        kinds = {kind: counts.get((kind, False), 0) + counts.get((kind, True), 0) for kind in KINDS}
        return WaysReport(
            **kinds,
            encrypted=sum(count for (_, encrypted), count in counts.items() if encrypted),
            peers=tuple(
                PeerWay(peer.epoch, way.kind, round(age_s, 1), way.via, way.encrypted, why)
                for peer, way, age_s, why in self.newest(now, NAMED_MAX)
            ),
        )


def _same_place(one: Peer, other: Peer) -> bool:
    """Whether these are one peer at one address, whatever its key and stage."""
    return (one.epoch, one.underlay) == (other.epoch, other.underlay)
