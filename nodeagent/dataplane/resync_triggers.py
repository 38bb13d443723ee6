"""When the kernel is compared with the log, and why: reasons collect until somebody waits for them."""

from __future__ import annotations

import asyncio
import time

from events.bus.retry import backoff_s, happened, jittered_s

READ_BACK = "read back"
"""The reason of a comparison that reads what the one before it wrote."""
QUIET = frozenset({"timer", "retry", READ_BACK})
"""Reasons that are no news."""

RETRY_FIRST_S, RETRY_LONGEST_S = 0.1, 5.0


class ResyncTriggers:
    """Reasons for a comparison; without any there is one every ``period_s`` (jittered)."""

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._reasons: set[str] = set()
        self._wake = asyncio.Event()

    def add(self, reason: str) -> None:
        """A reason; those of one turn are handled together."""
        self._reasons.add(reason)
        self._wake.set()

    async def next(self, failures: int, release: float | None) -> set[str]:
        """Wait for a reason, or until it is time; take all there are.

        After ``failures`` in a row the time is short and grows; ``release`` is another moment (of the monotonic
        clock) at which to look. Cancelled, the reasons stay.
        """
        pause = jittered_s(self._period_s, 0.2)
        if failures:
            pause = backoff_s(failures, first_s=RETRY_FIRST_S, longest_s=RETRY_LONGEST_S)
        if release is not None:
            pause = min(pause, max(0.0, release - time.monotonic()) + 0.01)
        if not await happened(self._wake, within_s=pause):
            self._reasons.add("retry" if failures else "timer")
        self._wake.clear()
        reasons, self._reasons = self._reasons, set()
        return reasons
