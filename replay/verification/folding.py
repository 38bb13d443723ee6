"""The meaning side of a verification: fold, invariants at every sequence, digests that others state."""

from __future__ import annotations

from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import msgspec

from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import HANDLERS, evolve
from controlplane.cluster.invariants import CHECKS, check
from controlplane.cluster.state import ClusterState
from controlplane.cluster.state_decoder import decode_state
from controlplane.controller.publishing.checkpoints import Checkpoint, check_signature
from events.chain import CHAIN_HEADER, Head
from events.codec import StoredMessage
from events.errors import VerificationFailed
from events.types import Event, RangeFreed
from replay.archive import lines
from replay.verification import fold_payload
from replay.verification.findings import Finding, Findings, key_names

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from replay.history import History
    from replay.verification.outcome import Check, Wanted


_seq: Any = attrgetter("seq")

# Type → its check and its handler.
_CHECKED = {cls: (CHECKS.get(cls), handler) for cls, handler in HANDLERS.items()}


class Folding:
    """Folds lines as they come. ``alive`` until an event cannot be folded."""

    def __init__(self, history: History, findings: Findings, wanted: Wanted) -> None:
        self._findings = findings
        self.state = ClusterState(history.cluster)
        self._parked = history.parked
        self.alive, self.stopped, self.why = True, 0, ""
        if history.start:
            self._begin(history)
        self._stated: dict[int, list[tuple[str, str]]] = {}
        self._chains: dict[int, list[tuple[str, str]]] = {}
        self._compared = 0
        self._signed = 0
        self._start, self._start_digest = history.start, history.index.start_digest
        self._vouched: dict[str, int] = {}
        self._wanted = wanted
        for checkpoint in wanted.checkpoints:
            self._expect(checkpoint)
        for who, sequence, digest in wanted.states:
            self._stated.setdefault(sequence, []).append((who, digest))
        for who, sequence, digest in wanted.heads:
            self._expect_chain(who, sequence, digest)
        # Sequences at which to stop and compare, the next one last.
        self._stops = sorted(self._stated, reverse=True)
        self._chain_stops = sorted(self._chains, reverse=True)
        self._agreed = history.start

    def _begin(self, history: History) -> None:
        """The history starts later: from the state that a capsule carries, or not at all."""
        try:
            text = history.base
            if text is not None:
                self.state = decode_state(text)
                self.state.parked = frozenset(n for n in self._parked if n <= history.start)
                return
            why = f"the file begins behind event {history.start}: give the earlier ones, too"
        except VerificationFailed as error:
            why = error.message
            self._note("invariants", error.code, why, history.start)
        self.stop(history.start + 1, why)

    def _expect(self, checkpoint: Checkpoint) -> None:
        try:
            self._check_trusted(checkpoint)
            check_signature(checkpoint, self.state.name, checkpoint.key)
        except VerificationFailed as error:
            self._note("checkpoints", error.code, error.message, checkpoint.sequence)
            return
        self._signed += 1
        if self._start < checkpoint.sequence:
            self._vouched[checkpoint.key] = max(checkpoint.sequence, self._vouched.get(checkpoint.key, 0))
        who = f"the checkpoint signed {checkpoint.time:%Y-%m-%d %H:%M:%S} UTC"
        self._expect_chain(who, checkpoint.sequence, checkpoint.chain)
        if checkpoint.sequence > self._start:
            self._stated.setdefault(checkpoint.sequence, []).append((who, checkpoint.state))

    def _check_trusted(self, checkpoint: Checkpoint) -> None:
        trusted = self._wanted.public_keys
        if trusted and checkpoint.key not in trusted:
            raise VerificationFailed(
                "checkpoint_mismatch",
                f"checkpoint {checkpoint.sequence} is signed by key {checkpoint.key[:16]}…, not by "
                f"{key_names(trusted)}: give another controller's key, too (--public-key once more)",
            )

    def _expect_chain(self, who: str, sequence: int, digest: str) -> None:
        """What lies before the first event cannot be compared here; what it follows can."""
        if sequence > self._start:
            self._chains.setdefault(sequence, []).append((who, digest))
        elif sequence == self._start and self._start_digest not in (None, digest):
            self._note(
                "checkpoints",
                "checkpoint_mismatch",
                f"{who} states chain {digest[:16]}… behind event {sequence}, the archive follows "
                f"{str(self._start_digest)[:16]}…: it is of another history",
                sequence,
            )

    def _note(self, check: str, code: str, message: str, sequence: int) -> None:
        self._findings.add(Finding(check, code, message, sequence))

    def stop(self, sequence: int, why: str) -> None:
        """The fold cannot go on from ``sequence``."""
        if self.alive:
            self.alive, self.stopped, self.why = False, sequence, why

    def take(self, data: bytes) -> None:
        """The next lines, while the fold is alive."""
        try:
            facts: Sequence[lines.Fact] = lines.facts(data, self._parked)
        except (VerificationFailed, msgspec.MsgspecError, ValueError):
            self._one_by_one(data)
        else:
            self._fold(map(_seq, facts), facts)

    def take_bare(self, first: int, text: bytes) -> None:
        """Judged events (:mod:`replay.verification.fold_payload`), in unbroken order from ``first``."""
        self._fold(count(first), fold_payload.decode(text))

    def parks(self, first: int, last: int) -> bool:
        """Whether an event in ``first`` … ``last`` is to be left out."""
        return any(first <= sequence <= last for sequence in self._parked)

    def wants(self, last: int) -> bool:
        """Whether a digest of the chain is to be compared at or before ``last``."""
        return bool(self._chain_stops) and self._chain_stops[-1] <= last

    def compare_chains(self, data: bytes, last: int) -> None:
        """Compare the chain at the stated sequences within ``data``, which ends with event ``last``."""
        wanted = set()
        while self.wants(last):
            wanted.add(self._chain_stops.pop())
        found = {m.sequence: m.headers.get(CHAIN_HEADER, "") for m in _rows(data, last, wanted)}
        for sequence in sorted(wanted):
            for who, digest in self._chains[sequence]:
                if found.get(sequence) == digest:
                    self._agreed = max(self._agreed, sequence)
                    continue
                self._note(
                    "checkpoints",
                    "checkpoint_mismatch",
                    f"{who} states chain {digest[:16]}… behind event {sequence}, the log has "
                    f"{found.get(sequence, 'nothing')[:16]}…: it was rewritten between events "
                    f"{self._agreed + 1} and {sequence}",
                    sequence,
                )

    def _fold(
        self, sequences: Iterable[int], facts: Sequence[lines.Fact] | Sequence[fold_payload.FoldPayload]
    ) -> None:
        state, judged = self.state, _CHECKED
        stop = self._stops[-1] if self._stops else 0
        for sequence, fact in zip(sequences, facts, strict=False):
            event = fact.body
            judge, handle = judged[type(event)]
            broken = None
            if judge is not None:
                broken = judge(state, event)
                if broken is None and type(event) is RangeFreed:
                    broken = _too_early(state, fact, event)
                if broken is not None:
                    message = f"invariant {broken[0]} at event {sequence}: {broken[1]}"
                    self._note("invariants", "invariant_violated", message, sequence)
            try:
                handle(state, sequence, event)
            except Exception:  # a contradiction has several shapes; evolve gives it its one name
                self._unfoldable(sequence, event, noted=broken is not None)
                return
            state.sequence = sequence
            if sequence == stop:
                self._compare_states(sequence)
                self._stops.pop()
                stop = self._stops[-1] if self._stops else 0

    def _unfoldable(self, sequence: int, event: Event, *, noted: bool) -> None:
        try:
            evolve(self.state, sequence, event)
        except VerificationFailed as error:
            if not noted:
                self._note("invariants", error.code, error.message, sequence)
        self.stop(sequence, "it contradicts the state before it")

    def _one_by_one(self, data: bytes) -> None:
        """Lines of which at least one cannot be decoded: fold what stands before it."""
        sound: list[lines.Fact] = []
        try:
            for message in lines.messages(data):
                sound += lines.facts_of([message], self._parked)
        except (VerificationFailed, msgspec.MsgspecError, ValueError):
            self._fold(map(_seq, sound), sound)
            self.stop(sound[-1].seq + 1 if sound else self.state.sequence + 1, "it cannot be decoded")
            return
        self._fold(map(_seq, sound), sound)

    def _compare_states(self, sequence: int) -> None:
        digest = state_digest(self.state)
        for who, stated in self._stated[sequence]:
            self._compared += 1
            if stated != digest:
                self._note(
                    "states",
                    "digest_mismatch",
                    f"{who} states {stated[:16]}… for the state at event {sequence}, "
                    f"the log folds to {digest[:16]}…",
                    sequence,
                )

    def digest(self) -> str:
        """The digest of the state at the end; empty when the fold did not get there."""
        return state_digest(self.state) if self.alive else ""

    def finish(self, head: Head, signers: Collection[str] = ()) -> None:
        """The state as a whole, what others know of events that are not in the log, and who vouches for it.

        ``signers``: the keys by which the archive itself is signed.
        """
        for key in self._wanted.public_keys:
            if key not in self._vouched and key not in signers:
                self._note(
                    "checkpoints",
                    "evidence_missing",
                    f"nothing here is signed by key {key[:16]}…, neither a checkpoint nor the archive. Whoever "
                    "rewrites a log takes them away: give the controller's checkpoints (--checkpoints FILE)",
                    0,
                )
        if self.alive:
            for violation in check(self.state):
                message = f"invariant {violation.invariant} in the final state: {violation.message}"
                self._note("invariants", "invariant_violated", message, violation.sequence)
        beyond = sorted(sequence for sequence in self._chains if sequence > head.sequence)
        for sequence in beyond:
            who = self._chains[sequence][0][0]
            self._note(
                "checkpoints",
                "log_truncated",
                f"{who} knows event {sequence}, the log ends with event {head.sequence}: "
                f"at least {sequence - head.sequence} events are missing at its end",
                head.sequence + 1,
            )

    def _vouchers(self) -> str:
        if self._wanted.public_keys:
            reached = max(self._vouched.values(), default=0)
            return f"the keys prove the events up to {reached:,} of {self.state.sequence:,}" if reached else ""
        if self._signed:
            return "signatures were checked with the keys that the checkpoints name: give one you trust"
        return ""

    def checks(self, check: Callable[..., Check]) -> list[Check]:
        """The report's lines about meaning."""
        reached = self.state.sequence
        stopped = "" if self.alive else f"stopped at event {self.stopped}: {self.why}"
        left_out = _runs(self._parked)
        rows: list[Any] = [
            check(
                "invariants",
                "Invariants of the design, after every event",
                reached,
                "events",
                done=self.alive,
                detail=stopped or (f"left out, as the log says: events {left_out}" if left_out else ""),
            )
        ]
        if self._chains or self._wanted.public_keys:
            rows.append(
                check(
                    "checkpoints",
                    "Signed checkpoints and known heads agree with the chain",
                    len(self._chains),
                    "points",
                    detail=self._vouchers(),
                )
            )
        if self._stated:
            rows.append(
                check(
                    "states",
                    "State digests of checkpoints, controller and read model equal the fold",
                    self._compared,
                    "digests",
                    done=self.alive,
                    detail=stopped,
                )
            )
        return rows


def _runs(sequences: frozenset[int]) -> str:
    """``4, 7-9``; empty for none."""
    runs: list[list[int]] = []
    for sequence in sorted(sequences):
        if runs and runs[-1][1] == sequence - 1:
            runs[-1][1] = sequence
        else:
            runs.append([sequence, sequence])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _too_early(
    state: ClusterState, fact: lines.Fact | fold_payload.FoldPayload, event: RangeFreed
) -> tuple[int, str] | None:
    """Whether a range came back before its quarantine was over, by the event's own time."""
    time = lines.own_time(fact)
    until = state.quarantined[event.index].until
    if time is None or time >= until:
        return None
    return 5, f"range {event.cidr} is freed at {time.isoformat()}, its quarantine ends {until.isoformat()}"


def _rows(data: bytes, last: int, wanted: set[int]) -> list[StoredMessage]:
    """The wanted lines of ``data``, which ends with event ``last``; all of it when that fails."""
    rows = data.rstrip(b"\n").split(b"\n")
    first = last - len(rows) + 1
    picked = [rows[sequence - first] for sequence in sorted(wanted) if first <= sequence <= last]
    try:
        found = lines.messages(b"\n".join(picked))
        return found if {m.sequence for m in found} == wanted else lines.messages(data)
    except (msgspec.MsgspecError, ValueError):
        return []
