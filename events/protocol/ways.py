"""Which way a node's packets take: what follows from the log for every reader alike, and how it is answered.

By the log a pair of nodes is in the ordinary tunnel, in the one through NAT when one of the two is behind it,
and relayed by a gateway when both are, at different sites; within a site there is a link that both are on.
Whether a peer is reached directly is the finding of each agent, and no fact of the log.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from zlib import crc32

import msgspec

from events.status import WayKind


class PeerWayView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which way a node's packets take to one peer, since when (by the controller's clock), as it last reported.

    ``way`` is tunnel, direct, nat or relayed; ``via`` the next hop, the address and port that were seen, or the
    relay; ``why`` says what ended the way before.
    """

    peer: str
    way: str
    since: datetime | None = None
    via: str = ""
    encrypted: bool = False
    why: str = ""


def way_between(behind: bool, other_behind: bool, *, one_site: bool) -> WayKind:
    """The way between two nodes, each behind NAT or not; nodes without a site are at one."""
    if behind and other_behind:
        return "tunnel" if one_site else "relayed"
    return "nat" if behind or other_behind else "tunnel"


def encrypted_words(way: str, *, encrypted: bool) -> str:
    """What to say behind a way's name; empty for plain packets. Who relays encrypts anew, and sees them."""
    if not encrypted:
        return ""
    return ", encrypted to it and from it" if way == "relayed" else ", encrypted"


def preferred_relay(a: int, b: int, relays: Iterable[int]) -> int | None:
    """Which of the relays two nodes prefer for their packets to each other, all by their epochs; None of none.

    Both ends find the same one. By rendezvous hashing each relay has about as many pairs, and when one comes or
    goes only those move that prefer it.
    """
    low, high = sorted((a, b))
    return min(relays, key=lambda relay: (crc32(b"%d %d %d" % (low, high, relay)), relay), default=None)
