"""An hour of recorded churn, with agents killed at random: nothing that is not broken is called lost."""

from __future__ import annotations

import random
from typing import Any

from tests.mesh.recording import recorded_hour
from tests.mesh.world import World

LOSS = 0.005


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
