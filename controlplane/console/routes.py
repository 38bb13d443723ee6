"""The routes of the API. Thin: check the question, read the source, shape the answer.

``at`` on most routes is a sequence, ``time`` a moment: the answer is the overlay as it was then, agents
included as far as they were recorded. Without either the answer is the present. Handlers run on the
controller's event loop and never block it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.spec import Example
from litestar.params import Body, PathParameter, SkipValidation
from litestar.params import QueryParameter as Query
from litestar.response import Stream

from controlplane.console import presenters
from controlplane.console.address_owner import address_detail
from controlplane.console.as_of import PRESENT, as_of, parse_moment
from controlplane.console.clb_presenters import clb_detail
from controlplane.console.errors import NotFound, failures
from controlplane.console.inspector import Inspector
from controlplane.console.live_feed import LiveFeed
from controlplane.console.schemas import (
    AddressDetail,
    ClbDetail,
    Credentials,
    EventPage,
    EventRow,
    Health,
    Mesh,
    Moment,
    NodeDetail,
    NodeList,
    Overview,
    Session,
    Space,
    Timeline,
)
from controlplane.console.security import Authenticator, caller_of
from controlplane.controller.agents.convergence import BEHIND_LISTED, Convergence
from controlplane.controller.mesh.answers import recorded
from controlplane.controller.observability.span_store import TRACE_SPANS_MAX, TraceSummary
from controlplane.controller.observability.waterfall import Waterfall, waterfall
from events.protocol.mesh import MeshView, ShowMesh
from events.protocol.queries import PAGE_LIMIT
from events.telemetry.http import CONTENT_TYPE

NODES_MAX = 20_000
EVENTS_MAX = 500
ALARMS_SHOWN = 20
TENURES_MAX = 100
HEALTH_MAX = 60

From = NamedDependency[SkipValidation[Inspector]]
"""The controller; checking its type for each request would bring nothing."""

At = Annotated[
    int,
    Query(
        ge=PRESENT,
        le=2**53,
        description="Show everything as it was after this sequence, before the next; -1 is the present.",
        examples=[Example(value=1)],
    ),
]
Time = Annotated[
    str | None,
    Query(
        description="Show everything as it was at this moment (RFC 3339; without an offset it is UTC). "
        "It goes before `at`.",
        max_length=64,
        schema_extra={"format": "date-time"},
    ),
]
ClbName = Annotated[str, PathParameter(description="A reservation's name.", min_length=1, max_length=63)]
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
Address = Annotated[str, PathParameter(description="An IPv4 address.", pattern=rf"^({_OCTET}\.){{3}}{_OCTET}$")]
NodeName = Annotated[str, PathParameter(description="A node's name.", min_length=1, max_length=253)]
TraceId = Annotated[str, PathParameter(description="32 hexadecimal digits.", pattern="^[0-9a-f]{32}$")]


class OverlayController(Controller):
    """The overlay itself, now or at any sequence or time."""

    path = "/api/v1"
    tags = ("overlay",)

    @get("/overview", summary="The whole overlay at a glance", responses=failures(400, 404))
    async def overview(self, source: From, at: At = PRESENT, time: Time = None) -> Overview:
        """Pool, nodes by site, CLB reservations, networks, agents, alarms and conditions."""
        then = await as_of(source, at, time)
        view = presenters.overview(then.state, then.position, source.replica.cluster, then.reports)
        alarms = await source.alarms(then.moment, ALARMS_SHOWN)
        live = then.position.live
        return msgspec.structs.replace(
            view,
            leading=live and source.leading(),
            alarms=alarms,
            conditions=[*(source.own_conditions() if live else ()), *view.conditions],
        )

    @get("/space", summary="The address space", responses=failures(400, 404))
    async def space(self, source: From, at: At = PRESENT, time: Time = None) -> Space:
        """Every range that is not free, in columns; a hundred thousand fit one answer."""
        then = await as_of(source, at, time)
        return presenters.space(then.state, then.position)

    @get("/nodes", summary="Members", responses=failures(400, 404))
    async def nodes(  # noqa: PLR0917  query parameters, passed by name
        self,
        source: From,
        at: At = PRESENT,
        time: Time = None,
        text: Annotated[
            str,
            Query(max_length=253, description="Only members whose name, address or range contains this."),
        ] = "",
        kind: Annotated[
            Literal["cloud", "external"] | None, Query(description="Only members of this kind.")
        ] = None,
        site: Annotated[str | None, Query(max_length=253, description="Only members of this site.")] = None,
        limit: Annotated[int, Query(ge=1, le=NODES_MAX, description="At most so many.")] = PAGE_LIMIT,
        offset: Annotated[int, Query(ge=0, le=2**31, description="Skip so many of the matches.")] = 0,
    ) -> NodeList:
        """Members by name, with what their agents last reported."""
        state, position, reports = await as_of(source, at, time)
        found = presenters.matching(state, text=text, kind=kind, site=site)
        page = [
            presenters.node_row(state, node, reports, position.sequence)
            for node in found[offset : offset + limit]
        ]
        return NodeList(position=position, total=len(found), nodes=page)

    @get("/nodes/{name:str}", summary="One node", responses=failures(400, 404))
    async def node(self, source: From, name: NodeName, at: At = PRESENT, time: Time = None) -> NodeDetail:
        """Its addresses, range, agent and refusals."""
        state, position, reports = await as_of(source, at, time)
        detail = presenters.node_detail(state, name, position, reports)
        if detail is None:
            raise NotFound(f"no node is named {name!r} at sequence {position.sequence}", code="node_unknown")
        return detail

    @get("/addresses/{address:str}", summary="Whose an address is", responses=failures(400, 404))
    async def address(
        self, source: From, address: Address, at: At = PRESENT, time: Time = None
    ) -> AddressDetail:
        """Its range, node, reservation or network; and of a pod's address the pod, as its node told."""
        return await address_detail(source, await as_of(source, at, time), address)

    @get("/mesh", summary="Whether pods reach each other", responses=failures(400, 404))
    async def mesh(  # noqa: PLR0917  query parameters, passed by name
        self,
        source: From,
        at: At = PRESENT,
        time: Time = None,
        site: Annotated[
            str | None,
            Query(max_length=253, description="Also the paths between the nodes of this site."),
        ] = None,
        other: Annotated[
            str | None, Query(max_length=253, description="With `site`: between the nodes of both sites.")
        ] = None,
        node: Annotated[str, Query(max_length=253, description="Also the paths of and by this node.")] = "",
        peer: Annotated[
            str,
            Query(max_length=253, description="With `node`: the paths between the two, and their traces."),
        ] = "",
        nodes: Annotated[
            bool, Query(description="Also the paths between all nodes, the first 4,096 of them.")
        ] = False,
    ) -> Mesh:
        """What the agents measure through the tunnel: findings, the matrix by site, and by node if asked for.

        Of the past: the findings that were recorded.
        """
        then = await as_of(source, at, time)
        for name in (node, peer):
            if name and name not in then.state.nodes:
                raise NotFound(
                    f"no node is named {name!r} at sequence {then.position.sequence}", code="node_unknown"
                )
        sites = {member.site for member in then.state.nodes.values()} if {site, other} != {None} else set()
        for asked in (site, other):
            if asked is not None and asked not in sites:
                raise NotFound(
                    f"no node is at a site {asked!r} at sequence {then.position.sequence}", code="node_unknown"
                )
        if then.position.live:
            view = source.mesh.view(ShowMesh(site=site, other=other, a=node, b=peer, nodes=nodes))
        else:
            view = MeshView(
                sequence=then.position.sequence,
                nodes=len(then.state.nodes),
                capable=0,
                findings=recorded(then.state),
            )
        return Mesh(position=then.position, measured=then.position.live, mesh=view)

    @get("/clb/{name:str}", summary="One CLB reservation", responses=failures(400, 404))
    async def clb(self, source: From, name: ClbName, at: At = PRESENT, time: Time = None) -> ClbDetail:
        """Its addresses, who holds them since when, the backends and their health, and how that came about."""
        asked = (await as_of(source, at, time)).position.sequence
        tenures = await source.clb_events(name, until=asked, kind="holder-", limit=TENURES_MAX)
        health = await source.clb_events(name, until=asked, kind="backend-health-changed.", limit=HEALTH_MAX)
        reserved = await source.clb_events(name, until=asked, kind="reserved.", limit=1)
        state, position, reports = await as_of(source, at, time)
        detail = clb_detail(
            state,
            name,
            position,
            reports,
            reserved=(reserved[0].sequence, reserved[0].envelope.time) if reserved else (0, None),
            times={recorded.sequence: recorded.envelope.time for recorded in tenures},
            tenures=tenures,
            health=health,
        )
        if detail is None:
            raise NotFound(
                f"no CLB reservation is named {name!r} at sequence {position.sequence}", code="clb_unknown"
            )
        return detail


class HistoryController(Controller):
    """The log: events, the time line, how the agents follow."""

    path = "/api/v1"
    tags = ("history",)

    @get("/events", summary="The event feed", responses=failures(400))
    async def events(
        self,
        source: From,
        before: Annotated[
            int,
            Query(ge=0, le=2**53, description="Only events with a smaller sequence; 0 for the newest."),
        ] = 0,
        limit: Annotated[int, Query(ge=1, le=EVENTS_MAX, description="At most so many.")] = 50,
        entity: Annotated[
            str,
            Query(max_length=253, description="Only events of this node, range (CIDR) or reservation."),
        ] = "",
        aggregate: Annotated[
            Literal["cluster", "node", "range", "allocation", "clb", "entry", "path"] | None,
            Query(description="Only events of this kind of thing."),
        ] = None,
    ) -> EventPage:
        """Newest first."""
        head = source.state.sequence
        start = min(before or head + 1, head + 1)
        found, following = await source.events(
            before=start, limit=limit, entity=entity, aggregate=aggregate or ""
        )
        rows = [presenters.event_row(recorded, with_data=False) for recorded in found]
        return EventPage(head=head, before=following, events=rows)

    @get("/events/{sequence:int}", summary="One event", responses=failures(400, 404))
    async def event(
        self, source: From, sequence: Annotated[int, PathParameter(ge=1, le=2**53, description="Its sequence.")]
    ) -> EventRow:
        """The event with its body."""
        found = await source.event(sequence)
        if found is None:
            raise NotFound(f"there is no event {sequence}; the log ends at {source.state.sequence}")
        return presenters.event_row(found, with_data=True)

    @get("/timeline", summary="The log in buckets", responses=failures(400))
    async def timeline(
        self,
        source: From,
        buckets: Annotated[int, Query(ge=1, le=1000, description="At most so many.")] = 200,
    ) -> Timeline:
        """What happened when, for the time slider."""
        found = list(await source.timeline(buckets=buckets))
        return Timeline(head=source.state.sequence, begins=await source.time_of(1), buckets=found)

    @get("/moment", summary="The sequence at a moment", responses=failures(400))
    async def moment(
        self,
        source: From,
        time: Annotated[
            str,
            Query(
                description="RFC 3339; without an offset it is UTC.",
                max_length=64,
                schema_extra={"format": "date-time"},
            ),
        ],
    ) -> Moment:
        """The last event at or before a moment."""
        when = parse_moment(time)
        sequence = await source.sequence_at(when) if when is not None else 0
        return Moment(sequence=sequence, at=await source.time_of(sequence) if sequence else None)

    @get("/convergence", summary="How the agents follow", responses=failures(400, 404))
    async def convergence(
        self,
        source: From,
        at: At = PRESENT,
        time: Time = None,
        limit: Annotated[int, Query(ge=1, le=256, description="At most so many.")] = 50,
    ) -> list[Convergence]:
        """The latest transactions, newest first: how long until each agent had applied them.

        Of the past: as it was known then; empty when nobody recorded it.
        """
        if at == PRESENT and time is None:
            return source.latest_convergence(limit)
        then = await as_of(source, at, time)
        return await source.convergence_at(then.position.sequence, then.moment, limit)

    @get("/convergence/{sequence:int}", summary="Who is behind", responses=failures(400, 404))
    async def convergence_of(
        self,
        source: From,
        sequence: Annotated[int, PathParameter(ge=1, le=2**53, description="An event's sequence.")],
        at: At = PRESENT,
        time: Time = None,
    ) -> Convergence:
        """One transaction, with the agents that had not applied it yet."""
        if at == PRESENT and time is None:
            found = await source.convergence_of(sequence, None)
        else:
            then = await as_of(source, at, time)
            found = await source.convergence_of(sequence, then.moment)
            if found is not None and then.position.recorded:
                late = presenters.late(then.state, then.reports, found.last_sequence)
                found = msgspec.structs.replace(found, behind=late[:BEHIND_LISTED])
        if found is None:
            raise NotFound(f"the convergence of event {sequence} was not recorded")
        return found


class TraceController(Controller):
    """The built-in span store."""

    path = "/api/v1/traces"
    tags = ("traces",)

    @get("/", summary="Recent traces", responses=failures(400))
    async def recent(
        self,
        source: From,
        limit: Annotated[int, Query(ge=1, le=200, description="At most so many.")] = 50,
        errors: Annotated[bool, Query(description="Only traces with an error or a refusal.")] = False,
        node: Annotated[str, Query(max_length=253, description="Only traces that touched this node.")] = "",
    ) -> list[TraceSummary]:
        """Newest first."""
        return await source.observability.spans.recent(limit=limit, errors=errors, node=node)

    @get("/{trace_id:str}", summary="One trace", responses=failures(400, 404))
    async def trace(self, source: From, trace_id: TraceId) -> Waterfall:
        """Its spans as a waterfall, with the spans of other traces that link into it."""
        spans = await source.observability.spans.trace(trace_id)
        if not spans:
            raise NotFound(
                f"trace {trace_id} is not kept: it was not sampled, or is too old", code="trace_unknown"
            )
        return waterfall(trace_id, spans, limit=TRACE_SPANS_MAX)


class LiveController(Controller):
    """The stream of changes."""

    path = "/api/v1/live"
    tags = ("live",)

    @get("/", summary="The stream of changes", media_type="text/event-stream", responses=failures())
    async def live(self, feed: NamedDependency[LiveFeed]) -> Stream:
        """Server-Sent Events ``hello``, then ``frame``: what changed, at most five times a second."""

        async def chunks() -> AsyncIterator[bytes]:
            async for chunk in feed.stream():
                yield chunk

        return Stream(chunks(), media_type="text/event-stream", headers={"cache-control": "no-store"})


@get(
    "/metrics", summary="Prometheus metrics", media_type="text/plain", tags=["operation"], responses=failures()
)
async def metrics(source: From) -> Response[bytes]:
    """The text format, version 0.0.4."""
    return Response(source.observability.telemetry.prometheus(), headers={"content-type": CONTENT_TYPE})


@get("/healthz", summary="Is it well?", tags=["operation"], responses=failures(503))
async def health(source: From) -> Response[Health]:
    """200 while this controller does its work, else 503 with the reason. Needs no token, says no more."""
    reason = source.not_working_reason()
    body = Health(ok=not reason, reason=reason and "not healthy; the reason is in the log and the metrics")
    return Response(body, status_code=503 if reason else 200)


class SessionController(Controller):
    """Being let in."""

    path = "/api/v1"
    tags = ("session",)

    @get("/session", summary="Am I let in?", responses=failures())
    async def session(self, gate: NamedDependency[Authenticator], allowed: NamedDependency[bool]) -> Session:
        """Whether a token is needed, and whether this caller has shown it."""
        return Session(allowed=allowed, token_required=gate.token_required)

    @post("/login", summary="Show the token", status_code=201, responses=failures(400, 413))
    async def open_session(
        self,
        request: Request[Any, Any, Any],
        gate: NamedDependency[Authenticator],
        data: Annotated[Credentials, Body(description="The token of this controller.")],
    ) -> Response[Session]:
        """Exchange the token for a session cookie, for browsers."""
        cookie = gate.open_session_for(data.token, caller_of(request))
        answer = Session(allowed=True, token_required=gate.token_required)
        return Response(answer, status_code=201, cookies=[cookie] if cookie else [])
