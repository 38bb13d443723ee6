"""What is kept of a pair of nodes, and what is told of it. Pure values."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from nodeagent.membership.peers import Peer
from nodeagent.nat.packets import Endpoint
from nodeagent.nat.returning import Back

WAIT_S = 1.0
MISSED = 3
"""Unanswered questions in a row after which a peer does not answer."""
REST_S, REST_MAX_S = 2.0, 30.0
"""Between questions to a peer that does not answer."""


class Seen(NamedTuple):
    """What others see of this node: whether it is behind NAT (None: nobody who could say has told lately), by
    which address most see it, and some of these; some who see that it is not.
    """

    behind: bool | None = None
    address: str = ""
    by: tuple[str, ...] = ()


class Way(NamedTuple):
    """Where packets to a peer go: ``place`` is its own, on the second device; or ``relay`` forwards them."""

    place: Endpoint | None
    relay: Peer | None = None
    seen_as: Endpoint | None = None


class Pair(msgspec.Struct, gc=False):
    """What this node knows of one peer: as who asks it (from ``asking`` to ``seen_as``), and as who is
    asked."""

    peer: Peer
    asking: bool = False
    asked: int = 0
    asked_at: float = -1.0
    waiting: bool = False
    missed: int = 0
    due: float = 0.0
    rest_s: float = REST_S
    told: Endpoint | None = None
    told_at: float = -1e9
    seen_as: Endpoint | None = None
    """As whom the peer sees this node, and its rows follow it."""
    floor: int = 0
    seen: Endpoint | None = None
    """Where this node sees the peer."""
    offered: Endpoint | None = None
    challenge: bytes = b""
    offered_at: float = -1e9
    number: int = 0
    adopted: bool = False
    back: Back = msgspec.field(default_factory=Back)
    relay: int = 0
    """Epoch of the node that an earlier life had packets relayed by."""
