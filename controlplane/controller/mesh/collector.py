"""Collects what the agents measured of each other, and says what it means now.

Observations in memory: linear in the nodes (of each at most :data:`PER_NODE` measurements, fewer in a large
cluster). Only members' reports come here (:class:`controlplane.controller.agents.report_intake.ReportIntake`).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import NamedTuple

from controlplane.cluster.mesh.verdict import Evidence, Finding, Missing, explain
from controlplane.cluster.state import ClusterState
from events.mesh import ANSWERED, KERNEL, LARGE_LOST, NEVER, SILENT, UNSURE, PeerSeen, Trace
from events.status import SILENT_INTERVALS, AgentStatus

PER_NODE, TOTAL = 256, 160_000
"""Measurements kept of one node and of all, at most."""
FRESH_S = 30.0
"""What an agent said so long ago, and did not repeat, counts no more as trouble."""
NEVER_S = 15.0
"""A peer whose agent can answer and never did for so long is missing."""
STUCK_S = 6.0
"""A peer whose agent goes on reporting for so long, while only its kernel answers, does not forward to pods."""
HOLD_S, CLEAR_S = 1.0, 3.0
"""A finding is told when it has held so long, and is over when it has been absent so long."""
PAIR_HOLD_S = 4.0
"""The same for what few witnesses say."""
SETTLE_S = 15.0
"""After a start or a change of leadership nothing is told to have ended before this."""


class Seen(NamedTuple):
    """One measurement; ``at``, ``heard`` and ``told`` are moments of the collector's clock (-1: never)."""

    state: int
    at: float
    rtt_us: int
    jitter_us: int
    loss: int
    heard: float
    large: int
    told: float


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
        self._passed: dict[str, float] = {}
        self._passed_sites: dict[tuple[str, str], float] = {}
        self._traces: dict[str, tuple[float, tuple[Trace, ...]]] = {}
        self.unable: dict[str, str] = {}
        self.capable: set[str] = set()
        self._names: dict[int, str] = {}
        self._named_at = -1
        self._first: dict[tuple[str, str, str], float] = {}
        self._absent: dict[tuple[str, str, str], float] = {}
        self._held: dict[tuple[str, str, str], Finding] = {}
        self.since = clock()

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
            for table in (self._heard_at, self._begun, self._passed):
                table.pop(name, None)
            self._drop(name)
        sites = {node.site for node in state.nodes.values()}
        self._passed_sites = {key: at for key, at in self._passed_sites.items() if sites >= set(key)}

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
            found = _moments(seen, now)
            row[seen.epoch] = found
            row.move_to_end(seen.epoch)
            if seen.state in {SILENT, UNSURE, NEVER} or (seen.large == LARGE_LOST and seen.state == ANSWERED):
                bad[seen.epoch] = found
            elif seen.state == KERNEL:
                before = self._bad.get(name, {}).get(seen.epoch)
                since = before.at if before is not None and before.state == KERNEL else now
                bad[seen.epoch] = found._replace(at=since)
            if seen.state in {ANSWERED, KERNEL} and seen.large != LARGE_LOST:
                self._pass(state, name, peer, found.at)
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

    def _pass(self, state: ClusterState, by: str, of: str, at: float) -> None:
        for name in (by, of):
            if at > self._passed.get(name, -1.0):
                self._passed[name] = at
        one, other = state.nodes.get(by), state.nodes.get(of)
        if one is not None and other is not None:
            key = (one.site, other.site) if one.site < other.site else (other.site, one.site)
            if at > self._passed_sites.get(key, -1.0):
                self._passed_sites[key] = at

    def quiet(self, name: str) -> bool:
        """Whether its agent has missed its time to report (a little more than one interval)."""
        known = self._heard_at.get(name)
        return known is None or self._clock() - known[0] > known[1] * 1.2 + 0.5

    def silent(self, name: str) -> bool:
        """Whether it has said nothing for so long that what it said is what was."""
        known = self._heard_at.get(name)
        return known is None or self._clock() - known[0] > known[1] * SILENT_INTERVALS

    @property
    def mixed(self) -> bool:
        """Whether agents that do not measure report: an upgrade is under way, and may still be undone."""
        return not self._heard_at.keys() <= self.capable

    def evidence(self) -> Evidence:
        """What was seen, as the verdict needs it. O(trouble), and O(nodes) where there is any."""
        now, names, state = self._clock(), self.names(), self._state()
        missing: list[Missing] = []
        pairs: dict[tuple[str, str], float] = {}
        heard: dict[tuple[str, str], float] = {}
        kernel: dict[tuple[str, str], float] = {}
        steps: dict[tuple[str, str], str] = {}
        involved: set[str] = set()
        epochs = {name: held.epoch for name, held in state.owned.items()}
        for by, entries in self._bad.items():
            for epoch, seen in entries.items():
                of = names.get(epoch)
                if of is None or not self._counts(of, seen, now):
                    continue
                if seen.state == KERNEL:
                    kernel[by, of] = seen.at
                    if self._stuck(of, seen):
                        missing.append(Missing(by, of, seen.at, "pods"))
                        involved |= {by, of}
                    continue
                missing.append(Missing(by, of, seen.at, "large" if seen.state == ANSWERED else ""))
                involved |= {by, of}
                back = self._row(of, epochs.get(by, 0))
                if back is not None:
                    if back.state == ANSWERED:
                        pairs[of, by] = back.at
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
            passed=self._passed,
            passed_sites=self._passed_sites,
            passed_pairs=pairs,
            heard=heard,
            kernel=kernel,
            quiet=frozenset(name for name in state.nodes if self.quiet(name)) if missing else frozenset(),
            steps=steps,
        )

    def _counts(self, of: str, seen: Seen, now: float) -> bool:
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
        self._first.clear()
        self._absent.clear()
        self._held.clear()
        self.since = self._clock()

    def settled(self, open_keys: set[tuple[str, str, str]]) -> tuple[list[Finding], set[tuple[str, str, str]]]:
        """What has held long enough to be told, and which of the open ones are over. Call it every tick."""
        now = self._clock()
        present = {one.key: one for one in self.findings() if one.scope != "view"}
        for key in [key for key in self._first if key not in present]:
            del self._first[key]
        told: list[Finding] = []
        for key, one in present.items():
            first = self._first.setdefault(key, now)
            wide = one.scope in {"site", "sites"} or (one.scope == "node" and len(one.nodes) > 3)
            if now - first >= (HOLD_S if wide else PAIR_HOLD_S if one.fault != "large" else 2 * PAIR_HOLD_S):
                told.append(one)
            self._absent.pop(key, None)
        over: set[tuple[str, str, str]] = set()
        for key in open_keys - present.keys():
            if now - self._absent.setdefault(key, now) >= CLEAR_S and self._proven(key):
                over.add(key)
        for key in self._absent.keys() - open_keys:
            del self._absent[key]
        return told, over

    def _proven(self, key: tuple[str, str, str]) -> bool:
        """Whether something was heard since that speaks for it: silence of everybody ends no trouble."""
        now, (scope, a, b) = self._clock(), key
        if now - self.since < SETTLE_S:
            return False
        if scope == "node":
            return now - self._passed.get(a, -FRESH_S * 9) < FRESH_S
        if scope == "pair":
            return any(now - self._pair(x, y) < 4 * FRESH_S for x, y in ((a, b), (b, a)))
        return any(
            now - at < FRESH_S
            for pair, at in self._passed_sites.items()
            if a in pair and pair[0] != pair[1] and (not b or b in pair)
        )

    def _pair(self, by: str, of: str) -> float:
        state = self._state()
        held = state.owned.get(of)
        seen = self._row(by, held.epoch) if held is not None else None
        return seen.at if seen is not None and seen.state in {ANSWERED, KERNEL} else -1e9

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


def _moments(seen: PeerSeen, now: float) -> Seen:
    return Seen(
        seen.state,
        now - seen.at_s,
        seen.rtt_us,
        seen.jitter_us,
        seen.loss,
        now - seen.heard_s if seen.heard_s >= 0 else -1.0,
        seen.large,
        now,
    )
