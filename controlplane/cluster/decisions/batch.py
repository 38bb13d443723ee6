"""The import of many nodes in one decision: all of them, or none."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.nodes import join
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState, Node
from events.errors import Refused
from events.log import BATCH_LIMIT
from events.protocol.commands import ImportNodes, JoinNode
from events.types import Event


def import_nodes(
    state: ClusterState, command: ImportNodes, now: datetime, context: DecisionContext
) -> Decision:
    """Join each node in turn on a fork of the state; the report has one line per node.

    A refused line refuses the batch, and nothing of it is recorded: its caller sees the report. A line that
    fences a member says so (``fences``: its uid); one whose kind or site the member does not have changes
    nothing and says so (``note``). Raises Refused(import_refused, event_too_large).
    """
    definition_of(state)
    named = frozenset(command.replace)
    fork = state.fork()
    events: list[Event] = []
    lines: list[dict[str, Any]] = []
    refused = 0
    error: Refused | None
    asked: dict[str, tuple[int, str]] = {}
    for position, item in enumerate(command.nodes, 1):
        line: dict[str, Any] = {"line": position, "node": item.node}
        try:
            _check_repeated(item, *asked.setdefault(item.node, (position, item.uid)))
            member = fork.nodes.get(item.node)
            wish = item
            if member is not None and member.uid == item.uid:
                wish, note = _as_recorded(item, member)
                line |= note
            elif member is not None:
                _check_replaced(member, item, named, context)
                line["fences"] = member.uid
            decision = join(fork, wish, now, context, replace=item.node in named)
            error = decision.refusal
        except Refused as refusal:
            error = refusal
        if error is not None:
            refused += 1
            lines.append({**line, "status": "refused", "code": error.code, "message": error.message})
            continue
        for event in decision.events:
            evolve(fork, fork.sequence + 1, event)
        events.extend(decision.events)
        status = "joined" if decision.events else "unchanged"
        lines.append({**line, "status": status, **decision.result})
    if refused:
        first = next(line for line in lines if line["status"] == "refused")
        raise Refused(
            "import_refused",
            f"{refused} of {len(lines)} nodes refused, nothing was written; first: line {first['line']} "
            f"({first['node']}): {first['message']} [{first['code']}]",
            refused=refused,
            lines=lines,
        )
    if len(events) > BATCH_LIMIT:
        raise Refused(
            "event_too_large",
            f"{len(lines)} nodes make {len(events)} events, one batch holds {BATCH_LIMIT}: send fewer",
            events=len(events),
            limit=BATCH_LIMIT,
        )
    joined = sum(1 for line in lines if line["status"] == "joined")
    result = {"joined": joined, "unchanged": len(lines) - joined, "lines": lines}
    return Decision(tuple(events), result, after=fork)


def _check_repeated(item: JoinNode, position: int, uid: str) -> None:
    """One batch does not give a name twice. Raises Refused(name_repeated)."""
    if uid != item.uid:
        raise Refused(
            "name_repeated",
            f"line {position} gives the name {item.node!r} to uid {uid!r}, this one to uid {item.uid!r}: "
            f"give each machine a name of its own",
            node=item.node,
            uids=[uid, item.uid],
        )


def _check_replaced(member: Node, item: JoinNode, named: frozenset[str], context: DecisionContext) -> None:
    """A file replaces no member that was ever heard unless it is named. Raises Refused(node_alive)."""
    if member.name in named or not context.members.ever(member.uid):
        return
    silent_s = context.members.silent_s(member.uid)
    heard = "has reported before and is silent now" if silent_s is None else f"was heard {silent_s:.0f} s ago"
    raise Refused(
        "node_alive",
        f"node {member.name!r} is a member with uid {member.uid!r}, whose agent {heard}; the file says uid "
        f"{item.uid!r}. If both are one machine, leave the line out; to fence the member and give its name to "
        f"the other: isthmus node import --replace {member.name} FILE",
        node=member.name,
        uid=item.uid,
        live_uid=member.uid,
    )


def _as_recorded(item: JoinNode, member: Node) -> tuple[JoinNode, dict[str, Any]]:
    """The line as the member is recorded, with a note: a label that changed is no reason to refuse anything."""
    if (item.kind, item.site) == (member.kind, member.site):
        return item, {}
    note = (
        f"recorded as kind {member.kind!r}, site {member.site!r}; the file says kind {item.kind!r}, site "
        f"{item.site!r}: not changed. To change it: isthmus node remove {member.name}, then import again"
    )
    return msgspec.structs.replace(item, kind=member.kind, site=member.site), {"note": note}
