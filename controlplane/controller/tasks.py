"""Ending tasks for certain.

Until Python 3.12, ``asyncio.wait_for`` loses a cancellation that meets the awaited result in the same
turn of the loop, and the bus client is full of it. So cancelling once is not enough: whoever ends a
task cancels it again until it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

AGAIN_S = 0.1


async def end(tasks: Iterable[asyncio.Task[object]]) -> None:
    """Cancel the tasks until each is done. What they raise is theirs to report: nothing is raised here."""
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=AGAIN_S)


def failure(tasks: Iterable[asyncio.Task[object]]) -> BaseException | None:
    """The first exception among finished tasks that is not a cancellation."""
    for task in tasks:
        if task.done() and not task.cancelled():
            error = task.exception()
            if error is not None:
                return error
    return None
