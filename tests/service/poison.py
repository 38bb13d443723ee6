"""Events that cannot be followed, written past the controllers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from events.bus.connection import BusOptions, connect
from events.codec import Cause, OutgoingMessage, seal
from events.jetstream.log import JetStreamLog
from events.types import Event, NodeLeft, RangeFreed
from tests.service.onbus import CLUSTER

CONTRADICTION = RangeFreed(cidr="172.16.40.0/26", index=160, epoch=3)


def sealed(head: object, *events: Event, command_id: str = "poison") -> list[OutgoingMessage]:
    cause = Cause(command_id=command_id, actor="somebody", time=datetime.now(UTC), source="past/the/controller")
    return seal(CLUSTER, head, [(cause, events)])[0]  # type: ignore[arg-type]  # a Head


def contradicting(head: object) -> list[OutgoingMessage]:
    return sealed(head, CONTRADICTION)


def damaged(head: object) -> list[OutgoingMessage]:
    """Its body is no event of its type, and the chain says that it was written so."""

    class Wrong(RangeFreed, frozen=True, kw_only=True, gc=False):
        index: str  # type: ignore[assignment]  # what makes it wrong

        @classmethod
        def type_name(cls) -> str:
            return RangeFreed.type_name()

    return sealed(head, Wrong(cidr="172.16.40.0/26", index="none", epoch=3))


def newer(head: object) -> list[OutgoingMessage]:
    class NodeTeleported(NodeLeft, frozen=True, kw_only=True, gc=False):
        verb = "teleported"
        version = 9

    return sealed(head, NodeTeleported(node="n1", uid="uid-1"))


async def write(bus: BusOptions, make: object, *, expected: int | None = None) -> OutgoingMessage:
    """Write past the controllers, as somebody with their credentials can; the last message written."""
    nats = await connect(bus, name="somebody")
    try:
        log = await JetStreamLog.open(nats, CLUSTER)
        head = await log.head()
        messages: Sequence[OutgoingMessage] = make(head)  # type: ignore[operator]
        await log.append(messages, expected=head.sequence)
        return messages[-1]
    finally:
        await nats.close()
