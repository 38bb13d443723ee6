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
    Decision,
    DecisionContext,
    MarkLiveness,
    MarkNat,
    MarkPaths,
    Participant,
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
    BindNodes,
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
from events.types import Event
from events.types.releases import SAID_AGAIN, follows, since

__all__ = [
    "EMPTY_CONTEXT",
    "AdvanceDrains",
    "AdvanceEncryption",
    "AssignHolders",
    "Decision",
    "DecisionContext",
    "MarkLiveness",
    "MarkNat",
    "MarkPaths",
    "Tick",
    "decide",
]

OLDER_SHOWN = 8

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
    MarkNat: paths.mark_nat,
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
        return _held_back(rule(state, command, now, context), command, context)
    except Refused as refusal:
        return Decision(refusal=refusal)


def _held_back(decision: Decision, command: Command | Tick, context: DecisionContext) -> Decision:
    """The decision, unless somebody who takes part is of a release that cannot follow its events.

    What time and reports bring waits by itself, event by event; a command is refused. Raises
    Refused(older_release).
    """
    if not context.older:
        return decision
    judged = [(event, _cannot_follow(event, context)) for event in decision.events]
    held = [(event, who) for event, who in judged if who]
    if not held:
        return decision
    said_again = isinstance(command, JoinNode) and all(type(event) in SAID_AGAIN for event, _ in held)
    if isinstance(command, Tick) or said_again:
        return Decision(tuple(event for event, who in judged if not who), decision.result)
    event, who = held[0]
    shown = ", ".join(f"{one.who} ({one.version})" for one in who[:OLDER_SHOWN])
    more = f", and {len(who) - OLDER_SHOWN:,} more" if len(who) > OLDER_SHOWN else ""
    raise Refused(
        "older_release",
        f"{event.type_name()} is known since release {since(event)}; of earlier releases are: {shown}{more}. "
        f"A controller among them would stop at that event, an agent would pass over it. Upgrade them, or stop "
        f"them and take nodes out that stay away (`isthmus node remove NODE`); then repeat",
        event=event.type_name(),
        since=since(event),
        older=[{"who": one.who, "version": one.version} for one in who[:OLDER_SHOWN]],
    )


def _cannot_follow(event: Event, context: DecisionContext) -> list[Participant]:
    return [one for one in context.older if not follows(one.version, since(event))]
