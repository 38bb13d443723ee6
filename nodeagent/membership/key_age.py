"""How old this node's key is, in seconds that an agent ran with it: by no clock that anybody sets.

A wall clock that jumps a year ahead and back would replace keys at once, or not for a year. So the running time
is counted and kept in the agent's folder; the time without an agent is not.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from events.input_files import read_regular
from nodeagent.local_files import running_s, write_atomically
from nodeagent.membership.node_key import AGE_FILE, READ_LIMIT

SAVE_S = 600.0
"""Between two writings: what is counted since the last one is lost with a kill."""


class _Kept(msgspec.Struct, frozen=True):
    key: str
    seconds: float


class KeyAge:
    """Ask :meth:`of` now and again: that is what counts."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / AGE_FILE
        self._kept: _Kept | None = None
        self._counted = self._saved = 0.0

    def of(self, public: str, now: float | None = None) -> float:
        """The age of the key, counted up to ``now`` (:func:`running_s`). Raises OSError."""
        now = running_s() if now is None else now
        if self._kept is None:
            self._kept = self._read()
            self._counted = self._saved = now
        if self._kept is None or self._kept.key != public:
            self._kept = _Kept(public, 0.0)
            self._write(now)
        self._kept = _Kept(public, self._kept.seconds + max(0.0, now - self._counted))
        self._counted = now
        if now - self._saved >= SAVE_S:
            self._write(now)
        return self._kept.seconds

    def _read(self) -> _Kept | None:
        try:
            kept = msgspec.json.decode(read_regular(self._path, READ_LIMIT), type=_Kept)
        except (OSError, ValueError, RecursionError):
            return None  # it begins anew
        return kept if kept.seconds >= 0 else None

    def _write(self, now: float) -> None:
        if self._kept is not None:
            write_atomically(self._path, msgspec.json.encode(self._kept), mode=0o600)
            self._counted = self._saved = now
