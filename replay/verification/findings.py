"""What a verification finds, and what it looked at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

FINDINGS_LIMIT = 1000
"""Most findings kept of one run; a log that is foreign from end to end need not fill the memory."""

PARDONED = frozenset({"schema", "envelope"})
"""Checks whose findings at a parked event are its reason for being parked."""

Level = Literal["error", "warning"]


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that is wrong. ``sequence`` is where (0: the log as a whole), ``check`` who noticed."""

    check: str
    code: str
    message: str
    sequence: int = 0
    level: Level = "error"


def key_names(keys: Iterable[str]) -> str:
    """Public keys for the eye: the beginning of each."""
    return " or ".join(f"{key[:16]}…" for key in keys)


class Findings:
    """A bounded collection that still counts what it does not keep."""

    def __init__(self, parked: frozenset[int] = frozenset()) -> None:
        """What one of the ``parked`` events is wrong with is known, and no error any more."""
        self._parked = parked
        self.kept: list[Finding] = []
        self.errors = 0
        self.warnings = 0

    def add(self, finding: Finding) -> None:
        """Take note of a finding."""
        if finding.sequence in self._parked and finding.check in PARDONED:
            message = f"{finding.message} (it is parked)"
            finding = msgspec.structs.replace(finding, level="warning", message=message)
        if finding.level == "error":
            self.errors += 1
        else:
            self.warnings += 1
        if len(self.kept) < FINDINGS_LIMIT:
            self.kept.append(finding)

    def extend(self, findings: list[Finding]) -> None:
        """Take note of several."""
        for finding in findings:
            self.add(finding)
