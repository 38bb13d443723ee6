"""Convergence: who has applied what, how fast, and who is behind."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from controlplane.controller.agents.convergence import ConvergenceTracker


def tracker_with(agents: int, applied: int = 0, **callbacks) -> ConvergenceTracker:
    tracker = ConvergenceTracker(**callbacks)
    for number in range(agents):
        tracker.reported(f"n{number}", applied, 0.0)
    return tracker


def test_latencies_are_measured_from_storing_to_report():
    converged: list[float] = []
    tracker = tracker_with(3, on_converged=converged.append)
    tracker.stored(1, 2, 10.0, "x")
    tracker.reported("n0", 2, 10.1)
    tracker.reported("n1", 2, 10.2)
    open_ = tracker.of(1)
    assert open_ is not None
    assert (open_.applied, open_.expected, open_.last, open_.behind) == (2, 3, None, ["n2"])
    tracker.reported("n2", 2, 12.0)
    done = tracker.of(2)
    assert done is not None
    assert (done.first, done.last, done.behind) == (0.1, 2.0, [])
    assert [round(value, 3) for value in converged] == [2.0]


def test_an_agent_that_leaves_holds_nothing_up():
    converged: list[float] = []
    tracker = tracker_with(2, on_converged=converged.append)
    tracker.stored(1, 1, 0.0, "x")
    tracker.reported("n0", 1, 0.5)
    tracker.gone("n1")
    assert len(converged) == 1
    assert tracker.latest()[0].last == 0.5


def test_history_from_before_an_agent_was_first_heard_is_no_latency():
    tracker = ConvergenceTracker()
    tracker.stored(1, 1, 0.0, "x")
    tracker.reported("late", 1, 500.0)
    assert tracker.latest()[0].applied == 0


def test_a_report_may_overtake_the_news_of_its_event():
    tracker = tracker_with(2)
    tracker.reported("n0", 5, 1.0)
    tracker.stored(5, 5, 1.1, "x")
    view = tracker.of(5)
    assert view is not None
    assert (view.applied, view.expected, view.behind) == (1, 2, ["n1"])


def test_what_this_controller_wrote_counts_from_the_sending_even_when_a_report_overtakes_the_news():
    applied: list[float] = []
    tracker = tracker_with(2, on_applied=applied.append)
    tracker.sent(5, 8, 0.75)
    tracker.reported("n0", 6, 1.0)
    tracker.stored(5, 6, 1.5, "x")
    tracker.stored(7, 8, 1.5, "y")
    tracker.reported("n1", 8, 1.75)
    first, second = tracker.of(5), tracker.of(7)
    assert first is not None
    assert second is not None
    assert (first.first, first.last, [one.node for one in first.slowest]) == (0.25, 1.0, ["n0", "n1"])
    assert (second.first, second.applied, second.expected) == (1.0, 1, 2)
    assert applied == [0.25, 1.0, 1.0], "the metrics get what the page shows"
    tracker.stored(9, 9, 3.0, "another controller's")
    tracker.reported("n1", 9, 3.5)
    other = tracker.of(9)
    assert other is not None
    assert other.first == 0.5, "of what others sent, the news is the beginning"


def test_the_sending_may_become_known_after_the_events():
    tracker = tracker_with(1)
    tracker.stored(1, 1, 2.0, "x")
    tracker.reported("n0", 1, 2.25)
    tracker.sent(1, 1, 1.75)
    view = tracker.of(1)
    assert view is not None
    assert (view.last, view.slowest[0].seconds) == (0.5, 0.5)


def test_the_window_is_bounded():
    tracker = ConvergenceTracker(window=10)
    for sequence in range(1, 101):
        tracker.stored(sequence, sequence, 0.0, "x")
    assert len(tracker.latest(1000)) == 10
    assert tracker.of(50) is None


def test_ten_thousand_agents_cost_a_step_each_per_transaction():
    tracker = tracker_with(10_000)
    tracker.stored(1, 1, 0.0, "x")
    steps = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal steps
        steps += 1

    sys.setprofile(count)
    try:
        for number in range(10_000):
            tracker.reported(f"n{number}", 1, 0.1)
    finally:
        sys.setprofile(None)
    assert steps < 50 * 10_000, "calls, in and out: they do not grow with the number of agents"
    assert tracker.latest()[0].applied == 10_000


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("store"), st.integers(1, 3)),
            st.tuples(st.just("report"), st.integers(0, 4), st.integers(0, 30)),
            st.tuples(st.just("gone"), st.integers(0, 4)),
        ),
        max_size=60,
    )
)
def test_waiting_agents_are_always_those_known_and_below(steps):
    tracker = ConvergenceTracker(window=1000)
    head = 0
    for step in steps:
        if step[0] == "store":
            tracker.stored(head + 1, head + step[1], 0.0, "x")
            head += step[1]
        elif step[0] == "report":
            tracker.reported(f"n{step[1]}", step[2], 1.0)
        else:
            tracker.gone(f"n{step[1]}")
        for view in tracker.latest(1000):
            assert view.expected - view.applied == len(tracker.behind(view.last_sequence))
