"""Moments as people write them."""

import contextlib
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
