"""The import of many nodes in one decision: all of them, or none."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.nodes import join
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from events.errors import Refused
from events.log import BATCH_LIMIT
from events.protocol.commands import ImportNodes
from events.types import Event


def import_nodes(
    state: ClusterState, command: ImportNodes, now: datetime, context: DecisionContext
) -> Decision:
    """Join each node in turn on a fork of the state; the report has one line per node.

    A refused line refuses the batch, and nothing of it is recorded: its caller sees the report.
    """
    definition_of(state)
    fork = state.fork()
    events: list[Event] = []
    lines: list[dict[str, Any]] = []
    refused = 0
    for position, item in enumerate(command.nodes, 1):
        line: dict[str, Any] = {"line": position, "node": item.node}
        try:
            decision = join(fork, item, now, context)
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
