"""What is asked of a verification (:class:`Wanted`) and what it answers (:class:`Report`)."""

from __future__ import annotations

from datetime import datetime

import msgspec

from controlplane.controller.publishing.checkpoints import Checkpoint
from replay.verification.findings import Finding


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the report. ``looked_at`` counts what ``unit`` says."""

    name: str
    title: str
    looked_at: int
    unit: str
    errors: int
    done: bool
    detail: str = ""

    @property
    def passed(self) -> bool:
        """Done, and nothing found."""
        return self.done and not self.errors


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome. ``state_digest`` is empty when the fold could not reach the end."""

    cluster: str
    source: str
    first: int
    last: int
    events: int
    head: str
    state_digest: str
    recorded_from: datetime | None
    recorded_to: datetime | None
    began: datetime
    took_s: float
    checks: list[Check]
    findings: list[Finding]
    errors: int
    warnings: int
    program: str

    @property
    def sound(self) -> bool:
        """Whether no error was found."""
        return self.errors == 0


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What to compare the log with, beside itself.

    ``states`` are digests that others state: (who, sequence, state digest). ``heads`` are ends or
    middles of the same log that are known from elsewhere: (who, head).
    """

    checkpoints: tuple[Checkpoint, ...] = ()
    public_keys: tuple[str, ...] = ()
    """Trusted keys (64 hex digits). Each must vouch for the log, by a checkpoint or an archive's signature."""
    states: tuple[tuple[str, int, str], ...] = ()
    heads: tuple[tuple[str, int, str], ...] = ()
    jobs: int = 0
    """Worker processes; 0: as many as there are processors, at most 8."""
