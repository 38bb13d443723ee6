"""From the question "as of when?" to a state, the reports of that moment, and where both stand."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from controlplane.cluster.state import ClusterState
from controlplane.console.errors import NotFound
from controlplane.console.inspector import Inspector
from controlplane.console.schemas import Position
from controlplane.controller.agents.reports import PastReports, Reports
from events.errors import BadRequest

PRESENT = -1
SETTLED_S = 2.0
"""An agent counts as behind when it lacks what was there so long: not in the blink after an event."""


class AsOf(NamedTuple):
    """What is then at. The live state is valid until the next await only."""

    state: ClusterState
    position: Position
    reports: Reports

    @property
    def moment(self) -> datetime:
        """The moment that everything is of."""
        assert self.position.moment is not None  # noqa: S101  always set by as_of()
        return self.position.moment


async def as_of(source: Inspector, at: int, time: str | None) -> AsOf:
    """The overlay at a moment (RFC 3339; it goes before a sequence), at a sequence, or now.

    A sequence is shown as it was in the end, just before the next event. Raises NotFound for one that is not
    there yet, and BadRequest(bad_request) when the time is none. Cancelled, it leaves nothing behind.
    """
    now = datetime.now(UTC)
    moment: datetime | None = None
    if time is not None:
        moment = parse_moment(time)
        # A moment before this program's calendar is one before any log.
        at = await source.sequence_at(moment) if moment is not None else 0
        if moment is not None and moment >= now:
            at, moment = PRESENT, None
    head = source.state.sequence
    if at == PRESENT or (at == head and moment is None):
        return await _present(source, now)
    if at > head:
        raise NotFound(f"there is no event {at} yet; the log ends at {head}")
    decided = await source.time_of(at) if at else None
    if moment is None:
        moment = await _last_moment(source, at, decided, now)
    state = await source.state_at(at)
    coverage = await source.recorded(moment)
    first, last = await source.command_of(at) or (0, 0)
    recorded = coverage.recorded
    reports: Reports = await source.reports_at(state, moment) if recorded else PastReports(None, moment)
    position = Position(
        sequence=at,
        head=head,
        live=False,
        at=decided,
        moment=moment,
        recorded=recorded,
        recorded_from=coverage.since,
        settled=min(at, await source.sequence_at(moment - timedelta(seconds=SETTLED_S))),
        first=first,
        last=last,
    )
    return AsOf(state, position, reports)


async def _present(source: Inspector, now: datetime) -> AsOf:
    settled = await source.sequence_at(now - timedelta(seconds=SETTLED_S))
    # No await from here on: the state moves.
    head = source.state.sequence
    position = Position(
        sequence=head, head=head, live=True, at=source.head_time, moment=now, settled=min(settled, head)
    )
    return AsOf(source.state, position, source.reports())


async def _last_moment(source: Inspector, at: int, decided: datetime | None, now: datetime) -> datetime:
    following = await source.until(at)
    if following is None:
        return now
    last = following - timedelta(microseconds=1)
    return max(last, decided) if decided is not None else last


_FIRST = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = re.compile(
    r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d):(\d\d)(?:\.(\d{1,9})\d*)?(Z|[+-]\d\d:\d\d)?", re.ASCII | re.IGNORECASE
)


def parse_moment(text: str) -> datetime | None:
    """A moment in RFC 3339; None for one outside the calendar of this program (before any log).

    A leap second is read as the end of its minute. Raises BadRequest(bad_request) for anything else.
    """
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        raise BadRequest("bad_request", f"time={text!r} is no moment like 2026-01-31T12:00:00Z", field="time")
    day, minute, second, fraction, offset = found.groups()
    fraction = (fraction or "0")[:6].ljust(6, "0")
    if second == "60":
        second, fraction = "59", "999999"
    zone = "+00:00" if offset is None or offset in "Zz" else offset
    try:
        found_at = datetime.fromisoformat(f"{day}T{minute}:{second}.{fraction}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        if day.startswith("0000") or not zone.startswith("+00"):
            return None
        raise BadRequest("bad_request", f"time={text!r}: there is no such day or time", field="time") from None
    return found_at if found_at >= _FIRST else None
