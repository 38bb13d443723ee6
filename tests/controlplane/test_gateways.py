"""Gateways, holders, backends: the rules by example, and random histories against a naive model."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from controlplane.cluster.decide import AssignHolders, DecisionContext, MarkLiveness
from controlplane.cluster.decisions.holders import REASON_CHARACTERS
from controlplane.cluster.digest import canonical, state_digest
from controlplane.cluster.evolve import evolve, fold
from controlplane.cluster.invariants import check, violation
from controlplane.cluster.state import ClusterState
from controlplane.cluster.state_decoder import decode_state
from events.protocol.commands import (
    AddBackend,
    FenceNode,
    LeaveNode,
    MarkGateway,
    ReleaseClb,
    RemoveBackend,
    RemoveNode,
    ReportHealth,
    ReserveClb,
)
from events.types import ClbHolderAssigned, ClbHolderWithdrawn, NodeLeft
from tests.controlplane.world import World, joining, names

ADDRESSES = ("198.51.100.2", "198.51.100.3")
BACKEND: dict[str, Any] = {"reservation": "main", "purpose": "apiserver", "port": 443, "address": "192.0.2.77"}


def gateways(*numbers: int) -> World:
    """A cluster with four cloud nodes, some of them gateways, an external one, and a pair for gateways."""
    world = World(container_cidr="10.9.0.0/24", pods_per_node=16)
    for number in range(4):
        world.join(number)
    world.join(4, kind="external")
    for number in numbers:
        world.ok(MarkGateway(node=f"n{number}"))
    world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/28", provider="gateway"))
    return world


def tick(world: World, *heard: int, ages: dict[int, float] | None = None, able: bool = True) -> list[str]:
    """Time looks at the gateways; ``heard`` were heard just now. Who holds the two addresses afterwards."""
    seen = {f"uid-{number}": world.now for number in heard}
    seen |= {f"uid-{number}": world.now - timedelta(seconds=age) for number, age in (ages or {}).items()}
    since = world.now - timedelta(hours=1)
    world.ok(AssignHolders(last_seen=seen, watching_since=since, able=frozenset(seen if able else ())))
    return holders(world)


def holders(world: World) -> list[str]:
    held = world.state.holders
    return [held[address].node if address in held else "" for address in ADDRESSES]


def test_the_pair_is_spread_and_sticks() -> None:
    world = gateways(2, 1)
    assert tick(world, 1, 2) == ["n1", "n2"]
    before = world.state.sequence
    world.ok(MarkGateway(node="n0"))
    assert tick(world, 0, 1, 2) == ["n1", "n2"], "a better choice is no reason to move"
    assert world.state.sequence == before + 1


def test_the_sequence_of_the_assignment_is_the_epoch() -> None:
    world = gateways(1)
    tick(world, 1)
    epochs = [world.state.holders[address].epoch for address in ADDRESSES]
    assert epochs == [world.state.sequence - 1, world.state.sequence]


def test_a_silent_holder_is_replaced_by_one_that_is_heard_in_one_batch() -> None:
    world = gateways(1, 2)
    tick(world, 1, 2)
    assert tick(world, 2, ages={1: 2.9}) == ["n1", "n2"], "not silent for long enough"
    assert tick(world, 2, ages={1: 3.1}) == ["n2", "n2"]
    assert names(world.log[-2:]) == ["ClbHolderWithdrawn", "ClbHolderAssigned"]
    assert world.log[-1].previous == "n1"  # type: ignore[attr-defined]
    assert tick(world, 1, 2) == ["n2", "n2"], "who comes back does not fight"


def test_without_anybody_to_replace_it_a_silent_holder_stays() -> None:
    world = gateways(1, 2)
    tick(world, 1, 2)
    assert tick(world, ages={1: 60, 2: 60}) == ["n1", "n2"], "its packets may well be flowing"
    assert tick(world, ages={1: 60, 2: 2.5}) == ["n1", "n2"], "the other one is not heard freshly either"


def test_who_says_it_cannot_be_a_gateway_gets_nothing() -> None:
    world = gateways(1, 2)
    assert tick(world, 1, 2, able=False) == ["", ""]
    assert tick(world, 1, 2) == ["n1", "n2"]


def test_a_holder_that_says_it_cannot_is_replaced_once_there_is_somebody_who_can() -> None:
    world = gateways(1, 2)
    tick(world, 1, 2)
    seen = {"uid-1": world.now, "uid-2": world.now}
    look = {"last_seen": seen, "watching_since": world.now - timedelta(hours=1)}
    both = frozenset(seen)
    world.ok(AssignHolders(**look, able=frozenset(), unable=dict.fromkeys(seen, "")))
    assert holders(world) == ["n1", "n2"], "its kernel may well hold it still, and nobody does better"
    world.ok(AssignHolders(**look, able=frozenset({"uid-2"})))
    assert holders(world) == ["n1", "n2"], "nothing is known of n1's ability: it was only seen to join"
    world.ok(AssignHolders(**look, able=frozenset({"uid-2"}), unable={"uid-1": "the link is down" * 99}))
    assert holders(world) == ["n2", "n2"]
    withdrawn = world.log[-2]
    assert isinstance(withdrawn, ClbHolderWithdrawn)
    assert withdrawn.cause == "silent", "what every release knows"
    assert withdrawn.reason == ("the link is down" * 99)[:REASON_CHARACTERS]
    world.ok(AssignHolders(**look, able=both))
    assert holders(world) == ["n2", "n2"], "sticky"


def test_a_handover_prefers_who_is_heard_and_able() -> None:
    for heard, expected in ((frozenset({"n3"}), "n3"), (frozenset(), "n0")):
        world = gateways(0, 1, 3)
        tick(world, 1)
        world.context = DecisionContext(gateways=heard)
        world.ok(MarkGateway(node="n1", on=False))
        assert holders(world)[0] == expected


def test_whoever_goes_hands_over_first() -> None:
    for how in (LeaveNode(node="n1", uid="uid-1"), RemoveNode(node="n1"), FenceNode(node="n1")):
        world = gateways(1, 2)
        tick(world, 1, 2)
        world.ok(how)
        assert holders(world) == ["n2", "n2"]
        assert names(world.log[-4:])[:2] == ["ClbHolderWithdrawn", "ClbHolderAssigned"]
        assert "n1" not in world.state.gateways, "the mark ends with the membership"


def test_a_twin_and_a_long_silence_hand_over_too() -> None:
    world = gateways(1, 2)
    tick(world, 1, 2)
    world.ok(joining(1, uid="twin"))
    assert holders(world) == ["n2", "n2"]
    world = World(container_cidr="10.9.0.0/24", pods_per_node=16, remove_after_s=10.0)
    for number in (1, 2):
        world.join(number)
        world.ok(MarkGateway(node=f"n{number}"))
    world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/28", provider="gateway"))
    tick(world, 1, 2)
    start = world.now
    world.forward(60)
    for _ in range(2):
        world.ok(MarkLiveness(last_seen={"uid-1": start, "uid-2": world.now}, watching_since=start))
    assert holders(world) == ["n2", "n2"]


def test_the_last_gateway_goes_and_nobody_holds() -> None:
    world = gateways(1)
    tick(world, 1)
    world.ok(MarkGateway(node="n1", on=False))
    assert holders(world) == ["", ""]


def test_only_live_cloud_nodes_become_gateways() -> None:
    world = gateways()
    assert world.refused(MarkGateway(node="n4")) == "clb_not_gateway"
    assert world.refused(MarkGateway(node="nobody")) == "node_unknown"
    world.ok(MarkGateway(node="n1"))
    before = world.state.sequence
    world.ok(MarkGateway(node="n1"))
    world.ok(MarkGateway(node="n2", on=False))
    assert world.state.sequence == before, "what is so already writes nothing"


def test_a_reservation_of_another_provider_has_neither_holder_nor_backend() -> None:
    world = gateways(1)
    world.ok(ReserveClb(reservation="cloud", subnet="198.51.100.32/28"))
    tick(world, 1)
    assert set(world.state.holders) == set(ADDRESSES)
    assert world.refused(AddBackend(**{**BACKEND, "reservation": "cloud"})) == "clb_not_gateway"


def test_a_release_takes_holders_and_backends_along() -> None:
    world = gateways(1)
    tick(world, 1)
    world.ok(AddBackend(**BACKEND))
    world.ok(ReleaseClb(reservation="main"))
    assert names(world.log[-3:]) == ["ClbHolderWithdrawn", "ClbHolderWithdrawn", "ClbReleased"]
    assert not world.state.backends
    assert not world.state.holders


def test_backends_come_change_and_go() -> None:
    world = gateways(1)
    for change, code in (
        ({"reservation": "x"}, "clb_unknown"),
        ({"purpose": "x"}, "clb_backend_unknown"),
        ({"port": 0}, "bad_request"),
        ({"backend_port": 65536}, "bad_request"),
        ({"address": "no"}, "underlay_address_invalid"),
        ({"protocol": "udp"}, "bad_request"),
        ({"check_path": "x"}, "bad_request"),
        ({"check_path": "/ HTTP/1.1\r\nX:"}, "bad_request"),
        ({"rise": 0}, "bad_request"),
        *(({"address": address}, "bad_request") for address in ADDRESSES),
    ):
        assert world.refused(AddBackend(**{**BACKEND, **change})) == code, change
    world.ok(AddBackend(**BACKEND))
    before = world.state.sequence
    world.ok(AddBackend(**BACKEND))
    assert world.state.sequence == before
    world.ok(AddBackend(**BACKEND, affinity="source"))
    assert [backend.affinity for backend in world.state.backends.values()] == ["source"]
    world.ok(RemoveBackend(**BACKEND))
    assert world.refused(RemoveBackend(**BACKEND)) == "clb_backend_unknown"


def test_a_backends_address_is_in_use_for_the_next_pair() -> None:
    world = gateways(1)
    world.ok(AddBackend(**{**BACKEND, "address": "10.0.8.34"}))
    pair = world.ok(ReserveClb(reservation="next", subnet="10.0.8.32/28"))["addresses"]
    assert [item["address"] for item in pair] == ["10.0.8.35", "10.0.8.36"]


def health(world: World, healthy: bool, **changes: Any) -> ReportHealth:
    fields = {**BACKEND, "node": "n1", "uid": "uid-1", "epoch": world.state.holders[ADDRESSES[0]].epoch}
    fields |= {"backend_port": 443, "protocol": "tcp", "healthy": healthy, "reason": "connection refused"}
    return ReportHealth(**{**fields, **changes})


def test_only_the_holder_reports_health_and_flapping_is_recorded_slowly() -> None:
    world = gateways(1, 2)
    tick(world, 1, 2)
    world.ok(AddBackend(**BACKEND))
    assert world.refused(health(world, False, node="n2", uid="uid-2")) == "clb_not_holder"
    assert world.refused(health(world, False, epoch=3)) == "clb_not_holder"
    assert world.refused(health(world, False, address="192.0.2.78")) == "clb_backend_unknown"
    before = world.state.sequence
    world.ok(health(world, True))
    assert world.state.sequence == before, "no change"
    written = 0
    for step in range(100):
        world.forward(0.2)
        first = world.state.sequence
        result = world.ok(health(world, bool(step % 2)))
        written += world.state.sequence - first
        if world.state.sequence == first and result["healthy"] != bool(step % 2):
            assert 0 < result["again_after_s"] <= 5
    assert written <= 5, "20 s of flapping"


def test_the_state_with_gateways_survives_its_text() -> None:
    world = gateways(1, 2)
    tick(world, 1, 2)
    world.ok(AddBackend(**BACKEND))
    world.ok(health(world, False))
    assert state_digest(decode_state(canonical(world.state))) == state_digest(world.state)


def test_two_holders_are_a_violation_and_stop_the_fold() -> None:
    world = gateways(1, 2)
    tick(world, 1, 2)
    twice = ClbHolderAssigned(name="main", purpose="apiserver", address=ADDRESSES[0], node="n2", uid="uid-2")
    found = violation(world.state, world.state.sequence + 1, twice)
    assert found is not None
    assert found.invariant == 11
    wrong = ClbHolderWithdrawn(
        name="main", purpose="apiserver", address=ADDRESSES[0], node="n2", uid="uid-2", epoch=1, cause="silent"
    )
    assert violation(world.state, world.state.sequence + 1, wrong) is not None
    gone = NodeLeft(node="n1", uid="uid-1")
    assert violation(world.state, world.state.sequence + 1, gone) is not None


nodes = st.sampled_from(["n0", "n1", "n2", "n3"])


class Gateways(RuleBasedStateMachine):
    """Marks, heartbeats, comings and goings in any order; the model walks lists and keeps one dict."""

    @initialize()
    def begin(self) -> None:
        self.world = gateways()
        self.marked: set[str] = set()
        self.members = {f"n{number}" for number in range(4)}
        self.beat: dict[str, datetime] = {}
        self.held: dict[str, str] = {}
        self.unable: set[str] = set()
        self.reserved = True

    def uid(self, name: str) -> str:
        return f"uid-{name[1:]}"

    def hand_over(self, name: str) -> None:
        self.marked.discard(name)
        for address in ADDRESSES:
            if self.held.get(address) == name:
                del self.held[address]
                self.choose(address, self.marked & self.heard() or self.marked)

    def heard(self) -> set[str]:
        return {name for name in self.marked - self.unable if self.age(name) <= 2}

    def age(self, name: str) -> float:
        return (self.world.now - self.beat[name]).total_seconds() if name in self.beat else 1e9

    def context_for(self) -> None:
        """What a controller knows of its gateways when a command comes."""
        self.world.context = DecisionContext(gateways=frozenset(self.heard()))

    def choose(self, address: str, among: set[str]) -> None:
        loads = sorted((sum(h == name for h in self.held.values()), name) for name in among)
        if loads:
            self.held[address] = loads[0][1]

    @rule(name=nodes, on=st.booleans())
    def mark(self, name: str, on: bool) -> None:
        self.context_for()
        if name not in self.members:
            assert self.world.refused(MarkGateway(node=name, on=on)) == "node_unknown"
            return
        self.world.ok(MarkGateway(node=name, on=on))
        if on:
            self.marked.add(name)
        elif name in self.marked:
            self.hand_over(name)

    @rule(name=nodes, fence=st.booleans())
    def go(self, name: str, fence: bool) -> None:
        self.context_for()
        if name in self.members and not fence:
            self.world.ok(RemoveNode(node=name))
            self.hand_over(name)
            self.members.discard(name)

    @rule(name=nodes)
    def come(self, name: str) -> None:
        self.world.ok(joining(int(name[1:])))
        self.members.add(name)

    @rule(name=nodes)
    def breaks_or_mends(self, name: str) -> None:
        self.unable ^= {name}

    @rule(name=nodes)
    def heartbeat(self, name: str) -> None:
        self.beat[name] = self.world.now

    @rule(seconds=st.sampled_from([0.4, 1.0, 2.5, 3.5]))
    def time_passes(self, seconds: float) -> None:
        self.world.forward(seconds)

    @rule(name=nodes)
    def everybody_else_beats_for_long(self, name: str) -> None:
        self.world.forward(4)
        for other in self.members - {name}:
            self.beat[other] = self.world.now
        self.tick()

    @rule()
    def tick(self) -> None:
        seen = {self.uid(name): moment for name, moment in self.beat.items()}
        start = self.world.now.replace(year=2020)
        unable = dict.fromkeys(map(self.uid, self.unable), "")
        able = frozenset(seen) - unable.keys()
        self.world.ok(AssignHolders(last_seen=seen, watching_since=start, able=able, unable=unable))
        heard = self.heard()
        for address in ADDRESSES if self.reserved and self.marked else ():
            holder = self.held.get(address)
            if holder is not None:
                broken = holder in self.unable and self.age(holder) <= 2
                if self.age(holder) <= 3 and not broken:
                    continue
            if heard - {holder}:
                self.held.pop(address, None)
                self.choose(address, heard - {str(holder)})

    @rule()
    def release_or_reserve(self) -> None:
        if self.reserved:
            self.world.ok(ReleaseClb(reservation="main"))
            self.held.clear()
        else:
            self.world.ok(ReserveClb(reservation="main", subnet="198.51.100.0/28", provider="gateway"))
        self.reserved = not self.reserved

    @invariant()
    def one_holder_each_and_the_expected_one(self) -> None:
        if hasattr(self, "world"):
            state = self.world.state
            assert {address: holder.node for address, holder in state.holders.items()} == self.held
            assert set(state.gateways) == self.marked
            assert check(state) == []

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        log = list(enumerate(self.world.log, 1))
        digest = state_digest(self.world.state)
        assert state_digest(fold(ClusterState("prod"), log)) == digest
        half = len(log) // 2
        fork = fold(ClusterState("prod"), log[:half]).fork()
        for sequence, event in log[half:]:
            evolve(fork, sequence, event)
        assert state_digest(fork) == digest


Gateways.TestCase.settings = settings(settings.default, max_examples=100, stateful_step_count=60)
TestGateways = Gateways.TestCase
