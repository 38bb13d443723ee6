"""Small, deterministic transactions to fill a log with, and helpers to look at what came back."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from events.chain import Head, genesis, verify_link
from events.codec import Cause, OutgoingMessage, StoredMessage, seal
from events.log import BATCH_LIMIT, EventLog, LogReader
from events.types import Event, RangeAllocated

CLUSTER = "contract"
MOMENT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def cause(command: str) -> Cause:
    return Cause(
        command_id=command,
        actor="ops@example",
        time=MOMENT,
        source="isthmus/test",
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )


def event(number: int) -> Event:
    return RangeAllocated(
        cidr=f"10.{number >> 14 & 255}.{number >> 6 & 255}.{number % 4 * 64}/26",
        index=number,
        node=f"node-{number}.example",
        uid=f"uid-{number}",
        cursor_after=number + 1,
    )


def sealed(
    head: Head, *sizes: int, first: int | None = None, salt: str = ""
) -> tuple[list[OutgoingMessage], Head]:
    """One transaction per size behind ``head``; ``first`` numbers the commands (default: the sequence)."""
    number = head.sequence if first is None else first
    transactions = []
    for index, size in enumerate(sizes):
        transactions.append(
            (cause(f"command-{salt}{number + index}"), [event(number + i) for i in range(size)])
        )
    return seal(CLUSTER, head, transactions)


async def fill(log: EventLog, count: int, *, salt: str = "") -> Head:
    """Append ``count`` events in the largest batches allowed; return the new head."""
    head = await log.head()
    goal = head.sequence + count
    while head.sequence < goal:
        messages, new = sealed(head, min(BATCH_LIMIT, goal - head.sequence), salt=salt)
        await log.append(messages, expected=head.sequence)
        head = new
    return head


async def everything(reader: LogReader, *, after: int = 0, until: int | None = None) -> list[StoredMessage]:
    return [message async for batch in reader.read(after=after, until=until) for message in batch.messages]


def verified(messages: Iterable[StoredMessage], head: Head | None = None) -> Head:
    """The head after the messages, each checked against its predecessor."""
    head = head or genesis(CLUSTER)
    for message in messages:
        head = verify_link(head, message.sequence, message.subject, message.headers, message.body)
    return head
