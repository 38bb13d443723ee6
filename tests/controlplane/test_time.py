"""What time and reports bring: silence, return, drains, quarantine, and their limits."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from controlplane.cluster.decide import AdvanceDrains, MarkLiveness
from controlplane.cluster.decisions.time import laggards, watermark
from events.protocol.commands import FenceNode, RemoveNode
from events.types import NodeFenced, NodeUnreachable, RangeQuarantined
from tests.controlplane.world import START, World, names


@pytest.fixture
def world() -> World:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=32, quarantine_s=60, unreachable_after_s=30)
    for number in range(4):
        world.join(number)
    return world


def reports(world: World, *, behind: int = 0, without: str = "") -> AdvanceDrains:
    """Every agent reports the present, ``behind`` events back; ``without`` names a uid that is silent."""
    sequence = world.state.sequence - behind
    return AdvanceDrains(applied={uid: sequence for uid in world.state.by_uid if uid != without})


# --- drains ------------------------------------------------------------------------------------------


def test_a_range_rests_only_after_every_live_agent_has_applied_its_release(world: World) -> None:
    world.ok(RemoveNode(node="n0"))
    draining = world.state.sequence
    assert world.do(reports(world, behind=1)).events == ()
    assert world.do(reports(world, without="uid-2")).events == ()
    assert laggards(world.state, reports(world, without="uid-2").applied, draining) == ["n2"]
    decision = world.do(reports(world))
    (event,) = decision.events
    assert isinstance(event, RangeQuarantined)
    assert event.watermark == draining
    assert event.until == START + timedelta(seconds=60)


def test_a_range_is_free_when_its_rest_is_over_and_not_before(world: World) -> None:
    world.ok(RemoveNode(node="n0"))
    world.do(reports(world))
    world.forward(59.9)
    assert world.do(reports(world)).events == ()
    world.forward(0.1)
    assert names(world.do(reports(world)).events) == ["RangeFreed"]
    assert world.state.pool.free == world.state.capacity - 3


def test_a_drain_that_never_confirms_never_frees_until_the_silent_node_is_fenced(world: World) -> None:
    world.ok(RemoveNode(node="n0"))
    for _ in range(5):
        world.forward(3600)
        assert world.do(reports(world, without="uid-3")).events == ()
    world.ok(FenceNode(node="n3"))
    assert names(world.do(reports(world)).events) == ["RangeQuarantined", "RangeQuarantined"]


def test_a_report_from_another_log_confirms_nothing(world: World) -> None:
    world.ok(RemoveNode(node="n0"))
    applied = {**reports(world).applied, "uid-1": world.state.sequence + 1}
    assert watermark(world.state, applied) == 0
    assert world.do(AdvanceDrains(applied=applied)).events == ()


def test_the_reports_of_strangers_and_of_the_gone_do_not_count(world: World) -> None:
    world.ok(RemoveNode(node="n0"))
    applied = {**reports(world).applied, "uid-0": 0, "stranger": 0}
    assert names(world.do(AdvanceDrains(applied=applied)).events) == ["RangeQuarantined"]


def test_without_quarantine_a_confirmed_range_is_free_at_once() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=32, quarantine_s=0)
    world.join(1)
    world.ok(RemoveNode(node="n1"))
    assert names(world.do(AdvanceDrains(applied={})).events) == ["RangeQuarantined", "RangeFreed"]


def test_ranges_drain_in_their_order_up_to_the_watermark(world: World) -> None:
    world.ok(RemoveNode(node="n0"))
    first = world.state.sequence
    world.ok(RemoveNode(node="n1"))
    decision = world.do(AdvanceDrains(applied={"uid-2": first, "uid-3": world.state.sequence}))
    assert [event.index for event in decision.events] == [0]  # type: ignore[attr-defined]
    assert list(world.state.draining) == [1]


def test_a_clock_that_was_set_back_delays_no_other_range(world: World) -> None:
    world.forward(3600)
    world.ok(RemoveNode(node="n0"))
    world.do(reports(world))
    world.forward(-3600)
    world.ok(RemoveNode(node="n1"))
    world.do(reports(world))
    assert not world.state.quarantine_ordered
    world.forward(60)
    decision = world.do(reports(world))
    assert [event.index for event in decision.events] == [1]  # type: ignore[attr-defined]
    world.forward(3600)
    assert names(world.do(reports(world)).events) == ["RangeFreed"]


def test_a_tick_writes_no_more_than_its_limit_and_the_rest_follows() -> None:
    world = World(container_cidr="10.0.0.0/20", pods_per_node=4, quarantine_s=0)
    for number in range(200):
        world.join(number, underlay=f"192.168.0.{number + 1}")
    for number in range(200):
        world.ok(RemoveNode(node=f"n{number}"))
    rounds = 0
    while world.state.draining:
        decision = world.do(AdvanceDrains(applied={}, limit=90))
        assert 0 < len(decision.events) <= 90
        rounds += 1
    assert rounds == 5
    assert world.state.pool.free == world.state.capacity


def test_a_tick_with_nothing_to_do_writes_nothing() -> None:
    assert World().do(AdvanceDrains(applied={})).events == ()
    assert World().do(MarkLiveness(last_seen={}, watching_since=START)).events == ()


# --- liveness ----------------------------------------------------------------------------------------


def seen(world: World, **seconds_ago: float) -> MarkLiveness:
    """Everybody has just reported, but for those named (``uid_2=40``)."""
    last = dict.fromkeys(world.state.by_uid, world.now)
    for uid, ago in seconds_ago.items():
        last[uid.replace("_", "-")] = world.now - timedelta(seconds=ago)
    return MarkLiveness(last_seen=last, watching_since=START - timedelta(days=30))


def test_silence_makes_unreachable_and_a_report_brings_back(world: World) -> None:
    assert world.do(seen(world, uid_2=30)).events == ()
    (event,) = world.do(seen(world, uid_2=30.1)).events
    assert isinstance(event, NodeUnreachable)
    assert (event.node, event.last_seen) == ("n2", world.now - timedelta(seconds=30.1))
    assert world.do(seen(world, uid_2=31)).events == ()
    assert names(world.do(seen(world)).events) == ["NodeRecovered"]
    assert world.do(seen(world)).events == ()
    assert world.state.nodes["n2"].uid == "uid-2", "it stayed a member all the time"


def test_a_member_whose_agent_never_came_is_neither_lost_nor_found(world: World) -> None:
    """3,000 imported nodes made 3,000 events "unreachable", and "recovered" ones at the next restart."""
    came = frozenset({"uid-1", "uid-2"})
    silence = msgspec.structs.replace(seen(world, uid_2=31, uid_3=31, uid_4=1e6), came=came)
    assert [getattr(event, "node", "") for event in world.do(silence).events] == ["n2"]
    assert names(world.do(msgspec.structs.replace(seen(world), came=came)).events) == ["NodeRecovered"]
    assert world.do(msgspec.structs.replace(seen(world, uid_3=31), came=came | {"uid-3"})).events


def test_a_controller_that_has_just_begun_to_listen_judges_nobody(world: World) -> None:
    world.forward(1000)
    nobody = MarkLiveness(last_seen={}, watching_since=world.now)
    assert world.do(nobody).events == ()
    world.forward(31)
    assert names(world.do(nobody).events) == ["NodeUnreachable"] * 4
    later = MarkLiveness(last_seen={}, watching_since=world.now)
    assert world.do(later).events == (), "a new listener has heard nobody come back either"


def test_removal_is_off_by_default(world: World) -> None:
    world.forward(1_000_000)
    world.do(seen(world, uid_2=1_000_000))
    assert world.do(seen(world, uid_2=1_000_000)).events == ()
    assert "n2" in world.state.nodes


def test_a_long_silent_node_is_fenced_if_the_cluster_says_so() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=32, unreachable_after_s=30, remove_after_s=600)
    for number in range(2):
        world.join(number)
    world.forward(700)
    assert names(world.do(seen(world, uid_1=700)).events) == ["NodeUnreachable"]
    assert world.do(seen(world, uid_1=630)).events == ()
    decision = world.do(seen(world, uid_1=630.1))
    fenced, drained = decision.events
    assert isinstance(fenced, NodeFenced)
    assert (fenced.cause, fenced.node) == ("unreachable", "n1")
    assert type(drained).__name__ == "RangeDraining"
    assert list(world.state.nodes) == ["n0"]


def test_a_removed_node_is_no_longer_unreachable(world: World) -> None:
    world.do(seen(world, uid_2=40))
    world.ok(RemoveNode(node="n2"))
    assert not world.state.unreachable
