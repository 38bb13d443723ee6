"""A rolling upgrade: agents and controllers of neighbouring releases understand each other or say why not.

There is no release before 0.1.0; so the earlier side is spoken in its own bytes (written down here, never
to be changed) and the later one by adding what a later release may add: fields, event types, a schema.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec
import pytest
from nats.aio.client import Client

from controlplane.cluster.decide import decide
from controlplane.cluster.decision import DecisionContext
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.controller.requests import parse
from events import codec, subjects
from events.chain import CHAIN_HEADER, genesis, verify_link
from events.codec import Cause, OutgoingMessage, UnknownEvent, decode_event, seal
from events.errors import IsthmusError, VerificationFailed
from events.jetstream.status_stream import StatusReader
from events.protocol.commands import DefineCluster, FenceNode, JoinNode, LeaveNode
from events.types import EVENT_TYPES, Event, NodeFenced
from nodeagent.membership.view import View

CLUSTER = "prod"
NOW = datetime(2026, 3, 2, 14, tzinfo=UTC)

# What agents of release 0.1.0 send.
JOIN_0_1 = (
    b'{"node":"n1","uid":"u1","kind":"external","underlay":"192.0.2.1","announced":"","site":"ams","range":"",'
    b'"pod_ip":"","overrides":[]}'
)
LEAVE_0_1 = b'{"node":"n1","uid":"u1","reason":""}'
STATUS_0_1 = (
    b'{"node":"n1","uid":"u1","applied":3,"sent_at":"2026-03-02T14:00:00Z","peers":2,"agent_version":"0.1.0"}'
)
HEADERS_0_1 = {"isthmus-command-id": "c1", "isthmus-actor": "node/n1", "isthmus-schema": "1"}


class NodeTeleported(Event, frozen=True, kw_only=True, gc=False):
    """An event type of a later release."""

    aggregate = "node"
    verb = "teleported"
    version = 9
    node: str

    @property
    def entity(self) -> str:
        return self.node


def later(event: Event) -> bytes:
    """The event as a later release might write it: one more field."""
    return msgspec.json.encode({**msgspec.to_builtins(event), "colour": "blue"})


def decided(state: ClusterState, *commands: object) -> list[Event]:
    events: list[Event] = []
    for command in commands:
        for event in decide(state, command, NOW).events:  # type: ignore[arg-type]
            evolve(state, state.sequence + 1, event)
            events.append(event)
    return events


@pytest.fixture
def history() -> list[Event]:
    return decided(
        ClusterState(CLUSTER),
        DefineCluster(container_cidr="10.200.0.0/16"),
        JoinNode(node="n1", uid="u1", kind="cloud", underlay="192.0.2.1"),
        JoinNode(node="n2", uid="u2", kind="external", underlay="192.0.2.2"),
    )


def messages_of(events: list[Event]) -> list[OutgoingMessage]:
    cause = Cause(command_id="c", actor="a", time=NOW, source="s")
    return seal(CLUSTER, genesis(CLUSTER), [(cause, events)])[0]


def test_the_earlier_agent_is_understood_by_this_controller() -> None:
    for name, body in (("join", JOIN_0_1), ("leave", LEAVE_0_1)):
        request = parse(CLUSTER, subjects.node_command(CLUSTER, "n1", name), HEADERS_0_1, body, received_s=0)
        assert request.command.name == name
        assert request.actor == "node/n1"
    reported = StatusReader(Client(), CLUSTER)._read(subjects.status(CLUSTER, "n1"), STATUS_0_1, 1)
    assert reported is not None
    assert (reported.status.applied, reported.status.agent_version) == (3, "0.1.0")


def test_a_later_agents_report_is_understood_by_this_controller() -> None:
    body = STATUS_0_1[:-1] + b',"mood":"good","gauges":{"a":[1,2]}}'
    reported = StatusReader(Client(), CLUSTER)._read(subjects.status(CLUSTER, "n1"), body, 1)
    assert reported is not None
    assert reported.status.applied == 3


@pytest.mark.parametrize("schema", ["0", "2", "newest"])
def test_another_command_schema_is_refused_and_both_are_named(schema: str) -> None:
    headers = {**HEADERS_0_1, "isthmus-schema": schema}
    with pytest.raises(IsthmusError) as refused:
        parse(CLUSTER, subjects.node_command(CLUSTER, "n1", "join"), headers, JOIN_0_1, received_s=0)
    assert refused.value.code == "unsupported_schema"
    assert re.search(rf"'{schema}'.*knows 1", refused.value.message)


def test_this_agent_follows_a_later_controllers_log(history: list[Event]) -> None:
    """Types that it does not know and fields that it does not know change nothing about its rows."""
    plain, mixed = View(CLUSTER, "n1", "u1"), View(CLUSTER, "n1", "u1")
    for sequence, event in enumerate(history, 1):
        plain.apply(sequence, event)
    events = [*history[:2], NodeTeleported(node="n2"), *history[2:], NodeTeleported(node="n1")]
    head = genesis(CLUSTER)
    unknown = 0
    for sequence, (message, event) in enumerate(zip(messages_of(events), events, strict=True), 1):
        head = verify_link(head, sequence, message.subject, message.headers, message.body)
        assert message.headers[CHAIN_HEADER] == head.hex
        read = decode_event(message.headers["ce-type"], later(event), sequence)
        unknown += isinstance(read, UnknownEvent)
        mixed.apply(sequence, read)
    assert unknown == 2
    assert mixed.own is not None
    assert plain.own is not None
    assert mixed.own.cidr == plain.own.cidr
    assert set(mixed.members) == set(plain.members) == {"n1", "n2"}


def test_an_earlier_agent_follows_this_controllers_log(
    history: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the types that came last (here: all but the members'), its rows are the same."""
    known = {"cluster.defined.v1", "node.joined.v1", "range.allocated.v1"}
    decoders = {name: decoder for name, decoder in codec._DECODERS.items() if name in known}
    assert len(decoders) == len(known) < len(EVENT_TYPES)
    now = View(CLUSTER, "n1", "u1")
    for sequence, event in enumerate(history, 1):
        now.apply(sequence, event)
    monkeypatch.setattr(codec, "_DECODERS", decoders)
    then = View(CLUSTER, "n1", "u1")
    for sequence, message in enumerate(messages_of(history), 1):
        then.apply(sequence, codec.decode_event(message.headers["ce-type"], message.body, sequence))
    assert then.own is not None
    assert now.own is not None
    assert then.own.cidr == now.own.cidr
    assert set(then.members) == set(now.members)


def test_an_earlier_controller_stops_before_it_decides_on_what_it_cannot_fold(history: list[Event]) -> None:
    """Rolling back a controller: it does not guess."""
    state = ClusterState(CLUSTER)
    for sequence, event in enumerate(history, 1):
        evolve(state, sequence, event)
    strange = decode_event("node.teleported.v9", b'{"node":"n1"}', state.sequence + 1)
    with pytest.raises(VerificationFailed) as stopped:
        evolve(state, state.sequence + 1, strange)
    assert stopped.value.code == "event_unknown"
    assert "node.teleported.v9" in stopped.value.message


@pytest.mark.parametrize("again", [False, True])
def test_release_0_2_never_takes_the_fence_of_a_former_member_for_that_of_a_member(
    history: list[Event], *, again: bool
) -> None:
    """It does not know ``former``: it stops where nobody has the name, and must not be shown it elsewhere."""
    state = ClusterState(CLUSTER)
    for sequence, event in enumerate(history, 1):
        evolve(state, sequence, event)
    decided(state, LeaveNode(node="n1", uid="u1"))
    if again:
        decided(state, JoinNode(node="n1", uid="u1-again", kind="cloud", underlay="192.0.2.1"))
    (index,) = state.draining
    context = DecisionContext(occupied={index: 1})
    fence = decide(state, FenceNode(node="n1", reason="burnt"), NOW, context).events[0]
    assert isinstance(fence, NodeFenced)
    assert fence.former is not again
    known = msgspec.structs.replace(fence, former=False)
    if again:
        assert known.uid == "u1-again"
        return
    with pytest.raises(VerificationFailed) as stopped:
        evolve(state, state.sequence + 1, known)
    assert stopped.value.code == "invariant_violated"
