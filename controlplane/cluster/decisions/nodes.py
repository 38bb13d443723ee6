"""Decisions about nodes: join, rejoin, address change, leave, removal, fencing.

The allocation is next-fit: the first free range at or after the cursor, wrapping; the event carries
the cursor after it. A name belongs to the uid that joined last: a reinstalled machine fences its
predecessor and gets a new epoch, and the predecessor can never come back.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, NamedTuple

from controlplane.cluster import nat
from controlplane.cluster.addressing.mac import vtep_mac
from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.exhaustion import exhausted
from controlplane.cluster.decisions.holders import Cause, hand_over
from controlplane.cluster.decisions.overlap import address_conflicts, settle
from controlplane.cluster.identity import another_process, living, other_machine
from controlplane.cluster.input_checks import text, unicast
from controlplane.cluster.keys import GivenKey, key_events, key_of, unable
from controlplane.cluster.state import ClusterState, Node, Range, asker_node
from events.errors import Refused
from events.protocol.commands import ChangeUnderlay, FenceNode, JoinNode, LeaveNode, RemoveNode
from events.subjects import check_node_name, check_site
from events.types import (
    AllocationRefused,
    ConflictOverridden,
    Event,
    NodeFenced,
    NodeJoined,
    NodeLeft,
    NodeNatChanged,
    NodeUnderlayChanged,
    RangeAllocated,
    RangeDraining,
)

_new = tuple.__new__  # a named tuple's own constructor is a Python function


class Addresses(NamedTuple):
    """Where a node is: the address on its own link and the one by which its peers reach it."""

    underlay: str
    announced: str
    values: tuple[int, int]


UID_LIMIT = 128


def join(
    state: ClusterState, command: JoinNode, now: datetime, context: DecisionContext, *, replace: bool = False
) -> Decision:
    """Make the node a member and give it the next free range; repeating it writes nothing.

    A member of the same name with another uid is fenced, unless its agent reports: then only a decision
    that names it does so (``replace``).
    """
    definition_of(state)
    _check_join(command)
    where, key = addresses(command), key_of(command)
    name, uid = command.node, command.uid
    member = state.nodes.get(name)
    if member is not None and member.uid == uid:
        return _with_key(state, member, key, _again(state, command, member, where, context))
    if member is not None and not replace:
        alive = living(member, uid, context)
        if alive is not None:
            return _refuse(state, name, uid, alive)
    problem, accepted = obstacle(state, command, where, context)
    if problem is None:
        problem = unable(state, name, key)
    if problem is not None:
        return _refuse(state, name, uid, problem)
    keys = key_events(state, name, uid, key)
    if command.nat == "on":
        keys.append(NodeNatChanged(node=name, uid=uid, behind=True))
    events: list[Event] = [*accepted]
    leaving = 0 if member is None else 1
    if member is not None:
        events += hand_over(state, name, "fenced", context)
        events.append(NodeFenced(node=name, uid=member.uid, cause="rejoin", by_uid=uid))
        events.append(drain(state.owned[name]))
    index = state.pool.next_free(state.pool.cursor)
    if index is None:
        # The predecessor is gone all the same: were it kept, its own range could never come free for it.
        return _refuse(state, name, uid, exhausted(state, now, f"node {name!r}", leaving), events)
    cidr = state.cidr_of(index)
    mac = _mac(state, uid, name)
    events.append(
        NodeJoined(
            node=name,
            uid=uid,
            kind=command.kind,
            underlay=command.underlay,
            announced=where.announced,
            vtep_mac=mac,
            site=command.site,
        )
    )
    events += keys
    events.append(
        RangeAllocated(
            cidr=cidr, index=index, node=name, uid=uid, cursor_after=(index + 1) % state.pool.capacity
        )
    )
    result = {
        "node": name,
        "uid": uid,
        "cidr": cidr,
        "index": index,
        "epoch": state.sequence + len(events),
        "vtep_mac": mac,
        "underlay": where.underlay,
        "announced": where.announced,
    }
    return _new(Decision, (tuple(events), result, None, None))


def _check_join(command: JoinNode) -> None:
    """Refuse what no state could make right. Raises Refused and BadRequest."""
    check_node_name(command.node)
    text(command.uid, "uid", limit=UID_LIMIT, empty=False)
    check_site(command.site)
    if command.range:
        raise Refused(
            "static_range_refused",
            f"node {command.node!r} asks for range {command.range[:64]!r}: ranges are assigned cyclically and "
            f"sequentially, nobody chooses; join without it",
            node=command.node,
            wished=command.range[:64],
        )
    if command.pod_ip:
        raise Refused(
            "static_pod_ip_refused",
            f"node {command.node!r} asks for the pod address {command.pod_ip[:64]!r}: static pod addresses do "
            f"not exist in this network mode; a Service gives a stable one",
            node=command.node,
            wished=command.pod_ip[:64],
        )


def addresses(command: JoinNode | ChangeUnderlay) -> Addresses:
    """The announced address defaults to the underlay's. Raises BadRequest(underlay_address_invalid)."""
    announced = command.announced or command.underlay
    value = unicast(command.underlay, "underlay address")
    if announced == command.underlay:
        return _new(Addresses, (command.underlay, announced, (value, value)))
    return Addresses(command.underlay, announced, (value, unicast(announced, "announced address")))


def _again(
    state: ClusterState, command: JoinNode, member: Node, where: Addresses, context: DecisionContext
) -> Decision:
    """The same name and uid again: the same range; nothing is written unless an address changed."""
    if (member.kind, member.site) != (command.kind, command.site):
        raise Refused(
            "node_attribute_fixed",
            f"node {member.name!r} is a member as kind {member.kind!r}, site {member.site!r}; it now says kind "
            f"{command.kind!r}, site {command.site!r}. Let it leave first: isthmus node remove {member.name}",
            node=member.name,
            kind=member.kind,
            site=member.site,
        )
    return _move(state, command, member, where, context)


def _with_key(state: ClusterState, member: Node, key: GivenKey | None, decision: Decision) -> Decision:
    """What a member that joins again writes, and its key if that is another one than known."""
    keys = key_events(state, member.name, member.uid, key) if decision.refusal is None else []
    return decision._replace(events=(*decision.events, *keys)) if keys else decision


def _move(
    state: ClusterState,
    command: JoinNode | ChangeUnderlay,
    member: Node,
    where: Addresses,
    context: DecisionContext,
) -> Decision:
    """Reach the member at ``where``; writes nothing when it is there already."""
    owned = state.owned[member.name]
    result = _described(member, owned) | {"underlay": where.underlay, "announced": where.announced}
    if (member.underlay, member.announced) == (where.underlay, where.announced):
        return Decision((), result)
    refusal = other_machine(member, where.underlay, context)
    if refusal is not None:
        return Decision(refusal=refusal)
    problem, accepted = obstacle(state, command, where, context)
    if problem is not None:
        return _refuse(state, member.name, member.uid, problem)
    moved = NodeUnderlayChanged(
        node=member.name, uid=member.uid, underlay=where.underlay, announced=where.announced
    )
    return Decision((*accepted, moved), result)


def obstacle(
    state: ClusterState,
    command: JoinNode | ChangeUnderlay,
    where: Addresses,
    context: DecisionContext,
) -> tuple[Refused | None, list[ConflictOverridden]]:
    """What keeps the node from these addresses, or the accepted overlaps."""
    name, uid, announced = command.node, command.uid, where.announced
    fenced = state.fenced.get(uid)
    if fenced is not None:
        because = f"uid {fenced.by_uid!r} took the name" if fenced.by_uid else f"cause: {fenced.cause}"
        return Refused(
            "node_fenced",
            f"uid {uid!r} (node {fenced.node!r}) was fenced at sequence {fenced.since} ({because}): "
            f"join with a new uid",
            node=name,
            uid=uid,
            sequence=fenced.since,
            by_uid=fenced.by_uid,
        ), []
    other = state.by_uid.get(uid)
    if other is not None and other != name:
        return Refused(
            "uid_in_use",
            f"uid {uid!r} of node {name!r} is already the live node {other!r}: give a cloned machine a uid of "
            f"its own, or remove {other!r} first",
            node=name,
            uid=uid,
            other=other,
        ), []
    taken = _address_taken(state, command, announced)
    if taken is not None:
        return taken, []
    for address in {where.underlay, announced} if state.clb_addresses else ():
        reservation = state.clb_addresses.get(address)
        if reservation is not None:
            return Refused(
                "underlay_address_in_use",
                f"node {name!r} uses {address}, which CLB reservation {reservation!r} holds: release it first "
                f"(isthmus clb release {reservation} --yes) or correct the address",
                node=name,
                address=address,
                reservation=reservation,
            ), []
    conflicts = address_conflicts(name, dict.fromkeys(where.values), state, context)
    overrides = command.overrides if isinstance(command, JoinNode) else ()
    if not conflicts and not overrides:
        return None, []
    accepted, refused = settle(conflicts, overrides, state.name)
    return (refused.refused() if refused is not None else None), accepted


def _address_taken(state: ClusterState, command: JoinNode | ChangeUnderlay, announced: str) -> Refused | None:
    """Whether another member is at that address already; two may be behind different NATs, at two sites."""
    name = command.node
    site = command.site if isinstance(command, JoinNode) else state.nodes[name].site
    other = nat.holder(state, announced, site, name)
    if other == name:
        return None
    there = state.nodes[other].site
    where = f" at site {there!r}" if there else ""
    return Refused(
        "underlay_address_in_use",
        f"node {name!r} announces {announced}, which the live node {other!r} (uid {state.nodes[other].uid!r})"
        f"{where} already uses: remove it first (isthmus node remove {other}) or correct the address. Behind "
        f"different NATs both may have it: each at a site of its own (--site), and {other!r} is known to be "
        f"behind NAT some seconds after its agent has come; then repeat",
        node=name,
        address=announced,
        other=other,
    )


def _refuse(
    state: ClusterState, node: str, uid: str, error: Refused, events: list[Event] | None = None
) -> Decision:
    """Refuse, and record it once per node and cause until the node gets what it asked for."""
    before = tuple(events or ())
    if error.code in state.refusals.get(asker_node(node), {}):
        return Decision(before, refusal=error)
    moment = error.details.get("earliest_free")
    record = AllocationRefused(
        node=node,
        uid=uid,
        code=error.code,
        message=error.message,
        capacity=state.capacity,
        allocated=error.details.get("allocated", len(state.owned)),
        draining=error.details.get("draining", len(state.draining)),
        quarantined=len(state.quarantined),
        earliest_free=datetime.fromisoformat(moment) if moment else None,
    )
    return Decision((*before, record), refusal=error)


def _described(member: Node, owned: Range) -> dict[str, Any]:
    return {
        "node": member.name,
        "uid": member.uid,
        "cidr": owned.cidr,
        "index": owned.index,
        "epoch": owned.epoch,
        "vtep_mac": member.vtep_mac,
    }


def _mac(state: ClusterState, uid: str, name: str) -> str:
    """The VTEP MAC of the uid; the next one of its series should another member have it already."""
    attempt = 0
    while state.by_mac.get(mac := vtep_mac(uid, attempt), name) != name:
        attempt += 1
    return mac


def drain(owned: Range) -> RangeDraining:
    """The event by which a range loses its owner."""
    return RangeDraining(cidr=owned.cidr, index=owned.index, node=owned.node, uid=owned.uid, epoch=owned.epoch)


def _live(state: ClusterState, name: str) -> Node:
    """The member of that name. Raises Refused(node_unknown)."""
    definition_of(state)
    member = state.nodes.get(name)
    if member is None:
        raise Refused(
            "node_unknown",
            f"no live node is named {name[:253]!r} ({len(state.nodes):,} live nodes)",
            node=name[:253],
        )
    return member


def own(state: ClusterState, name: str, uid: str) -> Node:
    """The member with that name and uid (any, if empty). Raises Refused: ``node_fenced``, ``node_unknown``."""
    fenced = state.fenced.get(uid)
    if fenced is not None:
        raise Refused(
            "node_fenced",
            f"uid {uid!r} was fenced at sequence {fenced.since}: it no longer counts as node {name!r}",
            node=name,
            uid=uid,
            sequence=fenced.since,
        )
    member = _live(state, name)
    if uid and member.uid != uid:
        raise Refused(
            "node_unknown",
            f"node {name!r} is live with uid {member.uid!r}, not {uid[:UID_LIMIT]!r}",
            node=name,
            uid=uid[:UID_LIMIT],
            live_uid=member.uid,
        )
    return member


def change_underlay(
    state: ClusterState, command: ChangeUnderlay, now: datetime, context: DecisionContext
) -> Decision:
    """Reach the node at another address; its range and epoch stay. The same addresses write nothing."""
    del now
    member = own(state, command.node, command.uid)
    return _move(state, command, member, addresses(command), context)


def _out(
    state: ClusterState, member: Node, event: Event, context: DecisionContext, cause: Cause = "left"
) -> Decision:
    owned = state.owned[member.name]
    return Decision(
        (*hand_over(state, member.name, cause, context), event, drain(owned)),
        {
            "node": member.name,
            "uid": member.uid,
            "cidr": owned.cidr,
            "index": owned.index,
            "epoch": owned.epoch,
        },
    )


def leave(state: ClusterState, command: LeaveNode, now: datetime, context: DecisionContext) -> Decision:
    """The node leaves of its own accord; its range drains.

    Raises Refused(identity_twice) when a machine elsewhere asks while the member reports.
    """
    del now
    member = own(state, command.node, command.uid)
    held = another_process(
        member, context, f"to take the node out all the same: isthmus node remove {member.name}"
    )
    if held is not None:
        raise held
    reason = text(command.reason, "reason")
    return _out(state, member, NodeLeft(node=member.name, uid=member.uid, reason=reason), context)


def remove(state: ClusterState, command: RemoveNode, now: datetime, context: DecisionContext) -> Decision:
    """An operator takes the node out; it may join again."""
    del now
    member = own(state, command.node, command.uid)
    reason = text(command.reason, "reason") or "removed by an operator"
    return _out(state, member, NodeLeft(node=member.name, uid=member.uid, reason=reason), context)


def _former(state: ClusterState, name: str, context: DecisionContext) -> Range | None:
    """The last range of a node that is no member any more, while it waits for that node; O(such ranges)."""
    for indices in (state.draining, state.quarantined):
        for index in indices:
            held = state.ranges[index]
            known = held.uid in state.fenced or held.uid in state.by_uid
            if held.node == name and not known and index in context.occupied:
                return held
    return None


def fence(state: ClusterState, command: FenceNode, now: datetime, context: DecisionContext) -> Decision:
    """An operator declares the node dead: its uid is fenced and nothing waits for it any more.

    Also of a node that is no member any more, but whose last range still waits for the end of its pods.
    """
    del now
    reason = text(command.reason, "reason")
    if command.node not in state.nodes and not command.uid:
        former = _former(state, command.node, context)
        if former is not None:
            event = NodeFenced(node=former.node, uid=former.uid, cause="operator", reason=reason, former=True)
            return Decision((event,), {"node": former.node, "uid": former.uid, "cidr": former.cidr})
    member = own(state, command.node, command.uid)
    event = NodeFenced(node=member.name, uid=member.uid, cause="operator", reason=reason)
    return _out(state, member, event, context, "fenced")
