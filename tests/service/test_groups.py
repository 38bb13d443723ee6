"""Which waiting commands are decided and stored together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from controlplane.controller.commands.batch import CommitLimits
from controlplane.controller.hooks import DecidedCommand, Observer
from events.bus.retry import happened
from events.codec import OutgoingMessage
from events.memory import MemoryLog
from tests.service.rig import CLUSTER, join, request, rig
from tests.waiting import until

MANY = 8


class _Gated(MemoryLog):
    """Stores nothing while ``open`` is not set; ``asked`` appends have begun."""

    def __init__(self) -> None:
        super().__init__(CLUSTER)
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        self.asked += 1
        await self.open.wait()
        return await super().append(messages, expected=expected, timeout_s=timeout_s)


class _Groups(Observer):
    """The sizes of the groups that were decided."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.more = asyncio.Event()

    def decided(self, commands: Sequence[DecidedCommand]) -> None:
        self.sizes.append(len(commands))
        self.more.set()


async def test_a_few_that_come_while_many_are_stored_wait_for_more() -> None:
    """Decided alone they would take an append of their own, and everybody who comes next would wait for it."""
    log, groups = _Gated(), _Groups()
    async with rig(log, observer=groups, limits=CommitLimits(sending_s=0.001)) as it:
        answers: list[object] = []

        def offer(first: int, count: int) -> None:
            for number in range(first, first + count):
                it.committer.offer(request(join(number)), answers.append)

        groups.sizes.clear()
        log.open.clear()
        asked = log.asked
        offer(0, MANY)
        await until(lambda: log.asked > asked)
        groups.more.clear()
        offer(MANY, 1)
        assert not await happened(groups.more, within_s=0.2), groups.sizes
        offer(MANY + 1, MANY - 1)
        await until(lambda: sum(groups.sizes) == 2 * MANY)  # as many as are on their way: decided beforehand
        log.open.set()
        await until(lambda: len(answers) == 2 * MANY)
        assert groups.sizes == [MANY, MANY]


async def test_one_that_waits_alone_is_stored_with_nobody_else() -> None:
    log, groups = _Gated(), _Groups()
    async with rig(log, observer=groups) as it:
        groups.sizes.clear()
        log.open.clear()
        asked = log.asked
        first = asyncio.create_task(it.send(join(1)))
        await until(lambda: log.asked > asked)
        second = asyncio.create_task(it.send(join(2)))
        await until(lambda: groups.sizes == [1, 1])  # while the first is on its way
        log.open.set()
        await asyncio.gather(first, second)
        assert groups.sizes == [1, 1]
