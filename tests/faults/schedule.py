"""What goes wrong, when, for how long: drawn from one seed, so that a run can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "pause", "cut off", "fill the disk of", "set the clock of"]
Role = Literal[
    "an agent", "the leading controller", "a following controller", "the leading server", "a following server"
]

EVERY_S = 0.75
LASTS_MAX_S = 2.5
"""Long enough for the lease (2 s) to be lost."""
AHEAD_S = (-3600, -30, 3, 30, 3600)
"""How far a clock is set: past the tolerance between clocks and within it, forwards and back."""


@dataclass(frozen=True)
class Fault:
    """``at_s`` after the load began ``role`` is hit; who has the role is found out at that moment.

    ``pick`` chooses among several of one role. ``lasts_s`` is how long a pause, a cut or a full disk holds;
    what was killed is started again after it, and what a clock was set by (``ahead_s``) is taken back.
    """

    at_s: float
    kind: Kind
    role: Role
    pick: int
    lasts_s: float
    ahead_s: int = 0

    def __str__(self) -> str:
        by = f" by {self.ahead_s:+,} s" if self.ahead_s else ""
        return f"{self.at_s:7.2f} s  {self.kind} {self.role}{by} for {self.lasts_s:.2f} s"


def deck(servers: int, *, clocks: bool = True) -> list[tuple[Kind, Role]]:
    """Everything that can happen to whom."""
    server_roles: list[Role] = ["the leading server", *(["a following server"] if servers > 1 else [])]  # type: ignore[list-item]
    roles: list[Role] = ["an agent", "the leading controller", "a following controller", *server_roles]
    kinds: list[Kind] = ["kill", "pause", "cut off", *(["set the clock of"] if clocks else [])]  # type: ignore[list-item]
    return [*((kind, role) for role in roles for kind in kinds), ("fill the disk of", server_roles[-1])]


def schedule(
    seed: int, duration_s: float, *, servers: int, every_s: float = EVERY_S, clocks: bool = True
) -> list[Fault]:
    """Faults about ``every_s`` apart, in the order of time; two may overlap.

    The deck is shuffled and dealt, again and again: however short the run, everything happens once.
    """
    chance = random.Random(f"isthmus faults {seed}")
    cards = deck(servers, clocks=clocks)
    count = max(len(cards), round(duration_s / every_s))
    dealt: list[tuple[Kind, Role]] = []
    while len(dealt) < count:
        dealt += chance.sample(cards, len(cards))
    step_s = duration_s / count
    return [
        Fault(
            at_s=round((index + chance.random()) * step_s, 3),
            kind=kind,
            role=role,
            pick=chance.randrange(2**16),
            lasts_s=round(chance.uniform(0.1, LASTS_MAX_S), 3),
            ahead_s=chance.choice(AHEAD_S) if kind == "set the clock of" else 0,
        )
        for index, (kind, role) in enumerate(dealt[:count])
    ]
