"""Clients that contend for a few members and write down when they asked what, and what they were told.

The history goes to :mod:`tests.linearizability`. Beside it: an answer about the present is never older than
what anybody had been told before the question, and a command's id has one outcome, however often and
wherever it is sent again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from deploy.churn.drive import Fleet
from events.bus.client import ControllerClient
from events.errors import IsthmusError, Unavailable
from events.ids import new_id
from events.log import LogReader
from events.protocol.commands import Command, CommandReply, JoinNode, LeaveNode
from events.protocol.queries import ListRanges, NodeView, RangePage, ShowNode
from tests.linearizability import Op, violation

MEMBERS = 3
LANES = 4
TRY_S = 1.0
LIMIT_S = 20.0
AGAIN = 0.3
"""How often an old command is sent once more instead of a new one."""

REFUSALS = ("allocation.refused", "clb.refused", "conflict.refused")


class Probes:
    """Runs the lanes and judges what they were told."""

    def __init__(self, seed: int, fleet: Fleet) -> None:
        self.history: list[Op] = []
        self.wrong: list[str] = []
        self._fleet = fleet
        self._seed = seed
        self._told: dict[str, tuple[Command, str]] = {}
        """Command id → the command, and what it came to: a code, or where its range began to be whose."""
        self._newest = 0
        """The newest sequence that anybody was told."""

    async def lane(self, number: int, client: ControllerClient, stopped: Callable[[], bool]) -> None:
        """One operation after the other until ``stopped``."""
        dice = random.Random(f"{self._seed}/probe/{number}")
        while not stopped():
            member = dice.randrange(MEMBERS)
            chance = dice.random()
            if chance < 0.3:
                await self._look(number, client, f"probe-{member}")
            elif chance < 0.4:
                await self._newer(client)
            elif chance < 0.4 + AGAIN and self._told:
                await self._again(client, dice.choice(list(self._told)))
            else:
                await self._change(number, client, member, joins=dice.random() < 0.5)
            await asyncio.sleep(dice.uniform(0.0, 0.05))

    async def leave(self, client: ControllerClient) -> None:
        """No member is left, so that the rest of the run settles without them."""
        for member in range(MEMBERS):
            command = LeaveNode(node=f"probe-{member}", uid=f"uid-probe-{member}")
            try:
                await client.send(command, timeout_s=60.0, try_timeout_s=TRY_S)
            except IsthmusError as error:
                if error.code != "node_unknown":
                    self.wrong.append(f"a probe does not leave: {error}")
            self._fleet.live.pop(command.node, None)

    async def judge(self, log: LogReader) -> list[str]:
        """Everything that is wrong. Reads the log as it is stored: its headers, and nothing that folds it."""
        stored: dict[str, list[str]] = {}
        async for batch in log.read():
            for message in batch.messages:
                stored.setdefault(message.headers.get("ce-commandid", ""), []).append(
                    message.headers.get("ce-type", "")
                )
        wrong = list(self.wrong)
        for command_id, (command, told) in self._told.items():
            types = stored.get(command_id, [])
            effect = [kind for kind in types if not kind.startswith(REFUSALS)]
            if told == "written" and not effect:
                wrong.append(f"{command.name} {command_id} was acknowledged and is not in the log")
            if told != "written" and effect and len(effect) == len(types):
                wrong.append(f"{command.name} {command_id} was answered {told!r}, and the log has {types}")
        found = violation(self.history)
        return [*wrong, found] if found else wrong

    # --- operations --------------------------------------------------------------------------------------

    async def _change(self, lane: int, client: ControllerClient, member: int, *, joins: bool) -> None:
        node, uid = f"probe-{member}", f"uid-probe-{member}"
        command: Command
        if joins:
            command = JoinNode(node=node, uid=uid, kind="cloud", underlay=f"192.168.250.{member + 1}")
        else:
            command = LeaveNode(node=node, uid=uid)
        loop, command_id = asyncio.get_running_loop(), new_id()
        op = Op(f"lane-{lane}", "join" if joins else "leave", node, uid, loop.time())
        try:
            reply = await client.send(command, command_id=command_id, timeout_s=LIMIT_S, try_timeout_s=TRY_S)
        except Unavailable:
            self.history.append(op)
            return
        except IsthmusError as error:
            self.history.append(op._replace(end=loop.time(), told=error.code))
            self._told[command_id] = (command, error.code)
            return
        self.history.append(op._replace(end=loop.time(), epoch=reply.result.get("epoch", 0)))
        self._told[command_id] = (command, _outcome(reply))
        self._newest = max(self._newest, reply.sequence)
        if joins:
            self._fleet.live[node] = uid
        else:
            self._fleet.live.pop(node, None)

    async def _look(self, lane: int, client: ControllerClient, node: str) -> None:
        loop = asyncio.get_running_loop()
        op = Op(f"lane-{lane}", "show", node, "", loop.time())
        try:
            view = await client.ask(ShowNode(node=node), NodeView, timeout_s=LIMIT_S, try_timeout_s=TRY_S)
        except Unavailable:
            return
        except IsthmusError as error:
            self.history.append(op._replace(end=loop.time(), told=error.code))
            return
        self.history.append(op._replace(end=loop.time(), uid=view.uid, epoch=view.epoch))

    async def _newer(self, client: ControllerClient) -> None:
        known = self._newest
        try:
            page = await client.ask(ListRanges(limit=1), RangePage, timeout_s=LIMIT_S, try_timeout_s=TRY_S)
        except Unavailable:
            return
        if page.sequence < known:
            self.wrong.append(f"a question was answered as of {page.sequence}, after {known} was acknowledged")
        self._newest = max(self._newest, page.sequence)

    async def _again(self, client: ControllerClient, command_id: str) -> None:
        command, told = self._told[command_id]
        try:
            reply = await client.send(command, command_id=command_id, timeout_s=LIMIT_S, try_timeout_s=TRY_S)
            now = _outcome(reply)
        except Unavailable:
            return
        except IsthmusError as error:
            now = error.code
        if now != told:
            self.wrong.append(f"{command.name} {command_id} was answered {told!r}, and later {now!r}")


def _outcome(reply: CommandReply) -> str:
    return "written" if reply.events else f"as it is, epoch {reply.result.get('epoch', 0)}"
