"""The progress bar of long work, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_SHOW_AFTER_S = 0.7


@contextmanager
def progress(what: str, total: int, *, start: int = 0, unit: str = "events") -> Iterator[Callable[[int], None]]:
    """A bar on standard error with rate and time left, for a person, and only once it takes long.

    The block gets a function that is called with the last sequence done.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    began = time.monotonic()
    shown: list[Any] = []

    def tick(done: int) -> None:
        if not shown:
            if time.monotonic() - began < _SHOW_AFTER_S:
                return
            shown.append(_Bar(what, total - start, unit))
        shown[0].update(done - start)

    try:
        yield tick
    finally:
        if shown:
            shown[0].stop()


class _Bar:
    """A rich progress bar; the rate is since the beginning."""

    def __init__(self, what: str, total: int, unit: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._began = time.monotonic()
        self._unit = unit
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(what, total=total, rate="")
        self._progress.start()
        self._first: int | None = None

    def update(self, done: int) -> None:
        """Move on to ``done``."""
        if self._first is None:
            self._first = done
        took = time.monotonic() - self._began
        rate = (done - self._first) / took if took > 0.2 else 0.0
        self._progress.update(self._task, completed=done, rate=f"{rate:,.0f} {self._unit}/s" if rate else "")

    def stop(self) -> None:
        """Take the bar away."""
        self._progress.stop()
