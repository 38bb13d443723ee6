"""Whose report this is: the one place where an agent's report is bound to a member, or to nobody.

A node's credentials let it write one subject. What it writes there counts only if subject, name, uid, epoch
and applied sequence fit together with the log (subject and name were compared when it was read): the name is a
member's, the uid is that member's, the epoch is that of its range, and the log has the sequence. Anything else
counts for nobody, and says so as a condition.

Of two agents with one identity one counts: the one that was there, at the address that the log has. Another
process is its successor when it is on the same machine at the same address, or when the one before is silent.
Two that succeed each other in turn both live, as copies of a running machine with one address do.

A report may overtake the fold: a joining is reported before this controller has read it, an event is applied
before its append is acknowledged here. Such reports wait for the log, one for each node.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import NamedTuple

import msgspec
from nats.aio.client import Client

from controlplane.changes import Changes, Lagged
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.liveness import Liveness
from controlplane.controller.agents.reporting import INTERVAL_MAX_S, INTERVAL_MIN_S
from controlplane.controller.source_limit import SourceLimit
from events.bus.retry import jittered_s
from events.errors import Unavailable
from events.jetstream.status_stream import StatusReader
from events.printable import printable
from events.protocol.queries import Condition
from events.status import SILENT_INTERVALS, AgentStatus
from events.types import NodeJoined

log = logging.getLogger("isthmus.controller")

AGAIN_S = 1.0
"""Between two attempts to read the reports, about: several controllers do not ask at one moment."""

WAITING_MAX = 20_000
"""Nodes of which a report waits for the log; more are not kept."""
AHEAD_S = 10.0
"""How long a report may speak of an event that this controller has not read."""
PROCESSES_MAX = 200_000
"""Members of which it is remembered which process speaks for them; beyond, all are learned anew."""
REPORTS_S, REPORTS_BURST = 20.0, 200.0
"""Reports of one member that are taken: in the long run each second, and at once. Agents leave a pause."""
KEPT_S = 600.0
"""How long after the last such report a condition is shown."""
NOTES_MAX = 1000
"""Nodes about which something is noted; the oldest give way."""
SHOWN = 5
TURNS = 3
"""How often two processes take over from each other before both are said to live; a late report does twice."""


class _Waiting(NamedTuple):
    status: AgentStatus
    age_s: float
    since_s: float


class _Process(NamedTuple):
    """The agent process whose reports count for a member, as of its last report."""

    status: AgentStatus
    at_s: float
    before: str = ""
    """Instance of the one that it took over from."""
    turns: int = 0

    def lives(self, now: float) -> bool:
        """Whether it may still speak."""
        if self.status.state in {"stopping", "fenced"}:
            return False
        interval_s = min(max(self.status.interval_s, INTERVAL_MIN_S), INTERVAL_MAX_S)
        return now - self.at_s <= SILENT_INTERVALS * interval_s


class ReportIntake:
    """Takes the agents' reports, hands those that count to ``liveness``. ``clock`` is monotonic (seconds)."""

    def __init__(
        self,
        liveness: Liveness,
        state: Callable[[], ClusterState],
        *,
        clock: Callable[[], float] = time.monotonic,
        exceeded: Callable[[str, str], None] = lambda _node, _what: None,
    ) -> None:
        """``exceeded`` is called with a node and what it did too much of."""
        self._exceeded = exceeded
        self._limit = SourceLimit(REPORTS_S, burst=REPORTS_BURST)
        self._liveness = liveness
        self._state = state
        self._clock = clock
        self._strangers: OrderedDict[str, _Waiting] = OrderedDict()  # node → its report, of no member yet
        self._ahead: dict[str, _Waiting] = {}  # node → its report, of a sequence that is not read yet
        self._processes: dict[str, _Process] = {}  # uid → whose reports count for it
        self._others: dict[str, AgentStatus] = {}  # uid → what another agent with it said since
        self._notes: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()  # code, node → text, when
        self.refused = 0
        """Reports that counted for nobody."""

    def take(self, status: AgentStatus, *, age_s: float = 0.0) -> bool:
        """Take one report that arrived ``age_s`` ago; whether it counts now."""
        state, node, uid = self._state(), status.node, status.uid
        member = state.nodes.get(node)
        if member is None or member.uid != uid:
            return self._stranger(state, _Waiting(status, age_s, self._clock()))
        self._strangers.pop(node, None)
        if not self._limit.take(node, 1, self._clock()):
            self.refused += 1
            self._exceeded(node, "reports")
            return False
        if status.instance and not self._speaks(status, member.underlay, self._clock() - age_s):
            self.refused += 1
            return False
        other_epoch = bool(status.epoch) and status.epoch != state.owned[node].epoch
        if status.applied > state.sequence:
            self._ahead[node] = _Waiting(status, age_s, self._clock())
        else:
            self._ahead.pop(node, None)
        if other_epoch or node in self._ahead:
            # It lives, whatever it says that it has done: that alone is taken. Of an earlier membership, or one
            # that is not read here yet, the next report tells; a sequence may still come.
            known = self._liveness.applied.get(uid, 0)
            status = msgspec.structs.replace(status, applied=known, kernel_digest="")
        self._liveness.observe(status, age_s=age_s, state=state)
        return True

    def _speaks(self, status: AgentStatus, place: str, at_s: float) -> bool:
        """Whether this process's word counts for the member, whom the log has at ``place``."""
        uid, process = status.uid, self._processes.get(status.uid)
        before, turns = (process.before, process.turns) if process is not None else ("", 0)
        if process is not None and process.status.instance != status.instance:
            known = process.status
            successor = (known.underlay, known.boot) == (status.underlay, status.boot) or not process.lives(
                at_s
            )
            at_home = status.underlay == place and known.underlay != place
            if not (successor or at_home):
                if uid in self._others or len(self._others) < WAITING_MAX:
                    self._others[uid] = status
                return False
            turns = turns + 1 if status.instance == before else 0
            before = known.instance
            if turns >= TURNS:
                self._note("identity_twice", status.node, f"{_where(known)} and {_where(status)} speak in turn")
        elif (other := self._others.pop(uid, None)) is not None:  # both live: this one has spoken again
            self._note("identity_twice", status.node, f"{_where(status)} counts; {_where(other)} does not")
        if uid not in self._processes and len(self._processes) >= PROCESSES_MAX:
            self._processes.clear()
        self._processes[uid] = _Process(status, at_s, before, turns)
        return True

    async def watch(self, client: Client, cluster: str) -> None:
        """For ever: take the agents' reports, first the last one of each, then as they come.

        Cancelled, what was taken stays taken.
        """
        pods = self._liveness.pods
        pods.heard_all = False
        while True:
            try:
                reader = StatusReader(client, cluster, on_refused=self.malformed)
                async for reports in reader.follow():
                    for status, _, age_s in reports:
                        pods.take(status, self._state())
                        self.take(status, age_s=age_s)
                    pods.heard_all = True  # the first list is the last report of everybody
            except Unavailable as error:
                log.warning("the agents' reports cannot be read: %s", error.message)
                await asyncio.sleep(jittered_s(AGAIN_S))

    def malformed(self, node: str, why: str) -> None:
        """A report on the node's subject could not be read (what a status reader says)."""
        self.refused += 1
        self._note("report_refused", node, why)

    def _stranger(self, state: ClusterState, report: _Waiting) -> bool:
        node, uid = report.status.node, report.status.uid
        self.refused += 1
        owner = state.by_uid.get(uid)
        if owner is not None:
            self._note(
                "identity_mismatch", node, f"it reports with the uid of {owner}, which counts for neither"
            )
        elif node in state.nodes and uid not in state.fenced:
            self._note(
                "identity_mismatch",
                node,
                f"another installation (uid {printable(uid, 40)}) reports under its name",
            )
        if node in self._strangers or len(self._strangers) < WAITING_MAX:
            self._strangers[node] = report
        return False

    def _note(self, code: str, node: str, text: str) -> None:
        key = code, printable(node, 253)
        self._notes[key] = text, self._clock()
        self._notes.move_to_end(key)
        if len(self._notes) > NOTES_MAX:
            self._notes.popitem(last=False)

    # --- when the log has gone on --------------------------------------------------------------------------

    async def follow(self, changes: Changes) -> None:
        """For ever: take what waited once the log has what it speaks of. Cancellation leaves the rest."""
        while True:
            subscription = changes.subscribe()
            self.caught_up()
            with suppress(Lagged):
                async for run in subscription:
                    self.caught_up(
                        [one.event.node for one in run if isinstance(one.event, NodeJoined)]
                        if self._strangers
                        else ()
                    )
                return

    def caught_up(self, joined: Iterable[str] | None = None) -> None:
        """Look again at the reports that are ahead, and of those that ``joined`` (None: of everybody)."""
        now, state = self._clock(), self._state()
        sequence = state.sequence
        for node in list(self._strangers) if joined is None else joined:
            waited, member = self._strangers.pop(node, None), state.nodes.get(node)
            if waited is not None and (member is None or member.uid == waited.status.uid):
                # Another one's is from before this member came. If that one lives, it says so again.
                self.refused -= 1
                self.take(waited.status, age_s=waited.age_s + now - waited.since_s)
        for waited in list(self._ahead.values()):
            if waited.status.applied <= sequence and now - waited.since_s <= AHEAD_S:
                self.take(waited.status, age_s=waited.age_s + now - waited.since_s)

    # --- what a person should know -------------------------------------------------------------------------

    def conditions(self) -> list[Condition]:
        """What is wrong with reports now or was a short while ago, by code."""
        now, state = self._clock(), self._state()
        found: dict[str, list[str]] = {}
        for (code, node), (text, at_s) in self._notes.items():
            if now - at_s <= KEPT_S:
                found.setdefault(code, []).append(f"{node} ({text})")
        for node, waited in self._ahead.items():
            member = state.nodes.get(node)
            if member is not None and member.uid == waited.status.uid and now - waited.since_s > AHEAD_S / 2:
                found.setdefault("report_refused", []).append(
                    f"{node} (it says that it has applied event {waited.status.applied:,}; "
                    f"the log ends with {state.sequence:,})"
                )
        return [
            Condition(
                code=code,
                severity="warning",
                message=f"{_LEAD[code]}: {_some(said)}",
                help="isthmus node show NODE",
            )
            for code, said in sorted(found.items())
        ]


_LEAD = {
    "identity_twice": "two machines have one identity; on the copy stop the agent, then: isthmus agent "
    "new-identity --yes, and start it",
    "identity_mismatch": "reports that name another installation than the member's count for nobody",
    "report_refused": "reports that cannot be true or read count for nobody",
}


def _where(status: AgentStatus) -> str:
    return f"the agent at {status.underlay or 'an unknown address'}, boot {status.boot[:8] or 'unknown'},"


def _some(texts: list[str]) -> str:
    shown = "; ".join(islice(texts, SHOWN))
    return shown if len(texts) <= SHOWN else f"{shown}; and {len(texts) - SHOWN:,} more"
