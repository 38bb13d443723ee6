"""How fast the overlay follows: for each recent transaction, when each agent reported that it applied it.

Measured by this controller's own clock, from the moment it sent the events to the log (of another
controller's events: from when it learnt of them) to the arrival of an agent's report: the agents' clocks
play no part, the write and the report's way back are included. Only what happened while this controller
watched is measured; history that it reads at its start is not.

Costs one dictionary write per report and a step per transaction that the report newly covers. Nothing
here is the truth about ranges: the drain watermark is computed elsewhere.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable
from datetime import datetime

import msgspec

WINDOW = 256
"""Transactions remembered."""
BEHIND_LISTED = 50
SLOWEST_LISTED = 8


class Confirmed(msgspec.Struct, frozen=True):
    """An agent that has a transaction in its kernel, so many seconds after it was stored."""

    node: str
    seconds: float


class Convergence(msgspec.Struct, frozen=True, kw_only=True):
    """One transaction's way to the agents. Latencies are seconds; None until known.

    ``expected`` agents were live when it was stored or have reported since; ``applied`` of them have
    confirmed. ``last`` is set once all have; ``slowest`` are those that confirmed last, in order.
    """

    first_sequence: int
    last_sequence: int
    decided_at: datetime | None
    summary: str
    expected: int
    applied: int
    first: float | None = None
    median: float | None = None
    p99: float | None = None
    last: float | None = None
    behind: list[str] = []
    slowest: list[Confirmed] = []


class Transaction:
    """One transaction that is followed; ``written`` while nothing has changed since somebody recorded it."""

    __slots__ = (
        "at",
        "decided_at",
        "first",
        "last",
        "latencies",
        "slowest",
        "summary",
        "waiting",
        "written",
    )

    def __init__(self, first: int, last: int, at: float, summary: str, decided_at: datetime | None) -> None:
        self.first = first
        self.last = last
        self.at = at
        self.summary = summary
        self.decided_at = decided_at
        self.latencies = array("f")
        self.slowest: deque[tuple[str, float]] = deque(maxlen=SLOWEST_LISTED)
        self.waiting = 0
        self.written = False

    def begins(self, at: float) -> None:
        """It began earlier than was known when it was noted down."""
        earlier = self.at - at
        if earlier > 0:
            self.at = at
            self.latencies = array("f", [seconds + earlier for seconds in self.latencies])
            self.slowest = deque(((node, s + earlier) for node, s in self.slowest), maxlen=SLOWEST_LISTED)
            self.written = False


class ConvergenceTracker:
    """Told of stored transactions, of reports and of agents that count no more.

    ``on_applied(seconds)`` is called for each agent and transaction; ``on_converged(seconds)`` once a
    transaction has reached every agent.
    """

    def __init__(
        self,
        *,
        on_applied: Callable[[float], None] = lambda _: None,
        on_converged: Callable[[float], None] = lambda _: None,
        window: int = WINDOW,
    ) -> None:
        self._on_applied = on_applied
        self._on_converged = on_converged
        self._window = window
        self._transactions: list[Transaction] = []
        self._lasts: list[int] = []
        self._applied: dict[str, int] = {}
        self._heard: dict[str, float] = {}  # when the agent reported what it has applied
        self._furthest = 0
        self._sent: deque[tuple[int, int, float]] = deque(maxlen=window)  # first, last, when
        self._left: deque[Transaction] = deque(maxlen=window)  # out of the window before they were recorded

    def sent(self, first: int, last: int, at: float) -> None:
        """This controller began at ``at`` to write these. May be told after :meth:`stored`."""
        self._sent.append((first, last, at))
        for transaction in self._transactions[bisect_left(self._lasts, first) :]:
            if transaction.first <= last:
                transaction.begins(at)

    def _began(self, first: int, last: int, at: float) -> float:
        while self._sent and self._sent[0][1] < first:
            self._sent.popleft()
        return min(at, self._sent[0][2]) if self._sent and self._sent[0][0] <= last else at

    def stored(
        self, first: int, last: int, at: float, summary: str, decided_at: datetime | None = None
    ) -> None:
        """A transaction's events are in the log. Sequences only grow; ``at`` is this controller's clock."""
        transaction = Transaction(first, last, self._began(first, last, at), summary, decided_at)
        transaction.waiting = len(self._applied)
        self._transactions.append(transaction)
        self._lasts.append(last)
        if len(self._transactions) > self._window:
            if not self._transactions[0].written:
                self._left.append(self._transactions[0])
            del self._transactions[0], self._lasts[0]
        if self._furthest >= last:
            # An agent can be faster than the news that its report answers.
            early = [node for node, applied in self._applied.items() if applied >= last]
            for node in sorted(early, key=self._heard.__getitem__):
                self._confirmed(transaction, node, self._heard[node])

    def reported(self, node: str, applied: int, at: float) -> None:
        """The agent of ``node`` has everything up to ``applied`` in its kernel.

        Late and repeated reports are fine.
        """
        known = self._applied.get(node)
        if known is not None and applied <= known:
            return
        self._applied[node] = applied
        self._heard[node] = at
        self._furthest = max(self._furthest, applied)
        if known is None:
            # What it had applied before it was first heard is no latency of anything seen here.
            for transaction in self._after(applied):
                transaction.waiting += 1
                transaction.written = False
            return
        for transaction in self._transactions[bisect_right(self._lasts, known) :]:
            if transaction.last > applied:
                break
            self._confirmed(transaction, node, at)

    def _confirmed(self, transaction: Transaction, node: str, at: float) -> None:
        seconds = max(0.0, at - transaction.at)
        transaction.latencies.append(seconds)
        transaction.slowest.append((node, seconds))
        self._on_applied(seconds)
        self._less(transaction)

    def gone(self, node: str) -> None:
        """The node left, was fenced, or its agent is silent: nothing waits for it any more."""
        known = self._applied.pop(node, None)
        self._heard.pop(node, None)
        if known is not None:
            for transaction in self._after(known):
                self._less(transaction)

    def _after(self, sequence: int) -> list[Transaction]:
        return self._transactions[bisect_right(self._lasts, sequence) :]

    def _less(self, transaction: Transaction) -> None:
        transaction.waiting -= 1
        transaction.written = False
        if transaction.waiting == 0 and transaction.latencies:
            self._on_converged(max(transaction.latencies))

    def unwritten(self, limit: int) -> list[Transaction]:
        """Transactions that have changed since they were last given out here, the oldest first."""
        found: list[Transaction] = []
        while self._left and len(found) < limit:
            found.append(self._left.popleft())
        for transaction in self._transactions:
            if len(found) >= limit:
                break
            if not transaction.written:
                transaction.written = True
                found.append(transaction)
        return found

    @property
    def agents(self) -> int:
        """Agents that have reported and still count."""
        return len(self._applied)

    def applied(self) -> dict[str, int]:
        """The last applied sequence of each agent (a copy)."""
        return dict(self._applied)

    def behind(self, sequence: int) -> list[str]:
        """Agents that have not yet applied ``sequence``, the furthest behind first."""
        late = [(applied, node) for node, applied in self._applied.items() if applied < sequence]
        return [node for _, node in sorted(late)]

    def latest(self, limit: int = 50) -> list[Convergence]:
        """The latest transactions, newest first."""
        return [self._view(transaction) for transaction in reversed(self._transactions[-limit:])]

    def newest(self) -> Convergence | None:
        """The latest transaction that an agent has confirmed."""
        found = next((one for one in reversed(self._transactions) if one.latencies), None)
        return self._view(found) if found is not None else None

    def of(self, sequence: int) -> Convergence | None:
        """The transaction that contains ``sequence``, with agents that are behind; None when not remembered."""
        place = bisect_right(self._lasts, sequence - 1)
        if place >= len(self._transactions) or self._transactions[place].first > sequence:
            return None
        transaction = self._transactions[place]
        return self._view(transaction, self.behind(transaction.last)[:BEHIND_LISTED])

    def _view(self, transaction: Transaction, behind: list[str] | None = None) -> Convergence:
        ordered = sorted(transaction.latencies)
        count = len(ordered)

        def at(share: float) -> float | None:
            return round(ordered[min(count - 1, int(share * count))], 6) if count else None

        return Convergence(
            first_sequence=transaction.first,
            last_sequence=transaction.last,
            decided_at=transaction.decided_at,
            summary=transaction.summary,
            expected=count + transaction.waiting,
            applied=count,
            first=at(0.0),
            median=at(0.5),
            p99=at(0.99),
            last=at(1.0) if count and not transaction.waiting else None,
            behind=behind or [],
            slowest=[Confirmed(node, round(seconds, 6)) for node, seconds in transaction.slowest],
        )
