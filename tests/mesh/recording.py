"""The busiest hour of two recordings of instances that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from deploy.churn.trace import ChurnStep, changes, load

DATA = Path(__file__).parents[1] / "data" / "node-churn"
BUSIEST = {"4-node_us-west-2c_v100_1.json": 3416, "4-node_us-east-2a_v100_1.json": 1768}
"""Recording → the tick at which its busiest hour begins; a tick is five minutes."""
TICKS = 13


def recorded_hour(run: str = "hour") -> Iterator[ChurnStep]:
    """Joins and leaves; ``run`` makes names and uids others each time."""
    traces = load([DATA / name for name in BUSIEST])
    hour = [
        replace(trace, counts=trace.counts[begin : begin + TICKS])
        for trace, begin in zip(traces, BUSIEST.values(), strict=True)
    ]
    yield from changes(hour, run=run, order="random", seed=3)
