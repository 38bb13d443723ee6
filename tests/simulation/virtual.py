"""An event loop whose clock jumps: waiting costs nothing, and the same seed gives the same run."""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class Deadlock(Exception):
    """Every task waits for something that nothing will bring about."""


class _Jump(selectors.SelectSelector):
    """Never waits: where a real one would, the loop's clock moves."""

    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock("nothing is scheduled and nothing is ready")
        self.loop.now_s += max(0.0, timeout)
        return []


PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("process", default="")
"""The simulated process that a callback belongs to; empty for what is never paused."""


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time starts at 0 and moves only when nothing is ready.

    Processes can be paused: what is due in them meanwhile happens when they go on, in the order in which it
    came due. Nothing in them can notice but by the clock, as with SIGSTOP.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._paused: dict[str, list[Callable[[], object]]] = {}
        selector = _Jump()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now_s

    def pause(self, process: str) -> None:
        """SIGSTOP. Idempotent."""
        self._paused.setdefault(process, [])

    def resume(self, process: str) -> None:
        """SIGCONT. Idempotent."""
        for due in self._paused.pop(process, ()):
            due()

    def call_soon(self, callback: Any, *args: Any, context: contextvars.Context | None = None) -> Any:
        context = context or contextvars.copy_context()
        return super().call_soon(self._when_running, callback, args, context, context=context)

    def call_at(
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> Any:
        context = context or contextvars.copy_context()
        return super().call_at(when, self._when_running, callback, args, context, context=context)

    def _when_running(self, callback: Any, args: Any, context: contextvars.Context) -> None:
        waiting = self._paused.get(PROCESS.get())
        if waiting is None:
            callback(*args)
        else:
            waiting.append(lambda: super(VirtualLoop, self).call_soon(callback, *args, context=context))


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run on a loop of its own; what is left over is cancelled."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(main)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
