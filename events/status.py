"""What an agent says about its node: the last one per node is kept on the status stream.

A status is an observation, not a fact of the log: it may be late, repeated or lost. The controller
takes from it liveness (``sent_at`` is the agent's clock; arrival is what counts), the applied
sequence (the drain watermark is the lowest of the live agents) and the kernel's digest.
"""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any, Final, Literal

import msgspec

from events.errors import BadRequest
from events.mesh import MeshReport, checked_mesh
from events.printable import printable

DRIFT_SHOWN = 10
SILENT_INTERVALS = 3.0
"""An agent counts as silent after this many of its own intervals without a word: what it said is what was."""
RANGES_MAX = 16
"""Most ranges in a report."""

SEQUENCE_MAX = 2**63 - 1
INTERVAL_MAX_S = 86_400.0
YEARS = (1970, 9000)
"""Moments that can be moved to any time zone."""
TEXT_MAX, TEXTS_MAX = 400, 20
"""Longest text of a report in characters, and most texts of one kind: what is beyond is cut."""
_LISTS = {"stray_ranges": 1024}
"""Lists that hold something up are as long as a report can be: what is cut of them would be forgotten."""
_NAMES = {"node": 253, "uid": 128}
"""Names are refused when they are too long or unprintable, not cut: a cut name is another name."""

WAY_AGE_MAX_S = 1e9
_OCTETS = frozenset(map(str, range(256)))
WayKind = Literal["tunnel", "direct", "nat", "relayed"]
KINDS: Final[tuple[WayKind, ...]] = ("tunnel", "direct", "nat", "relayed")
NAMED_MAX = 32
"""Most peers in one report."""
VIA_MAX, WHY_MAX = 300, 200


NatMode = Literal["auto", "on", "off"]
"""Whether a node is behind NAT: found out by what others see of it, said to be, or said not to be."""
SEEN_BY_MAX = 8
"""Most names of members in a report that saw the node's address."""


class NatReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What others see of this node, as far as they proved who they are; it can speak of nobody else.

    ``behind``: its packets reach others from another address than the one that it announces (None: nobody has
    told lately, or only members that may well be behind the same NAT). ``seen_as`` is the address that most of
    them saw, without the port, which may change at any time; ``seen_by`` names some of those who say so.
    """

    mode: NatMode = "auto"
    behind: bool | None = None
    seen_as: str = ""
    seen_by: tuple[str, ...] = ()

    @property
    def says(self) -> bool | None:
        """Whether the node is behind NAT, by what it was told or by what was found out; None: not known."""
        return self.behind if self.mode == "auto" else self.mode == "on"


class PeerWay(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The way to one peer, by the epoch of its range, since ``since_s`` seconds before the report.

    ``via`` is the next hop of a direct way (the peer's own underlay address), the address and port that were
    seen of a peer behind NAT, or the name of the node that relays. ``why`` says what ended the last other way.
    """

    epoch: int
    kind: WayKind
    since_s: float = 0.0
    via: str = ""
    encrypted: bool = False
    why: str = ""


class WaysReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many peers are reached which way, and those that are named."""

    tunnel: int = 0
    direct: int = 0
    nat: int = 0
    relayed: int = 0
    encrypted: int = 0
    """Peers to which packets are encrypted, whichever way they take; they are counted there, too."""
    peers: tuple[PeerWay, ...] = ()

    def counts(self) -> dict[WayKind, int]:
        """Peers by way; none where nobody is."""
        every: dict[WayKind, int] = {
            "tunnel": self.tunnel, "direct": self.direct, "nat": self.nat, "relayed": self.relayed,
        }  # fmt: skip
        return {kind: count for kind, count in every.items() if count}

    def sentence(self) -> str:
        """``12 direct, 3 tunnel; 3 of them encrypted``; empty without peers."""
        counts = self.counts()
        said = ", ".join(f"{counts[kind]} {kind}" for kind in (*KINDS[1:], KINDS[0]) if kind in counts)
        return said + (f"; {self.encrypted} of them encrypted" if self.encrypted else "")


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sent on every change of ``applied`` (coalesced) and at least once per heartbeat interval.

    ``applied`` is the last sequence whose effect the kernel has acknowledged, or which was read back from it.
    ``kernel_digest`` is the attestation of the kernel's rows at ``applied``; empty when unknown.
    """

    node: str
    uid: str
    applied: int
    sent_at: datetime
    state: Literal["starting", "ready", "degraded", "stopping", "fenced"] = "ready"
    kernel_digest: str = ""
    peers: int = 0
    conditions: tuple[str, ...] = ()
    agent_version: str = ""
    drift: tuple[str, ...] = ()
    """Rows that differ from what the agent wants, in words; at most :data:`DRIFT_SHOWN` of them."""
    interval_s: float = 10.0
    """The agent's own heartbeat interval; silence is judged against it."""
    gateway: bool = False
    """Whether this agent is able to hold CLB addresses (it was started with ``--gateway``)."""
    path: str = ""
    """Whether packets of the node's pods pass: ``confirmed``, ``not confirmed``, ``failing`` or ``no peers``.

    Empty from agents before 0.3, which do not know.
    """
    passed_age_s: float = -1.0
    """Seconds before ``sent_at`` at which a packet last passed; −1: not since the agent started."""
    gateway_hindrance: str = ""
    """Why it is not, in words."""
    pods: int = -1
    """Pods with an address of the node's range; -1 when not known, and from agents before 0.3."""
    pods_sequence: int = 0
    """The event by which the agent told its own range from others when it looked for pods; 0: it did not."""
    stray_ranges: tuple[str, ...] = ()
    """Ranges that are not the node's (any more), of which pods on it still have addresses: all of them."""
    stray_pods: tuple[str, ...] = ()
    """Some of these addresses."""
    instance: str = ""
    """Another one for each process: two that take turns are two machines with one identity."""
    underlay: str = ""
    """The tunnel's own address on this machine, as the agent finds it; empty from agents before 0.3."""
    boot: str = ""
    """The machine's boot id: another one for each machine, and for each time that it starts."""
    epoch: int = 0
    """The epoch of the range that this agent holds; 0 when it holds none, or from agents before 0.3."""
    mtu: int = 0
    """Bytes that a packet of its pods may have, by the tunnel's device; 0: not known."""
    path_mtu: int = 0
    """The same on the narrowest way to a peer that was measured; 0: none was (yet)."""
    fast_path: str = ""
    """Whether its fast path is ``on`` or ``off``; empty from agents before 0.3."""
    ways: WaysReport | None = None
    """Which way packets take to its peers; None from agents before 0.3."""
    nat: NatReport | None = None
    """Whether it is behind NAT; None from agents before 0.3."""
    encryption_waits: int = 0
    """Peers to which WireGuard has no session yet, while the cluster goes over to encryption."""
    mesh: MeshReport | None = None
    """What it measured of its peers; None from agents that do not ask (those before 0.3)."""


def checked(status: AgentStatus) -> AgentStatus:
    """The report with every text printable and cut to its bound, whoever sent it.

    Raises BadRequest(bad_request) for a number outside its domain or a name that cannot be one. What a field
    added later may hold is bounded by its type.
    """
    changes: dict[str, Any] = {}
    for field in status.__struct_fields__:
        value = getattr(status, field)
        fit: Any
        if isinstance(value, str):
            fit = _name(field, value) if field in _NAMES else printable(value, TEXT_MAX)
        elif isinstance(value, MeshReport):
            fit = checked_mesh(value)
        elif isinstance(value, WaysReport):
            fit = checked_ways(value)
        elif isinstance(value, NatReport):
            fit = checked_nat(value)
        elif isinstance(value, tuple):
            fit = tuple(printable(text, TEXT_MAX) for text in value[: _LISTS.get(field, TEXTS_MAX)])
        else:
            _number(field, value)
            continue
        if fit != value:
            changes[field] = fit
    if status.sent_at.tzinfo is None or not YEARS[0] <= status.sent_at.year <= YEARS[1]:
        raise BadRequest("bad_request", f"sent_at is {status.sent_at.isoformat()}", field="sent_at")
    _bounds("interval_s", status.interval_s, 0.01, INTERVAL_MAX_S)
    for field in ("applied", "peers"):
        _bounds(field, getattr(status, field), 0, SEQUENCE_MAX)
    return msgspec.structs.replace(status, **changes) if changes else status


def _name(field: str, value: str) -> str:
    if not 0 < len(value) <= _NAMES[field] or not value.isprintable():
        raise BadRequest(
            "bad_request",
            f"{field} is 1 to {_NAMES[field]} printable characters, not {printable(value, 40)!r}",
            field=field,
        )
    return value


def _number(field: str, value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise BadRequest("bad_request", f"{field} is {value}", field=field)
    if isinstance(value, int | float):
        _bounds(field, value, -SEQUENCE_MAX, SEQUENCE_MAX)


def _bounds(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        shown = f"{value:g}" if abs(value) < 1e300 else "beyond all bounds"  # an int of 400 digits is no float
        raise BadRequest("bad_request", f"{field} is {shown}; the bounds are {low:g} … {high:g}", field=field)


def checked_ways(report: WaysReport) -> WaysReport:
    """The report cut to its bounds, with printable texts. Raises BadRequest(bad_request) for impossible
    numbers."""
    for number in (report.tunnel, report.direct, report.nat, report.relayed, report.encrypted):
        _bounds("ways", number, 0, SEQUENCE_MAX)
    peers = tuple(
        msgspec.structs.replace(way, via=printable(way.via, VIA_MAX), why=printable(way.why, WHY_MAX))
        for way in report.peers[:NAMED_MAX]
    )
    for way in peers:
        _bounds("ways", way.epoch, 1, SEQUENCE_MAX)
        _bounds("ways", way.since_s, 0, WAY_AGE_MAX_S)
    return msgspec.structs.replace(report, peers=peers)


def checked_nat(report: NatReport) -> NatReport:
    """The report cut to its bounds, with names that can be some. Raises BadRequest(bad_request) for an address
    that is none."""
    if report.seen_as:
        parts = report.seen_as.split(".")
        if len(parts) != 4 or not all(part in _OCTETS for part in parts):
            shown = printable(report.seen_as, 40)
            raise BadRequest("bad_request", f"seen_as {shown!r} is no IPv4 address", field="nat")
    seen_by = tuple(printable(name, _NAMES["node"]) for name in report.seen_by[:SEEN_BY_MAX])
    return msgspec.structs.replace(report, seen_by=seen_by)
