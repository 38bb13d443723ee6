"""Decisions that time and the agents' reports bring: silence, return, drains, quarantine.

Called at every tick of the leading controller, so each costs what it changes, plus one pass over
the members (never members times ranges). The clock comes in as ``now``; deadlines go out as data.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from datetime import datetime, timedelta

from controlplane.cluster.decision import AdvanceDrains, Decision, DecisionContext, MarkLiveness
from controlplane.cluster.decisions.holders import hand_over
from controlplane.cluster.decisions.nodes import drain
from controlplane.cluster.state import ClusterState
from events.types import (
    Event,
    NodeFenced,
    NodeRecovered,
    NodeUnreachable,
    RangeFreed,
    RangeQuarantined,
)


def mark_liveness(
    state: ClusterState, command: MarkLiveness, now: datetime, context: DecisionContext
) -> Decision:
    """Unreachable after ``unreachable_after_s`` of silence, recovered with the next report.

    With ``remove_after_s`` > 0 a node that has been unreachable for that long is fenced and its
    range drains. Only silence that was watched from its beginning to its end counts, and only that of an
    agent that has spoken: a member that was entered by hand and never came is neither lost nor found.
    """
    definition = state.definition
    if definition is None or state.deleted:
        return Decision()
    at = command.at or now
    silent_before = at - timedelta(seconds=definition.unreachable_after_s)
    removal_s = definition.unreachable_after_s + definition.remove_after_s
    removes = command.removes and definition.remove_after_s > 0
    dead_before = at - timedelta(seconds=removal_s) if removes else None
    last_seen, watched = command.last_seen, command.watched
    unreachable = state.unreachable
    events: list[Event] = []
    for name, node in state.nodes.items():
        if len(events) + 2 > command.limit:
            break
        seen = last_seen.get(node.uid)
        if seen is not None and seen >= silent_before:  # nearly every node, at nearly every tick
            if unreachable and name in unreachable and (watched is None or node.uid in watched):
                events.append(NodeRecovered(node=name, uid=node.uid))
            continue
        since = command.watching_since
        if command.came is not None and node.uid not in command.came and name not in unreachable:
            continue
        if watched is not None:
            begun = watched.get(node.uid)
            if begun is None:
                continue  # it has joined since the leader looked
            since = max(since, begun)
        if seen is None:
            seen = since
            if seen >= silent_before:
                continue
        silence = at - max(seen, since)
        if name not in unreachable:
            if since < silent_before:
                events.append(NodeUnreachable(node=name, uid=node.uid, last_seen=now - (at - seen)))
        elif dead_before is not None and max(seen, since) < dead_before:
            reason = f"no report for {silence.total_seconds():.0f} s"
            held = hand_over(state, name, "fenced", context)
            if len(events) + len(held) + 2 > command.limit:
                break
            events += held
            events.append(NodeFenced(node=name, uid=node.uid, cause="unreachable", reason=reason))
            events.append(drain(state.owned[name]))
    return Decision(tuple(events), {"changed": len(events)})


def watermark(
    state: ClusterState, applied: Mapping[str, int], floor: int = 0, absent: Container[str] = frozenset()
) -> int:
    """The lowest applied sequence of the live agents; the state's own when there is none. O(members).

    Members in ``absent`` have never reported, and are not coming: they hold nothing.
    A report from beyond the state's sequence is not believed: it is about another log. Stops at the
    first agent below ``floor``: whoever asks for at least so much need not know the rest.
    """
    lowest = state.sequence
    for uid in state.by_uid:
        value = applied.get(uid, 0)
        if value > state.sequence:
            return 0
        if value < lowest and not (value == 0 and uid in absent):
            lowest = value
            if lowest < floor:
                break
    return lowest


def laggards(
    state: ClusterState,
    applied: Mapping[str, int],
    sequence: int,
    limit: int = 8,
    absent: Container[str] = frozenset(),
) -> list[str]:
    """Names of live nodes whose agents have not reported ``sequence`` as applied: what a drain waits for."""
    names: list[str] = []
    for uid, name in state.by_uid.items():
        value = applied.get(uid, 0)
        if not sequence <= value <= state.sequence and not (value == 0 and uid in absent):
            names.append(name)
            if len(names) == limit:
                break
    return names


def advance_drains(
    state: ClusterState, command: AdvanceDrains, now: datetime, context: DecisionContext
) -> Decision:
    """Draining → quarantined when every live agent has applied it; quarantined → free when rested.

    Both maps are in order of sequence, so each pass ends at the first range that is not due.
    """
    del context
    definition = state.definition
    if definition is None or not (state.draining or state.quarantined):
        return Decision()
    events: list[Event] = []
    if command.frees:
        _free_due(state, now, definition.quarantine_s, command, events)
    if state.draining and len(events) < command.limit:
        oldest = next(iter(state.draining.values()))
        mark = watermark(state, command.applied, oldest, command.absent)
        until = now + timedelta(seconds=definition.quarantine_s)
        for index, drained in state.draining.items():
            if drained > mark or len(events) + 2 > command.limit:
                break
            if index in command.occupied:
                continue  # whoever comes after it does not wait for it
            held = state.ranges[index]
            events.append(
                RangeQuarantined(cidr=held.cidr, index=index, epoch=held.epoch, watermark=mark, until=until)
            )
            if until <= now:
                events.append(RangeFreed(cidr=held.cidr, index=index, epoch=held.epoch))
    return Decision(tuple(events), {"changed": len(events)})


def _free_due(
    state: ClusterState, now: datetime, rest_s: float, command: AdvanceDrains, events: list[Event]
) -> None:
    rested_s = command.rested_s
    for index, rest in state.quarantined.items():
        if len(events) >= command.limit:
            return
        if index in command.occupied:
            continue
        if rest.until <= now and (rested_s is None or rested_s.get(index, 0.0) >= rest_s):
            events.append(RangeFreed(cidr=rest.cidr, index=index, epoch=rest.epoch))
        elif state.quarantine_ordered:
            return
