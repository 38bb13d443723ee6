"""Join tokens for several machines, as the controllers decide on them: what such a token may never do."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.decide import decide
from controlplane.cluster.digest import canonical, state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.cluster.state_decoder import decode_state
from events.errors import VerificationFailed
from events.protocol.commands import DefineCluster, LeaveNode, SharedUse, UseToken, token_command_id
from events.types import SharedTokenUsed
from tests.controlplane.world import START, joining

TOKENS = ["U" + letter * 55 for letter in "AB"]
USES = {TOKENS[0]: 3, TOKENS[1]: 1}


def key(number: int) -> str:
    return "U" + f"{number:055d}"


def used(token: str, node: str, number: int, **more: object) -> UseToken:
    shared = SharedUse(uses=USES[token], until=START + timedelta(hours=1), kind="external", site="sz")
    return UseToken(
        token=token, node=node, public_key=key(number), expires=START + timedelta(days=9),
        shared=msgspec.structs.replace(shared, **more),
    )  # fmt: skip


def begun() -> ClusterState:
    state = ClusterState("prod")
    for command in (DefineCluster(container_cidr="10.0.0.0/20", pods_per_node=32, services=32), joining(1)):
        _follow(state, command)
    return state


def _follow(state: ClusterState, command: object) -> str:
    decision = decide(state, command, START)  # type: ignore[arg-type]
    for event in decision.events:
        evolve(state, state.sequence + 1, event)
    return decision.refusal.code if decision.refusal else ""


redemptions = st.tuples(
    st.sampled_from(TOKENS), st.sampled_from(["n1", "n2", "a", "b", "c", "d"]), st.integers(0, 9)
)
other = st.sampled_from([joining(1), joining(2), joining(2, uid="x"), LeaveNode(node="n1", uid="uid-1")])


@given(steps=st.lists(st.one_of(redemptions, other), max_size=40))
def test_whatever_the_order_a_shared_token_stays_within_its_limits(steps: list[object]) -> None:
    """Machines race with names and keys as they like; members come and go meanwhile."""
    state, answered, counts = begun(), {}, dict.fromkeys(TOKENS, 0)
    for step in steps:
        if not isinstance(step, tuple):
            _follow(state, step)
            continue
        token, node, number = step
        members, before = set(state.nodes), state.sequence
        command = used(token, node, number)
        if (name := token_command_id(token, command.public_key)) in answered:
            continue  # the controller answers a repeated id with what it was answered
        refused = _follow(state, command)
        if refused:
            assert refused in {"token_used", "node_name_taken"}
            assert state.sequence == before
            assert (refused == "token_used") is (counts[token] >= USES[token])
            continue
        answered[name] = node
        counts[token] += 1
        assert node not in members
    assert all(counts[token] <= USES[token] for token in TOKENS)
    assert len(set(answered.values())) == len(answered)  # nobody shares a name
    assert {node: (one.kind, one.site) for node, one in state.admitted.items()} == dict.fromkeys(
        answered.values(), ("external", "sz")
    )
    again = decode_state(canonical(state))
    assert state_digest(again) == state_digest(state)
    assert again.last_admitted == state.last_admitted


def test_a_used_up_token_says_who_used_it_and_when() -> None:
    state = begun()
    assert _follow(state, used(TOKENS[1], "a", 1)) == ""
    refusal = decide(state, used(TOKENS[1], "b", 2), START).refusal
    assert refusal is not None
    assert (refusal.code, refusal.details["node"]) == ("token_used", "a")
    assert f"last by 'a' at {START:%Y-%m-%d %H:%M:%S} UTC (event {state.sequence})" in refusal.message


@pytest.mark.parametrize(
    ("change", "code"),
    [({"until": START}, "token_invalid"), ({"uses": 0}, "bad_request"), ({"uses": 1001}, "bad_request"),
     ({"kind": "moon"}, "bad_request"), ({"site": "x" * 64}, "bad_request")],
)  # fmt: skip
def test_what_no_such_token_can_say_is_refused(change: dict[str, object], code: str) -> None:
    assert _follow(begun(), used(TOKENS[0], "a", 1, **change)) == code


def test_its_nodes_join_as_it_says_and_as_nothing_else() -> None:
    state = begun()
    assert _follow(state, used(TOKENS[0], "n5", 1)) == ""
    for wrong in (joining(5, kind="cloud", site="sz"), joining(5, kind="external", site="gz")):
        assert _follow(state, wrong) == "token_limits"
    assert "n5" not in state.nodes
    assert _follow(state, joining(5, kind="external", site="sz")) == ""


@pytest.mark.parametrize("change", [{"use": 2}, {"uses": 0}, {"node": "n1"}])
def test_a_log_that_says_otherwise_is_not_followed(change: dict[str, object]) -> None:
    state = begun()
    (event,) = decide(state, used(TOKENS[0], "a", 1), START).events
    assert isinstance(event, SharedTokenUsed)
    with pytest.raises(VerificationFailed):
        evolve(state, state.sequence + 1, msgspec.structs.replace(event, **change))
    assert state.admitted == {}
