"""The built-in span store: bounded, searchable, and links join traces into one picture."""

from __future__ import annotations

import pytest

from controlplane.controller.observability.span_store import TRACE_SPANS_MAX, SpanStore
from controlplane.controller.observability.waterfall import waterfall
from controlplane.controller.source_limit import SourceLimit
from events.telemetry.spans import SpanLink, SpanRecord


def span(
    trace: int, number: int, *, parent: int = 0, links: tuple[tuple[int, int], ...] = (), **more
) -> SpanRecord:
    values = {
        "trace_id": f"{trace:032x}",
        "span_id": f"{number:016x}",
        "parent_id": f"{parent:016x}" if parent else "",
        "name": f"span {number}",
        "service": "isthmus-test",
        "start_ns": number * 1_000_000,
        "end_ns": number * 1_000_000 + 500_000,
        "links": [SpanLink(f"{t:032x}", f"{s:016x}") for t, s in links],
    }
    return SpanRecord(**{**values, **more})


async def test_a_span_comes_back_as_it_went_in():
    record = span(1, 1, attributes={"a": 1, "b": "x", "c": [1, 2], "d": True}, status="ERROR", message="m")
    async with SpanStore.open() as store:
        await store.add([record])
        assert await store.trace(record.trace_id) == [record]


async def test_a_trace_is_returned_with_the_spans_that_link_into_it():
    async with SpanStore.open() as store:
        await store.add(
            [span(1, 1), span(1, 2, parent=1), span(2, 3, links=((1, 2),)), span(2, 4, parent=3), span(3, 5)]
        )
        assert [s.span_id for s in await store.trace(f"{1:032x}")] == [f"{n:016x}" for n in (1, 2, 3, 4)]


async def test_a_span_seen_twice_is_kept_once():
    async with SpanStore.open() as store:
        await store.add([span(1, 1)])
        await store.add([span(1, 1), span(1, 2)])
        assert store.count == 2


async def test_the_oldest_spans_go_beyond_the_limit_and_leave_nothing_behind(tmp_path):
    async with SpanStore.open(tmp_path / "spans.db", limit=100) as store:
        for start in range(1, 1001, 50):
            await store.add(
                [
                    span(n, n, links=((n + 1, 1),), attributes={"isthmus.node": f"n{n}"})
                    for n in range(start, start + 50)
                ]
            )
            assert store.count <= 102
        assert await store.trace(f"{1:032x}") == []
        assert await store.find("node", "n1") == []
        assert await store.find("node", "n1000") == [f"{1000:032x}"]
    async with SpanStore.open(tmp_path / "spans.db", limit=100) as again:
        assert 90 <= again.count <= 102


async def test_traces_are_found_by_what_they_touched_newest_first():
    async with SpanStore.open() as store:
        await store.add(
            [
                span(1, 1, attributes={"isthmus.command.id": "c1", "isthmus.node": "idc-1"}),
                span(
                    2,
                    2,
                    attributes={
                        "isthmus.sequence.first": 7,
                        "isthmus.sequence.last": 9,
                        "isthmus.node": "idc-1",
                    },
                ),
            ]
        )
        assert await store.find("command", "c1") == [f"{1:032x}"]
        assert await store.find("sequence", "8") == [f"{2:032x}"]
        assert await store.find("sequence", "10") == []
        assert await store.find("node", "idc-1") == [f"{2:032x}", f"{1:032x}"]


async def test_recent_traces_are_summed_up_and_narrowed():
    async with SpanStore.open() as store:
        await store.add(
            [span(1, 1), span(1, 2, parent=1, status="ERROR"), span(2, 3, attributes={"isthmus.node": "a"})]
        )
        everything = await store.recent()
        assert [(t.trace_id[-1], t.spans, t.errors) for t in everything] == [("2", 1, 0), ("1", 2, 1)]
        assert everything[1].duration_ms == pytest.approx(1.5)
        assert [t.trace_id[-1] for t in await store.recent(errors=True)] == ["1"]
        assert [t.trace_id[-1] for t in await store.recent(node="a")] == ["2"]


def test_a_noisy_source_gets_its_share_and_no_more():
    limit = SourceLimit(10, burst=20)
    assert limit.take("noisy", 100, now=0.0) == 20
    assert limit.take("noisy", 100, now=0.0) == 0
    assert limit.take("quiet", 5, now=0.0) == 5
    assert limit.take("noisy", 100, now=1.0) == 10


def test_memory_of_sources_is_bounded():
    limit = SourceLimit(10, burst=20, sources_max=3)
    for number in range(100):
        limit.take(f"source-{number}", 1, now=float(number))
    assert len(limit._buckets) == 3


def test_the_waterfall_nests_children_and_joins_linked_traces():
    picture = waterfall(
        f"{1:032x}",
        [span(1, 1), span(1, 2, parent=1), span(2, 3, links=((1, 2),)), span(2, 4, parent=3)],
        limit=10,
    )
    assert [(row.depth, row.joined) for row in picture.rows] == [
        (0, "root"),
        (1, "parent"),
        (2, "link"),
        (3, "parent"),
    ]
    assert picture.rows[1].offset_ms == pytest.approx(1.0)
    assert picture.duration_ms == pytest.approx(3.5)


def test_the_waterfall_shows_every_span_once_whatever_its_parents_say():
    spans = [span(1, 1, parent=2), span(1, 2, parent=1), span(1, 3, parent=99), span(1, 4, links=((1, 4),))]
    picture = waterfall(f"{1:032x}", spans, limit=10)
    assert sorted(row.span.span_id for row in picture.rows) == [f"{n:016x}" for n in (1, 2, 3, 4)]


def test_a_deep_chain_of_spans_does_not_overflow():
    spans = [span(1, n, parent=n - 1) for n in range(1, TRACE_SPANS_MAX + 1)]
    picture = waterfall(f"{1:032x}", spans, limit=TRACE_SPANS_MAX)
    assert len(picture.rows) == TRACE_SPANS_MAX
    assert picture.truncated
