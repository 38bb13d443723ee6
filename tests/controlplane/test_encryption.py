"""What a cluster encrypts: step by step, with every member, and never with one that has no key."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.decision import AdvanceEncryption
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.controller.publishing.snapshots import snapshot_of
from events.chain import genesis
from events.errors import VerificationFailed
from events.protocol.commands import ChangeKey, DefineCluster, JoinNode, LeaveNode, SetEncryption
from events.protocol.encryption import SCOPES, STAGES, Encryption, key_problem
from events.types import ClusterEncryptionChanged, NodeKeyChanged
from tests.controlplane.every_kind import key
from tests.controlplane.world import START, World, joining

CIDR = {"container_cidr": "10.200.0.0/22", "pods_per_node": 64}


def world(members: int = 2) -> World:
    made = World(**CIDR)
    for number in range(members):
        made.join(number, node_key=key(f"k{number}"), wireguard_port=51820, site=f"s{number % 2}")
    return made


def told(world: World, *, but: str = "") -> AdvanceEncryption:
    """Everybody has applied everything, but one."""
    sequence = world.state.sequence
    return AdvanceEncryption(applied={uid: sequence for uid in world.state.by_uid if uid != but})


def stages(world: World) -> tuple[str, str]:
    here = world.state.encrypts
    return here.within_sites, here.between_sites


def test_there_and_back_in_steps_that_every_member_has_applied() -> None:
    at = world()
    at.ok(SetEncryption(scope="all"))
    assert stages(at) == ("plain", "plain"), "asked for, and nobody knows it yet"
    assert not at.do(told(at, but="uid-1")).events, "one member has not applied it"
    seen = []
    while at.do(told(at)).events:
        seen.append(stages(at))
        assert not at.do(told(at, but="uid-0")).events
    assert seen == [(stage, stage) for stage in STAGES[1:]]
    assert at.state.encrypts.settled
    at.ok(SetEncryption(scope="sites"))
    while at.do(told(at)).events:
        assert at.state.encrypts.between_sites == "required", "those pairs stay as they are"
    assert stages(at) == ("plain", "required")
    assert not at.do(SetEncryption(scope="sites")).events, "the same again"
    at.ok(SetEncryption(scope="off"))
    while at.do(told(at)).events:
        pass
    assert at.state.encrypts.off


@given(st.lists(st.one_of(st.sampled_from(SCOPES), st.sets(st.sampled_from(("uid-0", "uid-1")))), max_size=40))
def test_two_members_never_misunderstand_each_other(steps: list[str | set[str]]) -> None:
    """Whatever is asked for, and whoever is late: what one sends, the other one takes."""
    at = world()
    knows = dict.fromkeys(at.state.by_uid, at.state.encrypts)
    applied = dict.fromkeys(at.state.by_uid, at.state.sequence)
    for step in steps:
        if isinstance(step, str):
            at.ok(SetEncryption(scope=step))  # type: ignore[arg-type]
        else:
            for uid in step:
                knows[uid], applied[uid] = at.state.encrypts, at.state.sequence
            at.do(AdvanceEncryption(applied=applied))
        for kind in ("within_sites", "between_sites"):
            one, other = (STAGES.index(getattr(known, kind)) for known in knows.values())
            assert abs(one - other) <= 1


def test_an_empty_cluster_is_there_at_once_and_admits_nobody_without_a_key() -> None:
    at = World(**CIDR, encrypt="all")
    assert stages(at) == ("required", "required")
    assert at.refused(joining(1)) == "wireguard_missing"
    assert at.refused(joining(1, node_key=key("a"))) == "wireguard_missing"
    assert at.refused(joining(1, node_key="nonsense")) == "bad_request"
    at.join(1, node_key=key("a"), wireguard_port=51820)
    assert at.refused(joining(2, node_key=key("a"), wireguard_port=51820)) == "node_key_in_use"
    define = {"services": 32, **CIDR}
    assert not at.do(DefineCluster(**define)).events, "a definition that says nothing of it is the same"
    assert not at.do(DefineCluster(**define, encrypt="all")).events
    assert at.refused(DefineCluster(**define, encrypt="off")) == "cluster_already_defined"


def test_members_without_a_key_hold_it_back_by_name() -> None:
    at = world()
    at.join(7)
    refusal = at.do(SetEncryption(scope="sites")).refusal
    assert refusal is not None
    assert refusal.code == "wireguard_missing"
    assert "n7" in refusal.message
    at.ok(ChangeKey(node="n7", uid="uid-7", key=key("seven")))
    assert at.refused(SetEncryption(scope="sites")) == "wireguard_missing", "a key, and nothing to use it with"
    at.ok(ChangeKey(node="n7", uid="uid-7", key=key("seven"), port=51821))
    at.ok(SetEncryption(scope="sites"))


def test_a_key_comes_with_the_join_changes_and_ends_with_the_membership() -> None:
    at = world()
    assert [type(event) for event in at.log[1:4]][1] is NodeKeyChanged, "behind the joining, before the range"
    assert not at.do(joining(0, node_key=key("k0"), wireguard_port=51820, site="s0")).events, "the same again"
    assert not at.do(joining(0, site="s0")).events, "who does not say keeps it"
    at.ok(joining(0, node_key=key("new"), site="s0"))
    assert (at.state.keys["n0"].key, at.state.by_key.get(key("k0"))) == (key("new"), None)
    assert at.refused(ChangeKey(node="n1", uid="uid-1", key=key("new"), port=1)) == "node_key_in_use"
    assert at.refused(ChangeKey(node="n1", uid="other", key=key("x"), port=1)) == "node_unknown"
    assert at.refused(ChangeKey(node="n1", uid="uid-1", key=key("x"), port=-1)) == "bad_request"
    at.ok(LeaveNode(node="n0", uid="uid-0"))
    assert (len(at.state.keys), len(at.state.by_key)) == (1, 1)
    again = joining(5, node_key=key("new"))
    at.ok(again)
    assert isinstance(again, JoinNode)


def test_a_log_that_gives_one_key_to_two_members_is_found_out() -> None:
    at = world()
    before = state_digest(at.state)
    for uid, given_key in (("uid-1", key("k0")), ("else", key("x"))):
        event = NodeKeyChanged(node="n1", uid=uid, key=given_key, port=1)
        with pytest.raises(VerificationFailed):
            evolve(at.state, at.state.sequence + 1, event)
    assert state_digest(at.state) == before


def test_agents_that_leap_get_keys_and_stages() -> None:
    at = world()
    at.ok(SetEncryption(scope="all"))
    made = snapshot_of(at.state, genesis("prod"), START)
    assert [member.key for member in made.members] == [key("k0"), key("k1")]
    assert made.encryption == at.state.encrypts


def test_logs_from_before_have_the_digest_that_they_had() -> None:
    at = World(**CIDR)
    assert b"encryption" not in state_digest(at.state).encode()
    assert not at.state.encryption
    assert ClusterState("x").encrypts == Encryption()


@pytest.mark.parametrize("text", ["", "x", "A" * 44, "A" * 43 + "=", key("a")[:-1], key("a") + "A", "ä" * 44])
def test_what_is_no_key(text: str) -> None:
    assert key_problem(text)
    assert not key_problem(key("a"))


def test_the_event_says_both_kinds_of_pairs() -> None:
    event = ClusterEncryptionChanged(
        cluster="prod", scope="sites", within_sites="plain", between_sites="sending"
    )
    here = Encryption.of(event, 4)
    assert (here.stage("a", "a"), here.stage("a", "b"), here.stage("", "")) == ("plain", "sending", "plain")


def test_two_keys_are_valid_side_by_side_and_have_different_slots() -> None:
    at = world()

    def says(new: str, beside: str = "") -> list[tuple[str, str, int]]:
        command = joining(
            0, node_key=key(new), wireguard_port=51820, site="s0", node_key_beside=beside and key(beside)
        )
        events = at.do(command).events
        return [(one.key, one.beside, one.slot) for one in events if isinstance(one, NodeKeyChanged)]

    assert says("b", "k0") == [(key("b"), key("k0"), 1)]
    assert not at.do(
        joining(0, node_key=key("b"), wireguard_port=51820, site="s0", node_key_beside=key("k0"))
    ).events, "the same again"
    for taken in ("b", "k0"):
        assert at.refused(ChangeKey(node="n1", uid="uid-1", key=key(taken), port=1)) == "node_key_in_use"
    assert says("k0", "b") == [(key("k0"), key("b"), 0)], "the old one announced again: each keeps its slot"
    assert says("b", "k0") == [(key("b"), key("k0"), 1)]
    assert says("b") == [(key("b"), "", 1)], "the end"
    assert at.state.by_key.get(key("k0")) is None
    at.ok(ChangeKey(node="n1", uid="uid-1", key=key("k0"), port=1))
    assert says("c", "k0") == [(key("c"), "", 0)], "another member's key is not valid beside it"
    assert says("d", "b") == [(key("d"), "", 1)], "nor one that ended"
    assert at.refused(joining(0, node_key=key("e"), site="s0", node_key_beside="nonsense")) == "bad_request"
    at.ok(LeaveNode(node="n0", uid="uid-0"))
    assert key("d") not in at.state.by_key
