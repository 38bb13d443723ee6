"""The fold of the log into a view, its leap to a snapshot, and its memory on disk."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from events.jetstream.snapshots import Snapshot, SnapshotMember, SnapshotRange
from events.types import (
    CidrAppended,
    ClusterDeleted,
    ClusterEncryptionChanged,
    Event,
    NodeFenced,
    NodeKeyChanged,
    NodeNatChanged,
    NodeUnderlayChanged,
)
from nodeagent.dataplane.desired import Desired, desired_of
from nodeagent.membership.cache import Cache, Entry
from nodeagent.membership.view import View
from tests.nodeagent.logs import DEFINED, folded, joined, logs


def same(left: View, right: View) -> bool:
    return (
        {peer.cidr: peer for peer in left.peers} == {peer.cidr: peer for peer in right.peers}
        and (left.own, left.plan, left.members, left.fenced)
        == (right.own, right.plan, right.members, right.fenced)
        and left.expected_digest() == right.expected_digest()
    )


@given(logs())
def test_step_by_step_the_rows_are_those_of_the_whole(log: list[Event]) -> None:
    view, desired = View("c", "n0", "u0"), Desired()
    for sequence, event in enumerate(log, 1):
        for change in view.apply(sequence, event):
            desired.apply(change)
    if view.own is None:
        return
    whole = desired_of(view.own, view)
    desired.own_range(view.own.cidr)
    assert desired.rows == whole.rows
    assert len(whole.rows.fdb) == len(view.peers)


@given(logs())
def test_saved_and_restored_it_is_the_same(log: list[Event]) -> None:
    view = folded(log)
    restored = View.restore(msgspec.json.decode(msgspec.json.encode(view.save()), type=type(view.save())))
    assert same(view, restored)
    assert restored.head == view.head


def test_a_node_remembers_itself_as_the_log_has_it_after_its_key_and_encryption_have_changed() -> None:
    log: list[Event] = [DEFINED, *joined(0), *joined(1)]
    for number, stage in enumerate(("accepting", "sending", "required")):
        log += [
            NodeKeyChanged(node=f"n{node}", uid=f"u{node}", key=f"{node}-{number}", port=51820)
            for node in (0, 1)
        ]
        log.append(ClusterEncryptionChanged(cluster="c", scope="all", within_sites=stage, between_sites=stage))
        view = folded(log)
        assert same(view, View.restore(view.save()))


def snapshot_of(view: View) -> Snapshot:
    owners = [*view.peers, *([view.own] if view.own else [])]
    return Snapshot(
        cluster="c",
        sequence=view.sequence,
        chain=view.head.hex,
        made_at=datetime(2026, 1, 1, tzinfo=UTC),
        cidrs=("172.16.0.0/16",),
        members=tuple(
            SnapshotMember(
                m.node,
                m.uid,
                "cloud",
                m.underlay,
                m.announced,
                m.vtep_mac,
                m.site,
                *astuple(m)[6:],
            )
            for m in view.members.values()
        ),
        ranges=tuple(SnapshotRange(owner.cidr, owner.epoch, owner.node, owner.uid) for owner in owners),
    )


@given(logs(), st.integers(3, 20))
def test_a_leap_ends_where_the_steps_do_and_says_what_changed(log: list[Event], at: int) -> None:
    early, late = folded(log[:at]), folded(log)
    desired = desired_of(early.own, early) if early.own else Desired()
    for change in early.leap(snapshot_of(late)):
        desired.apply(change)
    assert same(early, late)
    assert early.head == late.head
    if late.own is not None:
        assert desired.rows == desired_of(late.own, late).rows


def test_fenced_and_deleted_are_noticed() -> None:
    view = folded([*joined(0)])
    view.apply(3, NodeFenced(node="n0", uid="u0", cause="operator"))
    assert view.fenced
    view.apply(4, ClusterDeleted(cluster="c"))
    assert view.deleted


def test_an_appended_cidr_belongs_to_the_containers() -> None:
    view = folded([DEFINED, CidrAppended(cluster="c", cidr="172.20.0.0/16", first_index=1020, capacity=1024)])
    assert view.plan is not None
    assert view.plan.cidrs == ("172.16.0.0/16", "172.20.0.0/16")


def remember(cache: Cache, log: list[Event], start: int = 1) -> None:
    for sequence, event in enumerate(log, start):
        digest = (bytes([sequence % 256]) * 32).hex()
        cache.append([Entry(sequence, digest, event.type_name(), msgspec.json.encode(event), 5.0)])


@given(log=logs(), cut=st.integers(0, 400), split=st.integers(0, 20))
def test_a_killed_process_loses_at_most_its_last_words(
    tmp_path_factory: pytest.TempPathFactory, log: list[Event], cut: int, split: int
) -> None:
    directory = tmp_path_factory.mktemp("state")
    cache = Cache(directory)
    remember(cache, log[:split])
    if split:
        cache.snapshot(cache.load("c", "n0", "u0"))
    remember(cache, log[split:], split + 1)
    cache.close()
    journal = directory / "view.journal"
    if journal.exists():
        journal.write_bytes(journal.read_bytes()[: max(0, len(journal.read_bytes()) - cut)])
    found = Cache(directory).load("c", "n0", "u0")
    assert found.sequence >= min(split, len(log))
    assert same(found, folded(log[: found.sequence]))
    if cut == 0:
        assert found.sequence == len(log)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"cluster": 5}', b"\xff" * 100])
def test_an_unreadable_cache_is_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "view.json").write_bytes(content)
    (tmp_path / "view.journal").write_bytes(content)
    assert Cache(tmp_path).load("c", "n0", "u0").sequence == 0


def test_a_cache_of_another_node_is_left_aside(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.snapshot(folded(joined(0)))
    assert cache.load("c", "n0", "other").sequence == 0
    assert cache.load("other", "n0", "u0").sequence == 0
    assert cache.load("c", "n0", "u0").sequence == 2


def test_a_member_behind_nat_may_have_this_nodes_own_address() -> None:
    """Its address means something on its own link alone; of anybody else it makes no sense."""
    same_address = NodeUnderlayChanged(node="n1", uid="u1", underlay="10.0.0.1", announced="10.0.0.1")
    log: list[Event] = [DEFINED, *joined(0), *joined(1), same_address]
    view = folded(log)
    view.be_at(frozenset({"10.0.0.1"}))
    assert (len(view.peers), "own" in view.nonsense()) == (0, True)
    behind = NodeNatChanged(node="n1", uid="u1", behind=True)
    (change,) = view.apply(len(log) + 1, behind)
    assert change.after is not None
    assert (view.members["n1"].behind_nat, view.nonsense()) == (True, "")
    restored = View.restore(view.save())
    restored.be_at(frozenset({"10.0.0.1"}))
    assert same(view, restored)
    assert view.apply(len(log) + 2, NodeNatChanged(node="n1", uid="other", behind=False)) == ()
    (gone,) = view.apply(len(log) + 3, NodeNatChanged(node="n1", uid="u1", behind=False))
    assert gone.after is None
    assert not view.members["n1"].behind_nat
