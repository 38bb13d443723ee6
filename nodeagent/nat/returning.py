"""When two nodes go back to a gateway that was away, both at one moment. Pure: times are monotonic seconds.

A gateway that is back answers one end seconds before the other. Whoever went back with the first answer would
send and take by another gateway than the other end does meanwhile, and encrypted each end drops what comes by
the key of another gateway than its own. So each answer says for how long the one who answers has been asked
without a break; both ends reckon the same moment from it, and go back then. Nothing is kept of a pair, and an
agent that has just started finds the same moment as one that runs for long.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

READY_S = 10.0
"""How long a gateway is back before it relays again: both ends have heard of it, and it of them, by then."""
SPREAD_S = 5.0
"""Gateways that came back within this time of the first one of them are as good as that one."""
NEW_S = 1.0
"""A moment that differs by more than this is that of another return."""


class Asked(msgspec.Struct):
    """Since when this node has been asked without a break."""

    last: float | None = None
    since: float = 0.0

    def again(self, now: float, gap_s: float) -> None:
        """Somebody behind NAT asks now; ``gap_s``: pauses up to this are none."""
        if self.last is None or now - self.last > gap_s:
            self.since = now
        self.last = now

    def go_on(self, last: float) -> None:
        """An earlier life of the agent was asked until then, and the kernel forwards meanwhile."""
        self.last, self.since = last, float("-inf")

    def lasts_s(self, now: float) -> float:
        """For how long, in seconds; 0 while nobody has asked."""
        return 0.0 if self.last is None else now - self.since


class Back(msgspec.Struct, gc=False):
    """Since when a peer says that it has been asked; ``None``: it did not say so far."""

    since: float | None = None
    took_s: float = 0.0

    def told(self, lasts_s: float, asked_at: float, now: float) -> None:
        """The answer to a question of then says so. Of several the one that took least is believed."""
        took_s = now - asked_at
        since = now - took_s / 2 - lasts_s
        if self.since is None or abs(since - self.since) > NEW_S or took_s < self.took_s:
            self.since, self.took_s = since, took_s


def returning(answering: Iterable[tuple[int, Back]], now: float) -> dict[int, float]:
    """Which of the gateways that answer, by epoch, are not to relay yet, and when each is. O(these)."""
    found = {epoch: back.since for epoch, back in answering if back.since is not None}
    first = min(found.values(), default=now)
    return {
        epoch: since + READY_S
        for epoch, since in found.items()
        if since + READY_S > now and since - first > SPREAD_S
    }
