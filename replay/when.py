"""WHEN: a moment as people write it → a point in the log.

Accepted: a sequence (``4711``, ``#4711``), ``now`` / ``end``, ``start``, ISO 8601
(``2026-03-02T14:00:00+08:00``, ``2026-03-02 14:00``, ``2026-03-02``), ``14:00`` (today),
``today [14:00]``, ``yesterday [14:00]``,
``monday [14:00]`` (the last one), ``-2h``, ``-1d12h``, ``2h ago``. A text without a zone is read in the
given zone, which every output names.

Parsing is pure: "now" and the zone are arguments. A number alone is a sequence, never a year.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from events.errors import Usage

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "sec": 1.0, "ms": 0.001}
_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)\s*(w|d|h|min|m|sec|ms|s))")
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2})(\.\d{1,6})?)?")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_FORMS = (
    "a sequence (4711), 'now', 'start', ISO time (2026-03-02T14:00+08:00), '14:00', "
    "'yesterday 14:00', 'monday 9:30', '-2h' or '3d ago'"
)


class When(NamedTuple):
    """A point asked for: exactly one of ``sequence`` and ``moment`` (UTC) is set; neither means the end."""

    text: str
    sequence: int | None = None
    moment: datetime | None = None


def zone(name: str) -> tzinfo:
    """A time zone by name: ``UTC``, ``local``, ``+08:00`` or IANA (``Asia/Shanghai``). Raises Usage."""
    if name.lower() in ("utc", "z"):
        return UTC
    if name.lower() == "local":
        local = datetime.now().astimezone().tzinfo
        return local if local is not None else UTC
    if re.fullmatch(r"[+-]\d{2}:?\d{2}", name):
        found = datetime.strptime(name.replace(":", ""), "%z").tzinfo
        return found if found is not None else UTC
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise Usage(
            "usage", f"time zone {name!r} is not known: UTC, local, +08:00 or a name like Asia/Shanghai"
        ) from error


def parse_span(text: str) -> timedelta:
    """``2h``, ``1d12h``, ``90s`` → a length of time. Raises Usage."""
    rest = text.strip().lower()
    parts = _SPAN.findall(rest)
    if not parts or _SPAN.sub("", rest).strip():
        raise Usage("usage", f"{text!r} is no length of time: write 90s, 15m, 2h, 3d, 1w or 1d12h")
    try:
        return timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError as error:
        raise Usage("usage", f"{text!r} is longer than any history") from error


def parse(text: str, *, now: datetime, tz: tzinfo) -> When:
    """Understand ``text``; ``now`` is an aware moment. Raises Usage(usage) with the accepted forms."""
    words = " ".join(text.strip().split())
    low = words.lower()
    if low in ("now", "end", "latest", ""):
        return When(words or "now")
    if low in ("start", "beginning"):
        return When(words, sequence=0)
    if re.fullmatch(r"#?\d{1,18}", low):
        return When(words, sequence=int(low.lstrip("#")))
    try:
        moment = _moment(low, words, now.astimezone(tz), tz)
        return When(words, moment=moment.astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise Usage("usage", f"cannot read {text!r} as a time ({error}): write {_FORMS}", when=text) from error


def _moment(low: str, words: str, now: datetime, tz: tzinfo) -> datetime:
    if low.startswith("-"):
        return now - parse_span(low[1:])
    if low.endswith(" ago"):
        return now - parse_span(low.removesuffix(" ago"))
    day, _, clock = low.partition(" ")
    if day == "today":
        return _at(now, clock, tz)
    if day == "yesterday":
        return _at(now - timedelta(days=1), clock, tz)
    if day in _DAYS:
        back = (now.weekday() - _DAYS.index(day)) % 7 or 7
        return _at(now - timedelta(days=back), clock, tz)
    if _CLOCK.fullmatch(low):
        return _at(now, low, tz)
    try:
        moment = datetime.fromisoformat(words.replace(" UTC", "+00:00").replace(" utc", "+00:00"))
    except ValueError:
        raise ValueError("no known form") from None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=tz)


def _at(day: datetime, clock: str, tz: tzinfo) -> datetime:
    if not clock:
        return datetime(day.year, day.month, day.day, tzinfo=tz)
    match = _CLOCK.fullmatch(clock)
    if match is None:
        raise ValueError(f"{clock!r} is no time of day")
    hour, minute, second, fraction = match.groups()
    return datetime(
        day.year,
        day.month,
        day.day,
        int(hour),
        int(minute),
        int(second or 0),
        round(float(fraction or 0) * 1e6),
        tzinfo=tz,
    )


def show(moment: datetime, tz: tzinfo) -> str:
    """A moment with its zone, to the millisecond: ``2026-03-02 14:00:00.123+08:00``."""
    return moment.astimezone(tz).isoformat(sep=" ", timespec="milliseconds")


def from_ns(recorded_ns: int) -> datetime:
    """Unix nanoseconds → UTC, rounded down to microseconds."""
    seconds, rest = divmod(recorded_ns, 10**9)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=rest // 1000)
