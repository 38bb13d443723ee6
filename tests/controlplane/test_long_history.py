"""One long life of a cluster, thousands of commands without a break, against the naive model."""

from __future__ import annotations

import random

import pytest

from controlplane.cluster.decide import AdvanceDrains
from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import fold
from controlplane.cluster.invariants import check
from controlplane.cluster.state import ClusterState
from events.protocol.commands import AppendCidr, DefineCluster, FenceNode, JoinNode, LeaveNode, RemoveNode
from events.types import RangeAllocated, RangeDraining
from tests.controlplane.model import Model
from tests.controlplane.world import World

STEPS = 4000


class Life:
    """The world, the model, and a seeded will."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.world.ok(DefineCluster(container_cidr="10.0.0.0/24", pods_per_node=4, services=32, quarantine_s=5))
        self.model = Model("10.0.0.0/24", 4, 32, 5, 30, 0)
        self.installations = 0
        self.order: list[int] = []

    def do(self, command: object, code: str) -> None:
        first = self.world.state.sequence + 1
        decision = self.world.do(command)  # type: ignore[arg-type]
        assert (decision.refusal.code if decision.refusal else "") == code
        for sequence, event in enumerate(decision.events, first):
            if isinstance(event, RangeDraining):
                self.model.drained_at(event.index, sequence)
            elif isinstance(event, RangeAllocated):
                self.order.append(event.index)
        self.model.head = self.world.state.sequence

    def step(self) -> None:
        what = self.random.random()
        if what < 0.45:
            number = self.random.randrange(90)
            known = self.model.member(f"n{number}")
            if known is None or self.random.random() < 0.3:
                self.installations += 1
                uid = f"uid-{self.installations}"
            else:
                uid = known.uid
            join = JoinNode(node=f"n{number}", uid=uid, kind="cloud", underlay=f"192.0.2.{number + 1}")
            self.do(
                join, self.model.join(join.node, uid, "cloud", join.underlay, join.underlay, self.world.now)
            )
        elif what < 0.65 and self.model.members:
            member = self.random.choice(self.model.members)
            self.model.out(member)
            command = self.random.choice(
                [
                    LeaveNode(node=member.name, uid=member.uid),
                    RemoveNode(node=member.name),
                    FenceNode(node=member.name),
                ]
            )
            if isinstance(command, FenceNode):
                self.model.fenced.add(member.uid)
            self.do(command, "")
        elif what < 0.8:
            for member in self.model.members:
                if self.random.random() < 0.97:
                    self.model.applied[member.uid] = self.world.state.sequence
        elif what < 0.999:
            self.world.forward(self.random.random() * 4)
            self.model.tick_drains(self.world.now)
            self.do(AdvanceDrains(applied=dict(self.model.applied)), "")
        else:
            cidr = f"10.{self.random.randrange(1, 5)}.0.0/27"
            self.do(AppendCidr(cidr=cidr), self.model.append(cidr))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_thousands_of_commands_in_one_life(seed: int) -> None:
    life = Life(seed)
    for step in range(STEPS):
        life.step()
        state = life.world.state
        assert state.pool.cursor == life.model.cursor
        assert {n.name: (n.uid, state.owned[n.name].index) for n in state.nodes.values()} == {
            m.name: (m.uid, m.slot) for m in life.model.members
        }
        if step % 200 == 0:
            assert check(state) == []
            phases = [state.phase_of(index) or "free" for index in range(state.capacity)]
            assert phases == [slot.phase for slot in life.model.slots]
    assert len(life.order) > 5 * life.world.state.capacity, "the ring was gone round several times"
    assert sum(after < before for before, after in zip(life.order, life.order[1:], strict=False)) > 5
    folded = fold(ClusterState("prod"), enumerate(life.world.log, 1))
    assert state_digest(folded) == state_digest(life.world.state)
