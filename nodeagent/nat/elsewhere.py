"""From whose own addresses no packet comes any more, because its packets come otherwise. Pure.

Whoever sits in this node's network may have a private address that a member has behind its router. While a way
changes, packets come by both ways; so that lasts for a time, and begins anew with another address.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from nodeagent.membership.peers import Peer

SETTLED_S = 15.0
"""Since a peer is reached otherwise than by the tunnel: by then it has come to the same way."""


class Elsewhere:
    """``due`` is when the next of them counts (monotonic seconds)."""

    def __init__(self) -> None:
        self._since: dict[tuple[int, str, str], float] = {}  # epoch, address, node
        self.due = inf

    def follow(self, peers: Iterable[Peer], now: float) -> None:
        """All who are reached otherwise than by the tunnel."""
        self._since = {who: self._since.get(who, now) for who in map(_who, peers)}
        self.look(now)

    def look(self, now: float) -> None:
        """See when the next one is due. O(those)."""
        self.due = min((at for since in self._since.values() if (at := since + SETTLED_S) > now), default=inf)

    def adopt(self, peers: Iterable[Peer]) -> None:
        """An earlier life reached these so."""
        self._since = dict.fromkeys(map(_who, peers), -inf)

    def nodes(self, now: float) -> frozenset[str]:
        """The names of those that count."""
        return frozenset(node for (_, _, node), since in self._since.items() if since + SETTLED_S <= now)


def _who(peer: Peer) -> tuple[int, str, str]:
    return peer.epoch, peer.underlay, peer.node
