"""What another process has cost so far."""

from __future__ import annotations

import time

_SCHEDULED = 2
"""The clock of the time that a process was scheduled, as clock_getcpuclockid(3) makes it of a process id."""


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process, in seconds."""
    return time.clock_gettime(~pid << 3 | _SCHEDULED)
