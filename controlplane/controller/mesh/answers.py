"""Answers about the mesh: matrices, findings with the events just before them, and the traces of a pair."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from itertools import islice
from statistics import median

import msgspec

from controlplane.changes import Changes, Lagged
from controlplane.cluster.mesh.findings import Finding, sentence
from controlplane.cluster.state import ClusterState
from controlplane.controller.mesh.collector import Collector, Seen
from controlplane.controller.replication.read_barrier import ReadBarrier
from controlplane.controller.replication.replica import Replica
from events import subjects
from events.codec import Recorded
from events.errors import BadRequest, Refused, VerificationFailed
from events.mesh import ANSWERED, KERNEL, LARGE_LOST, LARGE_OK, STATES
from events.protocol.mesh import (
    CELLS_MAX,
    FindingView,
    HopView,
    MeshView,
    NodePath,
    NodeTrace,
    ShowMesh,
    SitePath,
    TraceWanted,
)
from events.types import PathLost, PathRestored

SHOWN = 20
RECENT = 64
BEFORE_S = 60.0
"""Events are shown with a finding when they came so long before it at most."""
AFTER_S = 1.5
DOUBT = ("only one end has said so yet",)
TRACE_PAUSE_S = 0.2
"""Between two pairs that agents are asked to trace, at least."""
SITES_KEPT_S = 1.0
_decode = msgspec.json.Decoder(ShowMesh).decode


class RecentEvents:
    """The last events of the log in words, with their time."""

    def __init__(self) -> None:
        self._events: deque[Recorded] = deque(maxlen=RECENT)

    async def follow(self, changes: Changes) -> None:
        """For ever. Cancelled, what was taken stays."""
        while True:
            with suppress(Lagged):
                async for run in changes.subscribe():
                    self._events.extend(
                        one for one in run[-RECENT:] if not isinstance(one.event, PathLost | PathRestored)
                    )
                return

    def before(self, moment: datetime) -> tuple[str, ...]:
        """Those just before a moment, the newest first."""
        found: list[str] = []
        for one in reversed(self._events):
            since_s = (moment - one.envelope.time).total_seconds()
            if -AFTER_S <= since_s <= BEFORE_S:
                said = f"event {one.sequence}: {one.event.type_name()} of {one.event.entity}"
                found.append(f"{said}, {max(0.0, since_s):.0f} s before")
        return tuple(found[:3])


class MeshAnswers:
    """Answers :class:`ShowMesh`."""

    def __init__(
        self,
        collector: Collector,
        replica: Replica,
        barrier: ReadBarrier | None = None,
        *,
        publish: Callable[[str, bytes], Awaitable[None]] | None = None,
    ) -> None:
        """``publish`` tells agents something, by subject; without it none is asked to trace."""
        self._collector, self._replica, self._barrier = collector, replica, barrier
        self._publish = publish
        self._asked_at = -1e9
        self._sites_at, self._sites_then = -1e9, tuple[SitePath, ...]()
        self.recent = RecentEvents()

    def sites(self) -> tuple[SitePath, ...]:
        """The matrix by site, at most :data:`SITES_KEPT_S` old. O(measurements) when it is made anew."""
        now = self._collector.now()
        if now - self._sites_at > SITES_KEPT_S or now < self._sites_at:
            self._sites_at, self._sites_then = now, tuple(self._sites(self._replica.state))
        return self._sites_then

    async def answer(self, body: bytes) -> bytes:
        """The answer to a request. Raises BadRequest, Refused(node_unknown). Cancelled, nothing is left
        behind."""
        try:
            query = _decode(body or b"{}")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest("bad_request", f"query mesh: {error}", query="mesh") from error
        if self._barrier is not None and self._replica.halted is None:
            with suppress(VerificationFailed):
                await self._barrier.passed()
        view = self.view(query)
        if query.trace and query.a and query.b:
            await self._have_traced(query.a, query.b)
        return msgspec.json.encode(view)

    async def _have_traced(self, a: str, b: str) -> None:
        """Ask both agents to trace their way to the other one. What the bus raises is let through."""
        now, state = self._collector.now(), self._replica.state
        if self._publish is None or a == b:
            return
        if now - self._asked_at < TRACE_PAUSE_S:
            return  # what was asked for just now is under way; agents take few at a time
        self._asked_at = now
        for by, of in ((a, b), (b, a)):
            held = state.owned.get(of)
            if held is not None:
                wanted = msgspec.json.encode(TraceWanted(epoch=held.epoch))
                await self._publish(subjects.trace_wanted(state.name, by), wanted)

    def view(self, query: ShowMesh) -> MeshView:
        """What is known now. Raises Refused(node_unknown), also for a site of no node."""
        collector, state = self._collector, self._replica.state
        for name in (query.a, query.b):
            if name and name not in state.nodes:
                raise Refused(
                    "node_unknown",
                    f"no live node is named {name[:253]!r} (of {len(state.nodes):,}): isthmus node list",
                    node=name[:253],
                )
        sites = {node.site for node in state.nodes.values()}
        for asked in (query.site, query.other):
            if asked is not None and asked not in sites:
                known = ", ".join(sorted(filter(None, sites))[:SHOWN]) or "none has a name"
                message = f"no live node is at a site {asked[:253]!r}; sites: {known}"
                raise Refused("node_unknown", message, site=asked[:253])
        measuring = {name for name in state.nodes if name in collector.capable and name not in collector.unable}
        return MeshView(
            sequence=state.sequence,
            nodes=len(state.nodes),
            capable=len(measuring),
            quiet=tuple(islice((name for name in sorted(state.nodes) if collector.silent(name)), SHOWN)),
            unmeasured=tuple(islice(sorted(state.nodes.keys() - measuring), SHOWN)),
            findings=self._findings(state),
            sites=self.sites(),
            paths=tuple(islice(self._paths(state, query), CELLS_MAX)),
            traces=tuple(self._traces(query)) if query.a and query.b else (),
        )

    def _findings(self, state: ClusterState) -> tuple[FindingView, ...]:
        now, wall = self._collector.now(), datetime.now(UTC)

        def view(one: Finding) -> FindingView:
            since = wall - timedelta(seconds=max(0.0, now - one.since)) if one.since else None
            known = state.lost_paths.get(one.key)
            return FindingView(
                scope=one.scope,
                a=one.a,
                b=one.b,
                fault=one.fault,
                sentence=one.sentence,
                since=since,
                evidence=(*one.evidence, *(DOUBT if one.doubt and known is None else ())),
                recorded=known.sequence if known is not None else 0,
                before=self.recent.before(since) if since is not None else (),
            )

        present = [view(one) for one in self._collector.findings()]
        shown = {(one.scope, one.a, one.b) for one in present}
        known = (one for one in recorded(state) if (one.scope, one.a, one.b) not in shown)
        return (
            *present,
            *(msgspec.structs.replace(one, evidence=("recorded, and not seen restored yet",)) for one in known),
        )

    def _rows(self, state: ClusterState) -> Iterable[tuple[str, str, Seen]]:
        names = self._collector.names()
        for by, row in self._collector.rows.items():
            if by in state.nodes:
                for epoch, seen in row.items():
                    of = names.get(epoch)
                    if of is not None and of in state.nodes:
                        yield by, of, seen

    def _sites(self, state: ClusterState) -> Iterable[SitePath]:
        found: dict[tuple[str, str], list[Seen]] = {}
        now = self._collector.now()
        silent = {by for by in self._collector.rows if self._collector.silent(by)}
        for by, of, seen in self._rows(state):
            path = found.setdefault((state.nodes[by].site, state.nodes[of].site), [])
            # What a silent agent said is what was, and of one that does not measure nobody knows.
            if by not in silent and (_passes(seen) or self._collector.counts(of, seen, now)):
                path.append(seen)
        for (a, b), all_seen in sorted(found.items()):
            passing = [one for one in all_seen if _passes(one)]
            times = [one.rtt_us for one in passing if one.rtt_us]
            usual = [one.usual_us for one in passing if one.usual_us]
            yield SitePath(
                a=a,
                b=b,
                measured=len(all_seen),
                lost=len(all_seen) - len(passing),
                large_lost=sum(one.large == LARGE_LOST for one in passing),
                rtt_us=round(median(times)) if times else 0,
                worst_rtt_us=max(times, default=0),
                jitter_us=round(median(one.jitter_us for one in passing)) if passing else 0,
                usual_us=round(median(usual)) if usual else 0,
                loss=round(sum(one.loss for one in passing) / 1000 / len(passing), 4) if passing else 0.0,
            )

    def _paths(self, state: ClusterState, query: ShowMesh) -> Iterable[NodePath]:
        now = self._collector.now()
        if not (query.nodes or query.a or query.site is not None):
            return
        wanted = {query.a, query.b} - {""}
        for by, of, seen in self._rows(state):
            sites = {state.nodes[by].site, state.nodes[of].site}
            if wanted and not (wanted <= {by, of} if len(wanted) == 2 else wanted & {by, of}):
                continue
            if query.site is not None and not {query.site, query.other or query.site} >= sites:
                continue
            if query.other is not None and query.other != query.site and len(sites) < 2:
                continue
            yield NodePath(
                by=by,
                of=of,
                state=STATES.get(seen.state, "not measured"),
                age_s=round(max(0.0, now - seen.at), 1),
                rtt_us=seen.rtt_us,
                jitter_us=seen.jitter_us,
                usual_us=round(seen.usual_us),
                loss=seen.loss / 1000,
                heard_s=round(now - seen.heard, 1) if seen.heard >= 0 else -1.0,
                large={LARGE_OK: "ok", LARGE_LOST: "lost"}.get(seen.large, ""),
            )

    def _traces(self, query: ShowMesh) -> Iterable[NodeTrace]:
        for by, of in ((query.a, query.b), (query.b, query.a)):
            trace = self._collector.trace(by, of)
            if trace is not None:
                yield NodeTrace(
                    by=by,
                    of=of,
                    age_s=trace.age_s,
                    hops=tuple(
                        HopView(name=step.name, passed=None if step.ok < 0 else step.ok == 1, text=step.text)
                        for step in trace.steps
                    ),
                    stops=next((step.name for step in trace.steps if step.ok == 0), ""),
                )


def _passes(seen: Seen) -> bool:
    return seen.state in {ANSWERED, KERNEL}


def recorded(state: ClusterState) -> tuple[FindingView, ...]:
    """What a state, present or past, has recorded as lost; its evidence is in the event ``recorded``."""
    return tuple(
        FindingView(
            scope=lost.scope,
            a=lost.a,
            b=lost.b,
            fault=lost.fault,
            sentence=sentence(lost.scope, lost.a, lost.b, lost.fault, (lost.broken_from, lost.broken_to)),
            since=lost.since,
            recorded=lost.sequence,
        )
        for lost in state.lost_paths.values()
    )
