"""Every event that can be written, as frozen structs named in the past tense.

The body of a message is one of these as JSON; which one is said by the ``ce-type`` header
(``<aggregate>.<verb>.v<version>``), so that a reader can decide about a type that it does not know
before it decodes anything.

Rules for change: a new field gets a default; a field never changes its type or meaning, and a ``Literal``
takes no further value, since an earlier release refuses the whole event for it; anything else is a new
version of the type and an upcaster in :mod:`events.types.upcasters`. Nothing is ever removed. The tests hold
the types against the schemas of earlier releases (``tests/replay/released``).

Addresses and networks are text (``10.3.7.0/26``), so that a person can read the log; ``index`` is
the position of a range in the pool, counted over all container CIDRs in the order of their
definition, so that a fold need not parse an address. Moments are UTC.

An event that brings state touches seven files, and tests say which of them was forgotten: its module here and
this one, ``controlplane/cluster/evolve.py`` (with ``state.py`` for a new field), the decision that writes it in
``controlplane/cluster/decisions/``, its rows in ``controlplane/readmodel/``, and its sentence and mark in
``controlplane/console/event_text.py``, from which the feed, the commands and the browser take them.
"""

from __future__ import annotations

from events.types.base import Affinity, CheckKind, Event, Network, NetworkKind, NodeKind, Protocol
from events.types.clb import (
    ClbAddress,
    ClbBackendAdded,
    ClbBackendHealthChanged,
    ClbBackendRemoved,
    ClbHolderAssigned,
    ClbHolderWithdrawn,
    ClbRefused,
    ClbReleased,
    ClbReserved,
)
from events.types.cluster import (
    AdoptionBegun,
    AdoptionEnded,
    CidrAppended,
    ClusterDefined,
    ClusterDeleted,
    ClusterEncryptionChanged,
    ConflictOverridden,
    ConflictRefused,
    EncryptionScope,
    EncryptionStage,
    NetworkDeclared,
    NetworkWithdrawn,
)
from events.types.entry import EntryAdded, EntryRemoved
from events.types.node import (
    NodeBound,
    NodeFenced,
    NodeGatewayMarked,
    NodeGatewayUnmarked,
    NodeJoined,
    NodeKeyChanged,
    NodeLeft,
    NodeNatChanged,
    NodeRecovered,
    NodeUnderlayChanged,
    NodeUnreachable,
)
from events.types.path import PathLost, PathRestored
from events.types.range import (
    AllocationRefused,
    RangeAdopted,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)
from events.types.record import EventsParked, JoinTokenUsed, SharedTokenUsed

__all__ = [
    "EVENT_TYPES",
    "AdoptionBegun",
    "AdoptionEnded",
    "Affinity",
    "AllocationRefused",
    "CheckKind",
    "CidrAppended",
    "ClbAddress",
    "ClbBackendAdded",
    "ClbBackendHealthChanged",
    "ClbBackendRemoved",
    "ClbHolderAssigned",
    "ClbHolderWithdrawn",
    "ClbRefused",
    "ClbReleased",
    "ClbReserved",
    "ClusterDefined",
    "ClusterDeleted",
    "ClusterEncryptionChanged",
    "ConflictOverridden",
    "ConflictRefused",
    "EncryptionScope",
    "EncryptionStage",
    "EntryAdded",
    "EntryRemoved",
    "Event",
    "EventsParked",
    "JoinTokenUsed",
    "Network",
    "NetworkDeclared",
    "NetworkKind",
    "NetworkWithdrawn",
    "NodeBound",
    "NodeFenced",
    "NodeGatewayMarked",
    "NodeGatewayUnmarked",
    "NodeJoined",
    "NodeKeyChanged",
    "NodeKind",
    "NodeLeft",
    "NodeNatChanged",
    "NodeRecovered",
    "NodeUnderlayChanged",
    "NodeUnreachable",
    "PathLost",
    "PathRestored",
    "Protocol",
    "RangeAdopted",
    "RangeAllocated",
    "RangeDraining",
    "RangeFreed",
    "RangeQuarantined",
    "SharedTokenUsed",
]

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
    NodeBound,
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
    AdoptionBegun,
    AdoptionEnded,
    RangeAdopted,
    PathLost,
    PathRestored,
    EntryAdded,
    EntryRemoved,
    SharedTokenUsed,
    ClusterEncryptionChanged,
    NodeKeyChanged,
    NodeNatChanged,
)
"""The whole set, in the order of the documentation."""
