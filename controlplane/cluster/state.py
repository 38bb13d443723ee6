"""The cluster's state at one sequence: what the fold of the log accumulates.

One fold owns a state and changes it in place (:mod:`controlplane.cluster.evolve` is the only writer).
Whoever wants to try something out works on a :meth:`ClusterState.fork`. Values are frozen, so that
they may be handed out; the containers are not.

No clock, no I/O, and nothing that cannot be rebuilt from the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import msgspec

from controlplane.cluster.addressing.plan import range_cidr
from controlplane.cluster.addressing.pool import Pool
from controlplane.cluster.facts import Admission, Adoption, BehindNat, Bound, Fenced, LostPath, PathKey, Refusal
from controlplane.cluster.layered_dict import absorbed, forked
from events.protocol.clb import Backend, BackendKey, Entry, Holder
from events.protocol.encryption import NO_ENCRYPTION, Encryption, NodeKey
from events.types import (
    AdoptionBegun,
    ClbReserved,
    ClusterDefined,
    ClusterEncryptionChanged,
    ConflictOverridden,
    EntryAdded,
    Event,
    Network,
    NodeBound,
    NodeKeyChanged,
    NodeNatChanged,
    PathLost,
    RangeQuarantined,
    SharedTokenUsed,
)

__all__ = [
    "FURTHER",
    "Admission",
    "Adoption",
    "BehindNat",
    "Bound",
    "Cidr",
    "ClusterState",
    "Fenced",
    "LostPath",
    "Node",
    "PathKey",
    "Phase",
    "Range",
    "Refusal",
    "asker_clb",
    "asker_command",
    "asker_node",
]

Phase = Literal["allocated", "draining", "quarantined"]
"""A range's state; a free range has no entry at all."""


class Node(msgspec.Struct, frozen=True, gc=False):
    """A member. ``joined`` is the sequence of its joining; ``changed`` of the last change of its addresses."""

    name: str
    uid: str
    kind: str
    underlay: str
    announced: str
    vtep_mac: str
    site: str
    joined: int
    changed: int


class Range(msgspec.Struct, frozen=True, gc=False):
    """A range that is not free, and its owner: the last one, when it is draining or quarantined.

    ``epoch`` is the sequence of its allocation. Its phase is said by the map that its index is in.
    """

    index: int
    cidr: str
    node: str
    uid: str
    epoch: int


class Cidr(msgspec.Struct, frozen=True, gc=False):
    """A container CIDR: ``capacity`` ranges from index ``first_index`` on.

    ``first`` is its first address as an integer, ``appended`` the sequence that brought it.
    """

    cidr: str
    first_index: int
    capacity: int
    first: int
    appended: int


class ClusterState:
    """Everything that decisions need, with the indices that make them O(1).

    ``sequence`` is the last folded one (0: nothing). Keys and values of the maps are said beside them.
    """

    __slots__ = (
        "admitted",
        "adoption",
        "backends",
        "behind_nat",
        "bound",
        "by_address",
        "by_key",
        "by_mac",
        "by_private",
        "by_uid",
        "cidrs",
        "clb",
        "clb_addresses",
        "definition",
        "deleted",
        "draining",
        "encryption",
        "entries",
        "external",
        "fenced",
        "gateways",
        "holders",
        "keys",
        "last_admitted",
        "lost_paths",
        "name",
        "networks",
        "nodes",
        "overrides",
        "owned",
        "parked",
        "pool",
        "quarantine_last",
        "quarantine_ordered",
        "quarantined",
        "ranges",
        "refusals",
        "sequence",
        "unreachable",
    )

    def __init__(self, name: str = "") -> None:
        """The empty state of the cluster ``name`` (which its definition must repeat; empty: any)."""
        self.name = name
        self.sequence = 0
        self.definition: ClusterDefined | None = None
        self.deleted = 0
        """The sequence of the deletion; 0 while the cluster exists."""
        self.cidrs: tuple[Cidr, ...] = ()
        self.pool = Pool()
        self.nodes: MutableMapping[str, Node] = {}  # name → member
        self.by_uid: MutableMapping[str, str] = {}  # uid → name of a member
        self.by_address: MutableMapping[str, str] = {}  # announced address → name of a member
        # (of those that are not behind NAT: theirs means something only where they are)
        self.by_mac: MutableMapping[str, str] = {}  # VTEP MAC → name of a member
        self.owned: MutableMapping[str, Range] = {}  # name → its allocated range
        self.ranges: MutableMapping[int, Range] = {}  # index → range that is not free
        self.draining: MutableMapping[int, int] = {}  # index → sequence of draining, ascending
        self.quarantined: MutableMapping[int, RangeQuarantined] = {}  # index → its event, in their order
        self.quarantine_last: datetime | None = None  # deadline of the latest entry of quarantined
        self.quarantine_ordered = True  # whether the deadlines ascend, so that a scan may stop early
        self.unreachable: MutableMapping[str, datetime | None] = {}  # name → last seen
        self.fenced: MutableMapping[str, Fenced] = {}  # uid → why it was fenced
        self.networks: MutableMapping[str, Network] = {}  # CIDR → declared network
        self.overrides: MutableMapping[tuple[str, str, str], ConflictOverridden] = {}  # code, ours, theirs
        self.clb: MutableMapping[str, ClbReserved] = {}  # name → reservation
        self.clb_addresses: MutableMapping[str, str] = {}  # reserved address → name of the reservation
        self.bound: MutableMapping[str, Bound] = {}  # name of a member → its Kubernetes Node
        self.adoption: MutableMapping[str, Adoption] = {}  # name of the cluster → what is under way
        self.gateways: MutableMapping[str, int] = {}  # name of a member → sequence of its mark
        self.backends: MutableMapping[BackendKey, Backend] = {}  # of reservations that gateways serve
        self.holders: MutableMapping[str, Holder] = {}  # reserved address → the gateway that holds it
        self.lost_paths: MutableMapping[PathKey, LostPath] = {}  # what agents do not reach
        self.entries: MutableMapping[str, Entry] = {}  # name → who from outside may reach pods
        self.admitted: MutableMapping[str, Admission] = {}  # node name → how a shared token let it in
        self.last_admitted: MutableMapping[str, str] = {}  # shared token → the node of its latest use
        self.keys: MutableMapping[str, NodeKey] = {}  # name of a member → its public key
        self.by_key: MutableMapping[str, str] = {}  # valid public key → name of a member
        self.encryption: MutableMapping[str, Encryption] = {}  # name of the cluster → what it encrypts
        self.behind_nat: MutableMapping[str, BehindNat] = {}  # name of a member → what was seen of it
        self.by_private: MutableMapping[str, tuple[str, ...]] = {}  # announced address → members behind NAT
        self.refusals: MutableMapping[str, dict[str, Refusal]] = {}  # who asked → code → what was recorded
        self.parked: frozenset[int] = frozenset()
        """Sequences that were left out, because the log says so."""
        self.external = 0
        """How many members are external."""

    @classmethod
    def from_parts(
        cls,
        name: str,
        *,
        sequence: int,
        deleted: int,
        definition: ClusterDefined | None,
        cidrs: Iterable[Cidr],
        cursor: int,
        networks: Mapping[str, Network],
        overrides: Mapping[tuple[str, str, str], ConflictOverridden],
        nodes: Mapping[str, Node],
        ranges: Mapping[int, Range],
        draining: Mapping[int, int],
        quarantined: Mapping[int, RangeQuarantined],
        unreachable: Mapping[str, datetime | None],
        fenced: Mapping[str, Fenced],
        clb: Mapping[str, ClbReserved],
        refusals: Mapping[str, dict[str, Refusal]],
        gateways: Mapping[str, int],
        backends: Mapping[BackendKey, Backend],
        holders: Mapping[str, Holder],
        parked: frozenset[int],
        bound: Mapping[str, Bound],
        adoption: Mapping[str, Adoption],
        lost_paths: Mapping[PathKey, LostPath],
        entries: Mapping[str, Entry],
        admitted: Mapping[str, Admission],
        keys: Mapping[str, NodeKey],
        encryption: Mapping[str, Encryption],
        behind_nat: Mapping[str, BehindNat],
    ) -> ClusterState:
        """A state made of its facts; every index that follows from them is made here and nowhere else.

        Maps come in the order in which the fold would have filled them: nodes as they joined, ranges as they
        were allocated, ``draining`` and ``quarantined`` as they entered their phase. O(all of it).
        """
        state = cls(name)
        state.sequence, state.deleted, state.definition, state.parked = sequence, deleted, definition, parked
        state.cidrs = tuple(cidrs)
        for cidr in state.cidrs:
            state.pool.grow(cidr.capacity)
        state.networks, state.overrides = dict(networks), dict(overrides)
        state.nodes = dict(nodes)
        state.by_uid = {node.uid: node.name for node in nodes.values()}
        state.behind_nat = dict(behind_nat)
        seen = (
            [node for node in nodes.values() if node.name not in behind_nat] if behind_nat else nodes.values()
        )
        state.by_address = {node.announced: node.name for node in seen}
        for member in sorted(behind_nat):
            address = nodes[member].announced
            state.by_private[address] = (*state.by_private.get(address, ()), member)
        state.by_mac = {node.vtep_mac: node.name for node in nodes.values()}
        state.external = [node.kind for node in nodes.values()].count("external")
        state.ranges, state.draining, state.quarantined = dict(ranges), dict(draining), dict(quarantined)
        state.pool.take_all(ranges)
        state.pool.cursor = cursor
        state.owned = {
            held.node: held
            for index, held in ranges.items()
            if index not in state.draining and index not in state.quarantined
        }
        deadlines = [event.until for event in quarantined.values()]
        state.quarantine_last = deadlines[-1] if deadlines else None
        state.quarantine_ordered = all(earlier <= later for earlier, later in pairwise(deadlines))
        state.unreachable, state.fenced, state.clb = dict(unreachable), dict(fenced), dict(clb)
        state.clb_addresses = {item.address: name for name, held in clb.items() for item in held.addresses}
        state.refusals = {asker: dict(known) for asker, known in refusals.items()}
        state.gateways, state.backends, state.holders = dict(gateways), dict(backends), dict(holders)
        state.bound, state.adoption = dict(bound), dict(adoption)
        state.lost_paths, state.entries = dict(lost_paths), dict(entries)
        state.admitted = dict(admitted)
        uses = sorted((one.use, one.token, node) for node, one in admitted.items())
        state.last_admitted = {token: node for _, token, node in uses}
        state.keys, state.encryption = dict(keys), dict(encryption)
        state.by_key = {key: name for name, one in keys.items() for key in one.valid}
        return state

    @property
    def capacity(self) -> int:
        """Ranges in all container CIDRs."""
        return self.pool.capacity

    @property
    def encrypts(self) -> Encryption:
        """What the cluster encrypts, and how far it is."""
        return self.encryption.get(self.name, NO_ENCRYPTION)

    def at_address(self, address: str) -> tuple[str, ...]:
        """The members that announce that address: one, or several behind different NATs; O(these)."""
        name = self.by_address.get(address)
        return (*(() if name is None else (name,)), *self.by_private.get(address, ()))

    def cidr_of(self, index: int) -> str:
        """The CIDR of the range with that index; empty when there is no such range."""
        if self.definition is not None and index >= 0:
            for own in reversed(self.cidrs):
                if own.first_index <= index < own.first_index + own.capacity:
                    return range_cidr(own.first, self.definition.range_size, index - own.first_index)
        return ""

    def phase_of(self, index: int) -> Phase | None:
        """The phase of the range with that index; None when it is free."""
        if index in self.quarantined:
            return "quarantined"
        if index in self.draining:
            return "draining"
        return "allocated" if index in self.ranges else None

    def fork(self) -> ClusterState:
        """A state that starts equal and may be changed or thrown away; costs the same at any size.

        While a fork is in use, this state may only catch up with it: fold the events that the fork
        has folded, in their order.
        """
        fork = ClusterState.__new__(ClusterState)
        for field in _PLAIN:
            setattr(fork, field, getattr(self, field))
        for field in _MAPS:
            setattr(fork, field, forked(getattr(self, field)))
        fork.pool = self.pool.fork()
        return fork

    def absorb(self, fork: ClusterState) -> None:
        """Become equal to ``fork``, made of this state, which is a fork itself; O(what was folded into it)."""
        for field in _PLAIN:
            setattr(self, field, getattr(fork, field))
        for field in _MAPS:
            setattr(self, field, absorbed(getattr(self, field), getattr(fork, field)))
        self.pool = fork.pool


_PLAIN = (
    "name",
    "sequence",
    "definition",
    "deleted",
    "cidrs",
    "quarantine_last",
    "quarantine_ordered",
    "parked",
    "external",
)
INDICES = frozenset(
    {
        *(
            "by_uid",
            "by_address",
            "by_mac",
            "by_key",
            "by_private",
            "external",
            "owned",
            "clb_addresses",
            "last_admitted",
        ),
        *("quarantine_last", "quarantine_ordered"),
    }
)
"""Fields that follow from the facts: :meth:`ClusterState.from_parts` makes them, the digest leaves them out."""

_MAPS = tuple(name for name in ClusterState.__slots__ if name not in _PLAIN and name != "pool")


class MemberMap(NamedTuple):
    """A later map of the state, from a name to what ``keeps`` makes of an event and its sequence.

    The name is a member's, and its entry ends with the membership, unless ``of_member`` is false; with ``key``
    it is that of the event instead. ``entries`` is the type of its entries as a list. Its event's row is a fact
    of a kind named like the map; digest, decoder and the reading of rows take every such map from here, so that
    a new one is said in no other place.
    """

    event: type[Event]
    entries: Any
    keeps: Callable[[Any, int], Any]
    of_member: bool = True
    key: Callable[[Any], Any] | None = None


FURTHER: dict[str, MemberMap] = {
    "bound": MemberMap(NodeBound, list[tuple[str, Bound]], lambda event, since: Bound(event.node_uid, since)),
    "adoption": MemberMap(
        AdoptionBegun,
        list[tuple[str, Adoption]],
        lambda event, since: Adoption(event.source, event.plan, since),
        of_member=False,
    ),
    "lost_paths": MemberMap(
        PathLost,
        list[tuple[PathKey, LostPath]],
        LostPath.of,
        of_member=False,
        key=lambda event: (event.scope, event.a, event.b),
    ),
    "entries": MemberMap(EntryAdded, list[tuple[str, Entry]], Entry.of, of_member=False),
    "admitted": MemberMap(SharedTokenUsed, list[tuple[str, Admission]], Admission.of, of_member=False),
    "keys": MemberMap(NodeKeyChanged, list[tuple[str, NodeKey]], NodeKey.of),
    "encryption": MemberMap(
        ClusterEncryptionChanged, list[tuple[str, Encryption]], Encryption.of, of_member=False
    ),
    "behind_nat": MemberMap(NodeNatChanged, list[tuple[str, BehindNat]], BehindNat.of),
}
"""Field of the state → what it is made of; in the order in which they came to be, which stays."""


def asker_node(node: str) -> str:
    """The key of a node's refusals."""
    return f"node/{node}"


def asker_clb(reservation: str) -> str:
    """The key of a reservation's refusals."""
    return f"clb/{reservation}"


def asker_command(command: str) -> str:
    """The key of the refusals of a cluster-wide command."""
    return f"command/{command}"
