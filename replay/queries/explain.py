"""``explain``: from the command to the kernels: who asked, what it caused, who has applied it.

Evidence for "applied" comes from three places, and the answer says which: the agents' last reports
(applied at the latest then), the log itself (a quarantine states how far every live agent was), and
the span store, if one is at hand (the moment of each agent's netlink batch).
"""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from events.codec import Recorded, decode
from events.errors import Usage
from events.status import AgentStatus
from events.types import NodeFenced, NodeLeft, RangeAllocated, RangeQuarantined
from replay.history import History
from replay.queries.entries import Entry, entry
from replay.queries.stamp import Stamp, stamp
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
    """One command and its effects. ``everywhere`` is the log's proof that all live agents had applied it."""

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
    newest = max(events[-1].sequence for events in commands.values())
    gone = await _gone(history, [report for report in reports or [] if report.applied < newest])
    return [await _explain(history, events, reports or [], spans or [], gone) for events in commands.values()]


async def _gone(history: History, behind: list[AgentStatus]) -> set[str]:
    """Uids of agents that are behind and will stay so: their nodes have left, were fenced, or joined anew."""
    room = asyncio.Semaphore(_AT_ONCE)

    async def left(report: AgentStatus) -> bool:
        async with room:
            newest = await history.last_about_node(report.node)
        if newest is None:
            return False
        event = newest.event
        return isinstance(event, NodeLeft | NodeFenced) or getattr(event, "uid", report.uid) != report.uid

    answers = await asyncio.gather(*(left(report) for report in behind))
    return {report.uid for report, answer in zip(behind, answers, strict=True) if answer}


async def _gather(history: History, commands: dict[str, list[Recorded]], recorded: Recorded) -> None:
    """All events of the command that ``recorded`` belongs to: they stand together."""
    first = recorded.sequence - recorded.envelope.tx_index
    events = [
        recorded if sequence == recorded.sequence else decode(await history.message(sequence))
        for sequence in range(first, first + recorded.envelope.tx_count)
    ]
    commands[recorded.envelope.command_id] = events


async def _explain(
    history: History, events: list[Recorded], reports: list[AgentStatus], spans: list[Applied], gone: set[str]
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
        for report in reports
        if report.node not in traced and (report.applied >= last or report.uid not in gone)
    ]
    silent = sum(report.uid in gone and report.applied < last for report in reports)
    applied = sorted([*traced.values(), *reported], key=lambda item: (item.done, item.at, item.node))
    note = "" if applied or silent else "no agents' reports at hand: they are on the live bus, or in a capsule"
    if silent:
        note = f"not counted: {silent:,} whose nodes have left or were fenced since"
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
