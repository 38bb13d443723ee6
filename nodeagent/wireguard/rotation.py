"""When this node's old key may go: it and the next one are valid side by side until all peers use the new one.

Pure: times are arguments (monotonic seconds), and so is what was seen of the devices. A restart begins anew.
"""

from __future__ import annotations

QUIET_S = 5.0
"""So long nothing has to come by the old key, once every peer has a session with the new one."""
SILENT_S = 600.0
"""Peers without such a session are waited for until nothing came by the old key for so long: they are away."""
LONGEST_S = 86_400.0
"""And no longer than this: a key may be replaced because somebody else has it."""
PATIENCE_S = 60.0
"""After so long it is a condition."""


class Rotation:
    """One change of key, from the moment at which both are valid."""

    def __init__(self) -> None:
        self.over = False
        """Whether the old key may go. It stays so."""
        self.missing = 0
        """Peers that have no session with the new key yet."""
        self._began: float | None = None
        self._received = -1
        self._last_at = 0.0

    @property
    def on(self) -> bool:
        """Whether one is under way."""
        return self._began is not None

    def reset(self) -> None:
        """No key is valid beside another one."""
        if self.on:
            self.__init__()  # type: ignore[misc]

    def look(self, missing: int, received: int, now: float) -> None:
        """So many peers have no session with the new key, and so many bytes came by the old one until now."""
        if self._began is None:
            self._began = now
        if received != self._received:
            self._received, self._last_at = received, now
        self.missing = missing
        quiet_s = now - self._last_at
        self.over = self.over or quiet_s >= (SILENT_S if missing else QUIET_S) or now - self._began >= LONGEST_S

    def lasts_s(self, now: float) -> float:
        """For how long both have been valid in this life."""
        return now - self._began if self._began is not None else 0.0
