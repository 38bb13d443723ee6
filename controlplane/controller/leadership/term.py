"""A term: the time in which one controller leads. What belongs to a term that has ended is decided by nobody.

A process can be paused at any instruction (SIGSTOP, a frozen machine, a swapped-out page) and go on
later as if nothing had been. So whoever is about to decide or to answer asks the term first, by a clock
that runs on during such a pause; and what that cannot exclude (a pause after the question) is excluded by
conditions that the bus judges: the log's last sequence for writes, :mod:`outcomes
<controlplane.controller.replication.outcomes>` for answers that write nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import count

_numbers = count(1)


def running_s() -> float:
    """Seconds of a clock that nobody sets and that counts while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Term:
    """Valid until ``until_s`` by ``clock``, unless extended or ended before. Each is another one."""

    __slots__ = ("_clock", "_until_s", "ended", "number")

    def __init__(self, until_s: float, *, clock: Callable[[], float] = running_s) -> None:
        self.number = next(_numbers)
        self._until_s = until_s
        self._clock = clock
        self.ended = False
        """Whether it is over for good."""

    @property
    def valid(self) -> bool:
        """Whether this controller leads, as far as it can know by itself."""
        return not self.ended and self._clock() < self._until_s

    def extend(self, until_s: float) -> None:
        """The lease was renewed, asked for before ``until_s`` minus its lifetime."""
        self._until_s = until_s

    def end(self) -> None:
        """It is over, whatever the clock says. Idempotent."""
        self.ended = True


def unlimited() -> Term:
    """The term of a committer that competes with nobody: a test's, a benchmark's."""
    return Term(float("inf"))
