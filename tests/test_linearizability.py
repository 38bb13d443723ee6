"""The checker itself: it accepts what can be explained and nothing else."""

from __future__ import annotations

import math

import pytest

from tests.linearizability import Op, violation

JOIN = Op("a", "join", "n", "u", 0, 1, epoch=3)
LEAVE = Op("a", "leave", "n", "u", 2, 3)


@pytest.mark.parametrize(
    "history",
    [
        [JOIN, LEAVE, Op("b", "show", "n", "", 4, 5, "node_unknown")],
        [JOIN, Op("b", "show", "n", "u", 0.5, 2, epoch=3)],
        [JOIN, Op("b", "join", "n", "u", 2, 3, epoch=3)],
        [JOIN, LEAVE, Op("b", "join", "n", "u", 2.5, 5, epoch=9)],
        [JOIN, Op("b", "leave", "n", "u", 2), Op("c", "show", "n", "", 9, 10, "node_unknown")],
        [JOIN, Op("b", "leave", "n", "u", 2), Op("c", "show", "n", "u", 9, 10, epoch=3)],
        [Op("b", "join", "n", "u", 0), Op("c", "show", "n", "u", 9, 10, epoch=7)],
        [JOIN, Op("b", "join", "n", "v", 2, 3, epoch=8), Op("c", "show", "n", "v", 4, 5, epoch=8)],
    ],
)
def test_what_can_be_explained_is_accepted(history: list[Op]) -> None:
    assert violation(history) == ""
    assert violation([*history, Op("z", "join", "other", "u", 0, math.inf)]) == ""


@pytest.mark.parametrize(
    "history",
    [
        [JOIN, Op("b", "leave", "n", "u", 2, 3, "node_unknown")],  # an old state: the member is not known yet
        [JOIN, LEAVE, Op("b", "join", "n", "u", 4, 5, epoch=3)],  # a range that was given back
        [JOIN, LEAVE, Op("b", "show", "n", "u", 4, 5, epoch=3)],
        [JOIN, LEAVE, Op("b", "leave", "n", "u", 4, 5)],  # twice
        [JOIN, Op("b", "show", "n", "", 2, 3, "node_unknown")],
        [JOIN, Op("b", "join", "n", "u", 2, 3, "no_free_range")],
        [JOIN, Op("b", "join", "n", "u", 2, 3, epoch=4)],  # a member gets a second range
        [JOIN, Op("b", "leave", "n", "u", 5), Op("c", "show", "n", "", 2, 3, "node_unknown")],  # too early
    ],
)
def test_what_cannot_be_explained_is_found(history: list[Op]) -> None:
    assert "n" in violation(history)
