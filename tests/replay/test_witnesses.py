"""Whose report counts as a witness that a command reached the kernels: members', and nobody else's."""

from __future__ import annotations

from datetime import UTC, datetime

from events.chain import genesis
from events.codec import Cause, StoredMessage, seal
from events.status import AgentStatus
from events.types import AllocationRefused, Event, NodeJoined, NodeLeft, RangeAllocated
from replay.history import History
from replay.queries.explain import explain
from tests.replay.histories import CLUSTER, ListLog


def joined(node: str, uid: str, address: str, index: int) -> list[Event]:
    return [
        NodeJoined(
            node=node, uid=uid, kind="cloud", underlay=address, announced=address, vtep_mac="02:00:00:00:00:01"
        ),
        RangeAllocated(
            node=node,
            uid=uid,
            cidr=f"10.200.{index}.0/24",
            index=index,
            cursor_after=index + 1,
        ),
    ]


def report(node: str, uid: str, applied: int) -> AgentStatus:
    return AgentStatus(node=node, uid=uid, applied=applied, sent_at=datetime.now(UTC))


async def test_an_agent_that_was_refused_is_nobodys_witness() -> None:
    refused = AllocationRefused(
        node="late",
        uid="uid-late",
        code="no_free_range",
        message="m",
        capacity=2,
        allocated=2,
        draining=0,
        quarantined=0,
    )
    steps: list[list[Event]] = [
        joined("a", "uid-a", "10.0.0.1", 0),
        joined("b", "uid-b", "10.0.0.2", 1),
        [refused],
        [NodeLeft(node="b", uid="uid-b")],
    ]
    moment = datetime.now(UTC)
    sealed, _ = seal(
        CLUSTER,
        genesis(CLUSTER),
        [
            (Cause(command_id=f"c{number}", actor="a", time=moment, source="test"), events)
            for number, events in enumerate(steps)
        ],
    )
    messages = [
        StoredMessage(number, each.subject, each.headers, each.body, recorded_ns=number)
        for number, each in enumerate(sealed, 1)
    ]
    past = await History.open(ListLog(messages))
    told = [
        report("a", "uid-a", 6),
        report("b", "uid-b", 4),
        report("late", "uid-late", 6),
        report("a", "a-clone", 6),
        report("nobody", "uid-a", 6),
    ]
    (answer,) = await explain(past, "1", kind="sequence", reports=told)
    assert [(each.node, each.done) for each in answer.applied] == [("a", True), ("b", True)]
    assert answer.note == "not counted: 3 that never were members (their join was refused)"
