"""Decisions about paths that the agents found lost, or open again, and about NAT in their way.

What the agents measured is judged and debounced before (:mod:`controlplane.controller.mesh.collector`,
:mod:`controlplane.controller.agents.nat_watch`); here only what is news becomes an event, and what names a node
or site that is no more is over.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from controlplane.cluster.decision import Decision, DecisionContext, MarkNat, MarkPaths
from controlplane.cluster.nat import at_site, holder
from controlplane.cluster.state import ClusterState, PathKey
from events.types import Event, NodeNatChanged, PathLost, PathRestored

OPEN_MAX = 64
"""Lost paths that are recorded at a time; the widest explanations come first."""
EVIDENCE_MAX, TEXT_MAX = 4, 300


def mark(state: ClusterState, command: MarkPaths, now: datetime, context: DecisionContext) -> Decision:
    """Record what is lost and was not, or is lost in another way, and what is not lost any more."""
    del context
    if state.definition is None or state.deleted:
        return Decision()
    events: list[Event] = []
    for key, known in state.lost_paths.items():
        if key in command.over or not _exists(state, key):
            events.append(PathRestored(scope=known.scope, a=known.a, b=known.b, lost=known.sequence))
    count = len(state.lost_paths) - len(events)
    for one in command.found:
        if not _exists(state, one.key):
            continue
        before = state.lost_paths.get(one.key)
        if before is not None and (before.fault == one.fault or one.key in command.over):
            continue
        if (before is None and count >= OPEN_MAX) or len(events) >= command.limit:
            break
        count += before is None
        events.append(
            PathLost(
                scope=one.scope,
                a=one.a,
                b=one.b,
                fault=one.fault,
                broken_from=one.broken[0],
                broken_to=one.broken[1],
                since=now - timedelta(seconds=max(0.0, command.at_s - one.since)),
                evidence=tuple(text[:TEXT_MAX] for text in one.evidence[:EVIDENCE_MAX]),
            )
        )
    return Decision(tuple(events), {"changed": len(events)})


def _exists(state: ClusterState, path: PathKey) -> bool:
    scope, *ends = path
    if scope in {"node", "pair"}:
        return all(name in state.nodes for name in ends if name)
    sites = {node.site for node in state.nodes.values()}
    return all(site in sites for site in ends if site)


def mark_nat(state: ClusterState, command: MarkNat, now: datetime, context: DecisionContext) -> Decision:
    """Record who is behind NAT and was not, and who is not any more. What is known writes nothing.

    A member that is not behind NAT any more keeps the word as long as another one has its address
    (:func:`controlplane.cluster.nat.holder`).
    """
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
