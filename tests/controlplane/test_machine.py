"""Random histories against the naive model: after each step both say the same, and every invariant holds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule

from controlplane.cluster.decide import AdvanceDrains, Decision, MarkLiveness
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve, fold
from controlplane.cluster.invariants import check
from controlplane.cluster.state import ClusterState
from events.protocol.commands import (
    AdoptedNode,
    AdoptNodes,
    AppendCidr,
    BeginAdoption,
    ChangeUnderlay,
    DefineCluster,
    EndAdoption,
    FenceNode,
    JoinNode,
    LeaveNode,
    ReleaseClb,
    RemoveNode,
    ReserveClb,
)
from events.types import AllocationRefused, ClbRefused, ConflictRefused, RangeAllocated, RangeDraining
from tests.controlplane.model import Model
from tests.controlplane.world import World

NODES = [f"n{number}" for number in range(7)]
UIDS = ["a", "b", "c"]
# Few addresses, so that they collide; one inside the first container CIDR, one inside a later one,
# some inside the CLB subnets.
ADDRESSES = [f"192.0.2.{number}" for number in range(1, 7)] + ["10.9.0.5", "10.9.2.9", "198.51.100.3"]
APPENDABLE = ["10.9.2.0/26", "10.9.2.64/27", "10.9.3.0/28", "10.9.0.128/25", "192.0.2.0/28", "10.9.4.0/30"]
SUBNETS = [
    "198.51.100.0/29",
    "198.51.100.8/30",
    "198.51.100.0/28",
    "192.0.2.0/29",
    "10.9.0.16/28",
    "198.51.100.16/31",
]

nodes = st.sampled_from(NODES)
uids = st.sampled_from(UIDS)
kinds = st.sampled_from(["cloud", "cloud", "cloud", "external"])
addresses = st.sampled_from(ADDRESSES)


class Cluster(RuleBasedStateMachine):
    """Commands as operators, agents, twins and clocks would send them, in any order."""

    live = Bundle("live")

    @initialize(
        plan=st.sampled_from([(4, 32, "10.9.0.0/26"), (16, 32, "10.9.0.0/25"), (16, 64, "10.9.0.0/25")]),
        quarantine_s=st.sampled_from([0.0, 5.0, 60.0]),
        remove_s=st.sampled_from([0.0, 20.0]),
    )
    def define(self, plan: tuple[int, int, str], quarantine_s: float, remove_s: float) -> None:
        size, services, cidr = plan
        self.world = World()
        self.world.ok(
            DefineCluster(
                container_cidr=cidr,
                pods_per_node=size,
                services=services,
                quarantine_s=quarantine_s,
                unreachable_after_s=10,
                remove_after_s=remove_s,
            )
        )
        self.model = Model(cidr, size, services, quarantine_s, 10, remove_s)
        self.epochs: list[int] = []

    def do(self, command: Any) -> Decision:
        """Send it, and tell the model at which sequences ranges began to drain."""
        first = self.world.state.sequence + 1
        decision = self.world.do(command)
        for sequence, event in enumerate(decision.events, first):
            if isinstance(event, RangeDraining):
                self.model.drained_at(event.index, sequence)
            if isinstance(event, RangeAllocated):
                self.epochs.append(sequence)
        self.model.head = self.world.state.sequence
        return decision

    def agree(self, decision: Decision, code: str) -> None:
        assert (decision.refusal.code if decision.refusal else "") == code, decision

    def recorded_once(self, decision: Decision, asker: str, code: str, *, kinds: tuple[type, ...]) -> None:
        """A refusal that matters is on record once per asker and cause."""
        records = [event for event in decision.events if isinstance(event, kinds)]
        expected = 1 if code and (asker, code) not in self.model.recorded else 0
        assert len(records) == expected, (decision, self.model.recorded)
        if code:
            self.model.recorded.add((asker, code))

    # --- nodes -----------------------------------------------------------------------------------

    @rule(
        target=live, name=nodes, uid=uids, kind=kinds, underlay=addresses, nat=st.one_of(st.none(), addresses)
    )
    def join(self, name: str, uid: str, kind: Any, underlay: str, nat: str | None) -> Any:
        return self._join(name, f"{name}-{uid}", kind, underlay, nat or underlay)

    @rule(target=live, name=nodes, uid=uids, number=st.integers(0, 40))
    def join_without_trouble(self, name: str, uid: str, number: int) -> Any:
        """An address of its own, so that pools really fill up."""
        address = f"203.0.113.{NODES.index(name) * 30 + number % 30}"
        return self._join(name, f"{name}-{uid}", "cloud", address, address)

    @rule(target=live, name=nodes, other=nodes)
    def join_as_a_clone(self, name: str, other: str) -> Any:
        address = f"203.0.113.{240 + NODES.index(name)}"
        return self._join(name, f"{other}-a", "cloud", address, address)

    def _join(self, name: str, uid: str, kind: Any, underlay: str, announced: str) -> Any:
        before = self.model.member(name)
        same = before is not None and before.uid == uid
        decision = self.do_join(name, uid, kind, underlay, announced)
        code = decision.refusal.code if decision.refusal else ""
        if code != "node_attribute_fixed":
            self.recorded_once(decision, name, code, kinds=(AllocationRefused,))
        if code:
            return multiple()
        member = self.model.member(name)
        assert member is not None
        assert decision.result["index"] == member.slot
        if same and before is not None:
            assert decision.result["epoch"] == self.world.state.owned[name].epoch
        return (name, uid)

    def do_join(self, name: str, uid: str, kind: Any, underlay: str, announced: str) -> Decision:
        code = self.model.join(name, uid, kind, underlay, announced, self.world.now)
        decision = self.do(
            JoinNode(
                node=name,
                uid=uid,
                kind=kind,
                underlay=underlay,
                announced=announced if announced != underlay else "",
            )
        )
        self.agree(decision, code)
        return decision

    # --- adoption ----------------------------------------------------------------------------------

    @rule(on=st.booleans())
    def begin_or_end_adoption(self, on: bool) -> None:
        self.model.adopting = on
        self.agree(self.do(BeginAdoption(source="flannel") if on else EndAdoption()), "")

    @rule(target=live, name=nodes, uid=uids, place=st.integers(-1, 12), mac=st.integers(0, 40))
    def adopt(self, name: str, uid: str, place: int, mac: int) -> Any:
        """A node comes with a range of its own: any of the pool, the one behind it, or one outside."""
        cidr = self.model.range_at(place)
        node = AdoptedNode(
            node=name,
            uid=f"{name}-{uid}",
            kind="cloud",
            underlay=f"203.0.113.{200 + NODES.index(name)}",
            range=cidr,
            vtep_mac=f"8a:00:00:00:00:{mac:02x}",
        )
        before = self.world.state.nodes.get(name)
        taken = {member.vtep_mac: member.name for member in self.world.state.nodes.values()}
        codes = self.model.adopt(node, taken, self.world.now)
        decision = self.do(AdoptNodes(nodes=(node,)))
        found = decision.refusal.details.get("findings", []) if decision.refusal else []
        assert {each["code"] for each in found} == codes - {"adoption_closed"}, (decision, codes)
        closed = {"adoption_closed"} & codes
        self.agree(decision, "adoption_closed" if closed else "adoption_refused" if codes else "")
        if codes:
            return multiple()
        unchanged = before is not None and before == self.world.state.nodes[name]
        assert bool(decision.events) != unchanged
        return (name, f"{name}-{uid}")

    @rule(who=live, underlay=addresses)
    def move(self, who: tuple[str, str], underlay: str) -> None:
        name, uid = who
        member = self.model.member(name)
        if uid in self.model.fenced:
            code = "node_fenced"
        elif member is None or member.uid != uid:
            code = "node_unknown"
        elif (member.underlay, member.announced) == (underlay, underlay):
            code = ""
        else:
            code = self.model.move(member, underlay, underlay)
        recording = code not in {"", "node_fenced", "node_unknown"}
        decision = self.do(ChangeUnderlay(node=name, uid=uid, underlay=underlay))
        self.agree(decision, code)
        self.recorded_once(decision, name, code if recording else "", kinds=(AllocationRefused,))

    @rule(who=live)
    def leave(self, who: tuple[str, str]) -> None:
        name, uid = who
        member = self.model.member(name)
        code = ""
        if uid in self.model.fenced:
            code = "node_fenced"
        elif member is None or member.uid != uid:
            code = "node_unknown"
        else:
            self.model.out(member)
        self.agree(self.do(LeaveNode(node=name, uid=uid)), code)

    @rule(name=nodes, fence=st.booleans())
    def remove_or_fence(self, name: str, fence: bool) -> None:
        member = self.model.member(name)
        if member:
            self.model.out(member)
            if fence:
                self.model.fenced.add(member.uid)
        decision = self.do(FenceNode(node=name) if fence else RemoveNode(node=name))
        self.agree(decision, "" if member else "node_unknown")

    # --- reports and time --------------------------------------------------------------------------

    @rule(who=live, back=st.integers(0, 12))
    def report(self, who: tuple[str, str], back: int) -> None:
        self._report(who[1], max(0, self.world.state.sequence - back))

    @rule()
    def everybody_reports(self) -> None:
        for member in self.model.members:
            self._report(member.uid, self.world.state.sequence)

    @rule(who=live)
    def report_from_another_log(self, who: tuple[str, str]) -> None:
        self._report(who[1], self.world.state.sequence + 1_000_000)

    def _report(self, uid: str, applied: int) -> None:
        self.model.applied[uid] = applied
        for member in self.model.members:
            if member.uid == uid:
                member.last_seen = self.world.now

    @rule(seconds=st.sampled_from([0.5, 4.0, 5.0, 11.0, 60.0, -3.0, -70.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.forward(seconds)

    @rule()
    def tick_drains(self) -> None:
        self.model.tick_drains(self.world.now)
        self.agree(self.do(AdvanceDrains(applied=dict(self.model.applied))), "")

    @rule()
    def tick_liveness(self) -> None:
        seen = {m.uid: m.last_seen for m in self.model.members if m.last_seen} | {"stranger": self.world.now}
        self.model.tick_liveness(self.world.now)
        self.agree(
            self.do(MarkLiveness(last_seen=seen, watching_since=self.world.now - timedelta(days=30))), ""
        )

    # --- cluster and CLB -----------------------------------------------------------------------------

    @rule(cidr=st.sampled_from(APPENDABLE))
    def append(self, cidr: str) -> None:
        code = self.model.append(cidr)
        decision = self.do(AppendCidr(cidr=cidr))
        self.agree(decision, code)
        assert all(isinstance(event, ConflictRefused) for event in decision.events) or not code

    @rule(
        name=st.sampled_from(["main", "spare", "third"]),
        subnet=st.sampled_from(SUBNETS),
        exclude=st.lists(st.sampled_from([f"198.51.100.{n}" for n in range(2, 12)]), max_size=5, unique=True),
    )
    def reserve(self, name: str, subnet: str, exclude: list[str]) -> None:
        code, pair = self.model.reserve(name, subnet, tuple(exclude))
        decision = self.do(ReserveClb(reservation=name, subnet=subnet, exclude=tuple(exclude)))
        self.agree(decision, code)
        if code == "clb_already_reserved":
            return
        self.recorded_once(decision, f"clb/{name}", code, kinds=(ClbRefused,))
        if not code:
            assert tuple(item["address"] for item in decision.result["addresses"]) == pair

    @rule(name=st.sampled_from(["main", "spare", "third"]))
    def release(self, name: str) -> None:
        known = self.model.clb.pop(name, None)
        self.agree(self.do(ReleaseClb(reservation=name)), "" if known else "clb_unknown")

    # --- after every step ---------------------------------------------------------------------------

    @invariant()
    def model_and_state_agree(self) -> None:
        if not hasattr(self, "world"):
            return
        state = self.world.state
        held = {
            index: (state.phase_of(index), item.cidr, item.node, item.uid)
            for index, item in state.ranges.items()
        }
        assert self.model.view() == {
            "cursor": state.pool.cursor,
            "slots": [held.get(i, ("free", str(slot.net))) for i, slot in enumerate(self.model.slots)],
            "members": sorted(
                (n.name, n.uid, n.kind, n.underlay, n.announced, state.owned[n.name].index)
                for n in state.nodes.values()
            ),
            "unreachable": sorted(state.unreachable),
            "fenced": sorted(state.fenced),
            "clb": sorted((name, tuple(a.address for a in r.addresses)) for name, r in state.clb.items()),
            "external": state.external,
        }

    @invariant()
    def invariants_hold(self) -> None:
        if hasattr(self, "world"):
            assert check(self.world.state) == []
            assert self.epochs == sorted(set(self.epochs)), "an epoch is used once and they ascend"

    def teardown(self) -> None:
        """The log alone gives the same state, folded in one go, one by one, and half on a fork."""
        if not hasattr(self, "world"):
            return
        log = list(enumerate(self.world.log, 1))
        digest = state_digest(self.world.state)
        assert state_digest(fold(ClusterState("prod"), log)) == digest
        half = len(log) // 2
        fork = fold(ClusterState("prod"), log[:half]).fork().fork()
        for sequence, event in log[half:]:
            evolve(fork, sequence, event)
        assert state_digest(fork) == digest
        assert check(fork) == []


Cluster.TestCase.settings = settings(settings.default, max_examples=250, stateful_step_count=100)
TestCluster = Cluster.TestCase
