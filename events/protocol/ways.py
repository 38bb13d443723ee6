"""Which way a node's packets take, as it is answered."""

from __future__ import annotations

from datetime import datetime

import msgspec


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
