"""How long two machines answered for one address, from what a witness on the link heard."""

from __future__ import annotations

import pytest

from deploy.lab.traffic.arp import both_answered_s


def answers(mac: str, start: float, end: float, offset: float = 0.0) -> list[tuple[float, str]]:
    count = round((end - start) / 0.05)
    return [(start + number * 0.05 + offset, mac) for number in range(count)]


@pytest.mark.parametrize(
    ("heard", "expected"),
    [
        ([], 0.0),
        (answers("a", 0, 3), 0.0),
        (answers("a", 0, 2) + answers("b", 2.5, 4), 0.0),
        (answers("a", 0, 2) + answers("b", 1, 4, 0.001), 1.0),
        # a handover there and back, each without a dispute of any length
        (answers("a", 0, 2) + answers("b", 2.01, 4) + answers("a", 4.02, 6), 0.05),
        # two disputes of 0.5 s, far apart
        (answers("a", 0, 2) + answers("b", 1.5, 4, 0.001) + answers("a", 3.5, 6), 0.5),
    ],
)
def test_the_longest_dispute_counts(heard: list[tuple[float, str]], expected: float) -> None:
    assert both_answered_s(heard) == pytest.approx(expected, abs=0.06)
