"""What the form check carries over a log: each segment's judgement is joined to the one before it."""

from __future__ import annotations

from typing import Any

from events.chain import Head
from replay.archive.format import Segment
from replay.verification.findings import Finding, Findings
from replay.verification.full_check import CLOCK_TOLERANCE_NS, CLOCKS, LinesResult, joins

Run = tuple[str, tuple[Segment, ...], tuple[Segment, ...]]
"""A file, index segments in it, and the event segments that they speak of."""


class ChainState:
    """What the form check carries from one segment to the next."""

    def __init__(self, findings: Findings, head: Head) -> None:
        self.findings = findings
        self.head = head
        self.events = 0
        self.first_ns = self.last_ns = 0
        self.apart = 0
        self._closing: Any = None
        self.commands = 0
        self._begun: set[int] = set()
        self._index_digests: dict[tuple[str, int], bytes] = {}
        self._due: dict[tuple[str, int], tuple[Run, list[bytes]]] = {}
        self.mismatched: list[Run] = []

    def take_segment(self, place: tuple[str, int], result: LinesResult) -> None:
        """The next result, of the segment in this file at this byte."""
        self.take(result)
        self._index_digests[place] = result.index_digest
        if place in self._due:
            run, stated = self._due.pop(place)
            path, _, events = run
            if stated != [self._index_digests.pop((path, segment.offset), b"") for segment in events]:
                self.mismatched.append(run)

    def hold(self, run: Run, stated: list[bytes]) -> None:
        """Compare what an index says with what its events will have said when the last of them is taken."""
        path, _, events = run
        self._due[path, events[-1].offset] = run, stated

    def take(self, result: LinesResult) -> None:
        """The next result, in order."""
        apart = [finding for finding in result.findings if finding.check == CLOCKS]
        if apart:
            self.apart = self.apart or apart[0].sequence
            self.findings.extend([finding for finding in result.findings if finding.check != CLOCKS])
        else:
            self.findings.extend(result.findings)
        if not result.lines:
            self._closing = None
        else:
            if self._closing is not None:
                self.findings.extend(joins(self._closing, result.opening, result.first))
            elif self.events == 0 and result.opening.place:
                self.findings.add(_cut_transaction(result))
            self._closing = result.closing
            self.first_ns = self.first_ns or result.first_ns
            self.last_ns = result.last_ns
        self.head = Head(result.last, result.digest)
        self.events += result.lines
        self.commands += len(result.commands) // 8
        self._begun.update(memoryview(result.commands).cast("Q"))

    def finish(self) -> None:
        """What only shows at the end."""
        closing = self._closing
        if closing is not None and closing.place + 1 < closing.size:
            self.findings.add(
                Finding(
                    "transactions",
                    "log_truncated",
                    f"the log ends inside a batch: number {closing.place} of {closing.size} of command "
                    f"{closing.command[:40]} is its last event",
                    self.head.sequence,
                )
            )
        if self.apart:
            self.findings.add(
                Finding(
                    CLOCKS,
                    "clock",
                    f"from event {self.apart} on, the server's time and the events' own are more than "
                    f"{CLOCK_TOLERANCE_NS // 10**9} s apart in places: a clock was off, or it was imported",
                    self.apart,
                    level="warning",
                )
            )
        if repeated := self.commands - len(self._begun):
            self.findings.add(
                Finding(
                    "transactions",
                    "event_malformed",
                    f"{repeated} commands stand in the log twice: a command had a second effect",
                )
            )


def _cut_transaction(result: LinesResult) -> Finding:
    return Finding(
        "transactions",
        "event_malformed",
        f"the first event is number {result.opening.place} of {result.opening.size} of its command: "
        "the start of a batch is missing",
        result.first,
    )
