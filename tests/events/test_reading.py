"""One verified reader: what it yields is linked and decoded, and what is parked is left out."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from events.chain import Head, genesis
from events.codec import Cause, OutgoingMessage, SkippedEvent, seal
from events.errors import VerificationFailed
from events.memory import MemoryLog
from events.reading import ParkedEvents, verified
from events.types import EventsParked, NodeLeft

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def cause(number: int) -> Cause:
    return Cause(command_id=f"c{number}", actor="test", time=NOW, source="test")


async def a_log(count: int = 5, *, broken: int = 0, unreadable: int = 0) -> MemoryLog:
    log, head = MemoryLog("t"), genesis("t")
    for number in range(1, count + 1):
        [message], head = seal("t", head, [(cause(number), [NodeLeft(node=f"n{number}", uid="u")])])
        if number == broken:
            message = OutgoingMessage(message.subject, message.headers, b'{"node":"x","uid":"u"}')
        if number == unreadable:
            head = await log.head()
            parked, head = seal("t", head, [(cause(number), [_Odd(node="n", uid="u")])])
            message = parked[0]
        await log.append([message], expected=number - 1)
    return log


class _Odd(NodeLeft, frozen=True, kw_only=True, gc=False):
    """Encodes as something that no reader can decode as what its type says."""

    reason: int = 7  # type: ignore[assignment]


async def test_every_event_comes_once_with_the_head_behind_it() -> None:
    log = await a_log()
    seen = [event.sequence async for batch in verified(log) for event in batch.events]
    assert seen == [1, 2, 3, 4, 5]
    heads = [batch.head async for batch in verified(log)]
    assert heads[-1] == await log.head()


async def test_reading_from_a_known_head_checks_the_first_link() -> None:
    log = await a_log()
    with pytest.raises(VerificationFailed, match="hashes to"):
        [batch async for batch in verified(log, Head(2, b"\0" * 32))]
    assert [e.sequence async for b in verified(log, 2) for e in b.events] == [3, 4, 5]


async def test_what_comes_before_a_broken_event_is_yielded_first() -> None:
    log = await a_log(broken=4)
    seen: list[int] = []
    with pytest.raises(VerificationFailed) as raised:  # noqa: PT012  the loop is what raises
        async for batch in verified(log):
            seen += [event.sequence for event in batch.events]
    assert (seen, raised.value.code) == ([1, 2, 3], "chain_broken")


async def test_a_parked_event_is_skipped_without_being_asked_for() -> None:
    log = await a_log(unreadable=3)
    with pytest.raises(VerificationFailed, match="event 3"):
        [batch async for batch in verified(log)]
    parking = EventsParked(
        first=3, last=3, poison=3, poison_id="", poison_type="", code="event_malformed", reason="odd"
    )
    messages, _ = seal("t", await log.head(), [(cause(9), [parking])])
    await log.append(messages, expected=5)
    events = [event.event async for batch in verified(log) for event in batch.events]
    assert [isinstance(event, SkippedEvent) for event in events] == [False, False, True, False, False, False]


async def test_a_reader_that_followed_what_is_parked_begins_anew_once() -> None:
    log = await a_log()
    anew: list[frozenset[int]] = []

    async def begin_anew(parked: frozenset[int]) -> None:
        anew.append(parked)

    async def learn(reader: ParkedEvents) -> bool:
        return await reader.learn(log, sequence=5, left_out=frozenset(), begin_anew=begin_anew)

    reader = ParkedEvents()
    assert not await learn(reader)
    parking = EventsParked(first=2, last=2, poison=2, poison_id="", poison_type="", code="x", reason="y")
    messages, _ = seal("t", await log.head(), [(cause(9), [parking])])
    await log.append(messages, expected=5)
    assert await learn(reader)
    assert not await learn(reader)
    assert (anew, reader.known) == ([frozenset({2})], frozenset({2}))


def test_nobody_else_checks_a_link() -> None:
    root = Path(__file__).parents[2]
    parts = ("events", "controlplane", "nodeagent", "replay", "deploy")
    users = {
        path for part in parts for path in (root / part).rglob("*.py") if "verify_link(" in path.read_text()
    }
    assert {str(path.relative_to(root)) for path in users} == {"events/chain.py", "events/reading.py"}
