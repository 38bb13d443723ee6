"""Random lawful histories: the real ``decide`` driven by random wishes, on pools small enough to wrap."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta

from controlplane.cluster.decide import AdvanceDrains, MarkLiveness, decide
from controlplane.cluster.decision import MarkNat, MarkPaths, NatFinding, Tick
from controlplane.cluster.evolve import evolve
from controlplane.cluster.mesh.verdict import Finding
from controlplane.cluster.state import ClusterState
from events.chain import CHAIN_HEADER, Head, genesis
from events.codec import Cause, StoredMessage, seal
from events.log import ReadBatch
from events.protocol.commands import (
    AppendCidr,
    ChangeUnderlay,
    Command,
    DeclareNetwork,
    DefineCluster,
    FenceNode,
    JoinNode,
    LeaveNode,
    ReleaseClb,
    RemoveNode,
    ReserveClb,
)
from events.types import Network

CLUSTER = "past"
BEGIN = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
NAMES = [f"node-{i}" for i in range(12)] + ["gz.rack-1.example"]


class ListLog:
    """A finished log in a list: the plainest LogReader."""

    def __init__(self, messages: Sequence[StoredMessage], cluster: str = CLUSTER) -> None:
        self.messages = messages
        self.cluster = cluster

    async def head(self) -> Head:
        if not self.messages:
            return genesis(self.cluster)
        last = self.messages[-1]
        return Head(last.sequence, bytes.fromhex(last.headers[CHAIN_HEADER]))

    async def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        assert not follow
        wanted = [m for m in self.messages if m.sequence > after and (until is None or m.sequence <= until)]
        for start in range(0, len(wanted), 17):
            yield ReadBatch(wanted[start : start + 17], len(wanted) - start)


class Author:
    """Writes a history: decides commands, seals the events, stamps them with server times."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.state = ClusterState(CLUSTER)
        self.head = genesis(CLUSTER)
        self.now = BEGIN
        self.messages: list[StoredMessage] = []
        self.counter = 0

    def do(self, command: Command | Tick, actor: str = "ops@test") -> bool:
        """Decide and store; whether it was accepted."""
        decision = decide(self.state, command, self.now)
        if decision.events:
            self.counter += 1
            cause = Cause(
                command_id=f"command-{self.counter}",
                actor=actor,
                time=self.now,
                source="controller/test",
                traceparent=f"00-{self.random.getrandbits(128):032x}-{self.random.getrandbits(64):016x}-01",
            )
            sealed, head = seal(CLUSTER, self.head, [(cause, decision.events)])
            stored = self.now + timedelta(milliseconds=self.random.randint(0, 3))
            stamp = (stored - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
            for offset, (message, event) in enumerate(zip(sealed, decision.events, strict=True), 1):
                sequence = self.head.sequence + offset
                evolve(self.state, sequence, event)
                self.messages.append(
                    StoredMessage(sequence, message.subject, message.headers, message.body, stamp)
                )
            self.head = head
        return decision.refusal is None

    def paths(self) -> None:
        """One member goes dark, and nothing passes from it to another one; then all is well again."""
        first, second, *_ = sorted(self.state.nodes)
        found = (Finding(scope="node", a=first), Finding(scope="pair", a=first, b=second))
        self.do(MarkPaths(found=found), "controller")
        self.do(MarkPaths(over=frozenset(self.state.lost_paths)), "controller")

    def step(self) -> None:
        """One random wish, or time doing its work."""
        self.now += timedelta(seconds=self.random.choice((0.1, 1, 5, 30)))
        draw, name = self.random.random(), self.random.choice(NAMES)
        member = self.state.nodes.get(name)
        if draw < 0.40:
            self.counter += 1
            octets = f"{self.random.randint(1, 3)}.{self.random.randint(1, 60)}"
            uid = member.uid if member and self.random.random() < 0.5 else f"uid-{self.counter}"
            self.do(
                JoinNode(
                    node=name,
                    uid=uid,
                    kind="external" if name.endswith("3") else "cloud",
                    underlay=f"192.168.{octets}",
                    site="gz",
                ),
                f"node/{name}",
            )
        elif draw < 0.43 and member:
            self.do(MarkNat(found=(NatFinding(member.uid, name not in self.state.behind_nat),)), "controller")
        elif draw < 0.55 and member:
            self.do(LeaveNode(node=name, uid=member.uid, reason="scaled in"), f"node/{name}")
        elif draw < 0.60:
            self.do(RemoveNode(node=name))
        elif draw < 0.64:
            self.do(FenceNode(node=name, reason="dead"))
        elif draw < 0.70 and member:
            self.do(
                ChangeUnderlay(node=name, uid=member.uid, underlay=f"192.168.9.{self.random.randint(1, 250)}")
            )
        elif draw < 0.90:
            applied = {node.uid: self.head.sequence for node in self.state.nodes.values()}
            self.do(AdvanceDrains(applied=applied), "controller")
        elif draw < 0.93:
            seen = {
                node.uid: self.now - timedelta(seconds=self.random.choice((0, 0, 0, 100)))
                for node in self.state.nodes.values()
            }
            self.do(MarkLiveness(last_seen=seen, watching_since=BEGIN), "controller")
        elif draw < 0.97:
            self.do(ReserveClb(reservation=self.random.choice(("api", "web")), subnet="192.168.50.0/28"))
        elif draw < 0.985:
            self.do(ReleaseClb(reservation=self.random.choice(("api", "web"))))
        elif draw < 0.99:
            self.do(AppendCidr(cidr=f"10.9.{self.random.randint(1, 3)}.0/26"))
        else:
            self.do(
                DeclareNetwork(network=Network(cidr=f"172.20.{self.random.randint(0, 9)}.0/24", kind="route"))
            )


def history(seed: int, steps: int) -> list[StoredMessage]:
    """A history of about ``steps`` wishes on a pool of ten ranges (and what is appended)."""
    author = Author(seed)
    author.do(DefineCluster(container_cidr="10.8.0.0/24", pods_per_node=16, services=64, quarantine_s=20.0))
    for _ in range(steps):
        author.step()
    return author.messages
