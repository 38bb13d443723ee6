"""The language of conditions: what it says, what it refuses, and that it harms nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.state import ClusterState
from events.errors import Usage
from replay.queries.expression import FUNCTIONS, VARIABLES, Moment, compile_expression

EMPTY = Moment(ClusterState("c"), dict.fromkeys(("joins", "leaves", "fences", "allocations", "refusals"), 0))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nodes == 0", True),
        ("1 + 2 * 3 == 7 and 7 // 2 == 3 and 7 % 4 == 3 and -1 < 0", True),
        ("not defined", True),
        ("0 <= nodes < 1", True),
        ("nodes in (1, 2)", False),
        ("nodes not in [1, 2]", True),
        ("member('x') or reachable('x')", False),
        ("range_of('x') == ''", True),
        ("utilisation < 0.5", True),
    ],
)
def test_it_means_what_it_says(text: str, value: bool) -> None:
    assert compile_expression(text).holds(EMPTY) is value


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "nodes.__class__",
        "(lambda: 1)()",
        "[x for x in (1, 2)]",
        "nodes := 3",
        "f'{nodes}'",
        "2 ** 9999999",
        "nodes if defined else 0",
        "print(1)",
        "member('a', 'b')",
        "member(name='a')",
        "state",
        "nodes is 0",
        "",
        "nodes ==",
        "b'x' == 1",
        "1 < 2; 3",
        "nodes " + "+ 1" * 400,
        "(" * 60 + "1" + ")" * 60 + " < " + "not " * 60 + "1",
    ],
)
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(Usage) as refused:
        compile_expression(text)
    assert refused.value.code == "usage"


@pytest.mark.parametrize("text", ["'a' * 3 == 'aaa'", "'a' < 1", "1 / nodes > 0", "nodes in 3", "-'a' == 1"])
def test_what_only_shows_in_use_is_a_usage_error_too(text: str) -> None:
    with pytest.raises(Usage):
        compile_expression(text).holds(EMPTY)


@given(st.text(max_size=80))
def test_no_text_at_all_breaks_it(text: str) -> None:
    try:
        held = compile_expression(text).holds(EMPTY)
    except Usage as refused:
        held = refused.code == "usage"
    assert held in (True, False)


@pytest.mark.parametrize(
    ("text", "monotone"),
    [
        ("sequence < 100", True),
        ("joins <= 5 and leaves <= 5", True),
        ("joins <= 5 or leaves <= 5", True),
        ("not (fenced > 3)", True),
        ("100 > joins + leaves", True),
        ("5 - joins > 0", True),
        ("1 < 2", True),
        ("joins >= 5", False),
        ("joins - leaves < 5", False),
        ("nodes < 5", False),
        ("joins == 5", False),
        ("joins < 5 and nodes < 5", False),
        ("not (joins < 5)", False),
    ],
)
def test_it_knows_which_conditions_cannot_recover(text: str, monotone: bool) -> None:
    assert compile_expression(text).monotone is monotone


def test_every_name_has_a_meaning_in_the_help() -> None:
    assert all(meaning for _, _, meaning in VARIABLES.values())
    assert all(meaning.startswith(name) for name, (_, meaning) in FUNCTIONS.items())
