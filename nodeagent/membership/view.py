"""What one node knows of the cluster: the fold of the log into peers, its own membership and the plan.

Deterministic; it must never touch the clock, the kernel or the bus. It keeps only what a node needs, so
that ten thousand members cost a few megabytes.
"""

from __future__ import annotations

import msgspec

from events.attestation import ClusterSum
from events.chain import Head, genesis
from events.codec import SkippedEvent
from events.jetstream.snapshots import Snapshot
from events.parking import events_followed
from events.protocol.encryption import NO_ENCRYPTION, Encryption
from events.types import (
    CidrAppended,
    ClbHolderAssigned,
    ClusterDefined,
    ClusterDeleted,
    ClusterEncryptionChanged,
    Event,
    EventsParked,
    NetworkDeclared,
    NetworkWithdrawn,
    NodeFenced,
    NodeJoined,
    NodeKeyChanged,
    NodeLeft,
    NodeNatChanged,
    NodeUnderlayChanged,
    RangeAllocated,
    RangeDraining,
)
from nodeagent.membership.peers import Peer, PeerChange, PeerTable
from nodeagent.membership.sanity import (
    RowRules,
    clb_problem,
    container_problem,
    mac_problem,
    overlay_problem,
    sound_traffic,
    unicast_problem,
)
from nodeagent.membership.traffic_table import CONCERNED, TrafficTable
from nodeagent.membership.values import Member, OverlayPlan, Saved, member_of, with_network

NO_CHANGES: tuple[PeerChange, ...] = ()
UNSOUND_LIMIT = 10_000
"""Rows without sense that are remembered, so that a later event can mend them."""
_TRAFFIC_TYPES = frozenset(CONCERNED)


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
        self.plan: OverlayPlan | None = None
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
        self.encryption: Encryption = NO_ENCRYPTION
        """What the cluster encrypts, and how far it is."""
        self._rules = RowRules((), "", 0)
        self._unsound: dict[str, tuple[Peer, str]] = {}  # range → who should be there, and why not
        self._nonsense: dict[str, str] = {}  # what else was left out → why
        self._odd_addresses: set[str] = set()  # of members, and no packet can come from there

    @property
    def sequence(self) -> int:
        """The last event that is part of this view."""
        return self.head.sequence

    @property
    def joined(self) -> bool:
        """Whether this node, with this uid, holds a range."""
        return self.own is not None

    def apply(self, sequence: int, event: Event) -> tuple[PeerChange, ...]:
        """Fold one event; return what it changed about the *other* nodes' rows.

        Raises VerificationFailed(events_parked) when the log parks events that this view has followed.
        """
        if isinstance(event, RangeAllocated):  # the two events of a join are asked for first
            return self._allocated(event.cidr, sequence, event.node, event.uid)
        if isinstance(event, NodeJoined):
            self._note_addresses(event.underlay, event.announced)
            self.members[event.node] = member_of(event)
            # The own site says which peers are at another one.
            return self._stage_anew() if event.node == self.node else NO_CHANGES
        if type(event) in _TRAFFIC_TYPES:
            problem = clb_problem(event)
            if problem:
                self.traffic.without(event)
                return self._leave_out(f"event {sequence} ({event.entity})", problem)
            before = self.members.get(event.previous) if isinstance(event, ClbHolderAssigned) else None
            self.traffic.apply(sequence, event, before.underlay if before is not None else "")
        if isinstance(event, NodeKeyChanged):
            return self._has_key(event)
        if isinstance(event, NodeNatChanged):
            return self._nat_changed(event)
        if isinstance(event, ClusterEncryptionChanged):
            self.encryption = Encryption.of(event, sequence)
            return self._stage_anew()
        if isinstance(event, RangeDraining):
            return self._ended(event.cidr, event.epoch)
        if isinstance(event, NodeUnderlayChanged):
            return self._moved(event)
        if isinstance(event, NodeLeft | NodeFenced):
            if isinstance(event, NodeFenced) and event.uid == self.uid:
                self.fenced = True
            member = self.members.get(event.node)
            if member is not None and member.uid == event.uid:
                del self.members[event.node]
        elif isinstance(event, ClusterDefined):
            return self._planned(event, (event.container_cidr,))
        elif isinstance(event, NetworkDeclared | NetworkWithdrawn) and self.plan is not None:
            self.plan = with_network(self.plan, event)
        elif isinstance(event, CidrAppended) and self.plan is not None:
            problem = container_problem(event.cidr)
            if problem:
                return self._leave_out(f"event {sequence}", problem)
            self.plan = msgspec.structs.replace(self.plan, cidrs=(*self.plan.cidrs, event.cidr))
            return self._judge_anew()
        elif isinstance(event, ClusterDeleted):
            self.deleted = True
        elif isinstance(event, SkippedEvent):
            self.parked |= {sequence}
        elif isinstance(event, EventsParked) and not self.parked.issuperset(range(event.first, event.last + 1)):
            raise events_followed(sequence, event)
        return NO_CHANGES

    def _allocated(self, cidr: str, epoch: int, node: str, uid: str) -> tuple[PeerChange, ...]:
        member = self.members.get(node)
        if member is None or member.uid != uid:
            return NO_CHANGES  # a log without the joining event is not ours to repair
        peer = Peer(node, uid, epoch, cidr, member.vtep_mac, member.announced)
        if node == self.node and uid == self.uid:
            return self._own_range(peer)  # without key and stage: there is no pair of a node and itself
        return self._admit(self._staged(peer, member))

    def _own_range(self, peer: Peer) -> tuple[PeerChange, ...]:
        problem = (self._rules.range_problem(peer.cidr) if self.plan else "") or mac_problem(peer.vtep_mac)
        over = self._dropped(self.peers.remove(peer.cidr, peer.epoch))
        if problem:
            self._unsound[peer.cidr] = (peer, problem)
            return over
        self._unsound.pop(peer.cidr, None)
        self.own = peer
        self.fenced = self.left = False
        return (*over, *self._judge_anew())

    def _admit(self, peer: Peer) -> tuple[PeerChange, ...]:
        """Take in a peer, unless its rows make no sense: then nobody has the range."""
        problem = self._problem(peer) if self.plan is not None else ""
        if problem:
            before = self._unsound.get(peer.cidr)
            if (before is None and len(self._unsound) < UNSOUND_LIMIT) or (
                before is not None and before[0].epoch <= peer.epoch
            ):
                self._unsound[peer.cidr] = (peer, problem)
            known = self.peers.get(peer.cidr)
            return (
                self._dropped(self.peers.drop(peer.cidr)) if known and known.epoch <= peer.epoch else NO_CHANGES
            )
        change = self.peers.put(peer)
        if change.after is None:
            return NO_CHANGES
        self._unsound.pop(peer.cidr, None)
        self._sum.put(peer.cidr, peer.vtep_mac, peer.underlay)
        return (change,)

    def _problem(self, peer: Peer) -> str:
        member = self.members.get(peer.node)
        return self._rules.problem(peer, self.own, elsewhere=member is not None and member.behind_nat)

    def _planned(
        self, definition: ClusterDefined, cidrs: tuple[str, ...], networks: tuple[str, ...] = ()
    ) -> tuple[PeerChange, ...]:
        """Take the plan, as far as it makes sense; one without a CIDR for containers changes nothing."""
        problem = overlay_problem(definition.vni, definition.vxlan_port)
        sound: list[str] = []
        for cidr in cidrs:
            wrong = container_problem(cidr)
            if wrong:
                self._leave_out("the definition", wrong)
            else:
                sound.append(cidr)
        if problem or not sound:
            self._leave_out("the definition", problem or "no container CIDR is left")
        else:
            self.plan = OverlayPlan(
                definition.vni,
                definition.vxlan_port,
                definition.service_cidr,
                tuple(sound),
                definition.range_size,
                networks or tuple(network.cidr for network in definition.networks),
            )
        return self._judge_anew()

    def be_at(self, local: frozenset[str]) -> tuple[PeerChange, ...]:
        """This machine's own addresses (and its links' broadcast addresses): no peer is there."""
        if local == self._rules.local:
            return NO_CHANGES
        self._rules.local = local
        return self._judge_anew()

    def _judge_anew(self) -> tuple[PeerChange, ...]:
        """OverlayPlan, own range or addresses changed: hold all rows against the rules again. O(peers)."""
        plan, local = self.plan, self._rules.local
        if plan is None:
            return NO_CHANGES
        self._rules = RowRules(plan.cidrs, plan.service_cidr, plan.range_size, local)
        changes: list[PeerChange] = []
        for peer in [*self.peers]:
            problem = self._problem(peer)
            if problem:
                self._unsound[peer.cidr] = (peer, problem)
                changes += self._dropped(self.peers.drop(peer.cidr))
        for peer, _ in list(self._unsound.values()):
            mine = peer.node == self.node and peer.uid == self.uid
            if mine and (self.own is None or self.own.epoch < peer.epoch):
                if not self._rules.range_problem(peer.cidr) and not mac_problem(peer.vtep_mac):
                    return (*changes, *self._own_range(peer))  # which comes back here
            elif not mine:
                changes += self._admit(peer)
        own = self.own
        if own is not None and self._rules.range_problem(own.cidr):
            self._unsound[own.cidr] = (own, self._rules.range_problem(own.cidr))
            self.own = None
        return tuple(changes)

    def _leave_out(self, what: str, why: str) -> tuple[PeerChange, ...]:
        if len(self._nonsense) < UNSOUND_LIMIT:
            self._nonsense[what] = why
        return NO_CHANGES

    def _note_addresses(self, *addresses: str) -> None:
        for address in addresses:
            if unicast_problem(address):
                self._odd_addresses.add(address)

    def nonsense(self) -> str:
        """What the log demands and no node may have, in words; empty when all of it makes sense."""
        found = [f"node {peer.node[:64]}: {why}" for peer, why in self._unsound.values()]
        found += [f"{what[:64]}: {why}" for what, why in self._nonsense.items()]
        if not found:
            return ""
        return (
            f"{len(found)} rows that the log demands make no sense and are left out, the first: {found[0]}. "
            "A controller is faulty, or somebody else writes to the log; see `isthmus replay log`"
        )

    def _ended(self, cidr: str, epoch: int) -> tuple[PeerChange, ...]:
        unsound = self._unsound.get(cidr)
        if unsound is not None and unsound[0].epoch <= epoch:
            del self._unsound[cidr]
        if self.own is not None and (self.own.cidr, self.own.epoch) == (cidr, epoch):
            self.own = None
            self.left = True
        return self._dropped(self.peers.remove(cidr, epoch))

    def _dropped(self, change: PeerChange) -> tuple[PeerChange, ...]:
        if change.before is None:
            return NO_CHANGES
        self._sum.drop(change.before.cidr)
        return (change,)

    def _moved(self, event: NodeUnderlayChanged) -> tuple[PeerChange, ...]:
        member = self.members.get(event.node)
        if member is None or member.uid != event.uid:
            return NO_CHANGES
        self._note_addresses(event.underlay, event.announced)
        mac = event.vtep_mac or member.vtep_mac
        self.members[event.node] = msgspec.structs.replace(
            member, announced=event.announced, underlay=event.underlay, vtep_mac=mac
        )
        if self.own is not None and event.node == self.node:
            self.own = msgspec.structs.replace(self.own, underlay=event.announced, vtep_mac=mac)
            return self._judge_anew()
        peer = self._peer_of(event.node)
        if peer is None or peer.uid != event.uid:
            return NO_CHANGES
        return self._admit(msgspec.structs.replace(peer, underlay=event.announced, vtep_mac=mac))

    def _nat_changed(self, event: NodeNatChanged) -> tuple[PeerChange, ...]:
        member = self.members.get(event.node)
        if member is None or member.uid != event.uid:
            return NO_CHANGES
        self.members[event.node] = msgspec.structs.replace(member, behind_nat=event.behind)
        peer = self._peer_of(event.node)
        return self._admit(peer) if peer is not None and peer.uid == event.uid else NO_CHANGES

    def _peer_of(self, node: str) -> Peer | None:
        """The peer of that name, also one whose rows make no sense."""
        peer = self.peers.of_node(node)
        return peer or next((one for one, _ in self._unsound.values() if one.node == node), None)

    def _staged(self, peer: Peer, member: Member) -> Peer:
        """The peer with its key, and the stage that the pair of it and this node is at."""
        own = self.members.get(self.node)
        stage = self.encryption.stage(own.site if own is not None else "", member.site)
        return peer.staged(member.key, member.port, member.beside, member.slot, stage)

    def _stage_anew(self) -> tuple[PeerChange, ...]:
        """What is encrypted has changed, for any pair. O(peers)."""
        known = [*self.peers, *(peer for peer, _ in self._unsound.values())]
        return tuple(change for peer in known for change in self._admit_staged(peer))

    def _admit_staged(self, peer: Peer) -> tuple[PeerChange, ...]:
        member = self.members.get(peer.node)
        if member is None or member.uid != peer.uid or (peer.node, peer.uid) == (self.node, self.uid):
            return NO_CHANGES
        staged = self._staged(peer, member)
        return self._admit(staged) if staged is not peer else NO_CHANGES

    def _has_key(self, event: NodeKeyChanged) -> tuple[PeerChange, ...]:
        member = self.members.get(event.node)
        if member is None or member.uid != event.uid:
            return NO_CHANGES
        self.members[event.node] = msgspec.structs.replace(
            member, key=event.key, port=event.port, beside=event.beside, slot=event.slot
        )
        peer = self._peer_of(event.node)
        return self._admit_staged(peer) if peer is not None else NO_CHANGES

    def leap(self, snapshot: Snapshot) -> tuple[PeerChange, ...]:
        """Take over a later membership in one step; return what it changed about the other nodes' rows."""
        changes: list[PeerChange] = []
        if snapshot.definition is not None:
            changes += self._planned(snapshot.definition, tuple(snapshot.cidrs), snapshot.networks)
        for one in snapshot.members:
            self._note_addresses(one.underlay, one.announced)
        self.members = {member.node: member_of(member) for member in snapshot.members}
        self.deleted, self.encryption = snapshot.deleted, snapshot.encryption
        self.traffic = TrafficTable(sound_traffic(snapshot.traffic))
        self.fenced = self.uid in snapshot.fenced
        held = {entry.cidr: entry.epoch for entry in snapshot.ranges}
        owners = [*self.peers, *([self.own] if self.own is not None else [])]
        owners += [peer for peer, _ in self._unsound.values()]
        for owner in owners:
            if held.get(owner.cidr) != owner.epoch:
                changes += self._ended(owner.cidr, owner.epoch)
        for entry in snapshot.ranges:
            changes += self._allocated(entry.cidr, entry.epoch, entry.node, entry.uid)
        self.head = snapshot.head
        return (*changes, *self._stage_anew())

    def become(self, other: View) -> tuple[PeerChange, ...]:
        """Take over another view of the same node; return what that changed about the other nodes' rows."""
        before = {peer.cidr: peer for peer in self.peers}
        after = {peer.cidr: peer for peer in other.peers}
        self.__dict__.update(other.__dict__)
        return tuple(
            PeerChange(before.get(cidr), after.get(cidr))
            for cidr in [*before, *(after.keys() - before.keys())]
            if before.get(cidr) != after.get(cidr)
        )

    def expected_digest(self) -> str:
        """What this node publishes when its kernel is as it should be; empty before it has a range."""
        if self.own is None or self.plan is None:
            return ""
        return self._sum.expected(self.own.cidr, self.own.vtep_mac, self.plan.vni, self.plan.port)

    def vteps(self, elsewhere: frozenset[str] = frozenset()) -> set[str]:
        """Where VXLAN packets may come from: other members but those, as announced and as they see it."""
        left = {self.node} | elsewhere
        site = self.members[self.node].site if self.node in self.members else ""
        return {
            address
            for member in self.members.values()
            if member.node not in left and self.encryption.stage(site, member.site) != "required"
            for address in (member.announced, member.underlay)
        } - self._odd_addresses

    def save(self) -> Saved:
        """The view as a value, for the cache."""
        owned = [(peer.cidr, peer.epoch, peer.node) for peer in self.peers]
        if self.own is not None:
            owned.append((self.own.cidr, self.own.epoch, self.own.node))
        owned += [(peer.cidr, peer.epoch, peer.node) for peer, _ in self._unsound.values()]
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
            self._leaving(),
            self.encryption,
        )

    def _leaving(self) -> tuple[Member, ...]:
        gone = (peer for peer in self.peers if getattr(self.members.get(peer.node), "uid", "") != peer.uid)
        return tuple(Member(p.node, p.uid, p.vtep_mac, p.underlay, p.underlay) for p in gone)

    @classmethod
    def restore(cls, saved: Saved) -> View:
        """The view that :meth:`save` described."""
        view = cls(saved.cluster, saved.node, saved.uid)
        for one in saved.members:
            view._note_addresses(one.underlay, one.announced)
        plan = saved.plan
        if plan is not None and not overlay_problem(plan.vni, plan.port):
            cidrs = tuple(cidr for cidr in plan.cidrs if not container_problem(cidr))
            view.plan = msgspec.structs.replace(plan, cidrs=cidrs) if cidrs else None
        view._judge_anew()
        view.encryption = saved.encryption
        view.members = {member.node: member for member in saved.members}
        view.members |= {member.node: member for member in saved.leaving}
        view.peers = PeerTable(floors=saved.floors)
        for cidr, epoch, node in saved.ranges:
            member = view.members.get(node)
            if member is not None:
                view._allocated(cidr, epoch, node, member.uid)
        view.members = {member.node: member for member in saved.members}
        view.head = Head(saved.sequence, bytes.fromhex(saved.chain))
        view.fenced = saved.fenced
        view.last_event_at = saved.last_event_at
        view.traffic = TrafficTable(sound_traffic(saved.traffic))
        view.parked = frozenset(saved.parked)
        return view
