"""Every event that can be written, as frozen structs named in the past tense.

The body of a message is one of these as JSON; which one is said by the ``ce-type`` header
(``<aggregate>.<verb>.v<version>``), so that a reader can decide about a type that it does not know
before it decodes anything.

Rules for change: a new field gets a default; a field never changes its type or meaning, and a ``Literal``
takes no further value, since an earlier release refuses the whole event for it; anything else is a new
version of the type and an upcaster in :mod:`events.upcasters`. Nothing is ever removed. The tests hold the
types against the schemas of earlier releases (``tests/replay/released``).

Addresses and networks are text (``10.3.7.0/26``), so that a person can read the log; ``index`` is
the position of a range in the pool, counted over all container CIDRs in the order of their
definition, so that a fold need not parse an address. Moments are UTC.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import ClassVar, Literal

import msgspec

NodeKind = Literal["cloud", "external"]
"""Where a node runs: an attribute of the node, never of its range."""

NetworkKind = Literal["vpc", "idc", "clb", "route"]
"""What a network that must stay clear of the container network is."""


Protocol = Literal["tcp", "udp"]
Affinity = Literal["none", "source"]
"""Whether a client's connections all go to one backend, by its address."""

CheckKind = Literal["tcp", "http", "https", "none"]


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """A routed network beside the container network: a VPC CIDR, an IDC network, a CLB subnet, a route."""

    cidr: str
    kind: NetworkKind
    name: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all events. ``aggregate``, ``verb`` and ``entity`` make the subject."""

    aggregate: ClassVar[str]
    verb: ClassVar[str]
    version: ClassVar[int] = 1

    @property
    def entity(self) -> str:
        """The name of the thing that this happened to: a cluster, node, range (CIDR) or reservation."""
        raise NotImplementedError

    @classmethod
    @cache
    def type_name(cls) -> str:
        """For example ``range.allocated.v1``."""
        return f"{cls.aggregate}.{cls.verb}.v{cls.version}"


# --- cluster -------------------------------------------------------------------------------------


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


# --- node ----------------------------------------------------------------------------------------


class _NodeEvent(Event, frozen=True, kw_only=True, gc=False):
    aggregate: ClassVar[str] = "node"
    node: str
    uid: str

    @property
    def entity(self) -> str:
        return self.node


class NodeJoined(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """A node became a member. ``uid`` names the installation, ``node`` the role.

    ``underlay`` is the address on the node's own link, ``announced`` the one by which its peers
    reach it (they differ behind NAT). ``vtep_mac`` is derived from the uid.
    """

    verb: ClassVar[str] = "joined"
    kind: NodeKind
    underlay: str
    announced: str
    vtep_mac: str
    site: str = ""


class NodeUnderlayChanged(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node is reached at another address; its range and epoch stay."""

    verb: ClassVar[str] = "underlay-changed"
    underlay: str
    announced: str


class NodeLeft(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node is no member any more: it said so itself, or an operator removed it (the actor tells)."""

    verb: ClassVar[str] = "left"
    reason: str = ""


class NodeUnreachable(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node's reports stopped. It stays a member: its packets may well be flowing."""

    verb: ClassVar[str] = "unreachable"
    last_seen: datetime | None = None


class NodeRecovered(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """An unreachable node reports again."""

    verb: ClassVar[str] = "recovered"


class NodeGatewayMarked(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """This cloud node may hold addresses of CLB pairs from now on; the mark ends with its membership."""

    verb: ClassVar[str] = "gateway-marked"


class NodeGatewayUnmarked(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """The node holds no CLB address any more; what it held was handed over just before."""

    verb: ClassVar[str] = "gateway-unmarked"


class NodeFenced(_NodeEvent, frozen=True, kw_only=True, gc=False):
    """This uid is out for good: a twin took the name (``by_uid``), or an operator or a timer decided."""

    verb: ClassVar[str] = "fenced"
    cause: Literal["rejoin", "operator", "unreachable"]
    by_uid: str = ""
    reason: str = ""


# --- range ---------------------------------------------------------------------------------------


class _RangeEvent(Event, frozen=True, kw_only=True, gc=False):
    aggregate: ClassVar[str] = "range"
    cidr: str
    index: int

    @property
    def entity(self) -> str:
        return self.cidr


class RangeAllocated(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """A node was given the range. **The sequence of this event is the range's epoch.**

    ``cursor_after`` is where the next search starts: it is data, so that it survives everything.
    """

    verb: ClassVar[str] = "allocated"
    node: str
    uid: str
    cursor_after: int


class RangeDraining(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """The range lost its owner; peers may still hold rows for it until each has applied this sequence."""

    verb: ClassVar[str] = "draining"
    node: str
    uid: str
    epoch: int


class RangeQuarantined(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """Every live agent has applied the draining event; the range rests until ``until``.

    ``watermark`` is the lowest applied sequence among the live agents: the evidence.
    """

    verb: ClassVar[str] = "quarantined"
    epoch: int
    watermark: int
    until: datetime


class RangeFreed(_RangeEvent, frozen=True, kw_only=True, gc=False):
    """The range is back in the pool."""

    verb: ClassVar[str] = "freed"
    epoch: int


class AllocationRefused(Event, frozen=True, kw_only=True, gc=False):
    """A node asked for a range and got none: one event per node and cause until it changes.

    The counts are ranges at the moment of the refusal; ``earliest_free`` is when quarantine next
    returns one, if any is under way.
    """

    aggregate: ClassVar[str] = "allocation"
    verb: ClassVar[str] = "refused"
    node: str
    uid: str
    code: str
    message: str
    capacity: int = 0
    allocated: int = 0
    draining: int = 0
    quarantined: int = 0
    earliest_free: datetime | None = None

    @property
    def entity(self) -> str:
        return self.node


# --- CLB -----------------------------------------------------------------------------------------


class ClbAddress(msgspec.Struct, frozen=True, kw_only=True):
    """One reserved address and what it serves, for example ``apiserver``."""

    purpose: str
    address: str


class _ClbEvent(Event, frozen=True, kw_only=True, gc=False):
    aggregate: ClassVar[str] = "clb"
    name: str

    @property
    def entity(self) -> str:
        return self.name


class ClbReserved(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """Exactly two addresses of a subnet are set aside for a private load balancer.

    ``excluded`` are the addresses that the operator said are in use; ``gateway`` is the subnet's
    own router. ``provider`` says who realises the addresses.
    """

    verb: ClassVar[str] = "reserved"
    subnet: str
    addresses: tuple[ClbAddress, ClbAddress]
    gateway: str = ""
    excluded: tuple[str, ...] = ()
    provider: str = "reserve-only"


class ClbReleased(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """The two addresses are free again."""

    verb: ClassVar[str] = "released"
    subnet: str
    addresses: tuple[ClbAddress, ClbAddress]


class ClbRefused(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """A reservation was asked for and refused: one event per reservation and cause until it changes."""

    verb: ClassVar[str] = "refused"
    subnet: str
    code: str
    message: str


class _BackendEvent(_ClbEvent, frozen=True, kw_only=True, gc=False):
    """One backend of one port of one address: the six fields together are its identity."""

    purpose: str
    protocol: Protocol
    port: int
    address: str
    backend_port: int


class ClbBackendAdded(_BackendEvent, frozen=True, kw_only=True, gc=False):
    """Connections to ``port`` of the address that serves ``purpose`` may go to ``address:backend_port``.

    Repeated for a backend that exists, it changes its settings. ``affinity`` is of the whole port:
    that of the backend added last. A check counts ``rise`` good answers in a row as healthy and
    ``fall`` bad ones as unhealthy; ``check_port`` 0 is the backend's own port.
    """

    verb: ClassVar[str] = "backend-added"
    affinity: Affinity = "none"
    check: CheckKind = "tcp"
    check_path: str = "/"
    check_port: int = 0
    check_interval_s: float = 1.0
    check_timeout_s: float = 1.0
    rise: int = 2
    fall: int = 2


class ClbBackendRemoved(_BackendEvent, frozen=True, kw_only=True, gc=False):
    """No new connection goes to the backend; those in progress stay with it."""

    verb: ClassVar[str] = "backend-removed"


class ClbBackendHealthChanged(_BackendEvent, frozen=True, kw_only=True, gc=False):
    """The address's holder finds the backend healthy or not. ``epoch`` is the holder's; ``at`` the decision's.

    ``reason`` is what the last check said.
    """

    verb: ClassVar[str] = "backend-health-changed"
    healthy: bool
    node: str
    epoch: int
    at: datetime
    reason: str = ""


class _HolderEvent(_ClbEvent, frozen=True, kw_only=True, gc=False):
    purpose: str
    address: str
    node: str
    uid: str


class ClbHolderAssigned(_HolderEvent, frozen=True, kw_only=True, gc=False):
    """This gateway holds the address. **The sequence of this event is the holder's epoch.**

    ``previous`` is who held it before, if anybody did; the withdrawing event stands just before.
    """

    verb: ClassVar[str] = "holder-assigned"
    previous: str = ""
    previous_epoch: int = 0


class ClbHolderWithdrawn(_HolderEvent, frozen=True, kw_only=True, gc=False):
    """This gateway, since ``epoch`` the holder, holds the address no longer.

    ``silent``: nothing was heard of it as a holder. With a ``reason`` its agent is heard, but says that it
    cannot hold addresses, and why.
    """

    verb: ClassVar[str] = "holder-withdrawn"
    epoch: int
    cause: Literal["left", "unmarked", "silent", "fenced", "released"]
    reason: str = ""


# --- credentials ---------------------------------------------------------------------------------


class JoinTokenUsed(Event, frozen=True, kw_only=True, gc=False):
    """A join token was redeemed: the holder of ``public_key`` got the node's credentials.

    ``token`` is the token's own public key, so that the log holds nothing secret; ``expires`` is
    when the credentials end. A token is good once: the command's id is made of the token.
    """

    aggregate: ClassVar[str] = "token"
    verb: ClassVar[str] = "used"
    token: str
    node: str
    public_key: str
    expires: datetime

    @property
    def entity(self) -> str:
        return self.token


# --- the log itself ------------------------------------------------------------------------------


class EventsParked(Event, frozen=True, kw_only=True, gc=False):
    """The events ``first`` … ``last`` count as if they had never been written: everybody leaves them out.

    They are what one command wrote (half a decision is none), and one of them, ``poison``, could not be
    followed: its id and type, and the error's code and words as ``code`` and ``reason``.
    """

    aggregate: ClassVar[str] = "event"
    verb: ClassVar[str] = "parked"
    first: int
    last: int
    poison: int
    poison_id: str
    poison_type: str
    code: str
    reason: str

    @property
    def entity(self) -> str:
        return str(self.first)


EVENT_TYPES: tuple[type[Event], ...] = (
    ClusterDefined,
    ClusterDeleted,
    CidrAppended,
    NetworkDeclared,
    NetworkWithdrawn,
    ConflictOverridden,
    ConflictRefused,
    NodeJoined,
    NodeUnderlayChanged,
    NodeLeft,
    NodeUnreachable,
    NodeRecovered,
    NodeFenced,
    NodeGatewayMarked,
    NodeGatewayUnmarked,
    RangeAllocated,
    RangeDraining,
    RangeQuarantined,
    RangeFreed,
    AllocationRefused,
    ClbReserved,
    ClbReleased,
    ClbRefused,
    ClbBackendAdded,
    ClbBackendRemoved,
    ClbBackendHealthChanged,
    ClbHolderAssigned,
    ClbHolderWithdrawn,
    JoinTokenUsed,
    EventsParked,
)
"""The whole set, in the order of the documentation."""
