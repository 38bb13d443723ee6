"""The omniscient observer: sees every append as it happens and objects at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.invariants import check, violation
from controlplane.cluster.state import ClusterState
from events.chain import Head, genesis, verify_link
from events.codec import OutgoingMessage, Recorded, decode
from events.errors import IsthmusError
from events.memory import MemoryLog
from events.protocol.commands import CommandReply
from events.types import (
    AllocationRefused,
    ClbRefused,
    ConflictRefused,
    NodeFenced,
    NodeUnreachable,
    RangeAllocated,
    RangeDraining,
    RangeFreed,
    RangeQuarantined,
)

REFUSALS = (AllocationRefused, ClbRefused, ConflictRefused)

COMMIT_S = 4.0
"""Longest time from a decision to its storage, or to its being given up."""

Kernel = dict[str, int]
"""One machine's rows about its peers: range (CIDR) → epoch. It survives the agent."""


class Wrong(Exception):
    """A promise was broken; the text says which."""


class WatchedLog(MemoryLog):
    """The log's disk. After each append it verifies chain, invariants and the safety of reuse."""

    def __init__(self, cluster: str, clock_ns: Callable[[], int]) -> None:
        super().__init__(cluster, clock_ns=clock_ns, batch_size=64)
        self.state = ClusterState(cluster)
        self.chain: Head = genesis(cluster)
        self.history: list[Recorded] = []
        self.kernels: dict[str, Kernel] = {}
        """uid of the machine's agent → its rows."""
        self._released: dict[str, int] = {}
        self.heard_s: dict[tuple[str, str], list[float]] = {}
        """Controller and uid → when it heard of it; seconds of true time."""
        self.started_s: dict[str, float] = {}
        """Controller → when its process started."""
        self._resting_s: dict[str, float] = {}
        self.wrong: Wrong | None = None

    async def append(
        self, messages: Sequence[OutgoingMessage], *, expected: int, timeout_s: float = 5.0
    ) -> int:
        last = await super().append(messages, expected=expected, timeout_s=timeout_s)
        if self.wrong is None:
            try:
                for message in self._messages[self.chain.sequence :]:
                    self.chain = verify_link(
                        self.chain, message.sequence, message.subject, message.headers, message.body
                    )
                    self._judge(decode(message))
            except Wrong as wrong:
                self.wrong = wrong
            except IsthmusError as error:
                self.wrong = Wrong(f"the log cannot be read any more: {error.message}")
        return last

    def _judge(self, recorded: Recorded) -> None:
        found = violation(self.state, recorded.sequence, recorded.event, recorded.envelope.time)
        if found is not None:
            raise Wrong(f"invariant {found.invariant} at event {found.sequence}: {found.message}")
        if isinstance(recorded.event, RangeDraining):
            self._released[recorded.event.cidr] = recorded.sequence
        if isinstance(recorded.event, RangeAllocated) and recorded.event.cidr in self._released:
            cidr = recorded.event.cidr
            for uid, rows in self.kernels.items():
                name = self.state.by_uid.get(uid)
                # Who joined after the release (again, perhaps) is not waited for; it starts by comparing.
                waited_for = name is not None and self.state.nodes[name].joined < self._released[cidr]
                if waited_for and cidr in rows:
                    raise Wrong(
                        f"event {recorded.sequence} gives {cidr} to {recorded.event.node}, while the live node "
                        f"{name} still has rows of its epoch {rows[cidr]}"
                    )
        self._judge_durations(recorded)
        if self.history and recorded.envelope.time < self.history[-1].envelope.time:
            raise Wrong(f"time runs backwards at event {recorded.sequence}")
        evolve(self.state, recorded.sequence, recorded.event)
        self.history.append(recorded)

    def _judge_durations(self, recorded: Recorded) -> None:
        """What needs a duration has lasted so long, whatever the clocks said."""
        event, definition, now_s = recorded.event, self.state.definition, recorded.recorded_at.timestamp()
        if definition is None:
            return
        if isinstance(event, RangeQuarantined):
            self._resting_s[event.cidr] = now_s
        elif isinstance(event, RangeFreed):
            rested_s = now_s - self._resting_s[event.cidr]
            if rested_s < definition.quarantine_s - 1e-3:
                raise Wrong(f"event {recorded.sequence} frees {event.cidr} after {rested_s:.3f} s of rest")
        elif isinstance(event, NodeUnreachable) or (
            isinstance(event, NodeFenced) and event.cause == "unreachable"
        ):
            controller = recorded.envelope.source.removeprefix("sim/")
            began_s = self.started_s[controller]
            heard_s = [
                began_s,
                *(s for s in self.heard_s.get((controller, event.uid), ()) if s > began_s),
                now_s,
            ]
            # It was decided some time before it was stored: what was heard in between came too late.
            silences_s = [b - a for a, b in pairwise(heard_s) if b >= now_s - COMMIT_S]
            least_s = definition.unreachable_after_s
            if isinstance(event, NodeFenced):
                least_s += definition.remove_after_s
            if max(silences_s) < least_s - 1e-3:
                raise Wrong(
                    f"event {recorded.sequence}: {controller} has watched {event.node} be silent for "
                    f"{max(silences_s):.3f} s only"
                )

    def final(self, acknowledged: dict[str, CommandReply]) -> Iterator[str]:
        """What is wrong at the end, of what can only be said then."""
        for found in check(self.state):
            yield f"invariant {found.invariant}: {found.message}"
        by_command: dict[str, list[Recorded]] = {}
        for recorded in self.history:
            by_command.setdefault(recorded.envelope.command_id, []).append(recorded)
        for command_id, events in by_command.items():
            first, count = events[0].sequence, events[0].envelope.tx_count
            if [e.sequence for e in events] != list(range(first, first + count)):
                found = [e.sequence for e in events]
                yield f"command {command_id} has events {found}: not one effect of {count}"
        for command_id, reply in acknowledged.items():
            stored = [recorded.sequence for recorded in by_command.get(command_id, [])]
            told = [written.sequence for written in reply.events]
            if stored != told:
                yield f"command {command_id} was acknowledged with events {told}, the log holds {stored}"

    def outcomes(self, told: dict[str, set[str]]) -> Iterator[str]:
        """Commands that had more than one outcome: two answers that differ, or "no" and yet an effect."""
        refused = {r.envelope.command_id for r in self.history if isinstance(r.event, REFUSALS)}
        effects = {r.envelope.command_id for r in self.history} - refused
        for command_id, codes in told.items():
            if len(codes) > 1:
                yield f"command {command_id} was answered {' and '.join(sorted(codes))}"
            if codes != {"done"} and command_id in effects:
                yield f"command {command_id} was refused ({', '.join(sorted(codes))}), and it is in the log"

    @property
    def digest(self) -> str:
        """Of the true state."""
        return state_digest(self.state)
