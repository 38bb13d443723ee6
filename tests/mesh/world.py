"""A cluster of agents' books in virtual time: real schedules, books and collector, a network made of rules."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from datetime import UTC, datetime

from controlplane.cluster.state import ClusterState, Node, Range
from controlplane.controller.mesh.collector import Collector
from events.mesh import ANSWERED
from events.status import AgentStatus, checked
from nodeagent.mesh import schedule
from nodeagent.mesh.book import Ask, Book

STEP_S = 1 / schedule.SLOTS_PER_S
HEARTBEAT_S = 5.0


class Agent:
    def __init__(self, name: str, site: str, epoch: int) -> None:
        self.name, self.site, self.epoch = name, site, epoch
        self.book = Book()
        self.alive = True
        """The process."""
        self.up = True
        """The machine: its kernel forwards and answers."""
        self.on_bus = True
        self.probes = True
        self.idle = False
        """It answers and reports, and asks nobody: a large cluster is simulated by those who matter."""
        self.reported = -99.0
        self.starts = 0
        self.packets = 0


class World:
    """``passes(a, b, large)`` says whether a packet from a to b arrives; ``loss`` is by chance on top."""

    def __init__(self, sites: dict[str, int], seed: int = 1, *, loss: float = 0.0, rtt_s: float = 0.02) -> None:
        self.random = random.Random(seed)
        self.now = 100.0
        self.loss, self.rtt_s = loss, rtt_s
        self.passes: Callable[[Agent, Agent, bool], bool] = lambda _a, _b, _large: True
        self.kernels_pass = False
        """Whether ``passes`` is of what hosts forward, which their kernels' own answers are not."""
        self.state = ClusterState("sim")
        self.collector = Collector(lambda: self.state, clock=lambda: self.now)
        self.agents: dict[str, Agent] = {}
        self._sequence = 0
        self._flying: list[tuple[float, int, Callable[[], None]]] = []
        self._tokens = itertools.count()
        self._rings: dict[int, schedule.Ring] = {}
        self.slot = 800
        for site, count in sites.items():
            for number in range(count):
                self.add(f"{site}-{number}", site)

    def only(self, names: set[str]) -> None:
        """All others are idle."""
        for agent in self.agents.values():
            agent.idle = agent.name not in names

    def add(self, name: str, site: str) -> Agent:
        self._sequence += 2
        agent = self.agents[name] = Agent(name, site, self._sequence)
        self.state.nodes[name] = Node(
            name, f"uid-{name}-{self._sequence}", "cloud", name, name, name, site, 1, 1
        )
        self.state.owned[name] = Range(self._sequence, "", name, f"uid-{name}", self._sequence)
        self._changed()
        return agent

    def remove(self, name: str) -> None:
        self._sequence += 1
        del self.agents[name], self.state.nodes[name], self.state.owned[name]
        self._changed()

    def _changed(self) -> None:
        self.state.sequence = self._sequence
        self._rings.clear()

    def restart(self, agent: Agent) -> None:
        """The process begins anew and knows nothing."""
        agent.alive, agent.book = True, Book()
        agent.starts += 1
        self._rings.pop(agent.epoch, None)

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        end = self.now + seconds
        while self.now < end - 1e-9:
            self.slot += 1
            while self._flying and self._flying[0][0] <= self.now + STEP_S:
                at, _, call = heapq.heappop(self._flying)
                self.now = max(self.now, at)
                call()
            self.now = self.slot * STEP_S
            for agent in list(self.agents.values()):
                if agent.alive and agent.up:
                    self._step(agent)
            each()

    def _later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._flying, (self.now + delay_s, next(self._tokens), call))

    def _follow(self, agent: Agent) -> schedule.Ring:
        members = [(one.epoch, one.site) for one in self.agents.values()]
        ring = self._rings[agent.epoch] = schedule.ring(members, agent.epoch)
        agent.book.follow(one for one, _ in members if one != agent.epoch)
        return ring

    def _step(self, agent: Agent) -> None:
        if agent.idle:
            if self.now - agent.reported >= HEARTBEAT_S:
                self._report(agent)
            return
        ring = self._rings.get(agent.epoch) or self._follow(agent)
        agent.book.look(self.now)
        if agent.probes:
            epoch = schedule.asked(ring, self.slot)
            if epoch is not None:
                self._ask(agent, Ask(epoch, "small"))
                if schedule.asked_large(ring, self.slot):
                    self._ask(agent, Ask(epoch, "large"))
            if self.slot % schedule.SLOTS_PER_S == 0:
                for further in schedule.asked_of_sites(ring, self.slot // schedule.SLOTS_PER_S):
                    self._ask(agent, Ask(further, "small"))
            for ask in agent.book.due():
                self._ask(agent, ask)
        since = self.now - agent.reported
        if since >= HEARTBEAT_S or (agent.book.changed and since >= 0.5):
            self._report(agent)

    def _index(self) -> dict[int, Agent]:
        if getattr(self, "_indexed", -1) != self._sequence:
            self._epochs = {one.epoch: one for one in self.agents.values()}
            self._indexed = self._sequence
        return self._epochs

    def acquaint(self) -> None:
        """As after a round of the whole mesh: everybody has had an answer of everybody."""
        for agent in self.agents.values():
            if agent.idle:
                continue
            self._follow(agent)
            for peer in agent.book._peers.values():
                peer.answered = peer.kernel_at = self.now
                peer.kernel_known, peer.state = True, ANSWERED

    def _arrives(self, source: Agent, target: Agent, kind: str) -> bool:
        return (
            source.up and target.up
            and (self.passes(source, target, kind == "large") or (self.kernels_pass and kind == "kernel"))
            and not (self.loss and self.random.random() < self.loss)
        )  # fmt: skip

    def _ask(self, agent: Agent, ask: Ask) -> None:
        peer = self._index().get(ask.epoch)
        token = next(self._tokens).to_bytes(8, "big")
        agent.book.asking(ask, token, self.now)
        agent.packets += 1
        if peer is None:
            return
        book = agent.book

        def there() -> None:
            if not self._arrives(agent, peer, ask.kind):
                return
            if ask.kind != "kernel":
                if not (peer.alive and peer.probes):
                    return
                peer.book.heard(agent.epoch, self.now)
            peer.packets += 1
            self._later(self.rtt_s / 2, back)

        def back() -> None:
            if self._arrives(peer, agent, ask.kind) and agent.alive and agent.book is book:
                book.answered(ask.kind, token, self.now, peer.epoch)

        self._later(self.rtt_s / 2, there)

    def _report(self, agent: Agent) -> None:
        agent.reported = self.now
        report = agent.book.report(self.now)
        if not agent.on_bus:
            return
        self.collector.take(
            checked(
                AgentStatus(
                    node=agent.name, uid=self.state.nodes[agent.name].uid, applied=1, interval_s=HEARTBEAT_S,
                    sent_at=datetime(2026, 1, 1, tzinfo=UTC), mesh=report if agent.probes else None,
                    instance=f"{agent.name}-{agent.starts}",
                )
            )
        )  # fmt: skip

    def until_told(self, limit_s: float) -> tuple[float, list]:
        """Seconds until the controller tells something, looking each second; and what."""
        begun = self.now
        while self.now - begun < limit_s:
            self.run(0.5)
            told, _ = self.collector.settled(set())
            if told:
                return self.now - begun, told
        return limit_s, []
