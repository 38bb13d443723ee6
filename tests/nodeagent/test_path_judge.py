"""What probes mean, without a kernel: a node is blamed on evidence, and silence alone is none."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nodeagent.health import packets
from nodeagent.health.diagnosis import parse_chains
from nodeagent.health.path_judge import FAILURES, STALE_S, PathJudge, Round

A, B, C = "10.0.0.0/26", "10.0.0.64/26", "10.0.0.128/26"
ALL = frozenset({A, B, C})
PEERS = st.frozensets(st.sampled_from([A, B, C]))


def judged(*rounds: Round) -> PathJudge:
    judge = PathJudge()
    for second, found in enumerate(rounds):
        judge.take(found, float(second))
    return judge


PASSES = Round(asked=ALL, forwarded=ALL, passing=ALL, called=ALL)


@given(st.lists(st.builds(Round, asked=st.just(ALL), outside=PEERS, unable=st.sampled_from(["", "no device"]))))
def test_peers_that_never_answered_are_no_evidence(rounds: list[Round]) -> None:
    judge = judged(*rounds)
    assert judge.standing in {"no peers", "not confirmed"}
    assert judge.confirmed_at is None


@given(
    st.lists(st.builds(Round, asked=st.just(ALL), forwarded=PEERS, called=PEERS, direct=PEERS, outside=PEERS))
)
def test_confirmed_only_after_a_packet_passed_and_no_longer_than_it_may_last(rounds: list[Round]) -> None:
    judge = judged(*rounds)
    if judge.standing == "confirmed":
        assert judge.confirmed_at is not None
        assert len(rounds) - 1 - judge.confirmed_at < STALE_S
        assert any(found.forwarded for found in rounds)


@pytest.mark.parametrize(
    ("found", "fault"),
    [
        (Round(asked=ALL, direct=frozenset({A})), "forwarding"),
        (Round(asked=ALL, misrouted="by eth1", forwarded=ALL), "route"),
        (Round(asked=ALL, outside=frozenset({B})), "tunnel"),
        (Round(asked=ALL), "silence"),
        (Round(asked=ALL, forwarded=ALL, passing=frozenset({A})), "incoming"),
    ],
)
def test_each_fault_is_told_apart_and_needs_more_than_one_round(found: Round, fault: str) -> None:
    assert judged(PASSES, found).standing == "confirmed"
    judge = judged(PASSES, *[found] * FAILURES)
    assert (judge.standing, judge.fault) == ("failing", fault)
    assert judge.text()
    judge.take(PASSES, 99.0)
    assert (judge.standing, judge.fault, judge.text()) == ("confirmed", "", "")


@pytest.mark.parametrize(
    "found",
    [
        Round(asked=frozenset({A})),  # the only peer is off
        Round(asked=ALL, unable="/dev/net/tun cannot be used", direct=ALL),
        Round(asked=ALL, forwarded=ALL),  # agents of 0.2.0 take no calls
        Round(),
    ],
)
def test_what_may_have_another_cause_is_no_fault(found: Round) -> None:
    assert judged(PASSES, *[found] * 5).standing != "failing"


@given(st.binary(max_size=200), st.binary(min_size=4, max_size=4))
def test_any_bytes_are_understood_or_left_alone(packet: bytes, own: bytes) -> None:
    packets.parse(packet, own)


@given(st.binary(min_size=8, max_size=8))
def test_a_call_is_answered_from_two_ports_and_a_stranger_is_not(token: bytes) -> None:
    one, other = "10.0.0.63", "10.0.0.127"
    asked = packets.parse(packets.call(one, other, token), bytes([10, 0, 0, 127]))
    assert isinstance(asked, packets.ProbeRequest)
    heard, called = (packets.parse(reply, bytes([10, 0, 0, 63])) for reply in asked.passing)
    assert heard == packets.ProbeReply("heard", bytes([10, 0, 0, 127]), token, passes=True)
    assert called == packets.ProbeReply("call", bytes([10, 0, 0, 127]), token)
    unsure = packets.parse(asked.otherwise[0], bytes([10, 0, 0, 63]))
    assert isinstance(unsure, packets.ProbeReply)
    assert not unsure.passes
    assert packets.parse(packets.call(one, other, token), bytes([10, 0, 0, 1])) is None


def test_chains_of_ours_and_chains_that_accept_are_not_named() -> None:
    base = {"hook": "forward", "policy": "drop"}
    listed = [
        {"family": "ip", "table": "filter", "name": "FORWARD", **base},
        {"family": "ip", "table": "filter", "name": "DOCKER-USER"},
        {"family": "inet", "table": "isthmus", "name": "forwarded", **base},
        {"family": "inet", "table": "x", "name": "y", "hook": "forward", "policy": "accept"},
    ]
    document = {"nftables": [{"metainfo": {}}, *({"chain": chain} for chain in listed)]}
    chains = parse_chains(json.dumps(document))
    assert [(chain.name, chain.program) for chain in chains] == [("FORWARD", "Docker")]
    assert parse_chains("") == parse_chains("[]") == parse_chains("{") == []
