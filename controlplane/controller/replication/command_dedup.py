"""Which command ids have already happened, so that a repeated command has no second effect.

Recent answers are kept whole; of older commands only the sequences of their events is kept, and of the
oldest not even that: the read model's commands table knows those (it is built from the ``ce-commandid``
header of the same log). An id may only be forgotten here once the read model has it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from controlplane.controller.replication.outcomes import Outcome
from controlplane.readmodel.store import SequenceSpan
from events.codec import Recorded, SkippedEvent
from events.errors import IsthmusError
from events.protocol.commands import CommandReply

SPANS_LIMIT = 200_000
"""Command ids whose events' sequences are kept in memory (about 250 bytes each)."""

ANSWERS_LIMIT = 10_000
"""Whole answers kept in memory."""


UNWRITTEN_LIMIT = 200_000
"""Outcomes kept in memory of commands that wrote nothing (about 500 bytes each)."""


class CommandDedup:
    """Command id → sequences of its events, and the answer that was given."""

    def __init__(self, *, spans_limit: int = SPANS_LIMIT, answers_limit: int = ANSWERS_LIMIT) -> None:
        self._spans: OrderedDict[str, tuple[int, int]] = OrderedDict()  # first and last sequence
        self._answers: OrderedDict[str, CommandReply | IsthmusError] = OrderedDict()
        self._unwritten: OrderedDict[str, Outcome] = OrderedDict()
        self._spans_limit = spans_limit
        self._answers_limit = answers_limit
        self._since = 0
        self._projected = 0

    @property
    def complete(self) -> bool:
        """Whether every command of the log since its first event is here: then a miss is final."""
        return self._since == 0

    def start_after(self, sequence: int) -> None:
        """The fold began after ``sequence`` (a snapshot): older commands are known to the read model only."""
        self._since = max(self._since, sequence)

    def learn(self, events: Iterable[Recorded]) -> None:
        """Take note of stored events, in order; the command of one that was left out has not happened."""
        spans = self._spans
        command_id, first, last = "", 0, 0  # of the run that is being read
        for sequence, envelope, event, _ in events:
            if type(event) is SkippedEvent:
                continue
            if envelope.command_id != command_id or not last:
                if last:
                    spans[command_id] = (first, last)
                command_id = envelope.command_id
                known = spans.get(command_id)
                first = sequence if known is None else known[0]
            last = sequence
        if last:
            spans[command_id] = (first, last)
        self._trim()

    def keep(self, command_id: str, outcome: CommandReply | IsthmusError) -> None:
        """Keep the answer of a command that wrote something: its events tell it, too, but slower."""
        self._answers[command_id] = outcome
        if len(self._answers) > self._answers_limit:
            self._answers.popitem(last=False)

    def keep_unwritten(self, outcomes: Iterable[Outcome]) -> None:
        """Keep what commands came to that wrote nothing: no event will ever tell it again."""
        for outcome in outcomes:
            self._unwritten[outcome.command_id] = outcome
            if len(self._unwritten) > UNWRITTEN_LIMIT:
                self._unwritten.popitem(last=False)

    def projected(self, sequence: int) -> None:
        """The read model holds everything up to ``sequence``; ids up to there may be forgotten."""
        self._projected = sequence
        self._trim()

    def answer(self, command_id: str) -> CommandReply | IsthmusError | None:
        """The answer of a command that wrote something, if it is still known whole."""
        return self._answers.get(command_id)

    def unwritten(self, command_id: str) -> CommandReply | IsthmusError | None:
        """What a command came to that wrote nothing, if it is still known. Ask for its events first."""
        known = self._unwritten.get(command_id)
        return None if known is None else known.told

    def span(self, command_id: str) -> SequenceSpan | None:
        """Where the command's events are, if that is still known here."""
        known = self._spans.get(command_id)
        return None if known is None else SequenceSpan(*known)

    def unheard(self, command_id: str) -> bool:
        """Whether nothing is known here of such a command; final when :attr:`complete`."""
        return not (command_id in self._spans or command_id in self._answers or command_id in self._unwritten)

    def _trim(self) -> None:
        spans = self._spans
        while len(spans) > self._spans_limit:
            command_id, (_, last) = next(iter(spans.items()))
            if last > self._projected:
                return
            del spans[command_id]
            self._since = max(self._since, last)
