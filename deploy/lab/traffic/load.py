"""Joins and leaves without a pause while something dies, and the comparison of every answer with the log.

Each worker lets one simulated node after another join and leave, and keeps the answers. The
comparison trusts nobody: what was acknowledged must be in the log once, at the acknowledged sequences.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Self

from deploy.churn.trace import simulated_uid
from deploy.lab.failures import CheckFailedError
from events.codec import decode
from events.ids import new_id
from events.protocol.commands import Command, CommandReply, JoinNode, LeaveNode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploy.churn.drive import Fleet
    from deploy.lab.runtime import Lab
    from events.codec import Recorded
    from events.log import LogReader

WORKERS = 4
PATIENCE_S = 45.0
"""How long one command may take: an election, a new lease and everything that waits for them."""
FIRST_ADDRESS = 200  # in the VPC's subnet, above every node


class Load:
    """Use as an async context manager; leaving it waits for the answers to what is under way."""

    def __init__(self, lab: Lab, fleet: Fleet) -> None:
        self._lab = lab
        self._fleet = fleet
        self._stop = asyncio.Event()
        self._answered = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []
        self.answers: dict[str, CommandReply] = {}
        self.slowest_s = 0.0

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work(i), name=f"load {i}") for i in range(WORKERS)]
        return self

    async def __aexit__(self, kind: object, *_: object) -> None:
        self._stop.set()
        if kind is not None:
            for task in self._tasks:
                task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for result in results:
            if kind is None and isinstance(result, BaseException):
                raise result

    async def more(self, count: int) -> None:
        """Returns when `count` more commands were acknowledged. Raises what a worker failed with.

        Cancelled, only the waiting ends; the workers go on.
        """
        goal = len(self.answers) + count
        async with asyncio.timeout(PATIENCE_S), self._answered:
            await self._answered.wait_for(lambda: len(self.answers) >= goal or self._failure() is not None)
        failure = self._failure()
        if failure is not None:
            raise failure

    def _failure(self) -> BaseException | None:
        return next((task.exception() for task in self._tasks if task.done() and not task.cancelled()), None)

    async def _work(self, worker: int) -> None:
        address = str(self._lab.topology.sites[0].subnet[FIRST_ADDRESS + worker])
        number = 0
        try:
            while not self._stop.is_set():
                number += 1
                node = f"load-{worker}-{number}"
                uid = simulated_uid(node)
                await self._send(JoinNode(node=node, uid=uid, kind="cloud", underlay=address, site="vpc"))
                self._fleet.live[node] = uid
                try:
                    await self._send(LeaveNode(node=node, uid=uid, reason="the lab's load"))
                finally:
                    self._fleet.live.pop(node, None)
        finally:
            async with self._answered:
                self._answered.notify_all()

    async def _send(self, command: Command) -> None:
        loop = asyncio.get_running_loop()
        command_id, started = new_id(), loop.time()
        reply = await self._lab.client.send(
            command, command_id=command_id, timeout_s=PATIENCE_S, try_timeout_s=2.0
        )
        self.slowest_s = max(self.slowest_s, loop.time() - started)
        async with self._answered:
            self.answers[command_id] = reply
            self._answered.notify_all()


async def compare(log: LogReader, answers: Mapping[str, CommandReply]) -> int:
    """Holds the answers against the log; the number of events that the commands are in it.

    Raises CheckFailedError naming what was acknowledged and is missing, different or doubled. Cancelled, it
    leaves nothing behind: it only reads.
    """
    found: dict[str, list[Recorded]] = defaultdict(list)
    async for batch in log.read(after=0):
        for message in batch.messages:
            record = decode(message)
            if record.envelope.command_id in answers:
                found[record.envelope.command_id].append(record)
    wrong = judge(answers, found)
    if wrong:
        raise CheckFailedError(
            f"{len(wrong)} of {len(answers)} answers differ from the log: " + "; ".join(wrong[:5])
        )
    return sum(len(records) for records in found.values())


def judge(answers: Mapping[str, CommandReply], found: Mapping[str, list[Recorded]]) -> list[str]:
    """One line per acknowledged command that the log does not hold exactly once, as answered. Pure."""
    wrong = []
    for command_id, reply in answers.items():
        records = found.get(command_id, [])
        stored = [(record.sequence, record.envelope.type) for record in records]
        answered = [(written.sequence, written.type) for written in reply.events]
        indices = [record.envelope.tx_index for record in records]
        if not stored:
            wrong.append(f"command {command_id} was acknowledged and is not in the log")
        elif answered and answered != stored:
            wrong.append(f"command {command_id} was acknowledged with {answered}, the log has {stored}")
        elif indices != list(range(records[0].envelope.tx_count)):
            wrong.append(f"command {command_id} has the parts {indices} of {records[0].envelope.tx_count}")
    return wrong
