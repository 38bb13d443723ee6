"""SIGKILL for random processes of the lab at random points of a replay; each is started again at once.

The seed decides when and whom, so a failure can be repeated. The first three victims are of different
kinds: the bus, the process that holds bus and controller, an agent; the rest is chance.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.lab.failures import CheckFailedError
from events import subjects

if TYPE_CHECKING:
    from deploy.lab.machines.buses import Buses
    from deploy.lab.runtime import Lab

RECOVERY_LIMIT_S = 30.0
BUS, CONTROLLER = "bus", "controller"


def schedule(commands: int, kills: int, agents: list[str], seed: int) -> list[tuple[int, str]]:
    """After how many answered commands whom to kill, in order. Pure."""
    # Reproducible, not secret.
    chance = random.Random(seed)  # noqa: S311
    points = sorted(chance.randrange(1, max(2, commands)) for _ in range(kills))
    kinds = [BUS, CONTROLLER, chance.choice(agents)]
    chance.shuffle(kinds)
    victims = kinds + [chance.choice([BUS, CONTROLLER, *agents]) for _ in range(kills)]
    return list(zip(points, victims, strict=False))


class Killer:
    """Follows a schedule; `due` is told the progress, `run` kills one after another."""

    def __init__(self, lab: Lab, plan: list[tuple[int, str]]) -> None:
        self._lab = lab
        self._plan = list(reversed(plan))
        self._victims: asyncio.Queue[str] = asyncio.Queue(maxsize=max(1, len(plan)))
        self.killed: list[str] = []

    def due(self, done: int) -> None:
        """Called after each answered command."""
        while self._plan and self._plan[-1][0] <= done:
            self._victims.put_nowait(self._plan.pop()[1])

    async def run(self) -> None:
        """Kills until cancelled. Raises CheckFailedError when something does not come back."""
        while True:
            victim = await self._victims.get()
            await self._kill(victim)
            self.killed.append(victim)
            self._victims.task_done()

    async def finished(self, working: asyncio.Task[None]) -> None:
        """Returns when every kill that was due has been recovered from, or raises what `run` raised.

        Cancelled, only the waiting ends; the killer goes on.
        """
        joined = asyncio.create_task(self._victims.join())
        try:
            await asyncio.wait({joined, working}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
        finally:
            joined.cancel()

    async def _kill(self, victim: str) -> None:
        lab = self._lab
        if victim == BUS and lab.buses is not None:
            await self._kill_one_of(lab.buses)
        elif victim == BUS:
            os.kill(self._bus_process(), signal.SIGKILL)
            await lab.wait_until(
                lab.controller_is_there, RECOVERY_LIMIT_S, "the controller after the bus's death"
            )
        elif victim == CONTROLLER:
            await lab.controller.kill()
            await lab.controller.start()
            await lab.wait_until(lab.controller_is_there, RECOVERY_LIMIT_S, "the controller to be back")
        else:
            node = lab.nodes[victim]
            await node.agent.kill()
            await node.agent.start()
            since_s = node.agent.started_at_s
            await lab.wait_until(
                lambda: lab.reports(victim, since_s=since_s),
                RECOVERY_LIMIT_S,
                f"the agent of {victim} to be back",
            )

    async def _kill_one_of(self, buses: Buses) -> None:
        """The server that leads the log, or the only one; it is back and level when this returns."""
        lab, stream = self._lab, subjects.stream(self._lab.log.cluster)
        name = await buses.leader(lab.bus, stream)
        server = buses.hub.get(name) or next(iter(buses.hub.values()))
        await server.kill()
        await server.start()
        await lab.wait_until(lab.controller_is_there, RECOVERY_LIMIT_S, "the controller after a server's death")
        if buses.replicas > 1:
            await lab.wait_until(
                lambda: buses.level(lab.bus, stream, server.name),
                RECOVERY_LIMIT_S,
                f"{server.name} to catch up",
            )

    def _bus_process(self) -> int:
        """The server process that `isthmus up` started: the one child of it that is a nats-server."""
        process = self._lab.controller.process
        if process is None:
            raise CheckFailedError("the controller does not run")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for child in children:
            if "nats-server" in Path(f"/proc/{child}/comm").read_text():
                return int(child)
        raise CheckFailedError(
            f"`isthmus up` (PID {process.pid}) has no nats-server among its children {children}"
        )
