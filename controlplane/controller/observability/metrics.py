"""Every metric of a controller, in one place: names, units, buckets, and where each number comes from.

Counters and histograms are fed by the committer (as an observer) and by the stored events; the
gauges are read from the live state when somebody scrapes. Labels have few values: commands, codes,
states, CIDRs, sites. Never a node's name: ten thousand nodes would be ten thousand series.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from operator import attrgetter, itemgetter

from opentelemetry.metrics import CallbackOptions, Histogram, Observation

from controlplane.cluster.decision import Tick
from controlplane.cluster.mesh.findings import FAULTS, SCOPES
from controlplane.cluster.range_counts import range_counts
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.convergence import Convergence
from controlplane.controller.hooks import AnsweredCommand, DecidedCommand, Observer
from controlplane.controller.observability.live import LiveNumbers, not_working_reason
from controlplane.controller.requests import Request
from events.bus.access.creds import ends_at
from events.codec import Recorded
from events.errors import IsthmusError
from events.protocol.mesh import SitePath
from events.protocol.queries import CONDITIONS, Condition
from events.telemetry.role import Telemetry
from events.types import AllocationRefused, NodeFenced, NodeJoined, NodeLeft, RangeAllocated, RangeFreed

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ALARMS = ("log", "projection", "parked", "disk")
"""Every alarm that a controller can raise; each is there from the start, with 0."""

STATES = ("starting", "ready", "degraded", "stopping", "silent", "unreachable", "unreported", "unknown")
COUNTS = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)


SITE_PAIRS_MAX = 400
"""Pairs of sites that have series."""


_WAITED_S, _AGAIN = itemgetter(1), itemgetter(4)  # of a DecidedCommand
_TOOK_S = itemgetter(1)  # of an AnsweredCommand
_TYPE = attrgetter("envelope.type")


class ControllerMetrics(Observer):
    """The instruments. Attach it to the committer, feed it the stored events, and bind the live numbers."""

    def __init__(self, telemetry: Telemetry) -> None:
        meter = telemetry.meter
        self._meter = meter

        def seconds(name: str, description: str) -> Histogram:
            return meter.create_histogram(
                name, unit="s", description=description, explicit_bucket_boundaries_advisory=SECONDS
            )

        self._commands = seconds(
            "isthmus.command.duration",
            "From receipt to answer: the slowest of each group commit, by command and code.",
        )
        self._answers = meter.create_counter(
            "isthmus.commands",
            description="Answered commands, by command and code (ok, or an error); without the looks of the "
            "controller itself that found nothing to do.",
        )
        self._queued = seconds(
            "isthmus.command.queued", "From receipt to decision: the longest wait of each group commit."
        )
        self._append = seconds("isthmus.append.duration", "One atomic append to the log, with its condition.")
        self._batch = meter.create_histogram(
            "isthmus.append.events",
            unit="{event}",
            description="Events of one atomic append.",
            explicit_bucket_boundaries_advisory=COUNTS,
        )
        self._conflicts = meter.create_counter(
            "isthmus.append.conflicts", description="Appends lost to another controller and decided again."
        )
        self._project = seconds("isthmus.projection.duration", "One transaction of the read model.")
        self._events = meter.create_counter("isthmus.events", description="Stored events, by type.")
        self._refusals = meter.create_counter(
            "isthmus.refusals", description="Commands that were refused, by code."
        )
        self._alarms = meter.create_counter("isthmus.alarms", description="Alarms raised, by name.")
        self.applied = seconds(
            "isthmus.convergence.agent",
            "From sending a transaction to the log to one agent's report that its kernel holds it.",
        )
        self.converged = seconds(
            "isthmus.convergence.all", "From sending a transaction to the log to the report of the last agent."
        )
        # Series that an alert or a dashboard reads exist from the start, at zero.
        self._conflicts.add(0)
        for event in (NodeJoined, NodeLeft, NodeFenced, RangeAllocated, RangeFreed, AllocationRefused):
            self._events.add(0, {"type": event.type_name()})
        self._refusals.add(0, {"code": "no_free_range"})
        for alarm in ALARMS:
            self._alarms.add(0, {"name": alarm})
        self._idle: set[int] = set()  # the controller's own looks that found nothing to do
        self._waited_s = 0.0
        self._group: dict[tuple[str, str], tuple[int, float]] = {}  # command, code → count, slowest (seconds)

    # --- the observer's side ------------------------------------------------------------------------

    def decided(self, commands: Sequence[DecidedCommand]) -> None:
        conflicts, idle = sum(map(_AGAIN, commands)), self._idle
        if conflicts:
            self._conflicts.add(conflicts)
            idle.difference_update([id(request) for request, _, _, _, again in commands if again])
        for request in [one.request for one in commands if not one[3]]:
            if isinstance(request.command, Tick):
                idle.add(id(request))
        counted = [one for one in commands if id(one.request) not in idle] if idle else commands
        self._waited_s = max(self._waited_s, max(map(_WAITED_S, counted), default=0.0))

    def appended(self, requests: Sequence[Request], *, first: int, last: int, took_s: float) -> None:  # noqa: ARG002
        self._append.record(took_s)
        self._batch.record(last - first + 1)

    def answered(self, commands: Sequence[AnsweredCommand], *, sequence: int) -> None:  # noqa: ARG002  the observer's
        idle, group = self._idle, self._group
        if idle:
            # Every second the leader looks whether time has brought anything. To count that as commands
            # would hide how long those take that somebody waits for.
            looked = idle.intersection([id(one.request) for one in commands])
            idle -= looked
            commands = [one for one in commands if one.error is not None or id(one.request) not in looked]
        if commands and not group:
            # The answers of one group come in one turn of the loop; recording each would cost more
            # than answering it.
            asyncio.get_running_loop().call_soon(self._record_group)
        told = [(request.command.name, error.code if error else "ok") for request, _, error in commands]
        kinds = dict.fromkeys(told)
        for kind in kinds:
            mine = (
                commands
                if len(kinds) == 1
                else [one for one, other in zip(commands, told, strict=True) if other == kind]
            )
            count, slowest_s = group.get(kind, (0, 0.0))
            group[kind] = count + len(mine), max(slowest_s, *map(_TOOK_S, mine))

    def _record_group(self) -> None:
        self._queued.record(self._waited_s)
        self._waited_s = 0.0
        for (command, code), (count, slowest_s) in self._group.items():
            labels = {"command": command, "code": code}
            self._answers.add(count, labels)
            self._commands.record(slowest_s, labels)
            if code != "ok":
                self._refusals.add(count, {"code": code})
        self._group.clear()

    def projected(self, *, last: int, count: int, took_s: float) -> None:  # noqa: ARG002
        self._project.record(took_s)

    def alarmed(self, name: str, error: IsthmusError) -> None:
        self._alarms.add(1, {"name": name})
        super().alarmed(name, error)

    # --- from the log and the agents ----------------------------------------------------------------

    def stored(self, events: Sequence[Recorded]) -> None:
        """Count stored events by type."""
        for name, count in Counter(map(_TYPE, events)).items():
            self._events.add(count, {"type": name})

    # --- gauges --------------------------------------------------------------------------------------

    def bind(self, live: LiveNumbers) -> None:
        """Start to read the live numbers at each scrape. Call once."""

        def state() -> ClusterState:
            return live.replica.state

        def gauge(
            name: str, description: str, read: Callable[[], Iterable[Observation]], unit: str = ""
        ) -> None:
            def callback(_options: CallbackOptions) -> Iterable[Observation]:
                return read()

            self._meter.create_observable_gauge(name, [callback], unit=unit, description=description)

        def one(name: str, description: str, read: Callable[[], float], unit: str = "") -> None:
            gauge(name, description, lambda: [Observation(read())], unit)

        gauge("isthmus.pool.ranges", "Ranges by container CIDR and state.", lambda: pool_by_cidr(state()))
        one("isthmus.pool.capacity", "Ranges in all container CIDRs.", lambda: state().capacity)
        one(
            "isthmus.pool.cursor",
            "Index at which the next search for a free range starts.",
            lambda: state().pool.cursor,
        )
        gauge(
            "isthmus.nodes", "Members by kind and whether their reports arrive.", lambda: nodes_by_kind(state())
        )
        one("isthmus.nodes.behind.nat", "Members behind NAT, by the log.", lambda: len(state().behind_nat))
        one("isthmus.clb.reservations", "CLB reservations.", lambda: len(state().clb))
        one("isthmus.log.sequence", "Last known sequence of the log.", live.head)
        one("isthmus.projection.sequence", "The read model's checkpoint.", lambda: live.projector.sequence)
        one(
            "isthmus.projection.lag",
            "Events that the read model is behind.",
            lambda: max(0, live.head() - live.projector.sequence),
        )
        one("isthmus.leader", "1 when this controller leads.", lambda: int(live.leading()))
        one(
            "isthmus.healthy",
            "0 after an alarm that needs a person.",
            lambda: int(not not_working_reason(live.replica, live.projector)),
        )
        one(
            "isthmus.chain.verified",
            "Sequence up to which the hash chain was checked.",
            lambda: live.replica.head.sequence,
        )
        one(
            "isthmus.watermark",
            "Lowest sequence that a member's agent has applied: 0 while one was never heard.",
            live.watermark,
        )
        one(
            "isthmus.watermark.lag",
            "Events that the slowest member's agent is behind; draining ranges wait for it.",
            lambda: max(0, live.head() - live.watermark()),
        )
        one("isthmus.commands.waiting", "Commands in the queue.", live.waiting)
        one("isthmus.spans.kept", "Spans in the built-in store.", lambda: live.spans.count)
        one("isthmus.reports.kept", "Changes of agents in the record of the past.", lambda: live.history.count)
        gauge(
            "isthmus.convergence.latest",
            "The latest transaction: until the first, the median, the 99th of 100 and the last agent had it.",
            lambda: latest_convergence(live.convergence.newest()),
            "s",
        )
        one(
            "isthmus.changes.subscribers",
            "Readers of the stored events in this process.",
            lambda: live.replica.changes.statistics()["subscribers"],
        )
        gauge(
            "isthmus.agents",
            "Members by their agent's state: as reported; silent or unreachable; unknown when never heard.",
            lambda: agents_in_each(live.agents()),
        )
        gauge(
            "isthmus.conditions",
            "Conditions that need a person, by code.",
            lambda: conditions_by_code(live.conditions()),
        )
        gauge(
            "isthmus.paths.lost",
            "Paths that packets of pods do not pass, by what is meant (site, sites, node, pair) and the fault.",
            lambda: lost_paths(state()),
        )
        gauge(
            "isthmus.sites.rtt",
            "Median round trip of pods' packets from one site to another, or within one, as agents measure it.",
            lambda: between_sites(live.site_paths(), lambda path: path.rtt_us / 1e6 if path.rtt_us else None),
            "s",
        )
        gauge(
            "isthmus.sites.loss",
            "Share of probes from one site to another that were lost where packets pass, 0 … 1.",
            lambda: between_sites(live.site_paths(), lambda path: path.loss),
        )
        one("isthmus.agents.other.release", "Agents of another release than this one.", live.other_release)
        one(
            "isthmus.credentials.expire.time",
            "When the credentials end, in seconds since 1970; the year 9999 without any.",
            lambda: ends_at(live.credentials),
            "s",
        )


def agents_in_each(counts: Mapping[str, int]) -> list[Observation]:
    """Every state has its series, at zero, too: an alert must not wait for the first agent in trouble."""
    return [
        Observation(count, {"state": name}) for name, count in {**dict.fromkeys(STATES, 0), **counts}.items()
    ]


def lost_paths(state: ClusterState) -> list[Observation]:
    """Every kind has its series, at zero, too."""
    kinds = [(scope, fault) for scope in SCOPES for fault in FAULTS]
    counts = Counter((lost.scope, lost.fault) for lost in state.lost_paths.values())
    return [Observation(counts[scope, fault], {"scope": scope, "fault": fault}) for scope, fault in kinds]


def between_sites(paths: Iterable[SitePath], value: Callable[[SitePath], float | None]) -> list[Observation]:
    """One series a pair of sites, of the first :data:`SITE_PAIRS_MAX` pairs."""
    found = ((path, value(path)) for path in islice(paths, SITE_PAIRS_MAX))
    return [
        Observation(number, {"site": path.a, "peer_site": path.b})
        for path, number in found
        if number is not None
    ]


def conditions_by_code(found: Iterable[Condition]) -> list[Observation]:
    """Every code has its series, at zero, too."""
    counts = dict.fromkeys(CONDITIONS, 0)
    for condition in found:
        counts[condition.code] = counts.get(condition.code, 0) + 1
    return [Observation(count, {"code": code}) for code, count in counts.items()]


def latest_convergence(found: Convergence | None) -> list[Observation]:
    """One series for each share of the agents; ``last`` is there once all have it."""
    if found is None:
        return []
    values = {"first": found.first, "median": found.median, "p99": found.p99, "last": found.last}
    return [Observation(value, {"agent": name}) for name, value in values.items() if value is not None]


def pool_by_cidr(state: ClusterState) -> list[Observation]:
    """Counts of the four phases for each container CIDR."""
    return [
        Observation(count, {"cidr": counts.cidr.cidr, "state": phase})
        for counts in range_counts(state)
        for phase, count in (
            ("allocated", counts.allocated),
            ("draining", counts.draining),
            ("quarantined", counts.quarantined),
            ("free", counts.free),
        )
    ]


def nodes_by_kind(state: ClusterState) -> list[Observation]:
    """Members by kind; ``unreachable`` ones apart. O(unreachable)."""
    silent = {"cloud": 0, "external": 0}
    for name in state.unreachable:
        node = state.nodes.get(name)
        if node is not None:
            silent[node.kind] += 1
    members = {"external": state.external, "cloud": len(state.nodes) - state.external}
    return [
        Observation(count, {"kind": kind, "reachable": reachable})
        for kind, total in members.items()
        for reachable, count in (("yes", total - silent[kind]), ("no", silent[kind]))
    ]
