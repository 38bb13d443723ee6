"""Who is behind NAT: reported again and again, then a fact; and who may have which address because of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.conditions import conditions
from controlplane.cluster.decision import DecisionContext, MarkNat, NatFinding, Participant
from controlplane.cluster.digest import canonical, state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import check
from controlplane.cluster.state import INDICES
from controlplane.cluster.state_decoder import decode_state
from controlplane.controller.agents.nat_watch import BEHIND_S, GONE_REPORTS, GONE_S, NatWatch
from controlplane.controller.publishing.snapshots import snapshot_of
from events.chain import genesis
from events.errors import BadRequest, VerificationFailed
from events.protocol.commands import ChangeUnderlay, LeaveNode, MarkGateway
from events.protocol.ways import preferred_relay, way_between
from events.status import AgentStatus, NatReport, checked
from events.types import NodeNatChanged
from nodeagent.membership.peers import Peer
from nodeagent.nat.book import NatBook
from nodeagent.nat.packets import ANSWER, Endpoint
from nodeagent.netlink.rows import address_bytes
from tests.controlplane.world import START, World, joining, names

CIDR = {"container_cidr": "10.200.0.0/22", "pods_per_node": 64}
SAME = "192.168.1.10"


def behind(at: World, number: int, *, is_so: bool = True) -> None:
    at.ok(MarkNat(found=(NatFinding(f"uid-{number}", is_so, "203.0.113.9", ("n0",)),)))


def world() -> World:
    """A cloud node, and one in a branch that is behind NAT."""
    at = World(**CIDR)
    at.join(0)
    at.join(1, kind="external", site="one", underlay=SAME)
    behind(at, 1)
    return at


def test_it_becomes_a_fact_once_and_ends_with_the_membership() -> None:
    at = world()
    last = at.log[-1]
    assert last == NodeNatChanged(node="n1", uid="uid-1", behind=True, seen_as="203.0.113.9", seen_by=("n0",))
    assert not at.do(MarkNat(found=(NatFinding("uid-1", True), NatFinding("nobody", True)))).events
    assert (at.state.at_address(SAME), at.state.by_address.get(SAME)) == (("n1",), None)
    behind(at, 1, is_so=False)
    assert (at.state.by_address[SAME], at.state.by_private) == ("n1", {})
    behind(at, 1)
    at.ok(ChangeUnderlay(node="n1", uid="uid-1", underlay="192.168.1.11"))
    assert (at.state.at_address(SAME), at.state.at_address("192.168.1.11")) == ((), ("n1",))
    at.ok(LeaveNode(node="n1", uid="uid-1"))
    assert (at.state.behind_nat, at.state.by_private) == ({}, {})
    at.join(1, kind="external", site="one", underlay=SAME, nat="on")
    assert names(at.log[-3:]) == ["NodeJoined", "NodeNatChanged", "RangeAllocated"], "at once, if it is said"
    assert at.state.behind_nat["n1"].seen_as == ""


def test_one_address_behind_two_nats_and_nowhere_else() -> None:
    at = world()
    assert at.refused(joining(2, kind="external", site="one", underlay=SAME)) == "underlay_address_in_use"
    refusal = at.do(joining(2, kind="external", site="one", underlay=SAME)).refusal
    assert refusal is not None
    assert "at a site of its own (--site)" in refusal.message
    at.join(2, kind="external", site="two", underlay=SAME)
    assert at.state.at_address(SAME) == ("n2", "n1"), "nobody knows yet that n2 is behind NAT, too"
    assert at.refused(joining(3, kind="external", site="three", underlay=SAME)) == "underlay_address_in_use"
    assert not at.do(MarkNat(found=(NatFinding("uid-1", False),))).events, "the log would have two at one place"
    behind(at, 2)
    at.join(3, kind="external", site="three", underlay=SAME, nat="on")
    assert at.state.at_address(SAME) == ("n1", "n2", "n3")
    both = MarkNat(found=(NatFinding("uid-1", False), NatFinding("uid-2", False)))
    assert [event.entity for event in at.do(both).events] == ["n1"], "one of them at most is where all reach it"
    assert not at.do(both).events
    at.ok(ChangeUnderlay(node="n2", uid="uid-2", underlay="192.168.1.12"))
    assert [event.entity for event in at.do(both).events] == ["n2"]
    assert set(at.state.behind_nat) == {"n3"}
    assert not check(at.state)


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from(("nat", "no", "move", "out", "in"))), max_size=40))
def test_no_two_members_at_one_place(steps: list[tuple[int, str]]) -> None:
    """Whatever comes: no place has two members, and what is restored from its text is the same state."""
    at = World(**CIDR)
    for number, what in steps:
        uid, site = f"uid-{number}", f"s{number % 3}"
        if what == "in":
            at.do(joining(number, site=site, underlay=SAME))
        elif what == "out":
            at.do(LeaveNode(node=f"n{number}", uid=uid))
        elif what == "move":
            here = at.state.nodes.get(f"n{number}")
            there = "192.168.1.11" if here is not None and here.announced == SAME else SAME
            at.do(ChangeUnderlay(node=f"n{number}", uid=uid, underlay=there))
        else:
            at.do(MarkNat(found=(NatFinding(uid, what == "nat"),)))
        assert not check(at.state)
    again = decode_state(canonical(at.state))
    for index in INDICES - {"quarantine_last", "quarantine_ordered", "external"}:
        assert dict(getattr(again, index)) == dict(getattr(at.state, index)), index
    found = {m.node for m in snapshot_of(at.state, genesis("prod"), START).members if m.behind_nat}
    assert found == set(at.state.behind_nat)


def test_a_log_that_contradicts_itself_is_found_out() -> None:
    at = world()
    at.join(2, kind="external", site="two", underlay=SAME)
    before = state_digest(at.state)
    for event in (
        NodeNatChanged(node="n1", uid="uid-1", behind=True),
        NodeNatChanged(node="n1", uid="uid-1", behind=False),
        NodeNatChanged(node="n0", uid="uid-0", behind=False),
        NodeNatChanged(node="n0", uid="else", behind=True),
        NodeNatChanged(node="n9", uid="uid-9", behind=True),
    ):
        with pytest.raises(VerificationFailed):
            evolve(at.state, at.state.sequence + 1, event)
        assert state_digest(at.state) == before


def test_an_earlier_release_among_them_keeps_it_out_of_the_log_but_not_the_end_of_it() -> None:
    at = World(**CIDR)
    at.join(1)
    at.context = DecisionContext(older=(Participant("the agent of n7", "0.2.0"),))
    assert not at.do(MarkNat(found=(NatFinding("uid-1", True),))).events
    at.join(2, nat="on")
    assert "n2" not in at.state.behind_nat, "it joins all the same; its reports say it again"
    at.context = DecisionContext()
    behind(at, 1)
    at.context = DecisionContext(older=(Participant("the agent of n7", "0.2.0"),))
    behind(at, 1, is_so=False)
    assert not at.state.behind_nat


# --- reports ---------------------------------------------------------------------------------------------


class Heard:
    """A watch, the world that it is about, and a clock."""

    def __init__(self) -> None:
        self.at = World(**CIDR)
        for number in range(3):
            self.at.join(number)
        self.now = 100.0
        self.watch = NatWatch(lambda: self.at.state, lambda: self.now)

    def says(self, report: NatReport | None, number: int = 1, *, later_s: float = 0.0) -> list[NatFinding]:
        self.now += later_s
        self.watch.take(
            AgentStatus(node=f"n{number}", uid=f"uid-{number}", applied=1, sent_at=START, nat=report), 0.0
        )
        return list(self.watch.settled())


SEEN = NatReport(behind=True, seen_as="203.0.113.9", seen_by=("n0",))
NOT = NatReport(behind=False, seen_by=("n0",))


def test_one_report_is_not_enough_in_neither_direction() -> None:
    heard = Heard()
    assert heard.says(SEEN) == []
    assert heard.says(NOT, later_s=5) == []
    assert heard.says(SEEN, later_s=5) == [], "it was interrupted"
    found = heard.says(SEEN, later_s=BEHIND_S)
    assert found == [NatFinding("uid-1", True, "203.0.113.9", ("n0",))]
    assert heard.at.ok(MarkNat(found=tuple(found)))["changed"] == 1
    assert list(heard.watch.settled()) == [], "it is in the log: nothing is written again"
    for _ in range(GONE_REPORTS - 1):
        assert heard.says(NOT, later_s=GONE_S / 2) == []
    assert heard.says(NatReport()) == [], "an agent that has just begun knows nothing: it stays as it is"
    for _ in range(GONE_REPORTS - 1):
        assert heard.says(NOT, later_s=GONE_S / 2) == []
    assert [one.behind for one in heard.says(NOT, later_s=GONE_S)] == [False]
    heard.watch.restart()
    assert list(heard.watch.settled()) == []


def test_who_shares_its_link_sees_no_nat_and_proves_nothing() -> None:
    heard = Heard()
    behind(heard.at, 1)
    behind(heard.at, 2)
    beside = NatReport(behind=False, seen_by=("n2", "n1", "unknown"))
    for _ in range(3 * GONE_REPORTS):
        assert heard.says(beside, later_s=GONE_S) == []


def test_an_agent_that_came_out_from_behind_nat_is_believed() -> None:
    """What it says is its own report, not one made up here: it names who sees it as it announces itself."""
    heard = Heard()
    behind(heard.at, 1)
    own = Peer("n1", "uid-1", 7, "10.200.0.64/26", "66:00:00:00:00:01", "203.0.113.1")
    witness = Peer("n0", "uid-0", 5, "10.200.0.0/26", "66:00:00:00:00:02", "203.0.113.2")
    book = NatBook(seed=1)
    book.be(own, 8472, 0.0)
    book.follow({witness.epoch: witness}, [witness], 0.0)
    asked = book.hello(book.look(0.0)[0], 0.0)
    assert asked is not None
    as_announced = Endpoint(address_bytes(own.underlay), 8472)
    answer = asked[0]._replace(kind=ANSWER, sender=5, receiver=7, seen=as_announced, known=True)
    book.received(answer, witness, asked[1], 0.1)
    seen = book.seen(1.0)
    report = NatReport(behind=seen.behind, seen_as=seen.address, seen_by=seen.by)
    for _ in range(GONE_REPORTS - 1):
        assert heard.says(report, later_s=GONE_S) == []
    assert [one.behind for one in heard.says(report, later_s=GONE_S)] == [False]


def test_what_it_was_told_counts_at_once() -> None:
    heard = Heard()
    assert heard.says(NatReport(mode="on", behind=False)) == [NatFinding("uid-1", True)]
    assert heard.says(NatReport(mode="off", behind=True)) == []
    behind(heard.at, 1)
    assert heard.says(NatReport(mode="off", behind=True)) == [NatFinding("uid-1", False)]
    assert heard.says(None) == [], "an agent of an earlier release says nothing"


def test_a_node_that_changes_its_mind_all_day_writes_a_few_events() -> None:
    heard, changes = Heard(), 0
    for second in range(86_400):
        mode = "on" if second % 2 else "off"
        for found in heard.says(NatReport(mode=mode), later_s=1.0):  # type: ignore[arg-type]
            changes += heard.at.ok(MarkNat(found=(found,)))["changed"]
    assert 2 < changes < 60
    heard.now += 2 * 3600
    assert [one.behind for one in heard.says(NatReport(mode="on"))] == (
        [True] if "n1" not in heard.at.state.behind_nat else []
    )
    other = heard.says(NatReport(mode="on"), 2)
    assert NatFinding("uid-2", True) in other, "of others nothing waits for it"


def test_a_report_is_checked_where_it_enters() -> None:
    def of(report: NatReport) -> NatReport | None:
        return checked(AgentStatus(node="n", uid="u", applied=0, sent_at=START, nat=report)).nat

    with pytest.raises(BadRequest):
        of(NatReport(seen_as="203.0.113.9; drop table"))
    found = of(NatReport(behind=True, seen_by=("x" * 400 + "\n",) * 100))
    assert found is not None
    assert len(found.seen_by) == 8
    assert all(name.isprintable() and len(name) <= 253 for name in found.seen_by)


# --- ways ------------------------------------------------------------------------------------------------


def test_the_way_of_a_pair_follows_from_the_log() -> None:
    assert way_between(False, False, one_site=False) == "tunnel"
    assert way_between(True, False, one_site=False) == way_between(False, True, one_site=True) == "nat"
    assert way_between(True, True, one_site=False) == "relayed"
    assert way_between(True, True, one_site=True) == "tunnel"


@given(st.sets(st.integers(1, 99), min_size=1, max_size=6))
def test_both_ends_prefer_the_same_relay_and_only_its_pairs_move(gateways: set[int]) -> None:
    for a, b in [(one, 50 + other) for one in range(6) for other in range(6)]:
        chosen = preferred_relay(a, b, gateways)
        assert chosen == preferred_relay(b, a, sorted(gateways))
        assert all(preferred_relay(a, b, gateways - {gone}) == chosen for gone in gateways - {chosen})


def test_relays_share_the_pairs() -> None:
    chosen = [preferred_relay(n, 1000 + n, (7, 8)) for n in range(200)]
    assert 60 < chosen.count(7) < 140
    assert preferred_relay(1, 2, ()) is None


def test_pairs_without_a_way_are_named_until_a_gateway_is_there() -> None:
    at = world()
    at.join(2, kind="external", site="two")
    behind(at, 2)

    def found() -> list[str]:
        return [one.message for one in conditions(at.state, {}) if one.code == "nat_no_way"]

    (message,) = found()
    assert "n1 and n2" in message
    assert "isthmus clb gateway add NODE" in message
    at.ok(MarkGateway(node="n0"))
    assert not found()
