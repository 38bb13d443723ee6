"""Collects what the agents measured of each other, and says what it means now.

Observations in memory: linear in the nodes (of each at most :data:`PER_NODE` measurements, fewer in a large
cluster). Only members' reports come here (:class:`controlplane.controller.agents.report_intake.ReportIntake`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

from controlplane.cluster.mesh.evidence import Evidence, Missing, Passed
from controlplane.cluster.mesh.findings import Finding
from controlplane.cluster.mesh.verdict import explain
from controlplane.cluster.state import ClusterState
from controlplane.controller.mesh.debounce import Debounce
from events.mesh import (
    ANSWERED,
    KERNEL,
    LARGE_LOST,
    LARGE_OK,
    LARGE_UNKNOWN,
    NEVER,
    SILENT,
    UNSURE,
    PeerSeen,
    Trace,
)
from events.status import SILENT_INTERVALS, AgentStatus

PER_NODE, TOTAL = 256, 160_000
"""Measurements kept of one node and of all, at most."""
FRESH_S = 30.0
"""What an agent said so long ago, and did not repeat, counts no more as trouble."""
NEVER_S = 15.0
"""A peer whose agent can answer and never did for so long is missing."""
STUCK_S = 6.0
"""A peer whose agent goes on reporting for so long, while only its kernel answers, does not forward to pods."""
BASELINE_S = 86_400.0
"""A round trip's usual length is its mean of about so long."""


class Seen(NamedTuple):
    """One measurement; ``at``, ``heard``, ``told`` and ``large_at`` are moments of the collector's clock (-1:
    never). ``usual_us`` is the mean round trip of the last ``counted`` reports, at most of a day."""

    state: int
    at: float
    rtt_us: int
    jitter_us: int
    loss: int
    heard: float
    large: int
    told: float
    large_at: float = -1.0
    usual_us: float = 0.0
    counted: int = 0


class _Passes:
    """When an answer of one kind last came, of nodes and between sites."""

    def __init__(self) -> None:
        self.nodes: dict[str, float] = {}
        self.sites: dict[tuple[str, str], float] = {}

    def note(self, state: ClusterState, by: str, of: str, at: float) -> None:
        for name in (by, of):
            if at > self.nodes.get(name, -1.0):
                self.nodes[name] = at
        one, other = state.nodes.get(by), state.nodes.get(of)
        if one is not None and other is not None:
            key = (one.site, other.site) if one.site < other.site else (other.site, one.site)
            if at > self.sites.get(key, -1.0):
                self.sites[key] = at

    def forget(self, state: ClusterState, sites: Collection[str]) -> None:
        self.nodes = {name: at for name, at in self.nodes.items() if name in state.nodes}
        self.sites = {key: at for key, at in self.sites.items() if key[0] in sites and key[1] in sites}


class Collector:
    """``clock`` is monotonic (seconds)."""

    def __init__(
        self, state: Callable[[], ClusterState], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._state, self._clock = state, clock
        self.rows: dict[str, OrderedDict[int, Seen]] = {}
        """Node → epoch of a peer's range → what it measured of it."""
        self._bad: dict[str, dict[int, Seen]] = {}
        self._heard_at: dict[str, tuple[float, float]] = {}  # node → its last report, and its interval
        self._begun: dict[str, tuple[str, float]] = {}  # node → its process, and since when that reports
        self._any, self._pods, self._large = _Passes(), _Passes(), _Passes()
        self._traces: dict[str, tuple[float, tuple[Trace, ...]]] = {}
        self.unable: dict[str, str] = {}
        self.capable: set[str] = set()
        self._names: dict[int, str] = {}
        self._named_at = -1
        self._debounce = Debounce(clock())

    def now(self) -> float:
        """The present by the clock of all these moments."""
        return self._clock()

    def names(self) -> Mapping[int, str]:
        """Epoch of a range → its owner. O(nodes) when the state has changed."""
        state = self._state()
        if self._named_at != state.sequence:
            self._names = {held.epoch: name for name, held in state.owned.items()}
            self._named_at = state.sequence
            if len(self.rows) > len(state.nodes):
                self._forget(state)
        return self._names

    def _forget(self, state: ClusterState) -> None:
        for name in [name for name in self.rows if name not in state.nodes]:
            self._heard_at.pop(name, None)
            self._begun.pop(name, None)
            self._drop(name)
        sites = {node.site for node in state.nodes.values()}
        for passes in (self._any, self._pods, self._large):
            passes.forget(state, sites)

    def take(self, status: AgentStatus, age_s: float = 0.0) -> None:
        """One report of a member, which arrived so many seconds ago."""
        now, mesh, name = self._clock() - max(0.0, age_s), status.mesh, status.node
        state = self._state()
        node = state.nodes.get(name)
        if node is None or node.uid != status.uid:
            return
        if name in self._heard_at and self._heard_at[name][0] > now:
            return  # a newer one was taken
        begun = self._begun.get(name)
        if begun is None or begun[0] != status.instance or self.quiet(name):
            self._begun[name] = status.instance, now
        self._heard_at[name] = now, status.interval_s
        if mesh is None:
            if name in self.capable or name in self.rows:
                self._drop(name)
            return
        names = self.names()
        self.capable.add(name)
        if mesh.unable:
            self.unable[name] = mesh.unable
        else:
            self.unable.pop(name, None)
        row = self.rows.setdefault(name, OrderedDict())
        bad: dict[int, Seen] = {}
        for seen in mesh.peers:
            peer = names.get(seen.epoch)
            if peer is None or peer == name:
                continue
            found = _moments(seen, now, row.get(seen.epoch))
            row[seen.epoch] = found
            row.move_to_end(seen.epoch)
            if seen.state in {SILENT, UNSURE, NEVER} or (seen.large == LARGE_LOST and seen.state == ANSWERED):
                bad[seen.epoch] = found
            elif seen.state == KERNEL:
                before = self._bad.get(name, {}).get(seen.epoch)
                since = before.at if before is not None and before.state == KERNEL else now
                bad[seen.epoch] = found._replace(at=since)
            if seen.state == ANSWERED and seen.large != LARGE_LOST:
                self._pods.note(state, name, peer, found.at)
            if seen.state in {ANSWERED, KERNEL} and seen.large != LARGE_LOST:
                self._any.note(state, name, peer, found.at)
            if seen.large == LARGE_OK and found.large_at >= 0:
                self._large.note(state, name, peer, found.large_at)
        for epoch, before in self._bad.get(name, {}).items():
            # An agent that began anew does not know yet what it said of large packets before.
            said = row.get(epoch)
            lost = before.large == LARGE_LOST and before.state == ANSWERED and epoch not in bad
            if lost and said is not None and (said.told < now or said.large == LARGE_UNKNOWN):
                bad[epoch] = before
        most = max(16, min(PER_NODE, TOTAL // max(1, len(state.nodes))))
        while len(row) > most:
            row.popitem(last=False)
        self._bad[name] = bad
        if mesh.traces:
            self._traces[name] = now, mesh.traces

    def _drop(self, name: str) -> None:
        self.capable.discard(name)
        for table in (self.rows, self._bad, self._traces, self.unable):
            table.pop(name, None)

    def quiet(self, name: str) -> bool:
        """Whether its agent has missed its time to report (a little more than one interval)."""
        known = self._heard_at.get(name)
        return known is None or self._clock() - known[0] > known[1] * 1.2 + 0.5

    def silent(self, name: str) -> bool:
        """Whether it has said nothing for so long that what it said is what was."""
        known = self._heard_at.get(name)
        return known is None or self._clock() - known[0] > known[1] * SILENT_INTERVALS

    def evidence(self) -> Evidence:
        """What was seen, as the verdict needs it. O(trouble), and O(nodes) where there is any."""
        now, names, state = self._clock(), self.names(), self._state()
        missing: list[Missing] = []
        pairs: dict[tuple[str, str], float] = {}
        large: dict[tuple[str, str], float] = {}
        heard: dict[tuple[str, str], float] = {}
        kernel: dict[tuple[str, str], float] = {}
        steps: dict[tuple[str, str], str] = {}
        involved: set[str] = set()
        bad = any(self._bad.values())
        epochs = {name: held.epoch for name, held in state.owned.items()} if bad else {}
        for by, entries in self._bad.items():
            for epoch, seen in entries.items():
                of = names.get(epoch)
                if of is None or not self.counts(of, seen, now):
                    continue
                if seen.state == KERNEL:
                    kernel[by, of] = seen.at
                    if self._stuck(of, seen):
                        missing.append(Missing(by, of, seen.at, "pods"))
                        involved |= {by, of}
                        back = self._row(of, epochs.get(by, 0))
                        if back is not None and back.state == ANSWERED:
                            pairs[of, by] = back.at
                    continue
                missing.append(Missing(by, of, seen.at, "large" if seen.state == ANSWERED else ""))
                involved |= {by, of}
                back = self._row(of, epochs.get(by, 0))
                if back is not None:
                    if back.state == ANSWERED:
                        pairs[of, by] = back.at
                    if back.large == LARGE_OK:
                        large[of, by] = back.large_at
                    heard[of, by] = back.heard
                heard[by, of] = seen.heard
        for name in involved:
            for trace in self._traces.get(name, (0.0, ()))[1]:
                stop = next((step for step in trace.steps if step.ok == 0), None)
                if trace.epoch in names and stop is not None:
                    steps[name, names[trace.epoch]] = f"{stop.name}: {stop.text}" if stop.text else stop.name
        return Evidence(
            sites={node.name: node.site for node in state.nodes.values()} if missing else {},
            missing=missing,
            passed=Passed(self._any.nodes, self._any.sites, pairs),
            pods=Passed(self._pods.nodes, self._pods.sites, pairs),
            large=Passed(self._large.nodes, self._large.sites, large),
            heard=heard,
            kernel=kernel,
            quiet=frozenset(name for name in state.nodes if self.quiet(name)) if missing else frozenset(),
            steps=steps,
        )

    def counts(self, of: str, seen: Seen, now: float) -> bool:
        """Whether what was not answered says something about the path."""
        if now - seen.told > FRESH_S or of not in self.capable:
            return False
        if seen.state in {UNSURE, NEVER}:
            # Its kernel does not answer such questions at all: only an agent that lives and can answer counts.
            settled = seen.state == UNSURE or now - seen.at > NEVER_S
            return not self.silent(of) and not self.unable.get(of) and settled
        return True

    def _stuck(self, of: str, seen: Seen) -> bool:
        """Whether the agent there lives and can answer: what does not pass is what its host forwards."""
        heard, begun = self._heard_at.get(of, (0.0, 0.0))[0], self._begun.get(of, ("", 0.0))[1]
        able = of in self.capable and not self.unable.get(of) and not self.quiet(of)
        # Both have said so for long enough, and by the same process: one that was away may just be back.
        return able and min(heard, seen.told) - max(seen.at, begun) > STUCK_S

    def findings(self) -> list[Finding]:
        """The present explanation, not debounced."""
        found = explain(self.evidence())
        return [
            *found,
            *(
                Finding(scope="view", a=name, fault="view", since=0.0, evidence=(f"it cannot ask: {why}",))
                for name, why in sorted(self.unable.items())
                if not self.silent(name)
            ),
        ]

    def restart(self) -> None:
        """Whoever decides from here on has watched nothing yet."""
        self._debounce = Debounce(self._clock())

    def settled(self, open_keys: set[tuple[str, str, str]]) -> tuple[list[Finding], set[tuple[str, str, str]]]:
        """What has held long enough to be told, and which of the open ones are over. Call it every tick."""
        present = [one for one in self.findings() if one.scope != "view"]
        return self._debounce.look(
            self._clock(), present, open_keys, answered=self._answered, passed=self._last
        )

    def _answered(self, name: str, since: float) -> bool:
        """Whether an agent has reported long enough after a moment to contradict what another one says."""
        return self._heard_at.get(name, (0.0, 0.0))[0] > since

    def _last(self, one: Finding) -> float:
        """When something last passed that speaks against a finding; -inf: nothing is known to have."""
        fault = one.fault
        if fault == "view":  # all that is known of it is that it was recorded
            recorded = self._state().lost_paths.get(one.key)
            fault = recorded.fault if recorded is not None else "silent"  # type: ignore[assignment]
        passes = {"large": self._large, "pods": self._pods}.get(fault, self._any)
        if one.scope == "pair" or (fault == "part" and one.nodes):
            others = [one.b] if one.scope == "pair" else [name for name in one.nodes if name != one.a]
            ways = [way for other in others for way in ((one.a, other), (other, one.a))]
            return max((self._pair(by, of, fault) for by, of in ways), default=float("-inf"))
        if one.scope == "node":
            return passes.nodes.get(one.a, float("-inf"))
        if one.scope == "cluster":
            return max(passes.nodes.values(), default=float("-inf"))
        between = (
            at
            for pair, at in passes.sites.items()
            if one.a in pair and pair[0] != pair[1] and (not one.b or one.b in pair)
        )
        return max(between, default=float("-inf"))

    def _pair(self, by: str, of: str, fault: str) -> float:
        held = self._state().owned.get(of)
        seen = self._row(by, held.epoch) if held is not None else None
        if seen is None or seen.state not in {ANSWERED, KERNEL} or (fault == "pods" and seen.state == KERNEL):
            return float("-inf")
        if fault == "large":
            return seen.large_at if seen.large == LARGE_OK else float("-inf")
        return seen.at

    def _row(self, by: str, epoch: int) -> Seen | None:
        row = self.rows.get(by)
        return row.get(epoch) if row is not None else None

    def trace(self, by: str, of: str) -> Trace | None:
        """The last trace of one node to another, its age as it is now."""
        held = self._state().owned.get(of)
        at, found = self._traces.get(by, (0.0, ()))
        for one in found:
            if held is not None and one.epoch == held.epoch:
                return Trace(one.epoch, one.age_s + self._clock() - at, one.steps)
        return None


def _moments(seen: PeerSeen, now: float, before: Seen | None) -> Seen:
    usual, counted = (before.usual_us, before.counted) if before is not None else (0.0, 0)
    if seen.state == ANSWERED and seen.rtt_us:
        elapsed = now - before.told if before is not None else 0.0
        share = max(1 / (counted + 1), min(1.0, elapsed / BASELINE_S))
        usual, counted = usual + (seen.rtt_us - usual) * share, counted + 1
    return Seen(
        seen.state,
        now - seen.at_s,
        seen.rtt_us,
        seen.jitter_us,
        seen.loss,
        now - seen.heard_s if seen.heard_s >= 0 else -1.0,
        seen.large,
        now,
        now - seen.large_s if seen.large_s >= 0 else -1.0,
        usual,
        counted,
    )
