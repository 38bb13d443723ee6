"""What a decision is, and what it may know besides the state.

A decision changes nothing. Its events are facts once they are stored, in this order and all
together; its refusal is the answer to the caller, and may come with an event that records it.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Protocol

import msgspec

from controlplane.cluster.mesh.findings import Finding
from controlplane.cluster.state import ClusterState, PathKey
from events.errors import Refused
from events.types import ClusterDefined, Event


class Decision(NamedTuple):
    """``events`` to append (perhaps none), ``result`` for the caller, ``refusal`` when the answer is no.

    ``after`` is a fork of the state with the events in it, if deciding has made one anyway.
    """

    events: tuple[Event, ...] = ()
    result: dict[str, Any] = {}  # noqa: RUF012  a field's default, replaced and never written to
    refusal: Refused | None = None
    after: ClusterState | None = None


class AgentProcess(NamedTuple):
    """Whose reports count for a member: one process of an agent, and where that finds itself."""

    instance: str
    underlay: str
    silent_s: float


class Members(Protocol):
    """What the agents' reports say about members, by uid."""

    def silent_s(self, uid: str) -> float | None:
        """Seconds since that member was heard, if it reports; None when it does not."""
        ...

    def ever(self, uid: str) -> bool:
        """Whether its agent was ever heard."""
        ...

    def process_of(self, uid: str) -> AgentProcess | None:
        """Which agent speaks for that member; None when none reports, or one that does not say who it is."""
        ...


class Participant(NamedTuple):
    """Somebody who takes part in the cluster, in words, and the release that it says it is of."""

    who: str
    version: str


class _Nobody:
    """No reports: for decisions about a past, and for tests of the rules alone."""

    def silent_s(self, uid: str) -> float | None:  # noqa: ARG002  the port's
        return None

    def ever(self, uid: str) -> bool:  # noqa: ARG002  the port's
        return False

    def process_of(self, uid: str) -> AgentProcess | None:  # noqa: ARG002  the port's
        return None


NOBODY: Members = _Nobody()


class DecisionContext(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the world outside this log.

    ``clusters`` on the same bus → their container CIDRs; ``gateways``: names of those whose agents were
    heard just now and say that they can hold addresses;
    ``occupied``: indices of released ranges that wait for pods of their last owner;
    ``members``: which members report, so that none of them is replaced unless somebody names it;
    ``instance``: which process of an agent asks, empty when the asker is none or does not say;
    ``older``: participants of earlier releases that are heard now, who may not know every event.
    """

    clusters: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    gateways: frozenset[str] = frozenset()
    occupied: Container[int] = frozenset()
    members: Members = NOBODY
    instance: str = ""
    older: tuple[Participant, ...] = ()


EMPTY_CONTEXT = DecisionContext()
"""No other cluster on the bus."""


class Tick(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the controller's own commands: decisions that time and reports bring. Never sent on the bus.

    At most ``limit`` events come of one, to fit an atomic batch; the rest follows at the next tick.
    ``task`` says in an operator's words what is done, for the log.
    """

    name: ClassVar[str]
    task: ClassVar[str]
    limit: int = 900


class MarkLiveness(Tick, frozen=True, kw_only=True):
    """Judge who has fallen silent and who is back, and remove the long silent if the cluster says so.

    ``last_seen``: uid → arrival of its last report (joining counts as one). ``watching_since`` is the moment
    from which the leading controller has watched: silence before it counts for nothing, nor does that of a
    uid before its moment in ``watched``; who is missing there is not judged yet (None: all are).
    ``at`` is the present by the clock of these moments, which no wall clock moves (None: they are of the
    clock that decides). Without ``removes`` nobody is fenced: clocks disagree. ``came`` are the uids whose
    agents have been heard at all (None: all); who never came cannot fall silent, nor be back.
    """

    name: ClassVar[str] = "mark-liveness"
    task: ClassVar[str] = "telling silent nodes from living ones"
    last_seen: Mapping[str, datetime]
    watching_since: datetime
    watched: Mapping[str, datetime] | None = None
    at: datetime | None = None
    removes: bool = True
    came: Container[str] | None = None


class AdvanceDrains(Tick, frozen=True, kw_only=True):
    """Move drained ranges to quarantine and rested ones back to the pool.

    ``applied``: uid → last sequence that its agent has reported as applied; missing means none. ``absent``:
    uids of members whose agents have never reported and are not expected any more.
    ``occupied``: indices of ranges of whose last owner a pod may still run: they go no further.
    ``rested_s``: index of a range → for how long the leading controller has watched it rest, from when its
    quarantine was stored (None: nobody watched, and the deadline alone decides). Without ``frees`` no rest
    ends: clocks disagree.
    """

    name: ClassVar[str] = "advance-drains"
    task: ClassVar[str] = "returning released ranges to the pool"
    applied: Mapping[str, int]
    absent: Container[str] = frozenset()
    occupied: Container[int] = frozenset()
    rested_s: Mapping[int, float] | None = None
    frees: bool = True


class AssignHolders(Tick, frozen=True, kw_only=True):
    """Give every CLB address that gateways serve a holder that is heard.

    ``last_seen``, ``watching_since`` and ``at`` as in :class:`MarkLiveness`; ``able`` are the uids whose agents
    say that they can hold addresses, ``unable`` those that say that they cannot, with why.
    """

    name: ClassVar[str] = "assign-holders"
    task: ClassVar[str] = "giving CLB addresses to gateways"
    last_seen: Mapping[str, datetime]
    watching_since: datetime
    able: frozenset[str]
    unable: Mapping[str, str] = {}
    at: datetime | None = None


class AdvanceEncryption(Tick, frozen=True, kw_only=True):
    """Take the next step towards what the cluster is to encrypt; ``applied`` as in :class:`AdvanceDrains`."""

    name: ClassVar[str] = "advance-encryption"
    task: ClassVar[str] = "changing what is encrypted"
    applied: Mapping[str, int]


class NatFinding(NamedTuple):
    """That a member is behind NAT, or is not; see :class:`events.types.NodeNatChanged`."""

    uid: str
    behind: bool
    seen_as: str = ""
    seen_by: tuple[str, ...] = ()


class MarkNat(Tick, frozen=True, kw_only=True):
    """Record which members are behind NAT, and which are not any more, by what they reported repeatedly."""

    name: ClassVar[str] = "mark-nat"
    task: ClassVar[str] = "recording which nodes are behind NAT"
    found: tuple[NatFinding, ...]


class MarkPaths(Tick, frozen=True, kw_only=True):
    """Record which paths are lost, and which (by scope, a, b) are not any more.

    ``at_s`` is the present by the clock of the findings.
    """

    name: ClassVar[str] = "mark-paths"
    found: tuple[Finding, ...] = ()
    over: frozenset[PathKey] = frozenset()
    at_s: float = 0.0


def definition_of(state: ClusterState) -> ClusterDefined:
    """The definition of a cluster that takes commands.

    Raises Refused: ``cluster_not_defined``, ``cluster_deleted``.
    """
    if state.definition is None:
        raise Refused(
            "cluster_not_defined",
            f"cluster {state.name!r} is not defined yet: "
            f"`isthmus cluster define --cidr 10.200.0.0/16 --pods 64 --services 256` would do it",
            cluster=state.name,
        )
    if state.deleted:
        raise Refused(
            "cluster_deleted",
            f"cluster {state.name!r} was deleted at sequence {state.deleted}; its log takes no further command",
            cluster=state.name,
            sequence=state.deleted,
        )
    return state.definition
