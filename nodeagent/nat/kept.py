"""What of the questions and answers through NAT outlives the agent: numbers that must not be used again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from events.input_files import read_regular
from nodeagent.local_files import write_atomically
from nodeagent.nat.packets import NUMBER_MAX

FILE = "nat.json"
FILE_LIMIT_BYTES = 4 * 1024 * 1024
RESERVED = 10**9
"""Numbers of questions that are used up beforehand, so that a restart never uses one again."""
Number = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX)]
Own = Annotated[int, msgspec.Meta(ge=0, le=NUMBER_MAX // 2)]
"""So that there are always more."""


class _Saved(msgspec.Struct):
    """``number``: no question before has a larger one. ``floors``: the last number of who asked, by epoch."""

    number: Own = 0
    floors: dict[Number, Number] = {}


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

    def save(self, number: int, floors: dict[int, int], *, asked: bool) -> None:
        """Numbers that are used up, and the last ones of others. Without a change nothing is written."""
        before = self._saved
        reserved = before.number if number + RESERVED // 2 <= before.number else number + RESERVED
        if (reserved, floors) == (before.number, before.floors) or not (floors or asked):
            return
        saved = _Saved(reserved, floors)
        with contextlib.suppress(OSError):  # a full disk: what is not kept is written the next time
            write_atomically(self._path, msgspec.json.encode(saved))
            self._saved = saved
