"""WHEN: a moment as people write it → a point in the log.

Accepted: a sequence (``4711``, ``4,711``, ``#4711``), ``now`` / ``end``, ``start``, ISO 8601
(``2026-03-02T14:00:00+08:00``, ``2026-03-02 14:00``, ``2026-03-02``), ``14:00`` (today),
``today [14:00]``, ``yesterday [14:00]``,
``monday [14:00]`` (the last one), ``-2h``, ``-1d12h``, ``2h ago``. A text without a zone is read in the
given zone, with the offset that was in force then, and every output names it. A time of day that happened twice
or not at all (clocks were changed) is refused with both readings; a day begins with its first moment. Spans are
elapsed time: ``-2h`` is two hours and ``-1d`` is 24, whatever the clocks did.

Parsing is pure: "now" and the zone are arguments. A number alone is a sequence, never a year.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from events.cli.numbers import printed_number
from events.errors import Usage

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0, "sec": 1.0, "ms": 0.001}
_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)\s*(w|d|h|min|m|sec|ms|s))")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")
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


class LocalZone(tzinfo):
    """This machine's time zone, with the offset that its rules give to each moment (by the C library)."""

    def utcoffset(self, dt: datetime | None) -> timedelta | None:
        return None if dt is None else dt.replace(tzinfo=None).astimezone().utcoffset()

    def dst(self, dt: datetime | None) -> timedelta | None:  # noqa: ARG002  nobody asks which part is summer
        return None

    def tzname(self, dt: datetime | None) -> str | None:
        return "local time" if dt is None else dt.replace(tzinfo=None).astimezone().tzname()

    def fromutc(self, dt: datetime) -> datetime:
        there = dt.replace(tzinfo=UTC).astimezone()
        here = there.replace(tzinfo=self, fold=0)
        return here if here.utcoffset() == there.utcoffset() else here.replace(fold=1)

    def __str__(self) -> str:
        return "this machine's time zone"


LOCAL = LocalZone()


def zone(name: str) -> tzinfo:
    """A time zone by name: ``UTC``, ``local``, ``+08:00`` or IANA (``Asia/Shanghai``). Raises Usage."""
    if name.lower() in ("utc", "z"):
        return UTC
    if name.lower() == "local":
        return LOCAL
    try:
        if re.fullmatch(r"[+-]\d{2}:?\d{2}", name):
            found = datetime.strptime(name.replace(":", ""), "%z").tzinfo
            return found if found is not None else UTC
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
    number = printed_number(low)
    if number is not None:
        return When(words, sequence=number)
    try:
        return When(words, moment=_moment(low, words, now.astimezone(tz), tz).astimezone(UTC))
    except (ValueError, OverflowError) as error:
        raise Usage("usage", f"cannot read {text!r} as a time ({error}): write {_FORMS}", when=text) from error


def _moment(low: str, words: str, now: datetime, tz: tzinfo) -> datetime:
    if low.startswith("-"):
        return now.astimezone(UTC) - parse_span(low[1:])
    if low.endswith(" ago"):
        return now.astimezone(UTC) - parse_span(low.removesuffix(" ago"))
    day, _, clock = low.partition(" ")
    if day == "today":
        return _at(now.date(), clock, tz)
    if day == "yesterday":
        return _at(now.date() - timedelta(days=1), clock, tz)
    if day in _DAYS:
        back = (now.weekday() - _DAYS.index(day)) % 7 or 7
        return _at(now.date() - timedelta(days=back), clock, tz)
    if _CLOCK.fullmatch(low):
        return _at(now.date(), low, tz)
    if _DAY.fullmatch(low):
        return _day(date.fromisoformat(low), tz)
    try:
        moment = datetime.fromisoformat(words.replace(" UTC", "+00:00").replace(" utc", "+00:00"))
    except ValueError:
        raise ValueError("no known form") from None
    return moment if moment.tzinfo is not None else _wall(moment, tz)


def _at(day: date, clock: str, tz: tzinfo) -> datetime:
    if not clock:
        return _day(day, tz)
    match = _CLOCK.fullmatch(clock)
    if match is None:
        raise ValueError(f"{clock!r} is no time of day")
    hour, minute, second, fraction = match.groups()
    micros = round(float(fraction or 0) * 1e6)
    wall = datetime(day.year, day.month, day.day, int(hour), int(minute), int(second or 0))  # noqa: DTZ001  _wall's
    return _wall(wall + timedelta(microseconds=micros), tz)


def _readings(wall: datetime, tz: tzinfo) -> tuple[datetime, datetime]:
    """What a clock that shows ``wall`` can mean (UTC): by the offset before a change, and after it."""
    before, after = (wall.replace(tzinfo=tz, fold=fold).astimezone(UTC) for fold in (0, 1))
    return before, after


def _wall(wall: datetime, tz: tzinfo) -> datetime:
    """The moment at which clocks showed ``wall``. Raises ValueError where they did so twice, or never."""
    before, after = _readings(wall, tz)
    if before == after:
        return before
    shown = [each.astimezone(tz).isoformat(sep="T", timespec="seconds") for each in sorted((before, after))]
    exists = before.astimezone(tz).replace(tzinfo=None) == wall
    what = "happened twice" if exists else "did not happen"
    raise ValueError(
        f"{wall.isoformat(sep=' ')} {what} in {tz}, where clocks were changed: say {shown[0]} or {shown[1]}"
    )


def _day(day: date, tz: tzinfo) -> datetime:
    """The first moment of the day, also where its midnight happened twice or not at all.

    Raises ValueError for a day that a zone left out.
    """
    midnight = datetime(day.year, day.month, day.day)  # noqa: DTZ001  the zone comes with the readings
    before, after = _readings(midnight, tz)
    if before <= after:  # once, or twice: then the first is meant
        return before
    early, late = after, before  # the clocks jumped over midnight: find where they did
    while late - early > timedelta(microseconds=1):
        middle = early + (late - early) / 2
        if middle.astimezone(tz).date() < day:
            early = middle
        else:
            late = middle
    if late.astimezone(tz).date() != day:
        raise ValueError(f"{day} did not happen in {tz}, where the calendar was changed")
    return late


def show(moment: datetime, tz: tzinfo) -> str:
    """A moment with its zone, to the millisecond: ``2026-03-02 14:00:00.123+08:00``."""
    return moment.astimezone(tz).isoformat(sep=" ", timespec="milliseconds")


def from_ns(recorded_ns: int) -> datetime:
    """Unix nanoseconds → UTC, rounded down to microseconds."""
    seconds, rest = divmod(recorded_ns, 10**9)
    return datetime.fromtimestamp(seconds, UTC) + timedelta(microseconds=rest // 1000)
