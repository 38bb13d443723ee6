"""Trying again: how long to wait before the next try, and when to stop.

Every retry of ours has growing, jittered pauses (so that a thousand nodes that lost the bus together do
not come back together) and a deadline or an owner that cancels it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

DICE = random.Random()  # noqa: S311  spreads load, guards nothing
_DOUBLINGS_MAX = 32  # 2**32 times the first pause is longer than any longest one


def backoff_s(failures: int, *, first_s: float, longest_s: float, dice: random.Random = DICE) -> float:
    """Seconds to wait after ``failures`` earlier ones: doubled each time, jittered by half."""
    return jittered_s(min(longest_s, first_s * 2.0 ** min(failures, _DOUBLINGS_MAX)), dice=dice)


def jittered_s(seconds: float, spread: float = 0.5, *, dice: random.Random = DICE) -> float:
    """About as many seconds: at random between ``1 - spread`` and ``1 + spread`` times as many."""
    return seconds * dice.uniform(1.0 - spread, 1.0 + spread)


async def pauses(deadline: float, *, first_s: float = 0.02, longest_s: float = 1.0) -> AsyncIterator[float]:
    """Seconds left at each try: the first at once, the next after growing, jittered pauses.

    Ends at ``deadline`` (the loop's clock, seconds). Cancellation leaves nothing behind.
    """
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        left_s = deadline - loop.time()
        if left_s <= 0:
            return
        yield left_s
        pause_s = backoff_s(failures, first_s=first_s, longest_s=longest_s)
        await asyncio.sleep(min(pause_s, max(0.0, deadline - loop.time())))
        failures += 1


async def happened(event: asyncio.Event, *, within_s: float) -> bool:
    """Wait for the event, ``within_s`` seconds at most. Cancelled, only the waiting ends."""
    try:
        async with asyncio.timeout(within_s):
            return await event.wait()
    except TimeoutError:
        return False


def raise_if_cancelled() -> None:
    """Raise CancelledError when this task was asked to end and a library lost that.

    nats-py's flushing does (nats.py issue 373), and ``asyncio.wait_for`` up to Python 3.11 when its
    result arrives at the same moment (CPython issue 86296). A loop that goes on for ever asks here
    once per turn.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError
