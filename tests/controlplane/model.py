"""The rules a second time, as naively as they can be written: the judge of the property tests.

It imports nothing of the control plane. Addresses are the standard library's objects, the pool is a
list that is walked, reports are asked one by one. Only the wording of the codes is shared.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from typing import Any


@dataclass
class Slot:
    """One range of the pool. ``phase`` is free, allocated, draining or quarantined."""

    net: IPv4Network
    phase: str = "free"
    node: str = ""
    uid: str = ""
    since: int = 0
    until: datetime | None = None


@dataclass
class Member:
    name: str
    uid: str
    kind: str
    underlay: str
    announced: str
    slot: int
    last_seen: datetime | None = None
    unreachable: bool = False


@dataclass
class Model:
    """What the cluster should look like. ``head`` is the log's last sequence, told from outside."""

    cidr: str
    range_size: int
    service_size: int
    quarantine_s: float
    unreachable_s: float
    remove_s: float
    slots: list[Slot] = field(default_factory=list)
    cursor: int = 0
    members: list[Member] = field(default_factory=list)
    fenced: set[str] = field(default_factory=set)
    containers: list[IPv4Network] = field(default_factory=list)
    clb: dict[str, tuple[str, tuple[str, str]]] = field(default_factory=dict)  # name → subnet, addresses
    told: dict[str, tuple[str, ...]] = field(default_factory=dict)  # name → gateway and excluded addresses
    recorded: set[tuple[str, str]] = field(default_factory=set)  # (asker, code) on record
    applied: dict[str, int] = field(default_factory=dict)
    head: int = 0
    adopting: bool = False

    def __post_init__(self) -> None:
        net = IPv4Network(self.cidr)
        services = IPv4Network((int(net.broadcast_address) + 1 - self.service_size, _prefix(self.service_size)))
        self.containers.append(net)
        self.slots = [
            Slot(part)
            for part in net.subnets(new_prefix=_prefix(self.range_size))
            if not part.overlaps(services)
        ]

    # --- nodes -----------------------------------------------------------------------------------

    def member(self, name: str) -> Member | None:
        return next((m for m in self.members if m.name == name), None)

    def obstacle(self, name: str, uid: str, underlay: str, announced: str) -> str:
        if uid in self.fenced:
            return "node_fenced"
        if any(m.uid == uid and m.name != name for m in self.members):
            return "uid_in_use"
        if any(m.announced == announced and m.name != name for m in self.members):
            return "underlay_address_in_use"
        reserved = [address for _, pair in self.clb.values() for address in pair]
        if underlay in reserved or announced in reserved:
            return "underlay_address_in_use"
        for address in (underlay, announced):
            if any(IPv4Address(address) in net for net in self.containers):
                return "cidr_conflict_with_node"
        return ""

    def join(self, name: str, uid: str, kind: str, underlay: str, announced: str, now: datetime) -> str:
        """ "" when it is a member afterwards, else the code of the refusal."""
        old = self.member(name)
        if old and old.uid == uid:
            if old.kind != kind:
                return "node_attribute_fixed"
            if (old.underlay, old.announced) == (underlay, announced):
                return ""
            return self.move(old, underlay, announced)
        code = self.obstacle(name, uid, underlay, announced)
        if code:
            return code
        if old:
            self.out(old)
            self.fenced.add(old.uid)
        for step in range(len(self.slots)):
            index = (self.cursor + step) % len(self.slots)
            if self.slots[index].phase == "free":
                break
        else:
            return "no_free_range"
        slot = self.slots[index]
        slot.phase, slot.node, slot.uid, slot.since, slot.until = "allocated", name, uid, 0, None
        self.cursor = (index + 1) % len(self.slots)
        self.members.append(Member(name, uid, kind, underlay, announced, index, last_seen=now))
        self.recorded = {item for item in self.recorded if item[0] != name}
        return ""

    def range_at(self, place: int) -> str:
        """The range at that place of the pool; beyond it the Services' segment, before it one outside."""
        if 0 <= place < len(self.slots):
            return str(self.slots[place].net)
        services = self.containers[0].broadcast_address + 1 - self.service_size
        return (
            f"{services}/{_prefix(self.range_size)}" if place > 0 else f"10.77.0.0/{_prefix(self.range_size)}"
        )

    def adopt(self, node: Any, macs: dict[str, str], now: datetime) -> set[str]:
        """What is wrong with the node as it is; nothing: it is a member with its range afterwards."""
        if not self.adopting:
            return {"adoption_closed"}
        codes: set[str] = set()
        wanted = IPv4Network(node.range)
        index = next((i for i, slot in enumerate(self.slots) if slot.net == wanted), -1)
        if index < 0:
            inside = any(wanted.subnet_of(net) for net in self.containers)
            codes.add("adopt_range_service" if inside else "adopt_range_outside")
        if macs.get(node.vtep_mac, node.node) != node.node:
            codes.add("adopt_mac_taken")
        old = self.member(node.node)
        if old:
            if old.uid != node.uid:
                codes.add("node_alive")
            if old.slot != index:
                codes.add("adopt_range_fixed")
            mine = next(mac for mac, name in macs.items() if name == node.node)
            same = (old.underlay, old.announced, mine) == (node.underlay, node.underlay, node.vtep_mac)
            if not codes and not same:  # no agent of it has reported: what the network before says is followed
                problem = self.move(old, node.underlay, node.underlay)
                codes |= {problem} if problem else set()
            return codes
        if index >= 0 and self.slots[index].phase != "free":
            codes.add("adopt_range_taken")
        problem = self.obstacle(node.node, node.uid, node.underlay, node.underlay)
        codes |= {problem} if problem else set()
        if not codes:
            slot = self.slots[index]
            slot.phase, slot.node, slot.uid, slot.since, slot.until = "allocated", node.node, node.uid, 0, None
            if index >= self.cursor:
                self.cursor = (index + 1) % len(self.slots)
            self.members.append(
                Member(node.node, node.uid, node.kind, node.underlay, node.underlay, index, last_seen=now)
            )
            self.recorded = {item for item in self.recorded if item[0] != node.node}
        return codes

    def move(self, member: Member, underlay: str, announced: str) -> str:
        code = self.obstacle(member.name, member.uid, underlay, announced)
        if not code:
            member.underlay, member.announced = underlay, announced
            self.recorded = {item for item in self.recorded if item[0] != member.name}
        return code

    def out(self, member: Member) -> None:
        """The member goes; its range drains from a sequence that :meth:`drained_at` fills in."""
        self.members.remove(member)
        self.slots[member.slot].phase = "draining"
        self.slots[member.slot].since = -1

    def drained_at(self, index: int, sequence: int) -> None:
        assert self.slots[index].since == -1
        self.slots[index].since = sequence

    # --- time ------------------------------------------------------------------------------------

    def tick_drains(self, now: datetime) -> None:
        for slot in self.slots:
            if slot.phase == "quarantined" and slot.until is not None and slot.until <= now:
                slot.phase = "free"
        for slot in self.slots:
            if slot.phase == "draining" and all(
                slot.since <= self.applied.get(m.uid, 0) <= self.head for m in self.members
            ):
                slot.phase, slot.until = "quarantined", now + timedelta(seconds=self.quarantine_s)
                if self.quarantine_s == 0:
                    slot.phase = "free"

    def tick_liveness(self, now: datetime) -> None:
        for member in list(self.members):
            assert member.last_seen is not None
            silence_s = (now - member.last_seen).total_seconds()
            if silence_s <= self.unreachable_s:
                member.unreachable = False
            elif not member.unreachable:
                member.unreachable = True
            elif self.remove_s and silence_s > self.unreachable_s + self.remove_s:
                self.out(member)
                self.fenced.add(member.uid)

    # --- the cluster --------------------------------------------------------------------------------

    def append(self, cidr: str) -> str:
        net = IPv4Network(cidr)
        if not net.subnet_of(IPv4Network("10.0.0.0/8")):
            return "cidr_not_private"
        if cidr in [str(known) for known in self.containers[1:]]:
            return ""
        if net.num_addresses < self.range_size:
            return "cidr_too_small"
        if any(net.overlaps(known) for known in self.containers):
            return "cidr_conflict_with_own_cidr"
        if any(net.overlaps(IPv4Network(subnet)) for subnet, _ in self.clb.values()):
            return "cidr_conflict_with_clb_subnet"
        for member in self.members:
            if IPv4Address(member.underlay) in net or IPv4Address(member.announced) in net:
                return "cidr_conflict_with_node"
        self.containers.append(net)
        self.slots += [Slot(part) for part in net.subnets(new_prefix=_prefix(self.range_size))]
        return ""

    def reserve(self, name: str, subnet: str, exclude: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """The code of the refusal ("" for none), and the pair."""
        net = IPv4Network(subnet)
        if name in self.clb:
            known, pair = self.clb[name]
            if known != subnet or set(pair) & set(exclude):
                return "clb_already_reserved", ()
            return "", pair
        if any(net.overlaps(known) for known in self.containers):
            return "cidr_conflict_with_clb_subnet", ()
        gateway: tuple[str, ...] = ()
        used = {str(net.network_address), str(net.broadcast_address), *exclude}
        used |= {address for _, held in self.clb.values() for address in held}
        used |= {address for name_ in self.clb for address in self.told[name_]}
        used |= {address for m in self.members for address in (m.underlay, m.announced)}
        if net.num_addresses >= 4:
            used.add(str(net.network_address + 1))
            gateway = (str(net.network_address + 1),)
        free = [str(address) for address in net if str(address) not in used]
        if len(free) < 2:
            return "clb_subnet_too_small", ()
        self.clb[name] = subnet, (free[0], free[1])
        self.told[name] = (*gateway, *exclude)
        self.recorded = {item for item in self.recorded if item[0] != f"clb/{name}"}
        return "", (free[0], free[1])

    # --- what the state is compared with -----------------------------------------------------------

    def view(self) -> dict[str, object]:
        return {
            "cursor": self.cursor,
            "slots": [
                (s.phase, str(s.net), s.node, s.uid) if s.phase != "free" else ("free", str(s.net))
                for s in self.slots
            ],
            "members": sorted((m.name, m.uid, m.kind, m.underlay, m.announced, m.slot) for m in self.members),
            "unreachable": sorted(m.name for m in self.members if m.unreachable),
            "fenced": sorted(self.fenced),
            "clb": sorted((name, pair) for name, (_, pair) in self.clb.items()),
            "external": sum(m.kind == "external" for m in self.members),
        }


def _prefix(size: int) -> int:
    return 32 - (size.bit_length() - 1)
