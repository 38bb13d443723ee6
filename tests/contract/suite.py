"""What every log must do. A module with ``Test…`` subclasses and the fixtures runs it on one of them.

``ReaderContract`` needs the fixture ``reader_over``: an async function that takes a number of events
and gives a LogReader over a log that holds exactly these (``samples.fill`` with them).
``LogContract`` adds ``log``: an empty EventLog.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from events.chain import genesis
from events.codec import decode
from events.errors import Refused
from events.log import BATCH_LIMIT, EventLog, LogReader, ReadBatch
from events.types import RangeAllocated
from tests.contract.samples import CLUSTER, event, everything, fill, sealed, verified

ReaderOver = Callable[[int], Awaitable[LogReader]]


class ReaderContract:
    """Reading, for logs that may be finished for ever (an archive)."""

    async def test_an_empty_log_has_the_genesis_head_and_nothing_to_read(self, reader_over: ReaderOver) -> None:
        reader = await reader_over(0)
        assert reader.cluster == CLUSTER
        assert await reader.head() == genesis(CLUSTER)
        assert await everything(reader) == []

    async def test_what_was_written_is_read_whole_in_order_and_the_chain_holds(
        self, reader_over: ReaderOver
    ) -> None:
        reader = await reader_over(25)
        messages = await everything(reader)
        assert [m.sequence for m in messages] == list(range(1, 26))
        assert [decode(m).event for m in messages] == [event(n) for n in range(25)]
        assert verified(messages) == await reader.head()

    async def test_reading_starts_behind_after_and_stops_with_until(self, reader_over: ReaderOver) -> None:
        reader = await reader_over(30)
        assert [m.sequence for m in await everything(reader, after=10, until=20)] == list(range(11, 21))
        assert [m.sequence for m in await everything(reader, after=29)] == [30]
        assert [m.sequence for m in await everything(reader, until=1)] == [1]

    async def test_a_bound_beyond_the_end_stops_at_the_end(self, reader_over: ReaderOver) -> None:
        reader = await reader_over(5)
        assert [m.sequence for m in await everything(reader, after=3, until=1000)] == [4, 5]

    @pytest.mark.parametrize(("after", "until"), [(5, None), (9, None), (3, 3), (4, 2), (0, 0)])
    async def test_an_empty_interval_yields_nothing(
        self, reader_over: ReaderOver, after: int, until: int | None
    ) -> None:
        reader = await reader_over(5)
        assert await everything(reader, after=after, until=until) == []

    async def test_a_long_read_comes_in_bounded_batches_that_count_down_to_the_end(
        self, reader_over: ReaderOver
    ) -> None:
        reader = await reader_over(2500)
        batches = [batch async for batch in reader.read()]
        assert len(batches) > 1
        position = 0
        for batch in batches:
            assert 0 < len(batch.messages) <= BATCH_LIMIT
            assert batch.messages[0].sequence == position + 1
            position = batch.messages[-1].sequence
            assert batch.pending <= 2500 - position
        assert position == 2500
        assert batches[-1].pending == 0

    async def test_readers_have_positions_of_their_own(self, reader_over: ReaderOver) -> None:
        reader = await reader_over(40)
        left, right = await asyncio.gather(everything(reader, after=0), everything(reader, after=20))
        assert [m.sequence for m in left] == list(range(1, 41))
        assert left[20:] == right

    async def test_a_reader_closed_early_can_be_followed_by_another(self, reader_over: ReaderOver) -> None:
        reader = await reader_over(2000)
        reading = reader.read()
        first = await anext(reading)
        await reading.aclose()  # type: ignore[attr-defined]
        assert first.messages[0].sequence == 1
        assert len(await everything(reader)) == 2000


class LogContract(ReaderContract):
    """Reading and writing."""

    # --- appending -----------------------------------------------------------------------------------

    async def test_one_event_and_several_are_appended_behind_the_head(self, log: EventLog) -> None:
        one, head = sealed(genesis(CLUSTER), 1)
        assert await log.append(one, expected=0) == 1
        several, head = sealed(head, 3, 2)
        assert await log.append(several, expected=1) == 6
        assert await log.head() == head
        stored = await everything(log)
        assert verified(stored) == head
        for message, sent in zip(stored, one + several, strict=True):
            assert (message.subject, message.body) == (sent.subject, sent.body)
            assert {name: message.headers[name] for name in sent.headers} == sent.headers

    async def test_the_log_stamps_when_it_stored_an_event(self, log: EventLog) -> None:
        before = time.time_ns()
        await fill(log, 2)
        for message in await everything(log):
            assert before - 10**9 <= message.recorded_ns <= time.time_ns() + 10**9

    @pytest.mark.parametrize("size", [1, 2, 7])
    async def test_repeating_an_append_gives_the_first_answer_and_stores_nothing(
        self, log: EventLog, size: int
    ) -> None:
        await fill(log, 3)
        head = await log.head()
        messages, after = sealed(head, size)
        for _ in range(3):
            assert await log.append(messages, expected=3) == 3 + size
        assert await log.head() == after

    @pytest.mark.parametrize("size", [1, 4])
    async def test_a_repeat_is_recognised_after_the_log_has_grown(self, log: EventLog, size: int) -> None:
        messages, _ = sealed(await log.head(), size)
        await log.append(messages, expected=0)
        await fill(log, 9)
        assert await log.append(messages, expected=0) == size
        assert (await log.head()).sequence == size + 9

    @pytest.mark.parametrize("size", [1, 3])
    @pytest.mark.parametrize("expected", [0, 4, 6, 100])
    async def test_another_expected_sequence_is_refused_and_stores_nothing(
        self, log: EventLog, size: int, expected: int
    ) -> None:
        head = await fill(log, 5)
        messages, _ = sealed(head, size, salt="late-")
        with pytest.raises(Refused) as refusal:
            await log.append(messages, expected=expected)
        assert refusal.value.code == "wrong_last_sequence"
        assert refusal.value.details["expected"] == expected
        assert refusal.value.details["actual"] == 5
        assert await log.head() == head

    @pytest.mark.parametrize("size", [1, 3])
    async def test_other_events_at_a_taken_place_are_refused(self, log: EventLog, size: int) -> None:
        start = await log.head()
        mine, mine_head = sealed(start, size, salt="mine-")
        other, _ = sealed(start, size, salt="other-")
        await log.append(mine, expected=0)
        with pytest.raises(Refused) as refusal:
            await log.append(other, expected=0)
        assert refusal.value.code == "wrong_last_sequence"
        assert await log.head() == mine_head

    @pytest.mark.parametrize("size", [1, 3])
    async def test_ids_that_stand_further_up_are_not_stored_again(self, log: EventLog, size: int) -> None:
        messages, head = sealed(await log.head(), size)
        await log.append(messages, expected=0)
        with pytest.raises(Refused) as refusal:
            await log.append(messages, expected=size)
        assert refusal.value.code == "wrong_last_sequence"
        assert refusal.value.details["repeated"] is True
        assert await log.head() == head

    async def test_an_empty_append_only_checks_the_expected_sequence(self, log: EventLog) -> None:
        head = await fill(log, 2)
        assert await log.append([], expected=2) == 2
        with pytest.raises(Refused) as refusal:
            await log.append([], expected=1)
        assert refusal.value.code == "wrong_last_sequence"
        assert await log.head() == head

    async def test_the_largest_batch_fits_and_one_more_is_refused(self, log: EventLog) -> None:
        messages, head = sealed(await log.head(), BATCH_LIMIT)
        assert await log.append(messages, expected=0) == BATCH_LIMIT
        too_many, _ = sealed(head, BATCH_LIMIT + 1)
        with pytest.raises(Refused) as refusal:
            await log.append(too_many, expected=BATCH_LIMIT)
        assert refusal.value.code == "event_too_large"
        assert await log.head() == head

    async def test_of_writers_that_expect_the_same_sequence_exactly_one_wins(self, log: EventLog) -> None:
        start = await fill(log, 2)
        offers = [sealed(start, 1 + writer % 3, salt=f"writer-{writer}-") for writer in range(9)]
        answers = await asyncio.gather(
            *(log.append(messages, expected=2) for messages, _ in offers), return_exceptions=True
        )
        winners = [index for index, answer in enumerate(answers) if isinstance(answer, int)]
        losers = [answer for answer in answers if not isinstance(answer, int)]
        assert len(winners) == 1
        assert {getattr(answer, "code", answer) for answer in losers} == {"wrong_last_sequence"}
        assert await log.head() == offers[winners[0]][1]

    async def test_a_reader_never_sees_half_an_append_as_the_end(self, log: EventLog) -> None:
        head = await log.head()
        ends: set[int] = {0}

        async def write() -> None:
            nonlocal head
            for number in range(30):
                messages, head = sealed(head, 2 + number % 5)
                ends.add(head.sequence)
                await log.append(messages, expected=head.sequence - len(messages))

        writing = asyncio.create_task(write())
        while not writing.done():
            await asyncio.sleep(0)  # a log in memory never suspends its reader
            messages = await everything(log)
            assert len(messages) in ends
            last = decode(messages[-1]).envelope if messages else None
            assert last is None or last.tx_index == last.tx_count - 1
        await writing

    # --- following -------------------------------------------------------------------------------------

    @pytest.mark.parametrize("stored", [0, 3])
    async def test_a_follower_at_the_end_first_learns_that_it_is_live(self, log: EventLog, stored: int) -> None:
        await fill(log, stored)
        reading = log.read(after=stored, follow=True)
        async with asyncio.timeout(60):
            assert await anext(reading) == ReadBatch((), 0)
        await reading.aclose()  # type: ignore[attr-defined]

    async def test_a_follower_gets_the_past_and_then_everything_new_once(self, log: EventLog) -> None:
        await fill(log, 1200)
        seen: list[int] = []
        live = asyncio.Event()

        async def follow() -> None:
            async for batch in log.read(after=100, follow=True):
                seen.extend(message.sequence for message in batch.messages)
                if batch.pending == 0:
                    live.set()
                if seen and seen[-1] == 1300:
                    return

        async with asyncio.timeout(60):
            following = asyncio.create_task(follow())
            await live.wait()
            for _ in range(100):
                await fill(log, 1)
            await following
        assert seen == list(range(101, 1301))

    async def test_a_follower_with_a_bound_stops_there(self, log: EventLog) -> None:
        await fill(log, 2)

        async def follow() -> list[int]:
            return [
                message.sequence async for batch in log.read(until=6, follow=True) for message in batch.messages
            ]

        async with asyncio.timeout(60):
            following = asyncio.create_task(follow())
            await fill(log, 3)
            await fill(log, 3)
            assert await following == [1, 2, 3, 4, 5, 6]

    async def test_a_cancelled_follower_ends_at_once(self, log: EventLog) -> None:
        await fill(log, 1)
        live = asyncio.Event()

        async def follow() -> None:
            async for _ in log.read(follow=True):
                live.set()

        async with asyncio.timeout(60):
            following = asyncio.create_task(follow())
            await live.wait()
            following.cancel()
            with pytest.raises(asyncio.CancelledError):
                await following
            await fill(log, 1)
            assert len(await everything(log)) == 2

    async def test_events_keep_their_types_through_the_log(self, log: EventLog) -> None:
        await fill(log, 4)
        recorded = [decode(message) for message in await everything(log)]
        assert all(isinstance(each.event, RangeAllocated) for each in recorded)
        assert [each.sequence for each in recorded] == [1, 2, 3, 4]
        assert {each.envelope.actor for each in recorded} == {"ops@example"}
