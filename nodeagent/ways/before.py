"""Since when packets take a way that they took before the agent started again: the kernel went on with it."""

from __future__ import annotations

import time
from pathlib import Path

from events.errors import IsthmusError
from nodeagent.local_files import boot_id, now_of, read_status
from nodeagent.ways.table import Way

FOUND_S = 60.0
"""How long after the start a way that is found counts as the one before."""


class Before:
    """What the agent's last status says. That of another boot, or one that cannot be read, says nothing."""

    def __init__(self, directory: Path) -> None:
        now = time.monotonic()
        self._until = now + FOUND_S
        self._ways: dict[str, tuple[Way, float]] = {}
        try:
            status = read_status(directory)
        except IsthmusError:
            return
        if status.boot and status.boot == boot_id():
            then = now_of(status)
            self._ways = {
                one.peer: (Way(one.way, one.via, one.encrypted), now - max(0.0, then - one.since))
                for one in status.peer_ways
            }

    def since(self, node: str, way: Way, now: float) -> float:
        """Since when that node is reached this way (monotonic seconds): ``now``, unless it was so before."""
        known = self._ways.get(node)
        if known is None or known[0] != way or now > self._until:
            return now
        del self._ways[node]  # what it is after another one, it is not since then
        return known[1]
