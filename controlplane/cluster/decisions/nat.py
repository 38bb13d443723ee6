"""Decisions about members behind NAT: what their agents reported, judged before, becomes an event.

A member that is not behind NAT any more keeps the word as long as another one has its address: the log would
have two at one place (:func:`controlplane.cluster.nat.holder`), and a condition says so.
"""

from __future__ import annotations

from datetime import datetime

from controlplane.cluster.decision import Decision, DecisionContext, MarkNat
from controlplane.cluster.nat import at_site, holder
from controlplane.cluster.state import ClusterState
from events.types import Event, NodeNatChanged


def mark(state: ClusterState, command: MarkNat, now: datetime, context: DecisionContext) -> Decision:
    """Record who is behind NAT and was not, and who is not any more. What is known writes nothing."""
    del now, context
    if state.definition is None or state.deleted:
        return Decision()
    events: list[Event] = []
    settled: set[tuple[str, str]] = set()  # address and site, of the events so far
    for found in command.found[: command.limit]:
        name = state.by_uid.get(found.uid)
        if name is None or found.behind == (name in state.behind_nat):
            continue
        member = state.nodes[name]
        place = member.announced, member.site if found.behind else ""
        taken = at_site if found.behind else holder
        if place in settled or taken(state, member.announced, member.site, name) != name:
            continue
        settled.add(place)
        seen = (found.seen_as, found.seen_by) if found.behind else ("", ())
        events.append(
            NodeNatChanged(node=name, uid=found.uid, behind=found.behind, seen_as=seen[0], seen_by=seen[1])
        )
    return Decision(tuple(events), {"changed": len(events)})
