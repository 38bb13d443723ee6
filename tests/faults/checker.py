"""Replays the log and holds it against every answer that the clients got."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import check, violation
from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.attestation import Attestor
from deploy.churn.ledger import Ledger
from events.chain import Head, genesis, verify_link
from events.codec import Recorded, decode
from events.log import LogReader
from events.protocol.commands import CommandReply
from events.types import RangeAllocated


@dataclass
class Answers:
    """What the clients were told. ``refused`` maps a command's id to the code."""

    acknowledged: dict[str, CommandReply] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)


@dataclass
class Verdict:
    """The log's end, the folded state, what kernels must attest, and everything that is wrong (nothing, one
    hopes)."""

    head: Head
    state: ClusterState
    attestor: Attestor
    wrong: list[str]


async def examine(log: LogReader, answers: Answers) -> Verdict:
    """Fold the whole log; look for lost and doubled commands, broken links and violated invariants.

    Raises VerificationFailed for a broken chain, a gap, or two owners of one range.
    """
    head, state, ledger, attestor = genesis(log.cluster), ClusterState(log.cluster), Ledger(), Attestor()
    by_command: dict[str, list[Recorded]] = defaultdict(list)
    wrong: list[str] = []
    async for batch in log.read():
        for message in batch.messages:
            head = verify_link(head, message.sequence, message.subject, message.headers, message.body)
            recorded = decode(message)
            found = violation(state, recorded.sequence, recorded.event, recorded.envelope.time)
            if found is not None:
                wrong.append(f"event {found.sequence}: invariant {found.invariant}: {found.message}")
            evolve(state, recorded.sequence, recorded.event)
            ledger.take(recorded)
            attestor.fold((recorded,))
            by_command[recorded.envelope.command_id].append(recorded)
    wrong += [f"at the end: invariant {each.invariant}: {each.message}" for each in check(state)]
    for command_id, events in by_command.items():
        wrong += doubled(command_id, events)
    for command_id, reply in answers.acknowledged.items():
        wrong += _lost(command_id, reply, by_command.get(command_id, []))
    return Verdict(head, state, attestor, wrong)


def doubled(command_id: str, events: list[Recorded]) -> list[str]:
    """A command's events are one transaction: each index once, side by side."""
    indices = [event.envelope.tx_index for event in events]
    if indices != list(range(events[0].envelope.tx_count)):
        return [f"command {command_id} has the events {indices} of {events[0].envelope.tx_count}"]
    sequences = [event.sequence for event in events]
    if sequences != list(range(sequences[0], sequences[0] + len(sequences))):
        return [f"command {command_id} is scattered over the sequences {sequences}"]
    return []


def _lost(command_id: str, reply: CommandReply, events: list[Recorded]) -> list[str]:
    if not events:  # each command of the load changes something
        return [f"command {command_id} was acknowledged and is not in the log"]
    stated = [(written.sequence, written.type) for written in reply.events]
    stored = [(event.sequence, event.envelope.type) for event in events]
    if stated and stated != stored:
        return [f"command {command_id} was acknowledged with {stated}, the log has {stored}"]
    promised = reply.result.get("cidr")
    given = [event.event.cidr for event in events if isinstance(event.event, RangeAllocated)]
    if promised and given and given != [promised]:
        return [f"command {command_id} was promised {promised}, the log gave {given}"]
    return []
