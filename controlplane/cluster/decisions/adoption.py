"""Decisions about adoption: nodes of a running cluster become members with exactly the ranges that they have.

The only way to a given range. It is open only between the beginning and the end of an adoption, both of which
an operator decides; every other rule about ranges, uids, addresses and MACs holds as for any join.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from controlplane.cluster.addressing.pool import cursor_behind
from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.given_range import Finding, place, read
from controlplane.cluster.decisions.nodes import UID_LIMIT, Addresses, addresses, obstacle
from controlplane.cluster.evolve import evolve
from controlplane.cluster.input_checks import text
from controlplane.cluster.state import ClusterState, Node
from events.errors import IsthmusError, Refused
from events.log import BATCH_LIMIT
from events.protocol.commands import (
    AdoptedNode,
    AdoptNodes,
    BeginAdoption,
    ChangeUnderlay,
    EndAdoption,
    JoinNode,
)
from events.subjects import check_label, check_node_name, check_site
from events.types import (
    AdoptionBegun,
    AdoptionEnded,
    Event,
    NodeJoined,
    NodeUnderlayChanged,
    RangeAdopted,
)

_DIGEST = re.compile(r"(?:[0-9a-f]{64})?")
_MAC = re.compile(r"(?:[0-9a-f]{2}:){5}[0-9a-f]{2}")


def begin(state: ClusterState, command: BeginAdoption, now: datetime, context: DecisionContext) -> Decision:
    """Open the cluster for ranges that nodes have already. The same source again writes nothing.

    Raises Refused(adoption_open).
    """
    del now, context
    definition_of(state)
    source = check_label(command.source, "source")
    if not _DIGEST.fullmatch(command.plan):
        raise Refused("bad_request", "plan: the SHA-256 of the plan, 64 hexadecimal digits, or nothing")
    known = state.adoption.get(state.name)
    if known is not None and known.source != source:
        raise Refused(
            "adoption_open",
            f"cluster {state.name!r} is in adoption from {known.source} since sequence {known.since}, not from "
            f"{source}; end it first: isthmus adopt end",
            source=known.source,
            sequence=known.since,
        )
    result = {"cluster": state.name, "source": source, "plan": known.plan if known else command.plan}
    if known is not None:
        return Decision((), result)
    return Decision((AdoptionBegun(cluster=state.name, source=source, plan=command.plan),), result)


def end(state: ClusterState, command: EndAdoption, now: datetime, context: DecisionContext) -> Decision:
    """Close it. When none is open, nothing is written."""
    del now, context
    definition_of(state)
    reason = text(command.reason, "reason")
    if not state.adoption:
        return Decision((), {"cluster": state.name})
    return Decision((AdoptionEnded(cluster=state.name, reason=reason),), {"cluster": state.name})


def adopt(state: ClusterState, command: AdoptNodes, now: datetime, context: DecisionContext) -> Decision:
    """Take each node in with its range, in the order of the ranges, all of them or none.

    Raises Refused: ``adoption_closed``, ``event_too_large``, ``adoption_refused`` with all that was found.
    """
    del now
    definition_of(state)
    if not state.adoption:
        raise Refused(
            "adoption_closed",
            f"cluster {state.name!r} is in no adoption: ranges are assigned cyclically and sequentially, "
            f"nobody chooses. An operator begins one to take over a running cluster",
            cluster=state.name,
        )
    source = state.adoption[state.name].source
    if len(command.nodes) * 2 > BATCH_LIMIT:
        raise Refused(
            "event_too_large",
            f"{len(command.nodes):,} nodes make up to {2 * len(command.nodes):,} events, one batch holds "
            f"{BATCH_LIMIT:,}: send fewer",
            limit=BATCH_LIMIT,
        )
    fork = state.fork()
    events: list[Event] = []
    lines: list[dict[str, Any]] = []
    findings: list[dict[str, str]] = []
    for item in sorted(command.nodes, key=_first):
        found, written = _one(fork, item, source, command, context)
        findings += [{"node": item.node[:253], "code": each.code, "message": each.message} for each in found]
        for event in written:
            evolve(fork, fork.sequence + 1, event)
        events += written
        owned = fork.owned.get(item.node)
        if not found and owned is not None:
            status = "adopted" if written else "unchanged"
            lines.append({"node": item.node, "cidr": owned.cidr, "epoch": owned.epoch, "status": status})
    if findings:
        raise refused(findings)
    return Decision(tuple(events), {"source": source, "nodes": lines, "cursor": fork.pool.cursor}, after=fork)


def refused(findings: list[dict[str, str]]) -> Refused:
    """The one refusal for all that was found."""
    first, found = findings[0], len(findings)
    nodes = len({each["node"] for each in findings})
    return Refused(
        "adoption_refused",
        f"{found} finding{'s' if found > 1 else ''} about {nodes} node{'s' if nodes > 1 else ''}, "
        f"nothing was written; first: {first['node']}: {first['message']} [{first['code']}]",
        findings=findings,
    )


def _first(item: AdoptedNode) -> tuple[int, str]:
    """The order in which the cursor passes the ranges; what has no place comes first."""
    net, _ = read(item.range)
    return (net.first if net is not None else -1, item.node)


def _one(
    state: ClusterState, item: AdoptedNode, source: str, command: AdoptNodes, context: DecisionContext
) -> tuple[list[Finding], list[Event]]:
    """Everything that is wrong with one node, or its events (none when it is a member so already)."""
    where, found = _identity(item)
    placed = place(state, item.range)
    found += placed.findings
    mac = item.vtep_mac.lower()
    found += _mac_findings(state, item.node, mac)
    member = state.nodes.get(item.node)
    if member is not None:
        reports = context.members.silent_s(member.uid) is not None
        found += _same(state, member, item, mac, placed.cidr, reports=reports)
        if found or where is None or reports:
            return found, []
        return _followed(state, member, where, mac, context)
    held = state.ranges.get(placed.number)
    if held is not None:
        phase = state.phase_of(placed.number)
        found.append(
            Finding(
                "adopt_range_taken",
                f"its range {placed.cidr} is that of {held.node!r} (uid {held.uid!r}, {phase} since sequence "
                f"{held.epoch})",
            )
        )
    accepted: list[Event] = []
    if where is not None:
        asked = JoinNode(
            node=item.node,
            uid=item.uid,
            kind=item.kind,
            underlay=item.underlay,
            announced=item.announced,
            site=item.site,
            overrides=command.overrides,
        )
        problem, overridden = obstacle(state, asked, where, context)
        accepted += overridden
        if problem is not None:
            found.append(Finding(problem.code, problem.message))
    if found or where is None:
        return found, []
    joined = NodeJoined(
        node=item.node,
        uid=item.uid,
        kind=item.kind,
        underlay=item.underlay,
        announced=where.announced,
        vtep_mac=mac,
        site=item.site,
    )
    adopted = RangeAdopted(
        cidr=placed.cidr,
        index=placed.number,
        node=item.node,
        uid=item.uid,
        cursor_after=cursor_behind(state.pool, placed.number),
        source=source,
    )
    return [], [*accepted, joined, adopted]


def _identity(item: AdoptedNode) -> tuple[Addresses | None, list[Finding]]:
    """Where the node is, with what is wrong with its name, uid, site and addresses."""
    found: list[Finding] = []
    checks: tuple[Callable[[], str], ...] = (
        lambda: check_node_name(item.node),
        lambda: text(item.uid, "uid", limit=UID_LIMIT, empty=False),
        lambda: check_site(item.site),
    )
    for check in checks:
        try:
            check()
        except IsthmusError as error:
            found.append(Finding(error.code, error.message))
    try:
        asked = JoinNode(
            node=item.node, uid=item.uid, kind=item.kind, underlay=item.underlay, announced=item.announced
        )
        return addresses(asked), found
    except IsthmusError as error:
        return None, [*found, Finding(error.code, error.message)]


def _mac_findings(state: ClusterState, node: str, mac: str) -> list[Finding]:
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 3 != 2:
        what = (
            f"its VTEP's MAC {mac[:32]!r} is no locally administered unicast address"
            if mac
            else "it has no VTEP MAC"
        )
        return [Finding("adopt_mac_invalid", what)]
    other = state.by_mac.get(mac, node)
    if other != node:
        return [Finding("adopt_mac_taken", f"its VTEP's MAC {mac} is that of {other!r}")]
    return []


def _followed(
    state: ClusterState, member: Node, where: Addresses, mac: str, context: DecisionContext
) -> tuple[list[Finding], list[Event]]:
    """A member that the network before still serves: what that network has changed about it, or nothing."""
    if (member.underlay, member.announced, member.vtep_mac) == (where.underlay, where.announced, mac):
        return [], []
    moved = ChangeUnderlay(node=member.name, uid=member.uid, underlay=where.underlay, announced=where.announced)
    problem, accepted = obstacle(state, moved, where, context)
    if problem is not None:
        return [Finding(problem.code, problem.message)], []
    changed = NodeUnderlayChanged(
        node=member.name,
        uid=member.uid,
        underlay=where.underlay,
        announced=where.announced,
        vtep_mac=mac if mac != member.vtep_mac else "",
    )
    return [], [*accepted, changed]


def _same(
    state: ClusterState, member: Node, item: AdoptedNode, mac: str, cidr: str, *, reports: bool
) -> list[Finding]:
    """Why a member is not what is to be adopted. Of one whose agent reports, its MAC is settled, too."""
    owned = state.owned[member.name]
    found = []
    if member.uid != item.uid:
        found.append(
            Finding(
                "node_alive",
                f"it is a member with uid {member.uid!r}, the plan says {item.uid[:UID_LIMIT]!r}; remove it "
                f"first: isthmus node remove {member.name}",
            )
        )
    if owned.cidr != cidr or (reports and member.vtep_mac != mac):
        found.append(
            Finding(
                "adopt_range_fixed",
                f"it is a member with {owned.cidr} and MAC {member.vtep_mac} since sequence {owned.epoch}, the "
                f"plan says {cidr} and {mac}",
            )
        )
    return found
