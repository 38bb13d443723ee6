"""When somebody else keeps rewriting a row: repair it, report it, but do not fight for ever.

Pure: time is an argument (seconds of any monotonic clock).
"""

from __future__ import annotations

from collections import OrderedDict

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


Row = tuple[Kind, bytes]


class FightGuard:
    """Counts repairs per row. A row that needs too many is *contested*: repaired ever more rarely."""

    def __init__(self) -> None:
        self._records: OrderedDict[Row, _Record] = OrderedDict()

    def allow(self, row: Row, now: float) -> bool:
        """Whether to repair this row now; if so, the repair is counted."""
        record = self._records.get(row)
        if record is None:
            record = self._records[row] = _Record(since=now)
            if len(self._records) > ROWS_LIMIT:
                self._records.popitem(last=False)
        self._records.move_to_end(row)
        if now < record.blocked_until:
            return False
        if record.pause and now > record.blocked_until + record.pause + WINDOW_S:
            record.since, record.repairs, record.pause = now, 0, 0.0  # it has been quiet: peace
        if now - record.since > WINDOW_S and not record.pause:
            record.since, record.repairs = now, 0
        record.repairs += 1
        if record.repairs > FREE_REPAIRS:
            record.pause = min(PAUSE_LONGEST_S, record.pause * 2 or PAUSE_FIRST_S)
            record.blocked_until = now + record.pause
            record.told = False
        return True

    def contested(self, row: Row, now: float) -> bool:
        """Whether repairs of this row are being held back."""
        record = self._records.get(row)
        return record is not None and now < record.blocked_until

    def tell(self, row: Row) -> bool:
        """Whether this is the first change of the row since it is held back: worth one look and a report."""
        record = self._records.get(row)
        if record is None or record.told:
            return False
        record.told = True
        return True

    def all_contested(self, now: float) -> list[Row]:
        """The rows that are held back now."""
        return [row for row, record in self._records.items() if now < record.blocked_until]

    def next_release(self, now: float) -> float | None:
        """When the first of them may be repaired again."""
        times = [record.blocked_until for record in self._records.values() if now < record.blocked_until]
        return min(times, default=None)

    def forget(self, rows: set[Row]) -> None:
        """These rows are no longer wanted, or were written on purpose."""
        for row in rows:
            self._records.pop(row, None)
