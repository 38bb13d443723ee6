"""An hour of recorded churn, with agents killed at random: nothing that is not broken is called lost."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploy.churn.trace import ChurnStep, changes, load
from tests.mesh.world import World

DATA = Path(__file__).parents[1] / "data" / "node-churn"
BUSIEST = {"4-node_us-west-2c_v100_1.json": 3416, "4-node_us-east-2a_v100_1.json": 1768}
"""Recording → the tick at which its busiest hour begins; a tick is five minutes."""
TICKS = 13
LOSS = 0.005


def recorded_hour() -> Iterator[ChurnStep]:
    traces = load([DATA / name for name in BUSIEST])
    hour = [
        replace(trace, counts=trace.counts[begin : begin + TICKS])
        for trace, begin in zip(traces, BUSIEST.values(), strict=True)
    ]
    yield from changes(hour, run="hour", order="random", seed=3)


def test_no_false_alarm_in_an_hour_of_recorded_churn_with_agents_killed() -> None:
    pick = random.Random(20)
    world = World({}, loss=LOSS)
    begun, killed, alarms = world.now, 0, list[Any]()
    back: list[tuple[float, str]] = []
    pending = sorted(
        (begun + change.at_s + pick.random() * 20, number, change)
        for number, change in enumerate(recorded_hour())
    )

    def look() -> None:
        if world.slot % 4 == 0:
            alarms.extend(world.collector.settled(set())[0])

    while world.now - begun < 3600:
        while pending and pending[0][0] <= world.now:
            _, _, change = pending.pop(0)
            name = change.instance.name
            if change.joins:
                world.add(name, change.instance.site)
            else:
                world.remove(name)
        for at, name in [one for one in back if one[0] <= world.now]:
            back.remove((at, name))
            if name in world.agents:
                world.restart(world.agents[name])
        alive = [agent for agent in world.agents.values() if agent.alive]
        if alive and pick.random() < 1 / 30:
            victim = pick.choice(alive)
            victim.alive = False
            back.append((world.now + pick.choice((0.5, 3, 20, 70)), victim.name))
            killed += 1
        world.run(1, look)
    assert killed > 60
    assert alarms == []
    assert not world.collector.findings()
