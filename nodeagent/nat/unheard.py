"""Which peers behind NAT a gateway does not hear: it says so in its answers. Pure: times are monotonic seconds.

Two nodes behind different routers prefer one gateway. Where only one of them reaches it, the other goes by the
next one, and encrypted each end drops what comes by another gateway than its own. So the end that reaches it
learns that it does not hear the other end, and takes the next one, too: the first that hears both.

Only the difference between gateways counts. A peer whose agent is away is heard by none, and its kernel goes on
by the one that it had; so nobody acts on a word that is younger than the one of the slowest gateway may be.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from zlib import crc32

import msgspec

HOLD_S = 4.0
"""How long a gateway says something before it counts: two of its answers."""
LOOKED_S = 1.0
_NAMED = struct.Struct("!4I")
AT_ONCE = 4
"""Most silent peers that an answer has room for. While there are more, nothing is known."""


def _short(number: int, epoch: int) -> int:
    """How the answer to the question of that number names a peer: two that fall together do so but once."""
    return crc32(b"%d %d" % (number, epoch)) or 1


class Unheard:
    """As who is asked: when each peer behind NAT has asked last."""

    def __init__(self) -> None:
        self._last: dict[int, float] = {}
        self._silent: list[int] = []
        self._looked = float("-inf")

    def follow(self, hidden: Iterable[int], now: float) -> None:
        """The epochs of peers behind NAT; whoever is new counts as heard now. O(these)."""
        self._last = {epoch: self._last.get(epoch, now) for epoch in hidden}

    def heard(self, epoch: int, now: float) -> None:
        """It has asked."""
        if epoch in self._last:
            self._last[epoch] = now

    def say(self, number: int, gap_s: float, now: float) -> tuple[bytes, bool]:
        """Who has not asked for longer than ``gap_s``, for one answer; or that these are too many for it."""
        if now - self._looked >= LOOKED_S:
            self._looked = now
            self._silent = [epoch for epoch, last in self._last.items() if now - last > gap_s]
        named = [_short(number, epoch) for epoch in self._silent] if len(self._silent) <= AT_ONCE else []
        return _NAMED.pack(*named, *[0] * (AT_ONCE - len(named))), len(self._silent) > AT_ONCE


class _Said(msgspec.Struct, gc=False):
    since: float
    over: float | None = None


class Missing:
    """As who asks: whom the gateways say that they do not hear, by the epochs of gateway and peer."""

    def __init__(self) -> None:
        self._said: dict[tuple[int, int], _Said] = {}
        self._too_many: set[int] = set()
        self.surely: frozenset[tuple[int, int]] = frozenset()
        self._perhaps: frozenset[tuple[int, int]] = frozenset()

    def told(
        self, gateway: int, number: int, named: bytes, hidden: Iterable[int], now: float, *, more: bool
    ) -> None:
        """A gateway's answer has what its :meth:`Unheard.say` returned; ``hidden`` are peers behind NAT.

        O(these) where it names any.
        """
        (self._too_many.add if more else self._too_many.discard)(gateway)
        short = {name for name in _NAMED.unpack(named) if name}
        silent = {(gateway, epoch) for epoch in hidden if _short(number, epoch) in short} if short else set()
        for pair, said in self._said.items():
            if pair[0] == gateway and pair not in silent and said.over is None:
                said.over = now
        for pair in silent:
            known = self._said.get(pair)
            if known is None or known.over is not None:
                self._said[pair] = _Said(now)

    def look(self, now: float) -> bool:
        """Take in the time that has passed; whether another gateway may be chosen now."""
        before = self.surely, self._perhaps
        self._said = {p: s for p, s in self._said.items() if s.over is None or now - s.over < HOLD_S}
        self.surely = frozenset(
            pair for pair, said in self._said.items() if said.over is None and now - said.since >= HOLD_S
        )
        self._perhaps = frozenset(self._said) - self.surely
        return before != (self.surely, self._perhaps)

    def hearing(self, gateways: Iterable[int], peer: int) -> set[int]:
        """Those by which the peer can be reached: all, unless one surely hears it and others surely do not."""
        found = {gateway for gateway in gateways if (gateway, peer) not in self.surely}
        sure = any((gateway, peer) not in self._perhaps for gateway in found - self._too_many)
        return found if sure else set(gateways)
