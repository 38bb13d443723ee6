"""Decisions about Kubernetes Nodes: which member is which of them.

A binding gives and takes nothing. It lets a Node's deletion be known by whoever looks next.
"""

from __future__ import annotations

from datetime import datetime

from controlplane.cluster.decision import Decision, DecisionContext
from controlplane.cluster.input_checks import text
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest
from events.protocol.commands import BindNodes
from events.types import NodeBound

NODE_UID_LIMIT = 128
NODES_LIMIT = 900
"""Of one command: they fit one atomic batch."""


def bind(state: ClusterState, command: BindNodes, now: datetime, context: DecisionContext) -> Decision:
    """One event for each member that is another Node than the log says. Raises BadRequest(bad_request)."""
    del now, context
    if len(command.nodes) > NODES_LIMIT:
        raise BadRequest(
            "bad_request", f"{len(command.nodes):,} Nodes; at most {NODES_LIMIT} at a time", field="nodes"
        )
    events: dict[str, NodeBound] = {}
    for name, uid, node_uid in command.nodes:
        text(node_uid, "Kubernetes Node UID", limit=NODE_UID_LIMIT, empty=False)
        member, known = state.nodes.get(name), state.bound.get(name)
        if member is not None and member.uid == uid and (known is None or known.node_uid != node_uid):
            events[name] = NodeBound(node=name, uid=uid, node_uid=node_uid)
    return Decision(tuple(events.values()), {"bound": sorted(events)})
