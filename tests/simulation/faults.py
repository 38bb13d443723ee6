"""What goes wrong, when: a schedule drawn from a seed, that can be made smaller."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

KINDS = (
    "lose requests",  # a client's request never arrives
    "lose replies",  # it arrives, its answer does not
    "repeat requests",  # it arrives twice
    "delay requests",  # it arrives late, behind others
    "lose appends",  # the log never gets the events
    "lose acks",  # the log has them, the controller does not learn so
    "late appends",  # the log gets them after the controller gave up waiting
    "delay log",  # what is stored is read late
    "lose reports",  # agents' reports do not arrive
    "cut",  # the controller reaches neither log nor lease
    "crash",  # the process is killed, and started again when the fault ends
    "pause",  # the process stands still between two instructions, and goes on when the fault ends
)
CLOCKS_OFF_S = (3600.0, -3600.0, 40.0, -40.0, 2.5)
"""By how much a controller's wall clock is wrong while the fault "clock" lasts: it jumps, and jumps back."""
AGENT_KINDS = ("delay log", "lose reports", "cut", "crash")


class Fault(NamedTuple):
    """``kind`` hits ``target`` from ``at_s`` for ``for_s`` seconds, each message with probability ``p``."""

    kind: str
    target: str
    at_s: float
    for_s: float
    p: float

    def __str__(self) -> str:
        often = f", {self.p:.0%} of them" if self.p < 1 else ""
        return f"{self.at_s:6.2f} s … {self.at_s + self.for_s:6.2f} s  {self.target}: {self.kind}{often}"


def draw(seed: int, controllers: Sequence[str], nodes: Sequence[str], length_s: float) -> tuple[Fault, ...]:
    """A schedule of a few to a dozen faults within ``length_s``."""
    pick = random.Random(f"faults/{seed}")
    faults = []
    for _ in range(pick.randrange(2, 12)):
        on_agent = pick.random() < 0.3
        kind = pick.choice(AGENT_KINDS if on_agent else KINDS)
        faults.append(
            Fault(
                kind,
                pick.choice(nodes if on_agent else controllers),
                round(pick.uniform(0, length_s), 2),
                round(pick.uniform(0.1, 6.0), 2),
                1.0 if kind in {"cut", "crash", "pause"} else pick.choice((0.2, 0.5, 1.0)),
            )
        )
    clocks = random.Random(f"clocks/{seed}")  # dice of their own: what else goes wrong stays the same
    faults += [
        Fault(
            "clock",
            clocks.choice(controllers),
            round(clocks.uniform(0, length_s), 2),
            round(clocks.uniform(0.1, 6.0), 2),
            1.0,
        )
        for _ in range(clocks.randrange(0, 4))
    ]
    return tuple(sorted(faults, key=lambda fault: fault.at_s))


class Weather:
    """Answers at any moment whether something goes wrong here and now. Each link draws from its own dice."""

    def __init__(self, seed: int, faults: Sequence[Fault], clock: Callable[[], float]) -> None:
        self._seed = seed
        self._clock = clock
        self._by_target: dict[str, list[Fault]] = {}
        for fault in faults:
            self._by_target.setdefault(fault.target, []).append(fault)
        self._dice: dict[tuple[str, str], random.Random] = {}

    def strikes(self, kind: str, target: str) -> bool:
        """Whether a fault of that kind hits this message."""
        faults = self._by_target.get(target)
        if not faults:
            return False
        now_s = self._clock()
        for fault in faults:
            if fault.kind == kind and fault.at_s <= now_s < fault.at_s + fault.for_s:
                return fault.p >= 1 or self.dice(kind, target).random() < fault.p
        return False

    def until(self, kind: str, target: str) -> float:
        """Seconds until the faults of that kind that hit now are over; 0 when none does."""
        now_s = self._clock()
        ends = [
            fault.at_s + fault.for_s
            for fault in self._by_target.get(target, ())
            if fault.kind == kind and fault.at_s <= now_s < fault.at_s + fault.for_s
        ]
        return max(ends) - now_s + 1e-6 if ends else 0.0

    def clock_off_s(self, target: str) -> float:
        """By how many seconds the target's wall clock is wrong now."""
        now_s = self._clock()
        return sum(
            random.Random(f"{self._seed}/clock/{fault.at_s}").choice(CLOCKS_OFF_S)
            for fault in self._by_target.get(target, ())
            if fault.kind == "clock" and fault.at_s <= now_s < fault.at_s + fault.for_s
        )

    def pauses(self, target: str) -> list[Fault]:
        """When the target stands still, and for how long."""
        return [fault for fault in self._by_target.get(target, ()) if fault.kind == "pause"]

    def crashes(self, target: str) -> list[Fault]:
        """When the target is killed, and for how long."""
        return [fault for fault in self._by_target.get(target, ()) if fault.kind == "crash"]

    def dice(self, kind: str, target: str) -> random.Random:
        """The random numbers of one link: a fault elsewhere does not change them."""
        known = self._dice.get((kind, target))
        if known is None:
            known = self._dice[kind, target] = random.Random(f"{self._seed}/{kind}/{target}")
        return known


def shrink(faults: Sequence[Fault], fails: Callable[[Sequence[Fault]], bool]) -> tuple[Fault, ...]:
    """The schedule without the faults that the failure does not need (greedy; each is tried once more)."""
    needed = list(faults)
    for fault in reversed(faults):
        fewer = [other for other in needed if other is not fault]
        if fails(fewer):
            needed = fewer
    return tuple(needed)
