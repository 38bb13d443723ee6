"""Callers: they keep a command's id over all tries and write down what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from events import subjects
from events.errors import IsthmusError, Unavailable
from events.protocol.commands import COMMAND_ID, Command, CommandReply
from tests.simulation.controllers import SimController
from tests.simulation.faults import Weather
from tests.simulation.truth import Wrong

TRY_S = 1.0
GIVE_UP_S = 240.0

_encode = msgspec.json.Encoder().encode


class Client:
    """One caller with its own links to the controllers."""

    def __init__(
        self,
        name: str,
        cluster: str,
        controllers: list[SimController],
        weather: Weather,
        acknowledged: dict[str, CommandReply],
    ) -> None:
        self.name = name
        self._cluster = cluster
        self._controllers = controllers
        self._weather = weather
        self._dice = weather.dice("client", name)
        self._acknowledged = acknowledged
        self._sent = 0

    async def send(self, command: Command) -> str | None:
        """Until there is an answer: None when it was granted, the code when it was refused."""
        self._sent += 1
        command_id = f"{self.name}-{self._sent}"
        node = getattr(command, "node", "")
        name = type(command).name
        subject = (
            subjects.node_command(self._cluster, node, name)
            if type(command).node_scoped
            else subjects.command(self._cluster, name)
        )
        body = _encode(command)
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + GIVE_UP_S
        while loop.time() < give_up_s:
            answered: asyncio.Future[CommandReply | IsthmusError] = loop.create_future()
            self._try(subject, {COMMAND_ID: command_id}, body, answered)
            try:
                async with asyncio.timeout(TRY_S):
                    outcome = await answered
            except TimeoutError:
                continue
            if isinstance(outcome, CommandReply):
                if outcome.events:
                    self._acknowledged[command_id] = outcome
                return None
            if not isinstance(outcome, Unavailable):
                return outcome.code
            await asyncio.sleep(self._dice.uniform(0.05, 0.2))
        raise Wrong(f"{name} of {self.name} got no answer in {GIVE_UP_S:g} s, long after every fault was over")

    def _try(self, subject: str, headers: dict[str, str], body: bytes, answered: asyncio.Future[Any]) -> None:
        serving = [controller for controller in self._controllers if controller.serving]
        if not serving:
            return
        # Two may serve at once (a handover, a lost lease): the bus picks any of the queue group.
        controller = self._dice.choice(serving)
        weather, target = self._weather, controller.name

        def answer(outcome: CommandReply | IsthmusError) -> None:
            if not weather.strikes("lose replies", target):
                self._after(self._dice.uniform(0.0, 0.01), _settle, answered, outcome)

        if weather.strikes("lose requests", target):
            return
        copies = 2 if weather.strikes("repeat requests", target) else 1
        for _ in range(copies):
            late_s = self._dice.uniform(0.0, 0.005)
            if weather.strikes("delay requests", target):
                late_s += self._dice.uniform(0.0, 3.0)
            self._after(late_s, self._deliver, controller, subject, headers, body, answer)

    def _deliver(
        self, controller: SimController, subject: str, headers: dict[str, str], body: bytes, answer: Any
    ) -> None:
        if controller.serving:
            controller.request(subject, headers, body, answer)

    def _after(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, function, *arguments)


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if not future.done():
        future.set_result(outcome)
