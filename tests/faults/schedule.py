"""What goes wrong, when, for how long: drawn from one seed, so that a run can be repeated."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill server", "pause server", "kill controller", "pause controller", "cut link"]


@dataclass(frozen=True)
class Fault:
    """``at_s`` after the load began; ``target`` counts servers, controllers or links from 0.

    ``lasts_s`` is how long a pause or cut holds; a killed server or controller is started again
    after it.
    """

    at_s: float
    kind: Kind
    target: int
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.at_s:6.2f} s  {self.kind} {self.target} for {self.lasts_s:.2f} s"


def schedule(
    seed: int, duration_s: float, *, servers: int, controllers: int, links: int, every_s: float = 1.2
) -> list[Fault]:
    """Faults about ``every_s`` apart, in the order of time; two may overlap."""
    chance = random.Random(f"isthmus faults {seed}")
    targets: dict[Kind, int] = {
        "kill server": servers,
        "pause server": servers,
        "kill controller": controllers,
        "pause controller": controllers,
        "cut link": links,
    }
    kinds = [kind for kind, count in targets.items() if count]
    faults = []
    at_s = chance.uniform(0.2, every_s)
    while at_s < duration_s:
        kind = chance.choice(kinds)
        faults.append(
            Fault(
                at_s=round(at_s, 3),
                kind=kind,
                target=chance.randrange(targets[kind]),
                lasts_s=round(chance.uniform(0.1, 2.5), 3),
            )
        )
        at_s += chance.uniform(0.3, 2 * every_s - 0.3)
    return faults
