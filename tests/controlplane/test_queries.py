"""Answers about the present, their pages, and the conditions that a person should see."""

from __future__ import annotations

from datetime import timedelta
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec
import pytest

from controlplane.cluster.decide import AdvanceDrains, MarkLiveness
from controlplane.cluster.digest import state_digest
from controlplane.controller.answers import UNREPORTED, answer, ask
from events.errors import BadRequest, IsthmusError, Refused
from events.protocol.commands import (
    AddEntry,
    AppendCidr,
    DeclareNetwork,
    DeleteCluster,
    FenceNode,
    Override,
    RemoveNode,
    ReserveClb,
)
from events.protocol.queries import (
    CONDITIONS,
    QUERIES,
    AddressOwner,
    ClbAnswer,
    ClbList,
    ClusterView,
    EntryList,
    EntryView,
    ListClb,
    ListEntries,
    ListNodes,
    ListRanges,
    NodePage,
    NodeView,
    Query,
    RangePage,
    ShowClb,
    ShowCluster,
    ShowEntry,
    ShowNode,
    WhoHas,
)
from events.status import AgentStatus
from events.types import Network
from tests.controlplane.world import START, World, joining

ANSWERS: dict[type[Query], type[msgspec.Struct]] = {
    ShowCluster: ClusterView,
    ListNodes: NodePage,
    ShowNode: NodeView,
    ListRanges: RangePage,
    WhoHas: AddressOwner,
    ListClb: ClbList,
    ShowClb: ClbAnswer,
    ListEntries: EntryList,
    ShowEntry: EntryView,
}
"""What each query's docstring says that it is answered with."""


class Reports:
    """Every live agent reported ``applied`` at START, but for those named."""

    def __init__(self, world: World, applied: int, **other: int) -> None:
        self.applied = dict.fromkeys(world.state.by_uid, applied) | {
            k.replace("_", "-"): v for k, v in other.items()
        }
        self.last_seen = dict.fromkeys(world.state.by_uid, START)
        self.differences: dict[str, Any] = {}
        self.absent: frozenset[str] = frozenset()
        self.silent: set[str] = set()
        self.agreeing: dict[str, int] = {}
        self.statuses = {
            uid: AgentStatus(
                node=name, uid=uid, applied=self.applied[uid], sent_at=START, conditions=("mtu low",)
            )
            for uid, name in world.state.by_uid.items()
        }

    def stale(self, uid: str) -> bool:
        return uid in self.silent


@pytest.fixture
def world() -> World:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=64, quarantine_s=60)
    world.join(1, kind="external", site="sz")
    world.join(2)
    return world


def conditions(world: World, reports: Any = UNREPORTED) -> dict[str, str]:
    view = ask(world.state, ShowCluster(), reports)
    assert isinstance(view, ClusterView)
    assert {item.code for item in view.conditions} <= set(CONDITIONS)
    return {item.code: item.message for item in view.conditions}


def test_the_cluster_in_numbers(world: World) -> None:
    view = ask(world.state, ShowCluster(), Reports(world, world.state.sequence, uid_2=3))
    assert isinstance(view, ClusterView)
    assert (view.sequence, view.digest) == (5, state_digest(world.state))
    assert (view.pool.capacity, view.pool.allocated, view.pool.free) == (3, 2, 1)
    assert view.pool.next_range == "10.0.0.128/26"
    assert (view.nodes, view.external, view.watermark) == (2, 1, 3)


def test_before_the_definition_there_is_an_answer_too() -> None:
    view = ask(World().state, ShowCluster())
    assert isinstance(view, ClusterView)
    assert (view.definition, view.conditions, view.pool.capacity) == (None, (), 0)


def test_a_node_with_its_range_and_its_agents_report(world: World) -> None:
    reports = Reports(world, 4)
    view = ask(world.state, ShowNode(node="n1"), reports)
    assert isinstance(view, NodeView)
    assert not view.stale
    reports.silent.add("uid-1")
    stale = ask(world.state, ShowNode(node="n1"), reports)
    assert isinstance(stale, NodeView)
    assert stale.stale, "what a silent agent said last is what was"
    assert (view.cidr, view.epoch, view.site, view.lag) == ("10.0.0.0/26", 3, "sz", 1)
    assert (view.agent_state, view.agent_conditions, view.last_seen) == ("ready", ("mtu low",), START)
    silent = ask(world.state, ShowNode(node="n1"))
    assert isinstance(silent, NodeView)
    assert (silent.applied, silent.lag, silent.agent_state) == (None, None, "")


def test_a_node_that_was_refused_shows_why(world: World) -> None:
    world.refused(joining(7, underlay="192.0.2.2"))
    view = ask(world.state, ShowNode(node="n7"))
    assert isinstance(view, NodeView)
    assert not view.member
    assert [(item.code, item.since) for item in view.refusals] == [("underlay_address_in_use", 6)]
    with pytest.raises(Refused, match="no live node is named 'ghost'"):
        ask(world.state, ShowNode(node="ghost"))


def test_pages_together_are_the_whole_in_order() -> None:
    world = World(container_cidr="10.0.0.0/20", pods_per_node=4)
    for number in range(57):
        world.join(number, kind="external" if number % 3 else "cloud", site=f"s{number % 2}")
    seen: list[str] = []
    after, totals = "", []
    while True:
        page = ask(world.state, ListNodes(after=after, limit=10))
        assert isinstance(page, NodePage)
        seen += [view.node for view in page.nodes]
        totals.append(page.total)
        if page.next_after is None:
            break
        after = page.next_after
    assert seen == sorted(world.state.nodes)
    assert totals == [57, 47, 37, 27, 17, 7]
    some = ask(world.state, ListNodes(kind="cloud", site="s0", unreachable=False))
    assert isinstance(some, NodePage)
    assert [view.node for view in some.nodes] == sorted(f"n{n}" for n in range(57) if n % 3 == 0 and n % 2 == 0)
    for limit in (0, 1001):
        with pytest.raises(BadRequest):
            ask(world.state, ListNodes(limit=limit))


def test_ranges_by_phase(world: World) -> None:
    world.ok(RemoveNode(node="n1"))
    world.do(AdvanceDrains(applied={"uid-2": world.state.sequence}))
    world.ok(RemoveNode(node="n2"))
    page = ask(world.state, ListRanges())
    assert isinstance(page, RangePage)
    assert [(view.index, view.phase, view.node) for view in page.ranges] == [
        (0, "quarantined", "n1"),
        (1, "draining", "n2"),
    ]
    assert page.ranges[0].until == START + timedelta(seconds=60)
    assert page.ranges[1].draining_since == world.state.sequence
    for phase, count in (("allocated", 0), ("draining", 1), ("quarantined", 1)):
        part = ask(world.state, ListRanges(phase=phase))  # type: ignore[arg-type]
        assert isinstance(part, RangePage)
        assert part.total == count
    following = ask(world.state, ListRanges(after=0, limit=1))
    assert isinstance(following, RangePage)
    assert [view.index for view in following.ranges] == [1]


def test_who_has_any_address_equals_a_search_through_everything(world: World) -> None:
    world.ok(AppendCidr(cidr="10.1.0.0/26"))
    world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/29"))
    state = world.state
    for text in [
        *(str(IPv4Address("10.0.0.0") + n) for n in range(256)),
        *(str(IPv4Address("10.1.0.0") + n) for n in range(66)),
        *(str(IPv4Address("198.51.100.0") + n) for n in range(8)),
        "192.0.2.2",
        "203.0.113.1",
    ]:
        holder = ask(state, WhoHas(address=text))
        assert isinstance(holder, AddressOwner)
        address = IPv4Address(text)
        held = [r for r in state.ranges.values() if address in IPv4Network(r.cidr)]
        clb = [a for r in state.clb.values() for a in r.addresses if a.address == text]
        nodes = [n.name for n in state.nodes.values() if n.announced == text]
        if clb:
            assert (holder.kind, holder.purpose) == ("clb", clb[0].purpose)
        elif nodes:
            assert (holder.kind, holder.node) == ("node", nodes[0])
        elif held:
            assert (holder.kind, holder.node) == ("range", held[0].node)
        elif address in IPv4Network("10.0.0.224/27"):
            assert holder.kind == "service"
        elif address in IPv4Network("10.0.0.192/27"):
            assert holder.kind == "stranded"
        elif address in IPv4Network("10.0.0.0/24") or address in IPv4Network("10.1.0.0/26"):
            assert holder.kind == "free_range"
            assert address in IPv4Network(holder.cidr)
        else:
            assert holder.kind == "outside"
    with pytest.raises(BadRequest):
        ask(state, WhoHas(address="10.0.0"))


# --- as bytes ----------------------------------------------------------------------------------------


def test_every_query_is_answered_in_the_shape_it_promises(world: World) -> None:
    world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/29", provider="gateway"))
    world.ok(AddEntry(entry="api", sources=("203.0.113.0/28",)))
    asked = [
        ShowCluster(), ListNodes(), ShowNode(node="n1"), ListRanges(), WhoHas(address="10.0.0.1"), ListClb(),
        ShowClb(reservation="main"), ListEntries(), ShowEntry(entry="api"),
    ]  # fmt: skip
    assert [type(query) for query in asked] == list(QUERIES)
    for query in asked:
        body = answer(world.state, query.name, msgspec.json.encode(query))
        found = ask(world.state, query)
        assert msgspec.json.decode(body, type=type(found)) == found
    assert answer(world.state, "cluster", b"") == answer(world.state, "cluster", b"{}")


@pytest.mark.parametrize(
    ("name", "body", "code"),
    [
        ("clusters", b"{}", "unknown_command"),
        ("cluster", b"{", "bad_request"),
        ("node", b"{}", "bad_request"),
        ("node", b'{"node": "n1", "nod": 1}', "bad_request"),
        ("nodes", b'{"kind": "moon"}', "bad_request"),
        ("clb", b'{"reservation": "none"}', "clb_unknown"),
        ("entry", b'{"entry": "none"}', "entry_unknown"),
    ],
)
def test_a_bad_question_gets_a_typed_error(world: World, name: str, body: bytes, code: str) -> None:
    with pytest.raises(IsthmusError) as refused:
        answer(world.state, name, body)
    assert refused.value.code == code


# --- conditions --------------------------------------------------------------------------------------


def test_a_cluster_of_cloud_nodes_alone_raises_a_warning(world: World) -> None:
    assert "no_external_node" not in conditions(world)
    world.ok(RemoveNode(node="n1"))
    assert "all 1 nodes are cloud nodes" in conditions(world)["no_external_node"]


def test_exhaustion_is_a_condition_with_numbers_and_the_next_return(world: World) -> None:
    assert "pool_exhausted" not in conditions(world)
    world.join(3)
    world.ok(RemoveNode(node="n1"))
    world.refused(joining(4))
    found = conditions(world)
    assert "2 allocated, 1 draining, 0 quarantined of 3" in found["pool_exhausted"]
    assert "none is due" in found["pool_exhausted"]
    assert "n4" in found["joins_refused"]
    world.do(AdvanceDrains(applied=dict.fromkeys(world.state.by_uid, world.state.sequence)))
    assert "free at 2026-03-01T12:01:00+00:00" in conditions(world)["pool_exhausted"]
    world.forward(60)
    world.do(AdvanceDrains(applied={}))
    assert "pool_exhausted" not in conditions(world)


def test_a_pool_that_runs_low_is_a_condition() -> None:
    world = World(container_cidr="10.0.0.0/24", pods_per_node=4, services=64)
    for number in range(44):
        world.join(number)
    assert "4 of 48 ranges free" in conditions(world)["pool_low"]


def test_a_drain_that_waits_names_whom_it_waits_for(world: World) -> None:
    world.join(3)
    world.ok(RemoveNode(node="n1"))
    waiting = conditions(world, Reports(world, world.state.sequence, uid_3=2))["drain_waiting"]
    assert "n3" in waiting
    assert "n2" not in waiting
    assert "drain_waiting" not in conditions(world, Reports(world, world.state.sequence))


def test_a_drain_that_waits_for_a_silent_node_names_the_ranges_and_the_command_that_ends_it(
    world: World,
) -> None:
    world.join(3)
    world.ok(RemoveNode(node="n1"))
    world.forward(100)
    world.do(MarkLiveness(last_seen={"uid-2": world.now}, watching_since=START))
    reports = Reports(world, world.state.sequence, uid_3=2)
    waiting = conditions(world, reports)["drain_waiting"]
    assert "n3 does not report, and 10.0.0.0/26 of n1 cannot be given" in waiting
    command = waiting.rpartition(": ")[2]
    assert command == "isthmus node fence n3 --yes"
    world.ok(FenceNode(node=command.split()[3]))  # the command works, and ends the waiting
    assert "drain_waiting" not in conditions(world, Reports(world, world.state.sequence))


def test_a_member_that_never_reported_holds_up_nothing(world: World) -> None:
    world.join(3)
    world.ok(RemoveNode(node="n1"))
    reports = Reports(world, world.state.sequence, uid_3=0)
    assert "n3" in conditions(world, reports)["drain_waiting"]
    reports.absent = frozenset({"uid-3"})
    assert "drain_waiting" not in conditions(world, reports)
    held = {"uid-2": world.state.sequence}
    world.do(AdvanceDrains(applied=held))
    assert world.state.draining, "it may still come"
    world.do(AdvanceDrains(applied=held | {"uid-3": 1}, absent=frozenset({"uid-3"})))
    assert world.state.draining, "what has reported is not absent, whoever says so"
    world.do(AdvanceDrains(applied=held, absent=frozenset({"uid-3"})))
    assert not world.state.draining


def test_silence_overrides_and_a_missing_clb_are_conditions(world: World) -> None:
    assert "1 external node," in conditions(world)["no_clb"]
    world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/29"))
    assert "no_clb" not in conditions(world)
    world.forward(100)
    world.do(MarkLiveness(last_seen={"uid-1": world.now}, watching_since=START))
    assert "1 of 2 nodes does not report: n2" in conditions(world)["nodes_unreachable"]
    accepted = (Override(code="cidr_conflict_with_idc", reason="a summary route"),)
    world.ok(DeclareNetwork(network=Network(cidr="10.0.0.0/8", kind="idc"), overrides=accepted))
    assert "a summary route" in conditions(world)["conflict_overridden"]


def test_a_deleted_cluster_says_so_and_nothing_else(world: World) -> None:
    for name in ("n1", "n2"):
        world.ok(FenceNode(node=name))
    world.ok(DeleteCluster())
    assert list(conditions(world)) == ["cluster_deleted"]
