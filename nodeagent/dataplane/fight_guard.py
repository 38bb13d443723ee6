"""When somebody else keeps undoing a repair: repair it, report it, but do not fight for ever.

What is repaired is named by any hashable key: a row, a property of the device, a setting of the host.

Pure: time is an argument (seconds of any monotonic clock).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

import msgspec

from nodeagent.netlink.rows import Kind

FREE_REPAIRS = 5
"""Repairs of one row within WINDOW_S that are done at once."""

WINDOW_S = 10.0
PAUSE_FIRST_S = 5.0
PAUSE_LONGEST_S = 300.0
ROWS_LIMIT = 4096
"""Rows remembered; beyond it the one touched longest ago is forgotten."""


class _Record(msgspec.Struct):
    since: float
    repairs: int = 0
    pause: float = 0.0
    blocked_until: float = 0.0
    told: bool = False


DEVICE = "device"
RepairKey = tuple[Kind | str, bytes | str]
"""Of the data plane: a row (kind and key), or :data:`DEVICE` with a property of it."""

Key = TypeVar("Key", bound=Hashable)


class FightGuard(Generic[Key]):
    """Counts repairs per key. One that needs too many is *contested*: repaired ever more rarely."""

    def __init__(self, *, free_repairs: int = FREE_REPAIRS, window_s: float = WINDOW_S) -> None:
        """``free_repairs`` of one key within ``window_s`` are done at once."""
        self._free_repairs, self._window_s = free_repairs, window_s
        self._records: OrderedDict[Key, _Record] = OrderedDict()

    def allow(self, row: Key, now: float) -> bool:
        """Whether to repair this row now; if so, the repair is counted."""
        record = self._records.get(row)
        if record is None:
            record = self._records[row] = _Record(since=now)
            if len(self._records) > ROWS_LIMIT:
                self._records.popitem(last=False)
        self._records.move_to_end(row)
        if now < record.blocked_until:
            return False
        if record.pause and now > record.blocked_until + record.pause + self._window_s:
            record.since, record.repairs, record.pause = now, 0, 0.0  # it has been quiet: peace
        if now - record.since > self._window_s and not record.pause:
            record.since, record.repairs = now, 0
        record.repairs += 1
        if record.repairs > self._free_repairs:
            record.pause = min(PAUSE_LONGEST_S, record.pause * 2 or PAUSE_FIRST_S)
            record.blocked_until = now + record.pause
            record.told = False
        return True

    def contested(self, row: Key, now: float) -> bool:
        """Whether repairs of this row are being held back."""
        record = self._records.get(row)
        return record is not None and now < record.blocked_until

    def tell(self, row: Key) -> bool:
        """Whether this is the first change of the row since it is held back: worth one look and a report."""
        record = self._records.get(row)
        if record is None or record.told:
            return False
        record.told = True
        return True

    def next_release(self, now: float) -> float | None:
        """When the first of them may be repaired again."""
        times = [record.blocked_until for record in self._records.values() if now < record.blocked_until]
        return min(times, default=None)

    def forget(self, rows: Iterable[Key]) -> None:
        """These rows are no longer wanted, or were written on purpose."""
        for row in rows:
            self._records.pop(row, None)
