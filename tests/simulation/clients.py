"""Callers: they keep a command's id over all tries and write down what they were told."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from typing import Any

import msgspec

from events import subjects
from events.errors import IsthmusError, Unavailable
from events.protocol.commands import (
    COMMAND_ID,
    Command,
    CommandReply,
    FenceNode,
    JoinNode,
    LeaveNode,
    RemoveNode,
)
from events.protocol.queries import NodeView, ShowNode
from tests.linearizability import Op
from tests.simulation.controllers import SimController
from tests.simulation.faults import Weather
from tests.simulation.truth import Wrong

TRY_S = 1.0
GIVE_UP_S = 240.0
LOOK_S = 10.0
"""Longer than any pause: what stood still answers when it goes on."""

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
        history: list[Op],
        told: dict[str, set[str]],
    ) -> None:
        """``history`` takes the operations on members; ``told`` takes what any answer said, by command id."""
        self.name = name
        self._cluster = cluster
        self._controllers = controllers
        self._weather = weather
        self._dice = weather.dice("client", name)
        self._acknowledged = acknowledged
        self._history = history
        self._told = told
        self._context = contextvars.copy_context()
        self._sent = 0

    async def send(self, command: Command) -> str | None:
        """Until there is an answer: None when it was granted, the code when it was refused."""
        start = asyncio.get_running_loop().time()
        operation = _operation(self.name, command, start)
        place = len(self._history)
        if operation is not None:
            self._history.append(operation)
        outcome = await self._send(command)
        if operation is not None:
            self._history[place] = operation._replace(
                end=asyncio.get_running_loop().time(),
                told="" if isinstance(outcome, CommandReply) else outcome.code,
                epoch=outcome.result.get("epoch", 0) if isinstance(outcome, CommandReply) else 0,
            )
        return None if isinstance(outcome, CommandReply) else outcome.code

    async def look(self, node: str) -> None:
        """Ask whoever serves who the node is, once; what is answered goes into the history."""
        loop = asyncio.get_running_loop()
        serving = [controller for controller in self._controllers if controller.serving]
        if not serving:
            return
        operation = Op(self.name, "show", node, "", loop.time())
        controller = self._dice.choice(serving)
        answering = loop.create_task(controller.ask(ShowNode(node=node)), context=controller.context)
        try:
            async with asyncio.timeout(LOOK_S):
                view = await asyncio.shield(answering)
        except Unavailable:
            return
        except TimeoutError:
            answering.add_done_callback(lambda task: task.cancelled() or task.exception())
            return
        except IsthmusError as error:
            self._history.append(operation._replace(end=loop.time(), told=error.code))
            return
        assert isinstance(view, NodeView)
        self._history.append(operation._replace(end=loop.time(), uid=view.uid, epoch=view.epoch))

    async def _send(self, command: Command) -> CommandReply | IsthmusError:
        self._sent += 1
        command_id = f"{self.name}-{self._sent}"
        node = getattr(command, "node", "")
        name = type(command).name
        subject = (
            subjects.node_command(self._cluster, node, name)
            if type(command).node_scoped
            else subjects.command(self._cluster, name)
        )
        stored_as = f"node/{node}/{command_id}" if type(command).node_scoped else command_id
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
                    self._acknowledged[stored_as] = outcome
                return outcome
            if not isinstance(outcome, Unavailable):
                return outcome
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
            if not isinstance(outcome, Unavailable):
                code = outcome.code if isinstance(outcome, IsthmusError) else "done"
                self._told.setdefault(headers[COMMAND_ID], set()).add(code)
            if not weather.strikes("lose replies", target):
                self._after(self._dice.uniform(0.0, 0.01), _settle, answered, outcome)

        if weather.strikes("lose requests", target):
            return
        copies = 2 if weather.strikes("repeat requests", target) else 1
        for _ in range(copies):
            late_s = self._dice.uniform(0.0, 0.005)
            if weather.strikes("delay requests", target):
                late_s += self._dice.uniform(0.0, 3.0)
            asyncio.get_running_loop().call_later(
                late_s,
                controller.request,
                *(controller.socket(), subject, headers, body, answer),
                context=controller.context,
            )

    def _after(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        asyncio.get_running_loop().call_later(seconds, function, *arguments, context=self._context)


def _operation(who: str, command: Command, start: float) -> Op | None:
    """The command as an operation on a member; None when it is none."""
    match command:
        case JoinNode():
            return Op(who, "join", command.node, command.uid, start)
        case LeaveNode():
            return Op(who, "leave", command.node, command.uid, start)
        case RemoveNode() | FenceNode():
            return Op(who, "remove", command.node, "", start)
        case _:
            return None


def _settle(future: asyncio.Future[Any], outcome: object) -> None:
    if not future.done():
        future.set_result(outcome)
