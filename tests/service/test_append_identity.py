"""A repeated append is known by its whole content: two controllers give the same command the same ids."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from events.bus.connection import BusOptions, connect
from events.chain import genesis
from events.codec import Cause, OutgoingMessage, seal
from events.errors import Refused
from events.jetstream.log import JetStreamLog
from events.log import EventLog
from events.memory import MemoryLog
from events.types import NodeLeft

CLUSTER = "prod"


def batch(controller: str, count: int) -> list[OutgoingMessage]:
    cause = Cause(command_id="c", actor="a", time=datetime(2026, 1, 1, tzinfo=UTC), source=controller)
    events = [NodeLeft(node=f"n{number}", uid="u") for number in range(count)]
    return seal(CLUSTER, genesis(CLUSTER), [(cause, events)])[0]


async def same_ids_are_not_enough(log: EventLog, count: int) -> None:
    mine, theirs = batch("a", count), batch("b", count)
    assert [m.id for m in mine] == [m.id for m in theirs]
    assert await log.append(theirs, expected=0) == count
    assert await log.append(theirs, expected=0) == count
    with pytest.raises(Refused) as refusal:
        await log.append(mine, expected=0)
    assert refusal.value.code == "wrong_last_sequence"


@pytest.mark.parametrize("count", [1, 3])
async def test_in_memory(count: int) -> None:
    await same_ids_are_not_enough(MemoryLog(CLUSTER), count)


@pytest.mark.bus
@pytest.mark.parametrize("count", [1, 3])
async def test_on_the_bus(bus: BusOptions, count: int) -> None:
    client = await connect(bus, name="test")
    try:
        await same_ids_are_not_enough(await JetStreamLog.open(client, CLUSTER, create=True), count)
    finally:
        await client.close()
