"""Which waiting commands are decided and stored together."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from contextlib import suppress

import pytest

from controlplane.controller.commands import committer as committer_module
from controlplane.controller.commands.batch import CommitLimits
from controlplane.controller.hooks import DecidedCommand, Observer
from events.bus.retry import happened
from events.codec import OutgoingMessage
from events.errors import IsthmusError, OutcomeUnknown
from events.memory import MemoryLog
from events.protocol.commands import Command, CommandReply, RemoveNode
from tests.service.rig import CLUSTER, DEFINE, Rig, join, request, rig, running
from tests.waiting import until

MANY = 8


class _Gated(MemoryLog):
    """Stores nothing while ``open`` is not set; ``asked`` appends have begun, of so many messages each."""

    def __init__(self) -> None:
        super().__init__(CLUSTER)
        self.open = asyncio.Event()
        self.open.set()
        self.asked = 0
        self.sizes: list[int] = []

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        self.asked += 1
        self.sizes.append(len(messages))
        await self.open.wait()
        return await super().append(messages, expected=expected, timeout_s=timeout_s)


class _SlowToAnswer(_Gated):
    """Stores at once, and says so while ``open`` is set."""

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        last = await MemoryLog.append(self, messages, expected=expected, timeout_s=timeout_s)
        self.asked += 1
        await self.open.wait()
        return last


class _Unsteady(MemoryLog):
    """Takes its time, and now and then loses an append or its acknowledgement."""

    def __init__(self, same: MemoryLog, dice: random.Random) -> None:
        super().__init__(CLUSTER)
        vars(self).update(vars(same))
        self._dice = dice

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        await self._take_time("the append")
        last = await super().append(messages, expected=expected, timeout_s=timeout_s)
        await self._take_time("its acknowledgement")  # so that it may be read back before
        return last

    async def _take_time(self, what: str) -> None:
        for _ in range(self._dice.choice((0, 5, 50))):
            await asyncio.sleep(0)
        if self._dice.random() < 0.05:
            raise OutcomeUnknown("outcome_unknown", f"lost {what}")


def _past_the_gate(log: _Gated) -> MemoryLog:
    """The same log, as another controller reaches it."""
    same = MemoryLog(CLUSTER)
    vars(same).update({name: value for name, value in vars(log).items() if name in vars(same)})
    return same


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
    async with rig(log, observer=groups) as it:
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


async def offered_while_one_is_stored(it: Rig, log: _Gated, groups: _Groups, *, pieces: int) -> list[object]:
    """Joins of :data:`MANY` nodes are being stored, and so many pieces behind them are decided; the answers."""
    answers: list[object] = []
    groups.sizes.clear()
    log.open.clear()
    log.sizes.clear()
    for number in range(MANY * (pieces + 1)):
        it.committer.offer(request(join(number)), answers.append)
        if number % MANY == MANY - 1:
            await until(lambda before=number + 1: sum(groups.sizes) == before and bool(log.sizes))
    return answers


async def test_all_that_comes_while_one_batch_is_stored_is_the_next_batch() -> None:
    log, groups = _Gated(), _Groups()
    async with rig(log, observer=groups) as it:
        answers = await offered_while_one_is_stored(it, log, groups, pieces=3)
        assert groups.sizes == [MANY] * 4
        log.open.set()
        await until(lambda: len(answers) == 4 * MANY)
        assert log.sizes == [2 * MANY, 6 * MANY]
        assert all(isinstance(answer, CommandReply) for answer in answers)
        assert len(it.replica.state.nodes) == len(it.replica.state.owned) == 4 * MANY


async def test_a_batch_that_is_full_takes_no_further_piece() -> None:
    log, groups = _Gated(), _Groups()
    async with rig(log, observer=groups, limits=CommitLimits(group_messages=3 * MANY)) as it:
        answers = await offered_while_one_is_stored(it, log, groups, pieces=1)
        for number in range(2 * MANY, 3 * MANY):
            it.committer.offer(request(join(number)), answers.append)
        await until(lambda: sum(groups.sizes) == 2 * MANY + MANY // 2)
        log.open.set()
        await until(lambda: len(answers) == 3 * MANY)
        assert all(isinstance(answer, CommandReply) for answer in answers)
        assert log.sizes == [2 * MANY, 3 * MANY, MANY]


async def test_pieces_behind_a_batch_that_lost_a_race_are_decided_again() -> None:
    log, groups = _Gated(), _Groups()
    async with rig(log, observer=groups) as it:
        answers = await offered_while_one_is_stored(it, log, groups, pieces=2)
        async with running(Rig(_past_the_gate(log))) as other:
            await other.send(join(5000))
        log.open.set()
        await until(lambda: len(answers) == 3 * MANY)
        assert all(isinstance(answer, CommandReply) for answer in answers)
        assert len(it.replica.state.nodes) == len(it.replica.state.owned) == 3 * MANY + 1
        written = [message.headers["ce-commandid"] async for batch in log.read() for message in batch.messages]
        assert len(written) == 1 + 2 * (3 * MANY + 1)
        assert len(set(written)) == 1 + 3 * MANY + 1


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


async def test_a_piece_knows_the_one_before_it_when_their_batch_is_read_back_early() -> None:
    """Then the state itself is what the first is decided on, and no fork of it."""
    log, groups = _SlowToAnswer(), _Groups()
    async with rig(log, observer=groups) as it:
        groups.sizes.clear()
        log.open.clear()
        asking = []
        for number in range(3):
            asking.append(asyncio.create_task(it.send(join(number))))
            await until(lambda count=number + 1: len(groups.sizes) == count and "n0" in it.replica.state.nodes)
        log.open.set()
        replies = await asyncio.gather(*asking)
        assert [reply.result["index"] for reply in replies] == [0, 1, 2]
        assert len(it.replica.state.owned) == 3


@pytest.mark.parametrize("seed", range(3))
async def test_pieces_of_two_that_contend_have_each_effect_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice, log = random.Random(seed), MemoryLog(CLUSTER)
    monkeypatch.setattr(committer_module, "PIECE", 5)
    monkeypatch.setattr(committer_module, "PIECE_LEAST", 2)
    limits = CommitLimits(group_messages=dice.choice((8, 40, 1000)))
    told: dict[str, set[tuple[int, ...]]] = {}

    async def ask(it: Rig, number: int, command: Command) -> None:
        for _ in range(dice.randrange(100)):
            await asyncio.sleep(0)
        with suppress(IsthmusError):
            reply = await it.send(command, f"command-{number}")
            if reply.events:
                told.setdefault(f"command-{number}", set()).add(tuple(one.sequence for one in reply.events))

    async with (
        running(Rig(_Unsteady(log, dice), limits=limits)) as one,
        running(Rig(_Unsteady(log, dice), limits=limits)) as other,
    ):
        await one.send(DEFINE)
        commands = [
            join(dice.randrange(60)) if dice.random() < 0.8 else RemoveNode(node=f"n{dice.randrange(60)}")
            for _ in range(150)
        ]
        asked = [
            ask(it, number, command)
            for number, command in enumerate(commands)
            for it in dice.choices((one, one, one, other), k=dice.choice((1, 2)))
        ]
        await asyncio.gather(*asked)
    stored: dict[str, tuple[int, ...]] = {}
    async for batch in log.read():
        for message in batch.messages:
            cause = message.headers["ce-commandid"]
            stored[cause] = (*stored.get(cause, ()), message.sequence)
    assert all(places == tuple(range(places[0], places[-1] + 1)) for places in stored.values())
    assert len(told) > 50
    assert {cause: {stored[cause]} for cause in told} == told
    async with running(Rig(log)) as fresh:
        await fresh.replica.caught_up(timeout_s=30)
        assert fresh.replica.state.owned.keys() == fresh.replica.state.nodes.keys()
