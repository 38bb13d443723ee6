"""The shapes of every answer of the HTTP API. They are its documentation: OpenAPI is made from them.

Times are RFC 3339 in UTC, or Unix nanoseconds where a name ends in ``_ns``; other durations say
their unit in the name. ``sequence`` is a position in the log; ``at`` the moment of that event.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from controlplane.controller.agents.pod_answer import PodAnswer
from controlplane.controller.agents.records import Alarm, Kernel
from events.protocol.mesh import MeshView
from events.protocol.queries import (
    CidrView,
    ClbBackendView,
    ClbView,
    Condition,
    EntryView,
    PoolView,
    RangeView,
    RefusalView,
)
from events.protocol.ways import PeerWayView


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all answers."""


class ErrorBody(View, frozen=True, kw_only=True):
    """Why a request was not answered. ``code`` is stable; the message is for people."""

    code: str
    message: str
    details: dict[str, Any] = {}


class Position(View, frozen=True, kw_only=True):
    """Where in the log an answer stands: ``sequence`` of ``head``; ``live`` when it is the present.

    ``at`` is when that event was decided. ``moment`` is the moment that everything else is of: the
    last before the next event, unless a time was asked for. Whether the agents' reports were
    ``recorded`` then is said; the record begins at ``recorded_from``. ``settled`` is the last sequence
    that was there two seconds before: an agent that lacks it is behind. ``first`` and ``last`` are the
    events of the command that ``sequence`` belongs to (0: the present, or no such command): between them
    only a part of what it did is seen.
    """

    sequence: int
    head: int
    live: bool
    at: datetime | None = None
    moment: datetime | None = None
    recorded: bool = True
    recorded_from: datetime | None = None
    settled: int = 0
    first: int = 0
    last: int = 0


class Mesh(View, frozen=True, kw_only=True):
    """Whether pods reach each other. Times ending in ``_us`` are microseconds, in ``_s`` seconds.

    Measurements are of the present only, and not kept: ``usual_us`` is the mean of a day at most, since this
    controller began to watch. Of the past (``measured`` is false) the findings that
    were recorded then are told, each with the sequence of the event that has its evidence.
    """

    position: Position
    measured: bool
    mesh: MeshView


class ClbGatewayView(View, frozen=True, kw_only=True):
    """A node that may hold addresses, marked so at ``since``. ``holds`` are the addresses that it has."""

    node: str
    since: int
    state: str
    able: bool
    holds: list[str]


class ClbTenure(View, frozen=True, kw_only=True):
    """One stretch of time in which a gateway held an address. ``until`` 0: it still did.

    ``cause`` says why it ended, with a ``reason`` if the holder itself gave one; ``gap_s`` is how long nobody
    held the address before (0 for a handover).
    """

    purpose: str
    address: str
    node: str
    epoch: int
    at: datetime | None
    until: int = 0
    until_at: datetime | None = None
    cause: str = ""
    reason: str = ""
    gap_s: float = 0.0


class ClbHealthChange(View, frozen=True, kw_only=True):
    """A backend was found healthy or not, by the gateway that held the address."""

    sequence: int
    at: datetime
    purpose: str
    backend: str
    healthy: bool
    node: str
    reason: str


class ClbDetail(View, frozen=True, kw_only=True):
    """Everything about one reservation at one sequence, with the history of its holders and backends.

    The histories are the latest entries up to that sequence, newest first.
    """

    position: Position
    reservation: ClbView
    reserved: int
    reserved_at: datetime | None
    excluded: list[str]
    held_since: dict[str, datetime | None]
    backends: list[ClbBackendView]
    gateways: list[ClbGatewayView]
    tenures: list[ClbTenure]
    health: list[ClbHealthChange]


class NetworkView(View, frozen=True, kw_only=True):
    """A routed network that the container network must stay clear of."""

    cidr: str
    kind: str
    name: str


class SiteView(View, frozen=True, kw_only=True):
    """Nodes of one site and kind, counted."""

    site: str
    kind: str
    nodes: int
    unreachable: int


class Overview(View, frozen=True, kw_only=True):
    """The whole overlay at a glance."""

    cluster: str
    defined: bool
    deleted: bool
    position: Position
    pool: PoolView
    vni: int = 0
    vxlan_port: int = 0
    nodes: int = 0
    cloud: int = 0
    external: int = 0
    unreachable: int = 0
    fenced: int = 0
    sites: list[SiteView] = []
    clb: list[ClbView] = []
    entries: list[EntryView] = []
    networks: list[NetworkView] = []
    conditions: list[Condition] = []
    leading: bool = False
    watermark: int = 0
    agents: dict[str, int] = {}
    agents_behind: int = 0
    kernels: dict[str, int] = {}
    alarms: list[Alarm] = []
    encrypted_between_sites: bool = False
    """Whether nodes send what goes to another site encrypted."""


class Space(View, frozen=True, kw_only=True):
    """The address space, in columns: the ``i``-th entries of the lists belong together.

    Only ranges that are not free are listed. ``phase`` has one letter a range: a(llocated),
    d(raining), q(uarantined).
    """

    position: Position
    cidrs: list[CidrView]
    range_size: int
    service_cidr: str
    capacity: int
    cursor: int
    index: list[int]
    phase: str
    node: list[str]
    epoch: list[int]


class NodeRow(View, frozen=True, kw_only=True, omit_defaults=True):
    """One member. ``state`` is its agent's: ready, degraded, starting, stopping, silent,
    unreported (its agent never came), unreachable, or unknown.

    ``applied`` is the last sequence that its kernel holds; ``age_s`` how long ago it last reported (of
    the past: the longest that it can have been; -1: unknown); ``behind`` how many events it lacks.
    ``kernel`` is the attestation of its kernel rows compared with the log at sequence ``kernel_at``:
    agrees, differs, unchecked (nothing to compare it with yet), or empty when none was reported. ``path`` is
    whether packets of its pods pass (confirmed, not confirmed, failing, no peers; empty from agents before
    0.3) and ``passed_age_s`` how long ago one last did (-1: not known). ``mtu`` is what a packet of its pods
    may have in bytes, ``path_mtu`` the same on the narrowest way to a peer (0: not known); ``pods`` counts the
    addresses of its range that pods have now (-1: not known; not recorded for the past). Once ``stale``, all
    that its agent said is what was. ``version`` is its agent's release. A ``translated`` node is reached at
    another address than its own. ``fast_path`` is on, off, or empty: not known.
    ``behind_nat`` is the sequence since which the log has it behind NAT (0: it is not), ``seen_as`` the address
    as which others saw it then.
    ``ways`` counts its peers by the way that packets take to them, in words (empty: not known; not recorded for
    the past).
    """

    name: str
    kind: str
    site: str
    announced: str
    range: str = ""
    index: int = -1
    epoch: int = 0
    state: str = "unknown"
    applied: int = 0
    behind: int = 0
    age_s: float = -1.0
    kernel: Kernel = ""
    kernel_at: int = 0
    path: str = ""
    passed_age_s: float = -1.0
    stale: bool = False
    conditions: list[str] = []
    version: str = ""
    mtu: int = 0
    path_mtu: int = 0
    pods: int = -1
    translated: bool = False
    behind_nat: int = 0
    seen_as: str = ""
    fast_path: str = ""
    ways: str = ""


class NodeList(View, frozen=True, kw_only=True):
    """Members by name. ``total`` counts all that match, ``nodes`` holds one page of them."""

    position: Position
    total: int
    nodes: list[NodeRow]


class NodeDetail(View, frozen=True, kw_only=True):
    """Everything about one node. Without ``member`` it is none at this sequence, but history knows it.

    ``peer_ways`` are those of its peers that its agent named: not all, and none that it reaches as all others.
    """

    position: Position
    name: str
    member: NodeRow | None = None
    uid: str = ""
    underlay: str = ""
    vtep_mac: str = ""
    joined: int = 0
    gateway: str = ""
    usable_pods: int = 0
    kernel_digest: str = ""
    kernel_rows: list[str] = []
    agent_version: str = ""
    peers: int = 0
    peer_ways: list[PeerWayView] = []
    gateway_able: bool = False
    gateway_marked: int = 0
    holds: list[str] = []
    unreachable_since: datetime | None = None
    ranges: list[RangeView] = []
    refusals: list[RefusalView] = []
    fenced: list[str] = []


class AddressDetail(View, frozen=True, kw_only=True):
    """Whose an address is, and of a pod's address which pod has it, by what its node told.

    ``kind`` says which of the other fields are set. The pod is a node's word, kept apart from the log for a
    while (``state`` says whether it is known), and its times are the node's own clock.
    """

    position: Position
    address: str
    kind: str
    cidr: str = ""
    node: str = ""
    uid: str = ""
    epoch: int = 0
    phase: str = ""
    reservation: str = ""
    purpose: str = ""
    pod: PodAnswer | None = None


class EventRow(View, frozen=True, kw_only=True):
    """One event of the log. ``summary`` is a sentence for people, ``mark`` a character for its kind;
    ``data`` is the event's body as stored.

    ``first`` and ``last`` are the events of the command that it belongs to.
    """

    sequence: int
    time: datetime
    type: str
    entity: str
    actor: str
    command_id: str
    summary: str
    mark: str = "•"
    trace_id: str = ""
    data: dict[str, Any] = {}
    first: int = 0
    last: int = 0


class EventPage(View, frozen=True, kw_only=True):
    """Events, newest first. ``before`` is what to ask for to get the next older page; 0 at the beginning."""

    head: int
    before: int
    events: list[EventRow]


class TimelineBucket(View, frozen=True, kw_only=True):
    """A stretch of the log for the slider: up to and including ``sequence`` at ``at``, with counts."""

    sequence: int
    at: datetime
    joins: int
    leaves: int
    refusals: int
    others: int


class Timeline(View, frozen=True, kw_only=True):
    """The log from its beginning (``begins``) to its head, in at most the number of buckets asked for."""

    head: int
    begins: datetime | None
    buckets: list[TimelineBucket]


class Moment(View, frozen=True, kw_only=True):
    """The last sequence at or before a moment; 0 when the log begins later."""

    sequence: int
    at: datetime | None


class Health(View, frozen=True, kw_only=True):
    """Whether this controller does its work. ``reason`` is empty when it does."""

    ok: bool
    reason: str = ""


class Session(View, frozen=True, kw_only=True):
    """Whether the caller is let in, and whether a token is needed at all."""

    allowed: bool
    token_required: bool


class Credentials(View, frozen=True, kw_only=True):
    """The token, given once for a session cookie."""

    token: str
