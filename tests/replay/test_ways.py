"""Which way packets between two nodes took: as a fold of the raw events says, at every moment of a history."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.cluster.decision import AdvanceEncryption, MarkNat, NatFinding
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from events.codec import StoredMessage, decode
from events.errors import Refused
from events.protocol.commands import DefineCluster, JoinNode, LeaveNode, MarkGateway, SetEncryption
from events.protocol.ways import preferred_relay
from replay.history import History, Point
from replay.queries.states import States
from replay.queries.ways import WaysAnswer, ways
from replay.queries.who import who
from tests.replay.histories import CLUSTER, Author, ListLog

NAMES = ("a", "b", "g")
SITES = {"a": "one", "b": "two", "g": "vpc"}


def asked(messages: list[StoredMessage], a: str, b: str, sequence: int) -> WaysAnswer:
    async def answer() -> WaysAnswer:
        history = await History.open(ListLog(messages))
        state, _ = await States(history).at(sequence)
        return await ways(history, a, b, Point(sequence, None, str(sequence)), state)

    return asyncio.run(answer())


class Told(Author):
    """A history of three nodes, told what to do."""

    def __init__(self) -> None:
        super().__init__(1)
        self.do(DefineCluster(container_cidr="10.8.0.0/22", pods_per_node=16, services=64))

    def join(self, name: str, **more: Any) -> bool:
        key = b64encode(name.encode().ljust(32, b"k")).decode()
        address = f"192.168.1.{10 + NAMES.index(name)}"
        more = {"underlay": address, "site": SITES[name], "node_key": key, "wireguard_port": 51820, **more}
        kind: Any = "cloud" if name == "g" else "external"
        return self.do(JoinNode(node=name, uid=f"u-{name}", kind=kind, **more))

    def nat(self, name: str, *, behind: bool) -> bool:
        return self.do(MarkNat(found=(NatFinding(f"u-{name}", behind, "203.0.113.1", ("g",)),)))

    def wish(self, what: str) -> None:
        verb, _, name = what.partition(" ")
        if verb == "join":
            self.join(name)
        elif verb == "leave":
            self.do(LeaveNode(node=name, uid=f"u-{name}"))
        elif verb == "encrypt":
            self.do(SetEncryption(scope=name))  # type: ignore[arg-type]
        elif verb == "advance":
            self.do(AdvanceEncryption(applied=dict.fromkeys(self.state.by_uid, self.state.sequence)))
        else:
            self.nat(name, behind=verb == "nat")


WISHES = [f"{verb} {name}" for verb in ("join", "leave", "nat", "open") for name in NAMES]
WISHES += ["encrypt all", "encrypt sites", "encrypt off", "advance", "advance"]


def brute(state: ClusterState) -> tuple[str | None, str]:
    """The way between a and b, and its stage, said once more in plain words."""
    if not {"a", "b"} <= state.nodes.keys():
        return None, ""
    count = sum(name in state.behind_nat for name in ("a", "b"))
    return ("tunnel", "nat", "relayed")[count], state.encrypts.between_sites


@settings(max_examples=40)
@given(st.lists(st.sampled_from(WISHES), max_size=30))
def test_it_is_what_a_fold_of_the_raw_events_says(wishes: list[str]) -> None:
    told = Told()
    for wish in ["join a", "join b", *wishes]:
        told.wish(wish)
    state, expected = ClusterState(CLUSTER), list[tuple[int, str, tuple[str | None, str]]]()
    for message in told.messages:
        recorded = decode(message)
        evolve(state, recorded.sequence, recorded.event)
        expected.append((recorded.sequence, recorded.envelope.command_id, brute(state)))
    answer = asked(told.messages, "a", "b", told.head.sequence)
    assert (answer.now.way, answer.now.encryption) == expected[-1][2]
    by_command = {command: found for _, command, found in expected}
    wire = {sequence: (way, stage in {"sending", "required"}) for sequence, _, (way, stage) in expected}
    kept = [found for found in by_command.values() if found[0] is not None]
    assert [step.way for step in answer.steps if step.way][-1:] == [found[0] for found in kept][-1:]
    if answer.now.since is not None:
        since = answer.now.since.sequence
        last = wire[expected[-1][0]]
        assert all(found == last for sequence, found in wire.items() if sequence >= since)
        before = [found for sequence, found in wire.items() if sequence < since]
        assert not before or before[-1] != last
    assert {end.node: end.nat for end in (answer.a, answer.b)} == {
        name: name in state.behind_nat for name in ("a", "b")
    }
    assert msgspec.json.decode(msgspec.json.encode(answer), type=WaysAnswer) == answer


def test_relayed_by_the_gateway_that_both_prefer_and_none_before_there_is_one() -> None:
    told = Told()
    for wish in ("join a", "join b", "join g", "nat a", "nat b"):
        told.wish(wish)
    without = asked(told.messages, "a", "b", told.head.sequence)
    assert (without.now.way, without.via, without.gateways) == ("relayed", "", ())
    told.do(MarkGateway(node="g"))
    answer = asked(told.messages, "b", "a", told.head.sequence)
    assert answer.via_since == told.head.sequence
    epochs = {name: told.state.owned[name].epoch for name in NAMES}
    assert preferred_relay(epochs["a"], epochs["b"], [epochs["g"]]) == epochs["g"]
    assert (answer.via, answer.gateways) == ("g", ("g",))
    assert answer.now.since is not None
    assert answer.now.since.sequence < answer.via_since
    assert (answer.now.since.type, answer.a.seen_as) == ("node.nat-changed.v1", "203.0.113.1")
    earlier = asked(told.messages, "a", "b", answer.now.since.sequence - 1)
    assert earlier.now.way == "nat"
    assert asked(told.messages, "a", "g", told.head.sequence).now.way == "nat"


def test_it_is_since_when_packets_are_encrypted_not_since_plain_ones_are_refused() -> None:
    told = Told()
    for wish in ("join a", "join b", "encrypt all", "advance", "advance"):
        told.wish(wish)
    sending = asked(told.messages, "a", "b", told.head.sequence)
    assert sending.now.words == "tunnel, encrypted, plain is taken, too"
    told.wish("advance")
    answer = asked(told.messages, "a", "b", told.head.sequence)
    assert answer.now.words == "tunnel, encrypted"
    assert answer.now.since == sending.now.since
    assert len({step.words for step in answer.steps}) == len(answer.steps)


def test_who_names_every_node_that_had_the_address_behind_nats_of_their_own() -> None:
    told = Told()
    same = "192.168.1.10"
    told.join("a", underlay=same, nat="on")
    assert told.join("b", underlay=same, nat="on")

    async def holders(sequence: int) -> tuple[str, str]:
        history = await History.open(ListLog(told.messages))
        found = await who(history, same, Point(sequence, None, ""))
        return (found.holder.node if found.holder else ""), found.note

    both = asyncio.run(holders(told.head.sequence))
    assert both == ("b", "at that time also, behind another NAT: a")
    told.do(LeaveNode(node="b", uid="u-b"))
    assert asyncio.run(holders(told.head.sequence)) == ("a", "")


def test_a_name_that_the_log_does_not_know_is_refused() -> None:
    told = Told()
    told.join("a")
    for other in ("nobody", "a"):
        with pytest.raises(Refused):
            asked(told.messages, "a", other, told.head.sequence)
