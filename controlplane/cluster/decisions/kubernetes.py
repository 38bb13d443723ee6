"""Decisions about Kubernetes Nodes: which member is which of them.

A binding gives and takes nothing. It lets a Node's deletion be known by whoever looks next.
"""

from __future__ import annotations

from datetime import datetime

from controlplane.cluster.decision import BindNodes, Decision, DecisionContext
from controlplane.cluster.input_checks import text
from controlplane.cluster.state import ClusterState
from events.types import NodeBound

NODE_UID_LIMIT = 128


def bind(state: ClusterState, command: BindNodes, now: datetime, context: DecisionContext) -> Decision:
    """One event for each member that is another Node than the log says. Raises BadRequest(bad_request)."""
    del now, context
    events: dict[str, NodeBound] = {}
    for name, uid, node_uid in command.nodes[: command.limit]:
        text(node_uid, "Kubernetes Node UID", limit=NODE_UID_LIMIT, empty=False)
        member, known = state.nodes.get(name), state.bound.get(name)
        if member is not None and member.uid == uid and (known is None or known.node_uid != node_uid):
            events[name] = NodeBound(node=name, uid=uid, node_uid=node_uid)
    return Decision(tuple(events.values()), {"bound": sorted(events)})
