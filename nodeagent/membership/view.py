"""What one node knows of the cluster: the fold of the log into peers, its own membership and the plan.

Deterministic; it must never touch the clock, the kernel or the bus. It keeps only what a node needs, so
that ten thousand members cost a few megabytes.
"""

from __future__ import annotations

from ipaddress import IPv4Network

import msgspec

from events.attestation import ClusterSum
from events.chain import Head, genesis
from events.codec import SkippedEvent
from events.jetstream.snapshots import Snapshot
from events.parking import events_followed
from events.protocol.clb import Traffic
from events.types import (
    CidrAppended,
    ClbHolderAssigned,
    ClusterDefined,
    ClusterDeleted,
    Event,
    EventsParked,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    NodeUnderlayChanged,
    RangeAllocated,
    RangeDraining,
)
from nodeagent.membership.peers import Change, Peer, PeerTable
from nodeagent.membership.traffic_table import CONCERNED, TrafficTable

NO_CHANGES: tuple[Change, ...] = ()
_TRAFFIC_TYPES = frozenset(CONCERNED)


class Member(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A live node of the log, with or without a range yet."""

    node: str
    uid: str
    vtep_mac: str
    announced: str
    underlay: str


class Plan(msgspec.Struct, frozen=True):
    """The overlay's constants and the container network, as the log defines them."""

    vni: int
    port: int
    service_cidr: str
    cidrs: tuple[str, ...]


class Saved(msgspec.Struct, frozen=True):
    """A view at rest. ``floors`` are the epochs that ended, by range."""

    cluster: str
    node: str
    uid: str
    sequence: int
    chain: str
    plan: Plan | None
    members: list[Member]
    ranges: list[tuple[str, int, str]]
    floors: dict[str, int]
    fenced: bool
    last_event_at: float = 0.0
    traffic: Traffic = Traffic()
    parked: tuple[int, ...] = ()


class View:
    """The cluster as seen by one node (``node``, ``uid``) behind ``head``.

    ``own`` is this node as a peer, once it holds a range; ``left`` says that it was a member and was
    taken off the list, ``fenced`` that this uid lost its membership for good. ``peers`` are the others.
    """

    def __init__(self, cluster: str, node: str, uid: str) -> None:
        self.cluster = cluster
        self.node = node
        self.uid = uid
        self.head: Head = genesis(cluster)
        self.plan: Plan | None = None
        self.members: dict[str, Member] = {}  # node name → member
        self.peers = PeerTable()
        self.own: Peer | None = None
        self.fenced = False
        self.left = False
        self.deleted = False
        self.last_event_at = 0.0
        """When the controller decided the last event (Unix seconds, its clock)."""
        self.parked: frozenset[int] = frozenset()
        """Sequences that were left out, because the log says so."""
        self._sum = ClusterSum()
        self.traffic = TrafficTable()
        """Holders of CLB addresses, backends and gateways."""

    @property
    def sequence(self) -> int:
        """The last event that is part of this view."""
        return self.head.sequence

    @property
    def joined(self) -> bool:
        """Whether this node, with this uid, holds a range."""
        return self.own is not None

    def apply(self, sequence: int, event: Event) -> tuple[Change, ...]:
        """Fold one event; return what it changed about the *other* nodes' rows.

        Raises VerificationFailed(events_parked) when the log parks events that this view has followed.
        """
        if type(event) in _TRAFFIC_TYPES:
            before = self.members.get(event.previous) if isinstance(event, ClbHolderAssigned) else None
            self.traffic.apply(sequence, event, before.underlay if before is not None else "")
        if isinstance(event, NodeJoined):
            self.members[event.node] = Member(
                event.node, event.uid, event.vtep_mac, event.announced, event.underlay
            )
        elif isinstance(event, RangeAllocated):
            return self._allocated(event.cidr, sequence, event.node, event.uid)
        elif isinstance(event, RangeDraining):
            return self._ended(event.cidr, event.epoch)
        elif isinstance(event, NodeUnderlayChanged):
            return self._moved(event)
        elif isinstance(event, NodeLeft | NodeFenced):
            if isinstance(event, NodeFenced) and event.uid == self.uid:
                self.fenced = True
            member = self.members.get(event.node)
            if member is not None and member.uid == event.uid:
                del self.members[event.node]
        elif isinstance(event, ClusterDefined):
            self.plan = Plan(event.vni, event.vxlan_port, event.service_cidr, (event.container_cidr,))
        elif isinstance(event, CidrAppended) and self.plan is not None:
            self.plan = msgspec.structs.replace(self.plan, cidrs=(*self.plan.cidrs, event.cidr))
        elif isinstance(event, ClusterDeleted):
            self.deleted = True
        elif isinstance(event, SkippedEvent):
            self.parked |= {sequence}
        elif isinstance(event, EventsParked) and not self.parked.issuperset(range(event.first, event.last + 1)):
            raise events_followed(sequence, event)
        return NO_CHANGES

    def _allocated(self, cidr: str, epoch: int, node: str, uid: str) -> tuple[Change, ...]:
        member = self.members.get(node)
        if member is None or member.uid != uid:
            return NO_CHANGES  # a log without the joining event is not ours to repair
        peer = Peer(node, uid, epoch, cidr, member.vtep_mac, member.announced)
        if node == self.node and uid == self.uid:
            self.own = peer
            self.fenced = self.left = False
            return self._dropped(self.peers.remove(cidr, epoch))
        change = self.peers.put(peer)
        if change.after is None:
            return NO_CHANGES
        self._sum.put(cidr, peer.vtep_mac, peer.underlay)
        return (change,)

    def _ended(self, cidr: str, epoch: int) -> tuple[Change, ...]:
        if self.own is not None and (self.own.cidr, self.own.epoch) == (cidr, epoch):
            self.own = None
            self.left = True
        return self._dropped(self.peers.remove(cidr, epoch))

    def _dropped(self, change: Change) -> tuple[Change, ...]:
        if change.before is None:
            return NO_CHANGES
        self._sum.drop(change.before.cidr)
        return (change,)

    def _moved(self, event: NodeUnderlayChanged) -> tuple[Change, ...]:
        member = self.members.get(event.node)
        if member is None or member.uid != event.uid:
            return NO_CHANGES
        self.members[event.node] = msgspec.structs.replace(
            member, announced=event.announced, underlay=event.underlay
        )
        if self.own is not None and event.node == self.node:
            self.own = msgspec.structs.replace(self.own, underlay=event.announced)
            return NO_CHANGES
        peer = self.peers.of_node(event.node)
        if peer is None or peer.uid != event.uid:
            return NO_CHANGES
        moved = msgspec.structs.replace(peer, underlay=event.announced)
        self._sum.put(moved.cidr, moved.vtep_mac, moved.underlay)
        return (self.peers.put(moved),)

    def leap(self, snapshot: Snapshot) -> tuple[Change, ...]:
        """Take over a later membership in one step; return what it changed about the other nodes' rows."""
        if snapshot.definition is not None:
            definition = snapshot.definition
            self.plan = Plan(
                definition.vni, definition.vxlan_port, definition.service_cidr, tuple(snapshot.cidrs)
            )
        self.members = {
            member.node: Member(member.node, member.uid, member.vtep_mac, member.announced, member.underlay)
            for member in snapshot.members
        }
        self.deleted = snapshot.deleted
        self.traffic = TrafficTable(snapshot.traffic)
        self.fenced = self.uid in snapshot.fenced
        held = {entry.cidr: entry.epoch for entry in snapshot.ranges}
        owners = [*self.peers, *([self.own] if self.own is not None else [])]
        changes: list[Change] = []
        for owner in owners:
            if held.get(owner.cidr) != owner.epoch:
                changes += self._ended(owner.cidr, owner.epoch)
        for entry in snapshot.ranges:
            changes += self._allocated(entry.cidr, entry.epoch, entry.node, entry.uid)
        self.head = snapshot.head
        return tuple(changes)

    def become(self, other: View) -> tuple[Change, ...]:
        """Take over another view of the same node; return what that changed about the other nodes' rows."""
        before = {peer.cidr: peer for peer in self.peers}
        after = {peer.cidr: peer for peer in other.peers}
        self.__dict__.update(other.__dict__)
        return tuple(
            Change(before.get(cidr), after.get(cidr))
            for cidr in [*before, *(after.keys() - before.keys())]
            if before.get(cidr) != after.get(cidr)
        )

    def expected_digest(self) -> str:
        """What this node publishes when its kernel is as it should be; empty before it has a range."""
        if self.own is None or self.plan is None:
            return ""
        return self._sum.expected(self.own.cidr, self.own.vtep_mac, self.plan.vni, self.plan.port)

    def vteps(self) -> set[str]:
        """Where VXLAN packets may come from: each other member, as announced and as it knows itself."""
        own = self.node
        return {
            address
            for member in self.members.values()
            if member.node != own
            for address in (member.announced, member.underlay)
        }

    def save(self) -> Saved:
        """The view as a value, for the cache."""
        owned = [(peer.cidr, peer.epoch, peer.node) for peer in self.peers]
        if self.own is not None:
            owned.append((self.own.cidr, self.own.epoch, self.own.node))
        return Saved(
            self.cluster,
            self.node,
            self.uid,
            self.head.sequence,
            self.head.hex,
            self.plan,
            list(self.members.values()),
            owned,
            self.peers.floors(),
            self.fenced,
            self.last_event_at,
            self.traffic.save(),
            tuple(sorted(self.parked)),
        )

    @classmethod
    def restore(cls, saved: Saved) -> View:
        """The view that :meth:`save` described."""
        view = cls(saved.cluster, saved.node, saved.uid)
        view.plan = saved.plan
        view.members = {member.node: member for member in saved.members}
        view.peers = PeerTable(floors=saved.floors)
        for cidr, epoch, node in saved.ranges:
            member = view.members.get(node)
            if member is not None:
                view._allocated(cidr, epoch, node, member.uid)
        view.head = Head(saved.sequence, bytes.fromhex(saved.chain))
        view.fenced = saved.fenced
        view.last_event_at = saved.last_event_at
        view.traffic = TrafficTable(saved.traffic)
        view.parked = frozenset(saved.parked)
        return view


def first_address(cidr: str) -> str:
    """The first address of a range: its VTEP address."""
    return str(IPv4Network(cidr).network_address)
