"""What rounds of probes mean for this node. Pure: times are arguments (seconds of a monotonic clock).

A node is blamed on evidence only. Silence of a peer that never answered says nothing: its host may drop
probes, and agents of 0.2.0 do not take calls. Silence of one that answered before says something when
others of it still speak: outside of the tunnel, or past this host's forwarding.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FAILURES = 2
"""Rounds in a row without an answer that make a failure: one lost packet is none."""

STALE_S = 30.0
"""How long a packet that passed keeps a node confirmed."""

Standing = Literal["no peers", "confirmed", "not confirmed", "failing"]
Fault = Literal["", "route", "forwarding", "tunnel", "incoming", "silence"]

TEXTS: dict[Fault, str] = {
    "": "",
    "route": "packets for pods of other nodes do not take the tunnel",
    "forwarding": "packets that this node sends itself pass, its pods' do not",
    "tunnel": "peers answer outside of the tunnel and not through it",
    "incoming": "answers pass, connections that other nodes open to this node's pods do not",
    "silence": "all peers that were asked fell silent at once",
}


class Round(msgspec.Struct, kw_only=True):
    """Peers (by range) that were asked, and those that answered, by kind of question."""

    asked: frozenset[str] = frozenset()
    forwarded: frozenset[str] = frozenset()
    """By the way of a pod's packet."""
    passing: frozenset[str] = frozenset()
    """Those of them that took the call and know that their own packets pass."""
    called: frozenset[str] = frozenset()
    """By a connection of their own to this node."""
    direct: frozenset[str] = frozenset()
    """By a packet of the node itself, through the tunnel. Looked at only when nothing came forwarded."""
    outside: frozenset[str] = frozenset()
    """On their underlay address."""
    misrouted: str = ""
    """Where the kernel would send a pod's packet instead of the tunnel."""
    unable: str = ""
    """Why no packet could be sent by the way of a pod's."""


class PathJudge:
    """``standing`` and ``fault`` after each round."""

    def __init__(self) -> None:
        self.standing: Standing = "no peers"
        self.fault: Fault = ""
        self.detail = ""
        self.confirmed_at: float | None = None
        self.by = ""
        """The range of the peer that answered last."""
        self.rounds = 0
        self._answered: set[str] = set()
        self._suspect: Fault = ""
        self._failures = 0

    def forget_except(self, present: set[str]) -> None:
        """Only these peers are left."""
        self._answered &= present

    def reset(self) -> None:
        """Another range or tunnel: what passed before says nothing."""
        self.__init__()  # type: ignore[misc]  # all of it is made there

    @property
    def suspicious(self) -> bool:
        """Whether the last round found a fault, enough of them or not."""
        return self._failures > 0

    def take(self, found: Round, now: float) -> None:
        """Judge one round."""
        self.rounds += 1
        fault = self._fault(found)
        self._answered |= found.forwarded | found.direct | found.called
        if found.forwarded:
            self.by = min(found.forwarded)
        if found.forwarded and not fault:
            self.standing, self.fault, self.detail = "confirmed", "", ""
            self.confirmed_at, self._failures, self._suspect = now, 0, ""
            return
        if not fault:
            self._failures, self._suspect = 0, ""
            if self.standing == "failing" and not found.unable:
                return  # silence does not undo what was seen
            fresh = self.confirmed_at is not None and now - self.confirmed_at < STALE_S
            self.standing = "no peers" if not found.asked else "confirmed" if fresh else "not confirmed"
            self.fault, self.detail = "", found.unable
            return
        self._failures = self._failures + 1 if fault == self._suspect else 1
        self._suspect = fault
        if self._failures >= FAILURES:
            self.standing, self.fault, self.detail = "failing", fault, found.misrouted

    def _fault(self, found: Round) -> Fault:
        if not found.asked:
            return ""
        if found.misrouted:
            return "route"
        if found.forwarded:
            return "incoming" if found.passing and not found.called else ""
        if found.direct:
            return "" if found.unable else "forwarding"
        known = found.asked & self._answered
        if known & found.outside:
            return "tunnel"
        return "silence" if len(known) > 1 and known == found.asked else ""

    def text(self) -> str:
        """The fault in a sentence; empty while nothing fails."""
        if self.standing != "failing":
            return ""
        return TEXTS[self.fault] + (f": {self.detail}" if self.detail else "")
