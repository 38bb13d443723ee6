"""``who``: to whom an address belonged at a moment, since when, until when, and who asked for it.

Any address is understood: a pod's (the node whose range held it), a Service's, a node's underlay
address, a reserved balancer address. "Nobody" is an answer too, and names the last one.
Reads a handful of events through the log's index; it never folds the log.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv4Network
from typing import Literal

import msgspec

from events.codec import Recorded
from events.errors import Usage
from events.types import (
    CidrAppended,
    ClbHolderAssigned,
    ClbHolderWithdrawn,
    ClbReleased,
    ClbReserved,
    ClusterDefined,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    NodeUnderlayChanged,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)
from replay.history import History, Point
from replay.queries.stamp import Stamp, stamp

Kind = Literal["pod", "service", "underlay", "clb", "outside"]


class Holding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One ownership. ``epoch`` is the sequence of the allocation (pod addresses only); ``to`` None: still."""

    node: str = ""
    uid: str = ""
    balancer: str = ""
    purpose: str = ""
    gateway: str = ""
    """The gateway node that held the balancer's address at the moment; its epoch is in ``epoch``."""
    gateway_since: Stamp | None = None
    range: str = ""
    epoch: int = 0
    since: Stamp
    to: Stamp | None = None


class WhoAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``holder`` is None for nobody; then ``last`` is who had it before, if anybody did.

    ``range_state`` is the state of the pod range at the moment; ``range`` its CIDR.
    """

    address: str
    at: Point
    kind: Kind
    range: str
    range_state: Literal["", "allocated", "draining", "quarantined", "free"]
    holder: Holding | None
    last: Holding | None
    note: str = ""


async def who(history: History, address: str, at: Point) -> WhoAnswer:
    """Answer for ``address`` at ``at``. Raises Usage(usage) for a text that is no IPv4 address."""
    try:
        wanted = IPv4Address(address)
    except (AddressValueError, ValueError) as error:
        raise Usage("usage", f"{address!r} is no IPv4 address", address=address) from error
    definition: ClusterDefined | None = None
    pools: list[tuple[IPv4Network, int]] = []
    async for recorded in history.about("cluster", history.cluster, until=at.sequence):
        event = recorded.event
        if isinstance(event, ClusterDefined):
            definition = event
            pools.append((IPv4Network(event.container_cidr), event.capacity))
        elif isinstance(event, CidrAppended):
            pools.append((IPv4Network(event.cidr), event.capacity))
    if definition is not None:
        if wanted in IPv4Network(definition.service_cidr):
            return _empty(
                str(wanted), at, "service", definition.service_cidr, "the Service range; no node holds it"
            )
        for pool, capacity in pools:
            if wanted in pool:
                position = (int(wanted) - int(pool.network_address)) // definition.range_size
                if position >= capacity:
                    return _empty(str(wanted), at, "outside", "", f"a stranded address of {pool}: in no range")
                first = IPv4Address(int(pool.network_address) + position * definition.range_size)
                cidr = f"{first}/{33 - definition.range_size.bit_length()}"
                return await _pod(history, str(wanted), at, cidr)
    return await _fixed(history, str(wanted), at)


def _empty(address: str, at: Point, kind: Kind, cidr: str, note: str) -> WhoAnswer:
    return WhoAnswer(
        address=address, at=at, kind=kind, range=cidr, range_state="", holder=None, last=None, note=note
    )


async def _pod(history: History, address: str, at: Point, cidr: str) -> WhoAnswer:
    state: Literal["allocated", "draining", "quarantined", "free"] = "free"
    ended: Recorded | None = None
    allocation: Recorded | None = None
    decided = False
    async for recorded in history.about("range", cidr, until=at.sequence, newest_first=True):
        event = recorded.event
        if not decided:
            decided = True
            if isinstance(event, RangeAllocated):
                state = "allocated"
            elif isinstance(event, RangeDraining):
                state = "draining"
            elif isinstance(event, RangeQuarantined):
                state = "quarantined"
            elif isinstance(event, RangeFreed):
                state = "free"
        if isinstance(event, RangeDraining):
            ended = recorded
        if isinstance(event, RangeAllocated):
            allocation = recorded
            break
    if allocation is None or not isinstance(allocation.event, RangeAllocated):
        return WhoAnswer(
            address=address,
            at=at,
            kind="pod",
            range=cidr,
            range_state="free",
            holder=None,
            last=None,
            note="no node has ever held this range",
        )
    if ended is None:
        async for recorded in history.about("range", cidr, after=allocation.sequence):
            if isinstance(recorded.event, RangeDraining):
                ended = recorded
                break
    holding = Holding(
        node=allocation.event.node,
        uid=allocation.event.uid,
        range=cidr,
        epoch=allocation.sequence,
        since=stamp(allocation),
        to=stamp(ended) if ended else None,
    )
    held = state == "allocated"
    return WhoAnswer(
        address=address,
        at=at,
        kind="pod",
        range=cidr,
        range_state=state,
        holder=holding if held else None,
        last=None if held else holding,
    )


async def _fixed(history: History, address: str, at: Point) -> WhoAnswer:
    """A node's underlay address or a balancer's address."""
    gateway: Recorded | None = None
    async for recorded in history.about("address", address, until=at.sequence, newest_first=True):
        event = recorded.event
        if isinstance(event, ClbHolderAssigned | ClbHolderWithdrawn):
            gateway = gateway or recorded  # the newest of them decides
            continue
        if isinstance(event, ClbReserved | ClbReleased):
            return await _balancer(history, address, at, recorded, gateway)
        if isinstance(event, NodeJoined | NodeUnderlayChanged):
            end = None
            async for later in history.about("node", event.node, after=recorded.sequence):
                if isinstance(later.event, NodeLeft | NodeFenced | NodeUnderlayChanged) and (
                    later.event.uid == event.uid
                ):
                    end = later
                    break
            holding = Holding(
                node=event.node, uid=event.uid, since=stamp(recorded), to=stamp(end) if end else None
            )
            return _held(address, at, "underlay", "", holding)
    return _empty(address, at, "outside", "", "in no container network; never an underlay or balancer address")


async def _balancer(
    history: History, address: str, at: Point, recorded: Recorded, gateway: Recorded | None
) -> WhoAnswer:
    event = recorded.event
    if not isinstance(event, ClbReserved | ClbReleased):
        raise TypeError(type(event).__name__)
    began, end = recorded, None
    if isinstance(event, ClbReleased):
        end = recorded
        async for earlier in history.about("clb", event.name, until=recorded.sequence, newest_first=True):
            if isinstance(earlier.event, ClbReserved):
                began = earlier
                break
    else:
        async for later in history.about("clb", event.name, after=recorded.sequence):
            if isinstance(later.event, ClbReleased):
                end = later
                break
    purpose = next((item.purpose for item in event.addresses if item.address == address), "")
    held = gateway.event if gateway is not None else None
    assigned = isinstance(held, ClbHolderAssigned) and gateway is not None and isinstance(event, ClbReserved)
    holding = Holding(
        balancer=event.name,
        purpose=purpose,
        gateway=held.node if assigned and isinstance(held, ClbHolderAssigned) else "",
        gateway_since=stamp(gateway) if assigned and gateway is not None else None,
        epoch=gateway.sequence if assigned and gateway is not None else 0,
        since=stamp(began),
        to=stamp(end) if end else None,
    )
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
