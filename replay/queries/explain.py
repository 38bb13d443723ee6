"""``explain``: from the command to the kernels: who asked, what it caused, who has applied it.

Evidence for "applied" comes from three places, and the answer says which: the agents' last reports
(applied at the latest then), the log itself (a quarantine states how far every live agent was), and
the span store, if one is at hand (the moment of each agent's netlink batch).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

import msgspec

from controlplane.cluster.state import ClusterState
from events.codec import Recorded, decode
from events.errors import Usage
from events.status import AgentStatus
from events.types import NodeFenced, NodeJoined, NodeLeft, RangeAllocated, RangeQuarantined
from replay.history import History, Progress
from replay.queries.entries import Entry, entry
from replay.queries.stamp import Stamp, stamp
from replay.queries.states import States, advance
from replay.queries.unknown import unknown

_AT_ONCE = 16
"""Look-ups under way at once."""


class Applied(msgspec.Struct, frozen=True, kw_only=True):
    """One agent and the command's last event. ``applied`` is the agent's last applied sequence, ``at`` when.

    ``evidence``: "span" is the moment of the kernel write, "report" an upper bound.
    """

    node: str
    done: bool
    applied: int
    at: datetime
    evidence: Literal["span", "report"]
    state: str = ""


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One command and its effects. ``everywhere`` is the log's proof that all live agents had applied it.

    Of each member at that time there are three answers: ``applied`` holds those who have it and those who
    said that they do not (yet), ``unheard`` the others.
    """

    command_id: str
    actor: str
    source: str
    correlation_id: str
    causation_id: str
    trace_id: str
    time: datetime
    events: list[Entry]
    followed_by: list[Entry]
    applied: list[Applied]
    everywhere: Stamp | None
    note: str
    unheard: list[str] = []
    """Members at that time of whose kernels nothing is known here: neither that they had it nor that not."""


async def explain(
    history: History,
    target: str,
    *,
    kind: Literal["node", "range", "command", "sequence"],
    until: int | None = None,
    reports: list[AgentStatus] | None = None,
    spans: list[Applied] | None = None,
) -> list[Explanation]:
    """Explain every command that speaks of a node or range, or the one that is named. Newest last.

    Raises Refused(not_in_history).
    """
    stop = history.end if until is None else until
    commands: dict[str, list[Recorded]] = {}
    if kind == "sequence":
        if not re.fullmatch(r"#?\d{1,18}", target):
            raise Usage("usage", f"{target!r} is no sequence: write a whole number, for example 4711")
        await _gather(history, commands, decode(await history.message(int(target.lstrip("#")))))
    elif kind == "command":
        async for batch in history.messages(until=stop):
            for message in batch:
                if message.headers.get("ce-commandid") == target:
                    commands.setdefault(target, []).append(decode(message))
    else:
        async for recorded in history.about(kind, target, until=stop):
            if recorded.envelope.command_id not in commands:
                await _gather(history, commands, recorded)
    if not commands:
        raise await unknown(history, kind, target, stop)
    told = await _sort_out(history, reports or [])
    return [await _explain(history, events, told, spans or []) for events in commands.values()]


class _Reports(NamedTuple):
    """Reports by whose they are. ``gone``: of nodes that have left, were fenced, or joined anew since."""

    members: list[AgentStatus]
    gone: list[AgentStatus]
    strangers: int
    """How many came from agents that never were members by that uid: a join that was refused, a clone."""


async def _sort_out(history: History, reports: list[AgentStatus]) -> _Reports:
    room = asyncio.Semaphore(_AT_ONCE)

    async def standing(report: AgentStatus) -> Literal["member", "gone", "stranger"]:
        async with room:
            newest = await history.last_about_node(report.node)
            if newest is None:
                # An archive of a part may begin after the node joined: then nothing speaks against it.
                return "member" if history.index.start else "stranger"
            if getattr(newest.event, "uid", "") == report.uid:
                return "gone" if isinstance(newest.event, NodeLeft | NodeFenced) else "member"
            async for recorded in history.about("node", report.node):
                if isinstance(recorded.event, NodeJoined) and recorded.event.uid == report.uid:
                    return "gone"
            return "stranger"

    found = await asyncio.gather(*(standing(report) for report in reports))
    sorted_out = list(zip(reports, found, strict=True))
    return _Reports(
        [report for report, is_ in sorted_out if is_ == "member"],
        [report for report, is_ in sorted_out if is_ == "gone"],
        found.count("stranger"),
    )


async def _gather(history: History, commands: dict[str, list[Recorded]], recorded: Recorded) -> None:
    """All events of the command that ``recorded`` belongs to: they stand together."""
    first = recorded.sequence - recorded.envelope.tx_index
    events = [
        recorded if sequence == recorded.sequence else decode(await history.message(sequence))
        for sequence in range(first, first + recorded.envelope.tx_count)
    ]
    commands[recorded.envelope.command_id] = events


async def _explain(
    history: History, events: list[Recorded], reports: _Reports, spans: list[Applied]
) -> Explanation:
    envelope, last = events[0].envelope, events[-1].sequence
    later: list[Recorded] = []
    everywhere: Recorded | None = None
    for recorded in events:
        epoch = recorded.sequence if isinstance(recorded.event, RangeAllocated) else 0
        epoch = epoch or int(getattr(recorded.event, "epoch", 0))
        cidr = str(getattr(recorded.event, "cidr", ""))
        if not cidr or not epoch:
            continue
        async for following in history.about("range", cidr, after=last):
            if int(getattr(following.event, "epoch", 0)) != epoch:
                continue
            later.append(following)
            if everywhere is None and isinstance(following.event, RangeQuarantined):
                everywhere = following if following.event.watermark >= last else None
    traced = {item.node: item for item in spans}
    reported = [
        Applied(
            node=report.node,
            done=report.applied >= last,
            applied=report.applied,
            at=report.sent_at,
            evidence="report",
            state=report.state,
        )
        for report in (*reports.members, *(report for report in reports.gone if report.applied >= last))
        if report.node not in traced
    ]
    silent = sum(report.applied < last for report in reports.gone)
    applied = sorted([*traced.values(), *reported], key=lambda item: (item.done, item.at, item.node))
    left_out = [f"{silent:,} whose nodes have left or were fenced since"] if silent else []
    if reports.strangers:
        left_out.append(f"{reports.strangers:,} that never were members (their join was refused)")
    note = ""
    if not applied and not left_out:
        live = history.index.archive is None
        note = (
            "no agent has reported yet"
            if live
            else "no agents' reports at hand: they are on the live bus, or in a capsule"
        )
    if left_out:
        note = f"not counted: {', '.join(left_out)}"
    first_stamp = stamp(events[0])
    return Explanation(
        command_id=envelope.command_id,
        actor=envelope.actor,
        source=envelope.source,
        correlation_id=envelope.correlation_id,
        causation_id=envelope.causation_id,
        trace_id=first_stamp.trace_id,
        time=envelope.time,
        events=[entry(recorded) for recorded in events],
        followed_by=[entry(recorded) for recorded in later],
        applied=applied,
        everywhere=stamp(everywhere) if everywhere else None,
        note=note,
    )


async def with_unheard(
    states: States, items: Sequence[Explanation], progress: Progress | None = None
) -> list[Explanation]:
    """The explanations (in order) with the members of each moment of whom nothing is known.

    Raises Refused(not_in_history) for an incremental archive on its own: who was a member then it cannot say.

    """
    found: list[Explanation] = []
    folded: ClusterState | None = None
    for item in items:
        last = item.events[-1].stamp.sequence
        if folded is None or states.read_model is not None:
            folded, _ = await states.at(last, progress)
        else:
            await advance(states.history, folded, last, progress)
        heard = {agent.node for agent in item.applied}
        note = item.note if folded.nodes or heard else "No node was a member then."
        found.append(msgspec.structs.replace(item, unheard=sorted(folded.nodes.keys() - heard), note=note))
    return found


def from_spans(records: list[Any], last: int) -> list[Applied]:
    """What a trace's spans say of agents: each agent's first apply that reached ``last``."""
    found: dict[str, Applied] = {}
    for record in records:
        if not record.service.endswith("agent") or record.attributes.get("isthmus.replay"):
            continue
        reached = record.attributes.get("isthmus.sequence.last", record.attributes.get("isthmus.sequence", 0))
        node = str(record.attributes.get("isthmus.node", record.instance))
        at = datetime.fromtimestamp(record.end_ns / 1e9, UTC)
        if isinstance(reached, int) and reached >= last and (node not in found or at < found[node].at):
            found[node] = Applied(node=node, done=True, applied=reached, at=at, evidence="span")
    return [found[node] for node in sorted(found)]
