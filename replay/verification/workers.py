"""Work in other processes with results taken in order, never more than a few at a time.

With no jobs everything runs right here. Interrupting the program stops the workers quietly: they
ignore the terminal's Ctrl-C and end with their pool.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Self


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Workers:
    """``async with Workers(jobs)``: :meth:`put` work; all results are taken when the block ends."""

    def __init__(self, jobs: int) -> None:
        self._limit = 8 * jobs + 8
        self._waiting: deque[tuple[Callable[[Any], None], Future[Any]]] = deque()
        self._pool: ProcessPoolExecutor | None = None
        if jobs:
            # Spawned, not forked: a fork would copy threads' locks (progress bars) in any state.
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_quiet)
            self._submit(_quiet)  # they start now, beside what is done before the first work is put

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self.settle()
        finally:
            if self._pool is not None:
                self._pool.shutdown(wait=True, cancel_futures=True)

    async def put(self, take: Callable[[Any], None], work: Callable[..., Any], *arguments: Any) -> None:
        """Run ``work(*arguments)`` somewhere and give its result to ``take``, in the order of the calls.

        Waits while too much is under way. Raises what ``work`` raised. Cancelled, the work may still be done
        and its result is dropped.
        """
        if self._pool is None:
            take(work(*arguments))
            await asyncio.sleep(0)  # let Ctrl-C in
            return
        self._waiting.append((take, self._submit(work, *arguments)))
        while self._waiting and (len(self._waiting) > self._limit or self._waiting[0][1].done()):
            await self._take_first()
        await asyncio.sleep(0)

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """A worker may start here: Ctrl-C is held back from it, also while it is not yet quiet."""
        if self._pool is None:
            raise RuntimeError("there are no workers")
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return self._pool.submit(work, *arguments)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    async def settle(self) -> None:
        """Take all results that are still to come. Cancelled, the results that are left are dropped."""
        while self._waiting:
            await self._take_first()

    def dismiss(self) -> None:
        """Let the workers go when they have nothing left to do, without waiting: the block's end does."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    async def _take_first(self) -> None:
        take, future = self._waiting.popleft()
        take(await asyncio.wrap_future(future))
