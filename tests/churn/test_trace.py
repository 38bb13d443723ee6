"""Recorded counts become joins and leaves: the right number, the right order, no identity used twice."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.churn.trace import UNDERLAY, Trace, changes, load, site_name
from events.errors import Usage

DATA = Path(__file__).parent.parent / "data" / "node-churn"
# The table of tests/data/node-churn/README.md.
RECORDED = {
    "us-east-2b-16": (910, 910),
    "us-west-2a-16": (1489, 1473),
    "us-west-2c-16": (1382, 1366),
    "us-east-1f-4": (195, 195),
    "us-east-2a-4": (77, 75),
    "us-west-2c-4": (334, 330),
}


def recorded() -> list[Trace]:
    return load(sorted(DATA.glob("*.json")))


def test_the_six_recordings_give_the_counts_of_their_table() -> None:
    joins, leaves = Counter[str](), Counter[str]()
    for change in changes(recorded(), run="0", order="longest-lived", seed=0):
        (joins if change.joins else leaves)[change.instance.site] += 1
    assert {site: (joins[site], leaves[site]) for site in RECORDED} == RECORDED
    assert joins.total() + leaves.total() == 8736


def test_a_rise_joins_and_a_fall_takes_the_longest_lived() -> None:
    trace = Trace("zone", "cloud", 300.0, (2, 1, 3, 0))
    steps = [
        (change.at_s, "+" if change.joins else "-", change.instance.name.rsplit("-", 1)[1])
        for change in changes([trace], run="0", order="longest-lived", seed=0)
    ]
    assert steps == [
        (0, "+", "1"), (0, "+", "2"), (300, "-", "1"), (600, "+", "3"), (600, "+", "4"),
        (900, "-", "2"), (900, "-", "3"), (900, "-", "4"),
    ]  # fmt: skip


@given(
    counts=st.lists(st.lists(st.integers(0, 9), max_size=30), min_size=1, max_size=3),
    order=st.sampled_from(["longest-lived", "random"]),
    seed=st.integers(0, 99),
)
def test_live_instances_always_equal_the_recording(counts: list[list[int]], order: str, seed: int) -> None:
    traces = [Trace(f"zone-{i}", "cloud", 300.0, tuple(numbers)) for i, numbers in enumerate(counts)]
    live: dict[str, set[str]] = {trace.site: set() for trace in traces}
    seen: set[str] = set()
    last_at_s = 0.0
    for change in changes(traces, run="x", order=order, seed=seed):  # type: ignore[arg-type]
        assert change.at_s >= last_at_s
        last_at_s = change.at_s
        here = live[change.instance.site]
        if change.joins:
            assert change.instance.uid not in seen
            seen.add(change.instance.uid)
            here.add(change.instance.name)
        else:
            here.remove(change.instance.name)
    assert {trace.site: len(live[trace.site]) for trace in traces} == {
        trace.site: (trace.counts[-1] if trace.counts else 0) for trace in traces
    }


def test_no_two_live_instances_have_the_same_address() -> None:
    live: dict[str, str] = {}
    for change in changes(recorded(), run="0", order="random", seed=3):
        if change.joins:
            assert change.instance.underlay not in live.values()
            assert IPv4Address(change.instance.underlay) in UNDERLAY
            live[change.instance.name] = change.instance.underlay
        else:
            del live[change.instance.name]


def test_the_same_seed_chooses_the_same_leavers_and_another_run_other_names() -> None:
    def names(run: str, seed: int) -> list[str]:
        return [c.instance.name for c in changes(recorded(), run=run, order="random", seed=seed)]

    assert names("a", 7) == names("a", 7)
    assert names("a", 7) != names("a", 8)
    assert not set(names("a", 7)) & set(names("b", 7))


def test_sites_are_external_by_pattern_or_every_second_one() -> None:
    files = sorted(DATA.glob("*.json"))
    assert [trace.kind for trace in load(files)] == ["cloud", "external"] * 3
    by_pattern = load(files, ["*-west-*"])
    assert {trace.site for trace in by_pattern if trace.kind == "external"} == {
        site for site in RECORDED if "-west-" in site
    }


@pytest.mark.parametrize(
    ("filename", "site"),
    [
        ("16-node_us-east-2b_v100_1.json", "us-east-2b-16"),
        ("My Rack.json", "my-rack"),
        ("---.json", "site"),
    ],
)
def test_a_file_name_becomes_a_dns_label(filename: str, site: str) -> None:
    assert site_name(filename) == site


@pytest.mark.parametrize("content", ["", "[]", '{"data": [1, -1]}', '{"data": [1.5]}', '{"metadata": {}}'])
def test_what_is_no_trace_is_a_usage_error_that_names_the_file(tmp_path: Path, content: str) -> None:
    broken = tmp_path / "broken.json"
    broken.write_text(content)
    with pytest.raises(Usage, match=r"broken\.json"):
        load([broken])


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="No such file"):
        load([tmp_path / "absent.json"])
