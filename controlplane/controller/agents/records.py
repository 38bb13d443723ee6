"""The shapes of the record: one line for each change of an agent, each transaction's way, each alarm.

Times are microseconds of Unix time by the controller's clock.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from datetime import UTC, datetime
from typing import Literal, NamedTuple

import msgspec

from controlplane.controller.agents.convergence import Confirmed, Convergence
from events.status import WaysReport

Kernel = Literal["agrees", "differs", "unchecked", ""]
"""The attestation compared with the log. ``unchecked``: reported, but nothing to compare it with (yet)."""

LATENCIES_MAX = 1024
"""Latencies kept of one transaction; of more agents an even selection."""


class Observed(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """An agent as it was known at one moment.

    ``state`` is its own word, or ``silent`` (none for three of its intervals), ``unreported`` or ``unknown``.
    ``heard_us`` is the arrival of that report; ``kernel`` was found at sequence ``kernel_at``, and
    ``rows`` are those that the agent names as different.
    """

    node: str
    uid: str
    heard_us: int
    applied: int = 0
    state: str = "unknown"
    kernel: Kernel = ""
    kernel_at: int = 0
    digest: str = ""
    rows: tuple[str, ...] = ()
    conditions: tuple[str, ...] = ()
    peers: int = 0
    version: str = ""
    interval_s: float = 10.0
    gateway: bool = False
    path: str = ""
    """Whether packets of its pods pass, in its own word."""
    mtu: int = 0
    path_mtu: int = 0
    fast_path: str = ""
    ways: WaysReport | None = None
    """Which way its packets take to its peers. Not recorded, as what was measured of them."""
    pods: int = -1
    """Pods with an address of its range; −1: not known. Not recorded: it changes with every pod."""


class ConvergenceRecord(NamedTuple):
    """One transaction on its way to the agents, as far as it is known.

    ``latencies`` are latencies in ascending order, in seconds: all of them, or an even selection of
    ``applied``. ``slowest`` are the agents that confirmed last, in order.
    """

    first: int
    last: int
    stored_us: int
    decided_us: int
    summary: str
    expected: int
    applied: int
    latencies: array[float]
    slowest: tuple[tuple[str, float], ...]

    def seen_at(self, moment_us: int) -> Convergence:
        """What was known of it at a moment."""
        passed_s = max(0.0, (moment_us - self.stored_us) / 1e6)
        known = bisect_right(self.latencies, passed_s)
        count = len(self.latencies)
        applied = round(known * self.applied / count) if count else 0

        def at(share: float) -> float | None:
            return round(self.latencies[min(known - 1, int(share * known))], 6) if known else None

        return Convergence(
            first_sequence=self.first,
            last_sequence=self.last,
            decided_at=datetime.fromtimestamp(self.decided_us / 1e6, UTC) if self.decided_us else None,
            summary=self.summary,
            expected=self.expected,
            applied=applied,
            first=at(0.0),
            median=at(0.5),
            p99=at(0.99),
            last=at(1.0) if known and applied >= self.expected else None,
            slowest=[Confirmed(node, seconds) for node, seconds in self.slowest if seconds <= passed_s],
        )


class Alarm(msgspec.Struct, frozen=True, kw_only=True):
    """Something that needed a person, when it was raised."""

    name: str
    code: str
    message: str
    at: datetime


class RecordBatch(NamedTuple):
    """What is written at once. ``gone``: uid → when it ceased to be a member (or to be recorded)."""

    now_us: int
    agents: list[Observed]
    since_us: list[int]
    gone: list[tuple[str, int]]
    records: list[ConvergenceRecord]
    alarms: list[Alarm]
