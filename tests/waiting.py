"""Waiting for a condition with a deadline: the one helper of all tests, for coroutines and for plain functions.

Deadlines are generous (a busy machine is no finding); how fast something is belongs into the benchmarks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

WITHIN_S = 30.0
PATIENCE = float(os.environ.get("ISTHMUS_PATIENCE", "5"))


def patient(promised_s: float) -> float:
    """The limit that a test holds a promised time to: several times as much, for a machine that does more.

    ``ISTHMUS_PATIENCE=1`` holds the promise itself, on a machine of its own (`make soak`).
    """
    return promised_s * PATIENCE


_PACE_S, _REST, _REST_MAX_S = 0.01, 2.0, 0.25
"""The rest between two looks at a condition; if a look runs a program, so many times as long as the look."""


async def until(
    condition: Callable[[], Any | Awaitable[Any]], what: str = "", *, within_s: float = WITHIN_S
) -> None:
    """Return once ``condition`` (a function, or a coroutine function) holds; fail after ``within_s``."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within_s
    while True:
        result = condition()
        if isinstance(result, Awaitable):
            result = await result
        if result:
            return
        assert loop.time() < deadline, f"not within {within_s:g} s: {what or condition}"
        await asyncio.sleep(_PACE_S)


def wait_for(condition: Callable[[], Any], what: str = "", within_s: float = WITHIN_S) -> Any:
    """The condition's value once it is true; an assertion or a missing thing inside counts as not yet."""
    deadline = time.monotonic() + within_s
    while True:
        last: BaseException | None = None
        looked_s = time.monotonic()
        try:
            value = condition()
        except (AssertionError, OSError, ValueError, KeyError, IndexError) as error:
            last, value = error, None
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what or condition} ({last})"
        took_s = time.monotonic() - looked_s
        time.sleep(max(_PACE_S, min(_REST * took_s, _REST_MAX_S)))
