"""The question about the mesh, and its answer: what the agents measured of each other, and what it means."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

import msgspec

from events.protocol.queries import Query

CELLS_MAX = 4096


class TraceWanted(msgspec.Struct, frozen=True, kw_only=True):
    """What an agent is told when its way to a peer, named by the epoch of its range, shall be traced."""

    epoch: int


class ShowMesh(Query, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured → :class:`MeshView`. With ``site`` (and ``other``) also between the nodes of these
    sites; with ``a`` and ``b`` between two nodes, and the traces of both.
    """

    name: ClassVar[str] = "mesh"
    site: str | None = None
    other: str | None = None
    a: str = ""
    b: str = ""
    nodes: bool = False
    """Whether the measurements between nodes are wanted, too, as many as fit."""
    trace: bool = False
    """Whether the agents of ``a`` and ``b`` shall trace each other now; a later answer has what they found."""


class SitePath(msgspec.Struct, frozen=True, kw_only=True):
    """From one site to another (or within one), by the last measurements: medians, and the worst of them.

    ``usual_us`` is the median of the usual round trips: of each pair its mean since the controller that answers
    began to watch, at most of about a day (0: none).
    """

    a: str
    b: str
    measured: int = 0
    lost: int = 0
    large_lost: int = 0
    rtt_us: int = 0
    worst_rtt_us: int = 0
    jitter_us: int = 0
    usual_us: int = 0
    loss: float = 0.0
    """Share of packets, 0 … 1."""


class NodePath(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``by`` measured of ``of``. ``state``: a word of :data:`events.mesh.STATES`, or ``not measured``.

    ``usual_us`` is the mean round trip, as in :class:`SitePath`. ``age_s``: seconds since the last answer, or
    since when there is none; ``heard_s`` since ``of`` was last heard.
    """

    by: str
    of: str
    state: str = "not measured"
    age_s: float = -1.0
    rtt_us: int = 0
    jitter_us: int = 0
    usual_us: int = 0
    loss: float = 0.0
    heard_s: float = -1.0
    large: str = ""
    """``ok``, ``lost``, or empty: not known."""


class FindingView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One explanation. ``recorded`` is the event that says so; 0 while it is too new, or only one agent's
    view."""

    scope: str
    a: str
    b: str = ""
    fault: str
    sentence: str
    since: datetime | None = None
    evidence: tuple[str, ...] = ()
    recorded: int = 0
    before: tuple[str, ...] = ()
    """Events just before it began."""


class HopView(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One hop of a trace. ``passed`` is None where it could not be looked at."""

    name: str
    passed: bool | None = None
    text: str = ""


class NodeTrace(msgspec.Struct, frozen=True, kw_only=True):
    """The way from one node to another, hop by hop, as the agent of ``by`` found it ``age_s`` seconds ago.

    ``stops`` is the first hop that does not pass; empty: all pass, or nobody knows.
    """

    by: str
    of: str
    age_s: float
    hops: tuple[HopView, ...] = ()
    stops: str = ""


class MeshView(msgspec.Struct, frozen=True, kw_only=True):
    """``capable`` counts the members whose agents measure; the others are not measured, which is no fault."""

    sequence: int
    nodes: int
    capable: int
    quiet: tuple[str, ...] = ()
    """Some of those whose agents have not reported lately."""
    unmeasured: tuple[str, ...] = ()
    """Some of those whose agents do not measure (before 0.3, or they cannot)."""
    findings: tuple[FindingView, ...] = ()
    sites: tuple[SitePath, ...] = ()
    paths: tuple[NodePath, ...] = ()
    traces: tuple[NodeTrace, ...] = ()
