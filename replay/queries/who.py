"""``who``: to whom an address belonged at a moment, since when, until when, and who asked for it.

Any address is understood: a pod's (the node whose range held it), a Service's, a node's underlay
address, a reserved balancer address, a source of an entry. "Nobody" is an answer too, and names the last one.
Reads a handful of events through the log's index; it never folds the log. What a capsule's events do
not say is taken from the state that it carries; what not even that says is said to be unknown.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Literal, NamedTuple

import msgspec

from controlplane.cluster.state import ClusterState
from events import types
from events.codec import Recorded
from events.errors import Usage
from replay.archive.postings import ENTRIES
from replay.history import History, Point
from replay.queries.stamp import Stamp, stamp
from replay.queries.states import base

Kind = Literal["pod", "service", "underlay", "clb", "outside"]
SHARED_LOOKED = 64
"""Most events about one address that are looked through for other nodes that had it at the same time."""
RangeState = Literal["", "allocated", "draining", "quarantined", "free"]


class Holding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One ownership. ``epoch`` is the sequence of the allocation (pod addresses) or of the assignment.

    ``to`` None: still. ``since`` None, in a capsule only: it began before the capsule's first event.
    """

    node: str = ""
    uid: str = ""
    balancer: str = ""
    purpose: str = ""
    gateway: str = ""
    """The gateway node that held the balancer's address at the moment; its epoch is in ``epoch``."""
    gateway_uid: str = ""
    gateway_since: Stamp | None = None
    range: str = ""
    epoch: int = 0
    since: Stamp | None = None
    to: Stamp | None = None


class WhoAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``holder`` is None for nobody; then ``last`` is who had it before, if anybody did.

    ``range_state`` is the state of the pod range at the moment; ``range`` its CIDR.
    """

    address: str
    at: Point
    kind: Kind
    range: str
    range_state: RangeState
    holder: Holding | None
    last: Holding | None
    note: str = ""


class DividedNetworks(NamedTuple):
    """How the addresses were divided: the Service range, addresses per range, and each pool's capacity."""

    service_cidr: str
    range_size: int
    pools: list[tuple[IPv4Network, int]]

    def range_of(self, address: IPv4Address) -> str | None:
        """The CIDR of the range that holds ``address``; empty for a stranded one, None outside of all pools."""
        for pool, capacity in self.pools:
            if address in pool:
                position = (int(address) - int(pool.network_address)) // self.range_size
                if position >= capacity:
                    return ""
                first = IPv4Address(int(pool.network_address) + position * self.range_size)
                return f"{first}/{33 - self.range_size.bit_length()}"
        return None


async def plan_of(history: History, until: int, before: ClusterState | None) -> DividedNetworks | None:
    """The cluster's plan behind ``until``; None when none is defined. ``before``: a capsule's state."""
    definition = before.definition if before is not None else None
    pools = [(IPv4Network(c.cidr), c.capacity) for c in before.cidrs] if before is not None else []
    async for recorded in history.about("cluster", history.cluster, until=until):
        event = recorded.event
        if isinstance(event, types.ClusterDefined):
            definition = event
            pools.append((IPv4Network(event.container_cidr), event.capacity))
        elif isinstance(event, types.CidrAppended):
            pools.append((IPv4Network(event.cidr), event.capacity))
    return (
        DividedNetworks(definition.service_cidr, definition.range_size, pools)
        if definition is not None
        else None
    )


async def who(history: History, address: str, at: Point) -> WhoAnswer:
    """Answer for ``address`` at ``at``.

    Raises Usage(usage) for a text that is no IPv4 address, Refused(not_in_history) for an incremental archive
    on its own: it cannot know who held what before.
    """
    try:
        wanted = IPv4Address(address.strip())
    except (AddressValueError, ValueError) as error:
        raise Usage("usage", f"{address!r} is no IPv4 address", address=address) from error
    before = base(history) if history.start else None
    plan = await plan_of(history, at.sequence, before)
    if plan is not None:
        if wanted in IPv4Network(plan.service_cidr):
            return _empty(str(wanted), at, "service", plan.service_cidr, "the Service range; no node holds it")
        cidr = plan.range_of(wanted)
        if cidr == "":
            pool = next(pool for pool, _ in plan.pools if wanted in pool)
            return _empty(str(wanted), at, "outside", "", f"a stranded address of {pool}: in no range")
        if cidr:
            return await _pod(history, str(wanted), at, cidr, before)
    answer = await _fixed(history, str(wanted), at, before, defined=plan is not None)
    listed = await _listed(history, wanted, at, before) if answer.kind != "clb" else ()
    if not listed:
        return answer
    told = f"listed then by entry {', '.join(listed)}: it may reach pods through gateways"
    return msgspec.structs.replace(answer, note="; ".join(filter(None, (answer.note, told))))


async def _listed(history: History, address: IPv4Address, at: Point, before: ClusterState | None) -> list[str]:
    """The entries that let the address in at the moment."""
    sources = {name: entry.sources for name, entry in before.entries.items()} if before is not None else {}
    async for recorded in history.about(*ENTRIES, until=at.sequence):
        match recorded.event:
            case types.EntryAdded() as event:
                sources[event.name] = event.sources
            case types.EntryRemoved() as event:
                sources.pop(event.name, None)
    return sorted(name for name, cidrs in sources.items() if any(address in IPv4Network(c) for c in cidrs))


def _empty(address: str, at: Point, kind: Kind, cidr: str, note: str) -> WhoAnswer:
    return WhoAnswer(
        address=address, at=at, kind=kind, range=cidr, range_state="", holder=None, last=None, note=note
    )


_PHASES: dict[type, RangeState] = {
    types.RangeAllocated: "allocated",
    types.RangeAdopted: "allocated",
    types.RangeDraining: "draining",
    types.RangeQuarantined: "quarantined",
    types.RangeFreed: "free",
}


async def _pod(history: History, address: str, at: Point, cidr: str, before: ClusterState | None) -> WhoAnswer:
    state: RangeState = ""
    ended: Recorded | None = None
    allocation: Recorded | None = None
    async for recorded in history.about("range", cidr, until=at.sequence, newest_first=True):
        state = state or _PHASES.get(type(recorded.event), "")
        if isinstance(recorded.event, types.RangeDraining):
            ended = recorded
        if isinstance(recorded.event, types.RangeAllocated):
            allocation = recorded
            break
    holding: Holding | None = None
    if allocation is not None and isinstance(allocation.event, types.RangeAllocated):
        event = allocation.event
        holding = Holding(
            node=event.node, uid=event.uid, range=cidr, epoch=allocation.sequence, since=stamp(allocation)
        )
    elif before is not None:
        held = next((held for held in before.ranges.values() if held.cidr == cidr), None)
        if held is not None:
            state = state or before.phase_of(held.index) or "free"
            holding = Holding(node=held.node, uid=held.uid, range=cidr, epoch=held.epoch)
    note = ""
    if holding is None:
        note = "no node has ever held this range"
        if before is not None:
            note = f"no node held this range since event {history.start}, where this capsule begins"
    else:
        if ended is None:
            ended = await _drained(history, cidr, max(holding.epoch, history.start))
        holding = msgspec.structs.replace(holding, to=stamp(ended) if ended else None)
    holds = state == "allocated"
    return WhoAnswer(
        address=address,
        at=at,
        kind="pod",
        range=cidr,
        range_state=state or "free",
        holder=holding if holds else None,
        last=None if holds else holding,
        note=note,
    )


async def _drained(history: History, cidr: str, after: int) -> Recorded | None:
    """The first draining of the range behind ``after``."""
    async for recorded in history.about("range", cidr, after=after):
        if isinstance(recorded.event, types.RangeDraining):
            return recorded
        if isinstance(recorded.event, types.RangeAllocated):
            return None  # in a capsule: the draining lies before it
    return None


async def _fixed(
    history: History, address: str, at: Point, before: ClusterState | None, *, defined: bool
) -> WhoAnswer:
    """A node's underlay address or a balancer's address."""
    gateway: Recorded | None = None
    async for recorded in history.about("address", address, until=at.sequence, newest_first=True):
        event = recorded.event
        if isinstance(event, types.ClbHolderAssigned | types.ClbHolderWithdrawn):
            gateway = gateway or recorded  # the newest of them decides
        elif isinstance(event, types.ClbReserved | types.ClbReleased):
            return await _balancer(history, address, at, recorded, gateway, before)
        elif isinstance(event, types.NodeJoined | types.NodeUnderlayChanged):
            holding = Holding(node=event.node, uid=event.uid, since=stamp(recorded))
            found = await _member(history, address, at, holding, recorded.sequence)
            return await _behind_other_nats(history, found, recorded.sequence)
    if before is not None:
        name = before.clb_addresses.get(address)
        if name is not None:
            end = await _released(history, name, history.start)
            return _balanced(address, at, before.clb[name], gateway, before, since=None, to=end)
        for node in before.nodes.values():
            if address in (node.underlay, node.announced):
                holding = Holding(node=node.name, uid=node.uid)
                return await _member(history, address, at, holding, history.start)
        note = f"in no container network; since event {history.start} no underlay or balancer address"
        return _empty(address, at, "outside", "", note)
    if not defined:
        return _empty(address, at, "outside", "", "no cluster was defined yet")
    return _empty(address, at, "outside", "", "in no container network; never an underlay or balancer address")


async def _member(history: History, address: str, at: Point, holding: Holding, after: int) -> WhoAnswer:
    """A node's own address, with the event behind ``after`` that ended it."""
    end = None
    async for later in history.about("node", holding.node, after=after):
        if (
            isinstance(later.event, types.NodeLeft | types.NodeFenced | types.NodeUnderlayChanged)
            and later.event.uid == holding.uid
        ):
            end = stamp(later)
            break
    return _held(address, at, "underlay", "", msgspec.structs.replace(holding, to=end))


async def _behind_other_nats(history: History, found: WhoAnswer, sequence: int) -> WhoAnswer:
    """The same, with the other nodes that had the address at the moment: behind NATs of their own.

    Looks no further than :data:`SHARED_LOOKED` events back, and only where the node was ever behind NAT.
    """
    held, at = found.holder or found.last, found.at
    if held is None or not await _ever_behind(history, held, at):
        return found
    seen, others = {held.node}, list[Holding]()
    looked = 0
    async for recorded in history.about("address", found.address, until=sequence - 1, newest_first=True):
        event = recorded.event
        if (looked := looked + 1) > SHARED_LOOKED:
            break
        if isinstance(event, types.NodeJoined | types.NodeUnderlayChanged) and event.node not in seen:
            seen.add(event.node)
            holding = Holding(node=event.node, uid=event.uid, since=stamp(recorded))
            then = await _member(history, found.address, at, holding, recorded.sequence)
            if then.holder is not None:
                others.append(then.holder)
    if not others:
        return found
    if found.holder is None:
        found = msgspec.structs.replace(found, holder=others.pop(0), last=None)
    if others:
        names = ", ".join(holding.node for holding in others)
        found = msgspec.structs.replace(found, note=f"at that time also, behind another NAT: {names}")
    return found


async def _ever_behind(history: History, held: Holding, at: Point) -> bool:
    async for recorded in history.about("node", held.node, until=at.sequence, newest_first=True):
        if isinstance(recorded.event, types.NodeNatChanged):
            return True
    return False


async def _balancer(  # noqa: PLR0917  what is known of the address so far
    history: History,
    address: str,
    at: Point,
    recorded: Recorded,
    gateway: Recorded | None,
    before: ClusterState | None,
) -> WhoAnswer:
    event = recorded.event
    if isinstance(event, types.ClbReserved):
        end = await _released(history, event.name, recorded.sequence)
        return _balanced(address, at, event, gateway, before, since=stamp(recorded), to=end)
    if not isinstance(event, types.ClbReleased):
        raise TypeError(type(event).__name__)
    began: Stamp | None = None
    async for earlier in history.about("clb", event.name, until=recorded.sequence, newest_first=True):
        if isinstance(earlier.event, types.ClbReserved):
            began = stamp(earlier)
            break
    return _balanced(address, at, event, None, None, since=began, to=stamp(recorded))


async def _released(history: History, name: str, after: int) -> Stamp | None:
    async for later in history.about("clb", name, after=after):
        if isinstance(later.event, types.ClbReleased):
            return stamp(later)
    return None


def _balanced(
    address: str,
    at: Point,
    event: types.ClbReserved | types.ClbReleased,
    gateway: Recorded | None,
    before: ClusterState | None,
    *,
    since: Stamp | None,
    to: Stamp | None,
) -> WhoAnswer:
    """The reservation, and the gateway that held the address at the moment."""
    holding = Holding(
        balancer=event.name,
        purpose=next((item.purpose for item in event.addresses if item.address == address), ""),
        since=since,
        to=to,
    )
    held = before.holders.get(address) if before is not None and since is None else None
    if gateway is not None and isinstance(gateway.event, types.ClbHolderAssigned):
        holding = msgspec.structs.replace(
            holding,
            gateway=gateway.event.node,
            gateway_uid=gateway.event.uid,
            gateway_since=stamp(gateway),
            epoch=gateway.sequence,
        )
    elif gateway is None and held is not None:
        holding = msgspec.structs.replace(holding, gateway=held.node, gateway_uid=held.uid, epoch=held.epoch)
    return _held(address, at, "clb", event.subnet, holding)


def _held(address: str, at: Point, kind: Kind, cidr: str, holding: Holding) -> WhoAnswer:
    over = holding.to is not None and holding.to.sequence <= at.sequence
    return WhoAnswer(
        address=address,
        at=at,
        kind=kind,
        range=cidr,
        range_state="",
        holder=None if over else holding,
        last=holding if over else None,
    )
