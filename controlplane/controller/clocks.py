"""The controller's clocks: one that only this process moves, one for the log, and how far the others are off.

Durations that something irreversible follows from (a node's silence, a range's rest) are measured by
:class:`Watch`: a wall clock that is set, a process that was stopped and a machine that slept do not move it.
:class:`LogClock` gives events times that never run backwards and never stand still. :class:`ClockCheck` keeps
the differences between clocks, for people and for :attr:`ClockCheck.apart`. Nothing here sets a clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from events.protocol.queries import Condition

STALL_S = 5.0
"""A process that did not look at its watch for so long stood still, and did not watch meanwhile."""

TOLERANCE_S = 10.0
"""Clocks count as apart from here on. Reading another one over the bus is off by much less."""

AGENTS_SHOWN = 5
AGENTS_MAX = 10_000

Now = Callable[[], datetime]
Monotonic = Callable[[], float]


def wall_clock() -> datetime:
    """The machine's wall clock (UTC)."""
    return datetime.now(UTC)


class Watch:
    """Time that this process has watched. Its moments are comparable with each other, and with nothing else.

    It starts with the wall clock's time and moves by the monotonic clock alone, at most ``stall_s`` from one
    :meth:`look` to the next.
    """

    def __init__(
        self, *, monotonic: Monotonic = time.monotonic, wall: Now = wall_clock, stall_s: float = STALL_S
    ) -> None:
        self._monotonic = monotonic
        self._wall = wall
        self._stall_s = stall_s
        self._looked_s = monotonic()
        self._moment = wall()

    def look(self) -> bool:
        """To be called about once a second. False when the process has stood still meanwhile."""
        now_s = self._monotonic()
        passed_s = now_s - self._looked_s
        self._moment += timedelta(seconds=min(passed_s, self._stall_s))
        self._looked_s = now_s
        return passed_s <= self._stall_s

    def now(self) -> datetime:
        """The present by this watch."""
        return self._moment + timedelta(seconds=min(self._monotonic() - self._looked_s, self._stall_s))

    def wall(self, moment: datetime) -> datetime:
        """A moment of this watch as the wall clock counts now, for people."""
        return self._wall() - (self.now() - moment)


class LogClock:
    """The time of the next event: the wall clock's, but never before the last event's nor standing still.

    Behind an event from the future (a controller's clock was ahead) time goes on from there at half its speed:
    a deadline that was set by such a clock comes after twice its duration, and the wall clock catches up.
    """

    def __init__(self, *, wall: Now = wall_clock, monotonic: Monotonic = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last: datetime | None = None
        self._since_s = 0.0

    def now(self, last: datetime) -> datetime:
        """The time for an event behind one of time ``last``."""
        now_s = self._monotonic()
        if last != self._last:
            self._last, self._since_s = last, now_s
        return max(self._wall(), last + timedelta(seconds=(now_s - self._since_s) / 2))


@dataclass(slots=True, eq=False)
class ClockCheck:
    """How far other clocks are from this controller's wall clock. Positive numbers of seconds: they are ahead.

    ``last_event`` tells the time of the log's last event.
    """

    wall: Now = wall_clock
    monotonic: Monotonic = time.monotonic
    last_event: Callable[[], datetime] = lambda: datetime.min.replace(tzinfo=UTC)
    _bus: tuple[datetime, float] | None = None
    agents_s: dict[str, float] = field(default_factory=dict)
    """Names of the nodes whose clocks are more than :data:`TOLERANCE_S` off, at most :data:`AGENTS_MAX`."""

    def bus(self, moment: datetime, at_s: float) -> None:
        """The bus server's clock showed ``moment`` when the monotonic clock showed ``at_s``."""
        self._bus = moment, at_s

    @property
    def bus_s(self) -> float | None:
        """How far the bus server's clock is ahead now; None before the first comparison.

        A step of this machine's wall clock shows at once, one of the server's with the next comparison.
        """
        if self._bus is None:
            return None
        moment, at_s = self._bus
        return (moment - self.wall()).total_seconds() + self.monotonic() - at_s

    def agent(self, node: str, sent_at: datetime) -> None:
        """A report came that was sent at this moment, by the agent's clock."""
        ahead_s = (sent_at - self.wall()).total_seconds()
        if abs(ahead_s) > TOLERANCE_S:
            if node in self.agents_s or len(self.agents_s) < AGENTS_MAX:
                self.agents_s[node] = ahead_s
        else:
            self.agents_s.pop(node, None)

    def forget(self, node: str) -> None:
        """The node is no member any more."""
        self.agents_s.pop(node, None)

    @property
    def log_s(self) -> float:
        """How far the time of the log's last event lies in the future."""
        return (self.last_event() - self.wall()).total_seconds()

    @property
    def apart(self) -> bool:
        """Whether this controller and the bus disagree: then nothing irreversible follows from time."""
        ahead_s = self.bus_s
        return ahead_s is not None and abs(ahead_s) > TOLERANCE_S

    @property
    def ahead(self) -> bool:
        """Whether the log's last event lies in the future, by this controller's clock."""
        return self.log_s > TOLERANCE_S

    def conditions(self) -> Iterator[Condition]:
        """What a person should know: which clocks disagree by how much, and what is held because of it."""
        found: list[str] = []
        held: list[str] = []
        if (bus_s := self.bus_s) is not None and abs(bus_s) > TOLERANCE_S:
            found.append(f"the bus server's clock is {_off(bus_s)} this controller's")
            held = ["no silent node is removed", "no quarantine ends"]
        if (log_s := self.log_s) > TOLERANCE_S:
            found.append(f"the log's last event is {log_s:,.0f} s ahead of this controller's clock")
            held = held or ["no silent node is removed"]
        if self.agents_s:
            worst = sorted(self.agents_s.items(), key=lambda item: -abs(item[1]))
            shown = ", ".join(f"{node} is {_off(ahead_s)} it" for node, ahead_s in worst[:AGENTS_SHOWN])
            more = f" and {len(worst) - AGENTS_SHOWN:,} more" if len(worst) > AGENTS_SHOWN else ""
            found.append(f"nodes' clocks against this controller's: {shown}{more}")
        if found:
            until = f" Until they agree within {TOLERANCE_S:g} s, {' and '.join(held)}." if held else ""
            yield Condition(
                code="clocks_disagree",
                severity="warning",
                message=f"{'; '.join(found)}.{until} Set the clocks of the machines (chronyc tracking)",
            )


def _off(ahead_s: float) -> str:
    return f"{abs(ahead_s):,.0f} s {'ahead of' if ahead_s > 0 else 'behind'}"
