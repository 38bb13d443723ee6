"""What a command means now: the events it causes, its answer, or its refusal.

Pure: the state, the command, the moment and the context go in, a Decision comes out. Nothing
here reads a clock, a file, the network or a random number, and nothing changes the state.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from controlplane.cluster.decision import (
    EMPTY_CONTEXT,
    AdvanceDrains,
    AdvanceEncryption,
    AssignHolders,
    BindNodes,
    Decision,
    DecisionContext,
    MarkLiveness,
    MarkPaths,
    Tick,
)
from controlplane.cluster.decisions import (
    adoption,
    batch,
    clb,
    cluster,
    encryption,
    entries,
    gateways,
    holders,
    kubernetes,
    nodes,
    paths,
    time,
    tokens,
)
from controlplane.cluster.state import ClusterState
from events.errors import Refused
from events.protocol.commands import (
    AddBackend,
    AddEntry,
    AdoptNodes,
    AppendCidr,
    BeginAdoption,
    ChangeKey,
    ChangeUnderlay,
    Command,
    DeclareNetwork,
    DefineCluster,
    DeleteCluster,
    EndAdoption,
    FenceNode,
    ImportNodes,
    JoinNode,
    LeaveNode,
    MarkGateway,
    ReleaseClb,
    RemoveBackend,
    RemoveEntry,
    RemoveNode,
    ReportHealth,
    ReserveClb,
    SetEncryption,
    UseToken,
    WithdrawNetwork,
)

__all__ = [
    "EMPTY_CONTEXT",
    "AdvanceDrains",
    "AdvanceEncryption",
    "AssignHolders",
    "BindNodes",
    "Decision",
    "DecisionContext",
    "MarkLiveness",
    "MarkPaths",
    "Tick",
    "decide",
]

Rule = Callable[[ClusterState, Any, datetime, DecisionContext], Decision]

RULES: dict[type[Command | Tick], Rule] = {
    DefineCluster: cluster.define,
    DeleteCluster: cluster.delete,
    AppendCidr: cluster.append,
    DeclareNetwork: cluster.declare,
    WithdrawNetwork: cluster.withdraw,
    JoinNode: tokens.join,
    ChangeUnderlay: nodes.change_underlay,
    ChangeKey: encryption.change_key,
    SetEncryption: encryption.set_scope,
    LeaveNode: nodes.leave,
    RemoveNode: nodes.remove,
    FenceNode: nodes.fence,
    ImportNodes: batch.import_nodes,
    BeginAdoption: adoption.begin,
    AdoptNodes: adoption.adopt,
    EndAdoption: adoption.end,
    ReserveClb: clb.reserve,
    ReleaseClb: clb.release,
    MarkGateway: gateways.mark,
    AddBackend: gateways.add,
    RemoveBackend: gateways.remove,
    ReportHealth: gateways.report,
    AddEntry: entries.add,
    RemoveEntry: entries.remove,
    UseToken: tokens.use,
    MarkLiveness: time.mark_liveness,
    AdvanceDrains: time.advance_drains,
    AssignHolders: holders.assign,
    BindNodes: kubernetes.bind,
    MarkPaths: paths.mark,
    AdvanceEncryption: encryption.advance,
}
"""Command → its rule; a test keeps it complete."""


def decide(
    state: ClusterState, command: Command | Tick, now: datetime, context: DecisionContext = EMPTY_CONTEXT
) -> Decision:
    """Decide ``command`` on ``state`` at the moment ``now`` (UTC).

    Every refusal is returned, never raised; it comes with an event when it is one that the log
    records. The events are right only directly after ``state.sequence``.
    """
    rule = RULES.get(type(command))
    if rule is None:
        return Decision(
            refusal=Refused("unknown_command", f"{type(command).__name__} is no command of this controller")
        )
    try:
        return rule(state, command, now, context)
    except Refused as refusal:
        return Decision(refusal=refusal)
