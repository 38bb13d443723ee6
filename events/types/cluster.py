"""Events about the cluster itself: its address plan, its networks, and overlaps with them."""

from __future__ import annotations

from typing import ClassVar, Literal

from events.types.base import Event, Network

EncryptionScope = Literal["off", "sites", "all"]
"""What a cluster encrypts: nothing, packets between nodes of different sites, or all between nodes."""
EncryptionStage = Literal["plain", "accepting", "sending", "required"]
"""How far a kind of pairs is, see :mod:`events.protocol.encryption`."""


class _ClusterEvent(Event, frozen=True, kw_only=True, gc=False):
    aggregate: ClassVar[str] = "cluster"
    cluster: str

    @property
    def entity(self) -> str:
        return self.cluster


class ClusterDefined(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """The address plan and the overlay's constants; the first event of every log.

    ``range_size`` and ``service_size`` are addresses (powers of two); ``max_pods_per_node`` and
    ``max_services`` are what the operator asked for before rounding up. ``capacity`` is the number
    of ranges.
    """

    verb: ClassVar[str] = "defined"
    container_cidr: str
    max_pods_per_node: int
    max_services: int
    range_size: int
    service_size: int
    service_cidr: str
    capacity: int
    networks: tuple[Network, ...] = ()
    vni: int = 100
    vxlan_port: int = 8472
    quarantine_s: float = 60.0
    unreachable_after_s: float = 30.0
    remove_after_s: float = 0.0
    """Seconds after which an unreachable node is removed by itself; 0 (the default) is never."""


class ClusterDeleted(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """The cluster ended; its log stays readable and takes no further command."""

    verb: ClassVar[str] = "deleted"
    reason: str = ""


class CidrAppended(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """A further container CIDR: ``capacity`` more ranges from ``first_index`` on, and no Service range."""

    verb: ClassVar[str] = "cidr-appended"
    cidr: str
    first_index: int
    capacity: int


class AdoptionBegun(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """From here to the end of the adoption, nodes of a running cluster may keep the ranges that they have.

    ``source`` is what they are taken over from (``flannel``, ``cilium``, ``podcidr``); ``plan`` is the SHA-256
    of the plan that somebody decided on, as text; empty: none.
    """

    verb: ClassVar[str] = "adoption-begun"
    source: str
    plan: str = ""


class AdoptionEnded(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """No further range is adopted: new nodes take free ranges in turn, as in any cluster."""

    verb: ClassVar[str] = "adoption-ended"
    reason: str = ""


class NetworkDeclared(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """A routed network was made known after the definition; overlap checks know it from here on."""

    verb: ClassVar[str] = "network-declared"
    network: Network


class NetworkWithdrawn(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """A routed network is gone."""

    verb: ClassVar[str] = "network-withdrawn"
    cidr: str


class ConflictOverridden(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """Somebody accepted an overlap: which check (``code``), both sides, and why. Who is in the envelope."""

    verb: ClassVar[str] = "conflict-overridden"
    code: str
    ours: str
    theirs: str
    reason: str


class ConflictRefused(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """An operator's request met an overlap and was refused: one event per request and cause until it changes.

    ``command`` is the name of the request that was refused.
    """

    verb: ClassVar[str] = "conflict-refused"
    command: str
    code: str
    ours: str
    theirs: str
    message: str


class ClusterEncryptionChanged(_ClusterEvent, frozen=True, kw_only=True, gc=False):
    """What the cluster is to encrypt, and how far it is, for pairs of nodes of one site and of two.

    A cluster goes there step by step: each waits until every member has applied the one before.
    """

    verb: ClassVar[str] = "encryption-changed"
    scope: EncryptionScope
    within_sites: EncryptionStage
    between_sites: EncryptionStage
