"""Moments as people write them."""

import contextlib
import re
import time
from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from events.errors import Usage
from replay.when import from_ns, parse, parse_span, show, zone

SHANGHAI = ZoneInfo("Asia/Shanghai")
NOW = datetime(2026, 3, 4, 15, 30, tzinfo=SHANGHAI)  # a Wednesday


def moment(text, tz=SHANGHAI):
    return parse(text, now=NOW, tz=tz).moment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("-2h", datetime(2026, 3, 4, 13, 30, tzinfo=SHANGHAI)),
        ("-1d12h", datetime(2026, 3, 3, 3, 30, tzinfo=SHANGHAI)),
        ("90s ago", datetime(2026, 3, 4, 15, 28, 30, tzinfo=SHANGHAI)),
        ("yesterday 14:00", datetime(2026, 3, 3, 14, 0, tzinfo=SHANGHAI)),
        ("Yesterday", datetime(2026, 3, 3, tzinfo=SHANGHAI)),
        ("today 9:05:07", datetime(2026, 3, 4, 9, 5, 7, tzinfo=SHANGHAI)),
        ("9:05", datetime(2026, 3, 4, 9, 5, tzinfo=SHANGHAI)),
        ("monday 9:30", datetime(2026, 3, 2, 9, 30, tzinfo=SHANGHAI)),
        ("wednesday", datetime(2026, 2, 25, tzinfo=SHANGHAI)),
        ("2026-03-02T14:00:00Z", datetime(2026, 3, 2, 14, tzinfo=UTC)),
        ("2026-03-02 14:00", datetime(2026, 3, 2, 14, tzinfo=SHANGHAI)),
        ("2026-03-02 14:00 UTC", datetime(2026, 3, 2, 14, tzinfo=UTC)),
        ("2026-03-02", datetime(2026, 3, 2, tzinfo=SHANGHAI)),
        ("2026-03-02T14:00:00.5+01:00", datetime(2026, 3, 2, 13, 0, 0, 500000, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_in_the_given_zone(text, expected):
    assert moment(text) == expected
    assert moment(text).tzinfo is UTC


def test_a_number_is_a_sequence_and_now_is_the_end():
    assert parse("4711", now=NOW, tz=UTC).sequence == 4711
    assert parse("#2026", now=NOW, tz=UTC).sequence == 2026
    assert parse("start", now=NOW, tz=UTC).sequence == 0
    end = parse("now", now=NOW, tz=UTC)
    assert (end.sequence, end.moment) == (None, None)


@pytest.mark.parametrize(
    "text",
    [
        "noon-ish",
        "yesterday 25:00",
        "2026-13-01",
        "-",
        "-2x",
        "2h2",
        "tomorrow",
        "1e3",
        "99:99",
        "-9999999999999w",
    ],
)
def test_anything_else_is_refused_with_the_accepted_forms(text):
    with pytest.raises(Usage) as refused:
        parse(text, now=NOW, tz=UTC)
    assert refused.value.code == "usage"


@given(st.text(max_size=30))
def test_no_text_at_all_breaks_the_parser(text):
    with contextlib.suppress(Usage):
        parse(text, now=NOW, tz=UTC)


@given(st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2100, 1, 1)))  # noqa: DTZ001  hypothesis wants naive bounds
def test_what_is_shown_is_read_back(when):
    aware = when.replace(tzinfo=UTC, microsecond=when.microsecond // 1000 * 1000)
    assert moment(show(aware, SHANGHAI)) == aware


def test_zones_have_names_offsets_and_a_clear_refusal():
    assert zone("+08:00").utcoffset(None) == timedelta(hours=8)
    assert zone("-0330").utcoffset(None) == -timedelta(hours=3, minutes=30)
    assert zone("UTC") is UTC
    assert zone("Asia/Shanghai") == SHANGHAI
    with pytest.raises(Usage, match="Mars/Olympus"):
        zone("Mars/Olympus")


def test_spans_add_up():
    assert parse_span("1w2d3h4m5s") == timedelta(weeks=1, days=2, hours=3, minutes=4, seconds=5)
    assert parse_span("1.5h") == timedelta(minutes=90)


def test_nanoseconds_become_exact_microseconds():
    assert from_ns(1_772_438_400_123_456_789) == datetime(2026, 3, 2, 8, 0, 0, 123456, tzinfo=UTC)
    assert zone("local").utcoffset(datetime(2026, 1, 1, tzinfo=UTC)) is not None
    assert isinstance(zone("+01:00"), timezone)


# --- zones that change their clocks ------------------------------------------------------------------

BERLIN = ZoneInfo("Europe/Berlin")
POSIX_BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"


@pytest.fixture(params=["Europe/Berlin", POSIX_BERLIN, "zoneinfo"])
def berlin(request, monkeypatch):
    """Berlin as ``--tz local`` by both forms of TZ, and by name."""
    if request.param == "zoneinfo":
        yield BERLIN
        return
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield zone("local")
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-01-15 14:00", "2026-01-15T13:00:00+00:00"),  # winter, asked about in summer
        ("2026-07-15 14:00", "2026-07-15T12:00:00+00:00"),
        ("2026-03-29 01:59:59", "2026-03-29T00:59:59+00:00"),
        ("2026-03-29 03:00", "2026-03-29T01:00:00+00:00"),
        ("2026-10-25 01:59", "2026-10-24T23:59:00+00:00"),
        ("2026-10-25 03:00", "2026-10-25T02:00:00+00:00"),
        ("2026-10-25", "2026-10-24T22:00:00+00:00"),
        ("2026-10-25T02:30+01:00", "2026-10-25T01:30:00+00:00"),
        ("2026-10-25 00:30 UTC", "2026-10-25T00:30:00+00:00"),
    ],
)
def test_a_wall_time_has_the_offset_that_was_in_force_then(berlin, text, expected):
    for now in (datetime(2026, 7, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)):
        found = parse(text, now=now, tz=berlin).moment
        assert found.isoformat() == expected
        assert parse(show(found, berlin), now=now, tz=berlin).moment == found


@pytest.mark.parametrize("now", ["2026-03-29T02:30:00+00:00", "2026-10-25T02:30:00+00:00"])
def test_spans_are_elapsed_time_across_a_change_of_clocks(berlin, now):
    now = datetime.fromisoformat(now)
    for text, hours in (("-2h", 2), ("2h ago", 2), ("-1d", 24), ("-1d12h", 36), ("-1w", 168)):
        assert now - parse(text, now=now, tz=berlin).moment == timedelta(hours=hours)


@pytest.mark.parametrize(
    "text",
    [
        "2026-10-25 02:30",
        "2026-10-25T02:00:00",
        "yesterday 02:30",
        "sunday 2:59:59.999",
        "2026-10-25 02:30:00.5",
    ],
)
def test_a_time_of_day_that_happened_twice_is_refused_with_both_readings(berlin, text):
    with pytest.raises(Usage, match="happened twice") as refused:
        parse(text, now=datetime(2026, 10, 26, 12, tzinfo=UTC), tz=berlin)
    said = re.findall(r"2026-10-25T02:\d\d:\d\d\+0[12]:00", refused.value.message)
    first, second = (parse(each, now=NOW, tz=berlin).moment for each in said)
    assert second - first == timedelta(hours=1)


@pytest.mark.parametrize("text", ["2026-03-29 02:30", "yesterday 02:00", "sunday 2:59:59"])
def test_a_time_of_day_that_did_not_happen_is_refused_with_both_readings(berlin, text):
    with pytest.raises(Usage, match="did not happen") as refused:
        parse(text, now=datetime(2026, 3, 30, 12, tzinfo=UTC), tz=berlin)
    said = re.findall(r"2026-03-29T0[13]:\d\d:\d\d\+0[12]:00", refused.value.message)
    first, second = (parse(each, now=NOW, tz=berlin).moment for each in said)
    assert second - first == timedelta(hours=1)


@pytest.mark.parametrize(
    ("name", "day", "expected"),
    [
        ("Asia/Beirut", "2022-03-27", "2022-03-26T22:00:00+00:00"),  # 00:00 → 01:00
        ("America/Havana", "2024-11-03", "2024-11-03T04:00:00+00:00"),  # 01:00 → 00:00: midnight twice
        ("America/Toronto", "1919-03-31", "1919-03-31T04:30:00+00:00"),  # 23:30 → 00:30
        ("Australia/Lord_Howe", "2026-04-05", "2026-04-04T13:00:00+00:00"),
    ],
)
def test_a_day_begins_with_its_first_moment(name, day, expected):
    assert parse(day, now=NOW, tz=ZoneInfo(name)).moment.isoformat() == expected


def test_a_day_that_a_zone_left_out_is_refused():
    with pytest.raises(Usage, match="2011-12-30 did not happen in Pacific/Apia"):
        parse("2011-12-30", now=NOW, tz=ZoneInfo("Pacific/Apia"))


@given(
    st.datetimes(min_value=datetime(1980, 1, 1), max_value=datetime(2037, 1, 1)),  # noqa: DTZ001  naive bounds
    st.sampled_from(
        ["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Beirut", "Africa/Casablanca"]
    ),
)
def test_what_is_shown_in_any_zone_is_read_back(when, name):
    tz = ZoneInfo(name)
    aware = when.replace(tzinfo=UTC, microsecond=when.microsecond // 1000 * 1000)
    assert moment(show(aware, tz), tz) == aware
    wall = aware.astimezone(tz).replace(tzinfo=None)
    with contextlib.suppress(Usage):  # ambiguous
        assert moment(wall.isoformat(sep=" "), tz) == aware


@pytest.mark.parametrize("name", ["+99:00", "-2500", "", "Europe", "../../etc/passwd", "+08:00x", "\0"])
def test_a_zone_that_is_none_is_refused(name):
    with pytest.raises(Usage):
        zone(name)
