"""A forecast says how sure it is, and nothing where the record is too short."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest

from replay.cli.stats import _forecast
from replay.queries.stats import Stats, _Regression, spread

BEGIN = datetime(2026, 3, 1, tzinfo=UTC)
DAY_S = 86_400


def answered(values: list[int], step_s: float, capacity: int = 1000) -> Stats:
    trend = _Regression()
    for number, value in enumerate(values):
        trend.add(int(number * step_s * 1e9), value)
    slope = trend.slope_per_s()
    end = BEGIN + timedelta(seconds=(len(values) - 1) * step_s)
    nothing = spread([], "seconds")
    return Stats(
        first=1, last=len(values), recorded_from=BEGIN, recorded_to=end, events={}, joins=0, leaves=0, fenced=0,
        nodes_at_end=0, nodes_at_most=0, refusals={}, lifetimes=nothing, reuse_distance=nothing, drain=nothing,
        rest=nothing, in_use=values[-1], capacity=capacity, growth_per_day=slope * DAY_S,
        exhausted_at=end + timedelta(seconds=(capacity - values[-1]) / slope) if slope > 0 else None,
        growth_error_per_day=trend.error_per_s() * DAY_S,
    )  # fmt: skip


def said(stats: Stats) -> dict[str, str]:
    return dict(_forecast(stats, lambda moment: f"{moment:%Y-%m-%d}"))


def test_sixteen_minutes_say_nothing_of_the_next_days() -> None:
    found = said(answered([1, 2, 3, 4, 5, 6], step_s=200))
    assert found == {"trend": "none: 0.3 h are recorded, a forecast needs 24 h"}


def test_steady_growth_is_told_with_its_uncertainty() -> None:
    noise = random.Random(3)
    found = said(answered([10 * day + noise.randint(-5, 5) for day in range(40)], DAY_S))
    assert "±" in found["trend"]
    assert found["exhausted"].startswith("about 2026-0")


def test_what_only_goes_up_and_down_is_no_growth() -> None:
    noise = random.Random(4)
    found = said(answered([500 + noise.randint(-200, 200) for _ in range(40)], DAY_S))
    assert found["exhausted"] == "not by this trend"


@pytest.mark.parametrize("noise_at_most", [0, 20])
def test_the_error_covers_the_true_slope(noise_at_most: int) -> None:
    random.seed(5)
    trend = _Regression()
    for hour in range(500):
        trend.add(hour * 3600 * 10**9, 3 * hour + random.randint(-noise_at_most, noise_at_most))
    assert abs(trend.slope_per_s() * 3600 - 3) <= trend.error_per_s() * 3600 * 1.5 + 1e-6
