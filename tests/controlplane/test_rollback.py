"""The way back to 0.2.0: what it cannot follow is parked where nothing changes by that, else refused."""

from __future__ import annotations

from base64 import b64encode
from datetime import timedelta

import pytest

from controlplane.cluster.decision import AdvanceEncryption, MarkNat, MarkPaths, NatFinding
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.mesh.findings import Finding
from controlplane.cluster.rollback.comparison import Rollback
from controlplane.cluster.state import ClusterState
from controlplane.controller.publishing.snapshots import snapshot_of
from controlplane.controller.replication.rollback import prepare_rollback
from events.chain import genesis
from events.codec import Cause, seal
from events.errors import Refused
from events.jetstream.snapshots import Snapshot
from events.memory import MemoryLog
from events.parking import parked_in
from events.protocol.commands import (
    AddEntry,
    BindNodes,
    ChangeKey,
    LeaveNode,
    RemoveEntry,
    ReserveClb,
    SetEncryption,
    SharedUse,
    UseToken,
)
from events.reading import verified
from events.types import NodeFenced
from events.types.releases import FIRST, follows, known_since
from nodeagent.membership.cache_check import view_from_log
from nodeagent.membership.view import View
from tests.controlplane.world import START, World, joining

KEYS = [b64encode(bytes([number]) * 32).decode() for number in range(1, 9)]
CIDR = {"container_cidr": "10.200.0.0/22", "pods_per_node": 64}


def upgraded() -> World:
    """A cluster that has used what 0.3 brings, and has stopped to use it."""
    at = World(**CIDR)
    for number in range(3):
        at.join(number, kind="external", node_key=KEYS[number], wireguard_port=51820)
    at.ok(ReserveClb(reservation="gw", subnet="10.21.0.0/28", provider="gateway"))
    at.ok(BindNodes(nodes=(("n0", "uid-0", "kubernetes-1"),)))
    at.ok(AddEntry(entry="api", sources=("203.0.113.0/28",)))
    for is_so in (True, False):
        at.ok(MarkNat(found=(NatFinding("uid-2", is_so, "203.0.113.9", ("n0",)),)))
    for scope in ("all", "off"):
        at.ok(SetEncryption(scope=scope))  # type: ignore[arg-type]
        while at.do(AdvanceEncryption(applied=dict.fromkeys(at.state.by_uid, at.state.sequence))).events:
            pass
    at.ok(ChangeKey(node="n1", uid="uid-1", key=KEYS[5], port=51820))
    at.ok(MarkPaths(found=(dark(),), at_s=45.0))
    at.ok(RemoveEntry(entry="api"))
    at.ok(LeaveNode(node="n2", uid="uid-2"))
    return at


async def written(at: World) -> MemoryLog:
    log = MemoryLog("prod")
    for number, event in enumerate(at.log):
        cause = Cause(command_id=f"c{number}", actor="test", time=START, source="test")
        messages, _ = seal("prod", await log.head(), [(cause, [event])])
        await log.append(messages, expected=number)
    return log


async def folded(log: MemoryLog) -> ClusterState:
    state = ClusterState("prod")
    async for batch in verified(log, genesis("prod")):
        for one in batch.events:
            evolve(state, one.sequence, one.event)
    return state


async def test_the_cluster_stays_what_it_is_and_repeating_it_writes_nothing() -> None:
    at = upgraded()
    log = await written(at)
    before = await log.head()
    said = await prepare_rollback(log, FIRST, actor="test", dry_run=True)
    assert (await log.head(), said.dry_run) == (before, True)
    assert set(said.left_out) == {
        event.type_name() for event in at.log if not follows(FIRST, known_since(event))
    }
    assert set(said.left_out) >= {
        "node.key-changed.v1", "node.nat-changed.v1", "cluster.encryption-changed.v1", "entry.added.v1",
        "entry.removed.v1", "node.bound.v1",
    }  # fmt: skip

    done = await prepare_rollback(log, FIRST, actor="test")
    assert done.sequence == (await log.head()).sequence == before.sequence + done.written
    state, parked = await folded(log), await parked_in(log)
    assert len(parked) == sum(done.left_out.values())
    for field in ("nodes", "ranges", "draining", "fenced", "clb", "by_address", "by_uid", "by_mac", "owned"):
        assert getattr(state, field) == getattr(at.state, field), field
    assert state.pool.cursor == at.state.pool.cursor
    newer = (state.keys, state.encryption, state.behind_nat, state.bound, state.lost_paths)
    assert not any(newer)

    again = await prepare_rollback(log, FIRST, actor="test")
    assert (again.written, again.left_out, (await log.head()).sequence) == (0, {}, done.sequence)
    assert state_digest(await folded(log)) == state_digest(state)


async def test_whatever_part_is_written_can_be_followed() -> None:
    at = upgraded()
    rollback = Rollback("prod", FIRST)
    log = await written(at)
    async for batch in verified(log, genesis("prod")):
        for one in batch.events:
            rollback.take(one)
    assert not rollback.obstacles(START)
    for number, parking in enumerate(rollback.parkings()):
        head = await log.head()
        cause = Cause(command_id=f"park-{number}", actor="test", time=START, source="test")
        messages, _ = seal("prod", head, [(cause, [parking])])
        await log.append(messages, expected=head.sequence)
        state = await folded(log)
        assert state.ranges == at.state.ranges


def dark() -> Finding:
    return Finding(scope="node", a="n1", since=40.0)


def with_shared_token(at: World) -> None:
    shared = SharedUse(uses=3, until=START + timedelta(days=1))
    token, key = "U" + "A" * 55, "U" + "B" * 55
    at.ok(UseToken(token=token, node="x1", public_key=key, expires=START + timedelta(days=9), shared=shared))


def with_fence(at: World) -> None:
    at.ok(LeaveNode(node="n1", uid="uid-1"))
    fenced = NodeFenced(node="n1", uid="uid-1", cause="operator", former=True)
    evolve(at.state, at.state.sequence + 1, fenced)
    at.log.append(fenced)


def with_same_address(at: World) -> None:
    for number in (5, 6):
        at.ok(joining(number, kind="external", site=f"s{number}", underlay="192.168.1.9", nat="on"))
    at.ok(LeaveNode(node="n5", uid="uid-5"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda at: at.ok(AddEntry(entry="api", sources=("203.0.113.0/28",))),
            "`isthmus entry remove api --yes`",
        ),
        (lambda at: at.ok(SetEncryption(scope="sites")), "`isthmus cluster encrypt off`"),
        (lambda at: at.ok(MarkNat(found=(NatFinding("uid-0", True),))), "`isthmus node remove n0`"),
        (with_shared_token, "has 2 uses left → wait until it ends, at 2026-03-02 12:00:00 UTC"),
        (with_fence, "fences uid-1 of n1, which was no member any more"),
        (with_same_address, "n6 announced the address of another member"),
    ],
)
async def test_what_would_change_the_cluster_is_refused_with_the_way_out(change, said) -> None:  # type: ignore[no-untyped-def]
    at = upgraded()
    change(at)
    log = await written(at)
    before = await log.head()
    leave = "node remove" not in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("controlplane.controller.replication.rollback.utc_now", lambda: START)
        with pytest.raises(Refused, match="Nothing was written") as refused:
            await prepare_rollback(log, FIRST, actor="test", leave_behind_nat=leave)
    assert said in refused.value.message, refused.value.message
    assert (refused.value.code, await log.head()) == ("older_release", before)


async def test_nodes_behind_nat_may_be_left_there() -> None:
    at = upgraded()
    at.ok(MarkNat(found=(NatFinding("uid-0", True),)))
    log = await written(at)
    done = await prepare_rollback(log, FIRST, actor="test", leave_behind_nat=True)
    state = await folded(log)
    assert (done.behind_nat, state.by_address["192.0.2.1"], state.behind_nat) == (("n0",), "n0", {})


async def test_an_agents_view_is_made_without_a_snapshot_from_before() -> None:
    """The snapshot was made with what is parked now, and knows nothing of that."""
    at = upgraded()
    log = await written(at)
    old = snapshot_of(at.state, await log.head(), START)
    await prepare_rollback(log, FIRST, actor="test")

    class Bucket:
        async def latest(self) -> Snapshot:
            return old

    like = View("prod", "n0", "uid-0")
    like.head = await log.head()
    view = await view_from_log(log, like, await parked_in(log), bucket=Bucket())  # type: ignore[arg-type]
    assert (view.head, [peer.key for peer in view.peers], len(view.peers)) == (like.head, [""], 1)
