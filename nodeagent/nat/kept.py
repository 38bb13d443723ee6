"""What of the questions and answers through NAT outlives the agent: numbers that must not be used again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from events.input_files import read_regular
from nodeagent.local_files import boot_id, running_s, write_atomically
from nodeagent.nat.packets import NUMBER_MAX

FILE = "nat.json"
FILE_LIMIT_BYTES = 4 * 1024 * 1024
SAVE_S = 30.0
RESERVED = 10**9
"""Numbers of questions that are used up beforehand, so that a restart never uses one again."""
Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
Own = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX // 2)]
"""So that there are always more."""


class _Saved(msgspec.Struct):
    """``number``: no question before has a larger one. ``floors``: the last number of who asked, by epoch.

    ``asked_at``: when somebody behind NAT last asked, seconds since the start of the machine (``boot``).
    ``ended``: the agent's last word.
    """

    number: Own = 0
    floors: dict[Number, Number] = {}
    asked_at: float = 0.0
    boot: str = ""
    ended: bool = False


class Kept:
    """The file; one that cannot be read, or holds something else, is as good as none.

    Then numbers go on by the clock, which is past what was used unless it was set back meanwhile.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE
        try:
            self._saved = msgspec.json.decode(read_regular(self._path, FILE_LIMIT_BYTES), type=_Saved)
        except (OSError, ValueError, RecursionError):
            self._saved = _Saved()

    @property
    def number(self) -> int:
        """From where on no number was used."""
        return max(self._saved.number, time.time_ns() // 1000)

    @property
    def floors(self) -> Mapping[int, int]:
        """The last number of each who asked, by epoch."""
        return self._saved.floors

    def asked_ago_s(self) -> float | None:
        """Seconds since somebody behind NAT asked an earlier life of the agent; None: not since the machine's
        start. Of one that was killed it may have been :data:`SAVE_S` later, and is taken to be.
        """
        saved = self._saved
        if not saved.asked_at or saved.boot != boot_id():
            return None
        return max(0.0, running_s() - saved.asked_at - (0.0 if saved.ended else SAVE_S))

    def save(
        self,
        number: int,
        floors: dict[int, int],
        *,
        asked: bool,
        asked_ago_s: float | None = None,
        ended: bool = False,
    ) -> None:
        """Numbers that are used up, the last ones of others, and how long ago somebody behind NAT asked.

        Without a change nothing is written.
        """
        before = self._saved
        reserved = before.number if number + RESERVED // 2 <= before.number else number + RESERVED
        same = (reserved, floors, ended) == (before.number, before.floors, before.ended)
        if same or not (floors or asked):
            return
        asked_at = running_s() - asked_ago_s if asked_ago_s is not None else 0.0
        saved = _Saved(reserved, floors, asked_at, boot_id(), ended)
        with contextlib.suppress(OSError):  # a full disk: what is not kept is written the next time
            write_atomically(self._path, msgspec.json.encode(saved))
            self._saved = saved
