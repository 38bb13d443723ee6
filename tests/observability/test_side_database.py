"""Damaged, foreign and unwritable side files: the controller starts, records on, and says so."""

from __future__ import annotations

import sqlite3

import pytest

from controlplane.controller.agents.agent_history.store import HistoryStore, as_moment
from controlplane.controller.agents.records import Alarm, RecordBatch
from controlplane.controller.observability.setup import Observability
from controlplane.controller.observability.span_store import SpanStore
from events.errors import Unavailable
from events.telemetry.spans import SpanRecord


def span(number: int) -> SpanRecord:
    return SpanRecord(
        trace_id=f"{number:032x}", span_id=f"{number:016x}", parent_id="", name="join", kind="SERVER",
        service="isthmus-cli", instance="desk", start_ns=1, end_ns=2, status="OK", message="",
        attributes={}, links=[],
    )  # fmt: skip


FILES = {
    "no database": b"not a database at all, " * 400,
    "a head and nothing more": b"SQLite format 3\x00" + bytes(100),
    "nothing but zeros": bytes(8192),
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
async def test_a_damaged_file_is_set_aside_and_said(tmp_path, content):
    for name in ("spans.db", "reports.db"):
        (tmp_path / name).write_bytes(content)
    async with Observability.open("prod", "c1", tmp_path, environ={}) as observability:
        await observability.spans.add([span(1)])
        assert observability.spans.count == 1
        found = observability.conditions()
        assert [c.code for c in found] == ["record_incomplete"] * 2
        assert str(tmp_path / "spans.db.damaged") in found[0].message
        assert (tmp_path / "spans.db.damaged").read_bytes() == content
    async with Observability.open("prod", "c1", tmp_path, environ={}) as observability:
        assert observability.conditions() == []
        assert observability.spans.count == 1


async def test_damage_in_the_middle_shows_later_and_is_set_aside_then(tmp_path):
    path = tmp_path / "spans.db"
    async with SpanStore.open(path) as store:
        await store.add([span(number) for number in range(1, 3000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:8192] + b"\xa5" * (len(whole) - 8192))
    async with SpanStore.open(path) as store:
        assert await store.recent(limit=50) == []
        await store.add([span(1)])
        assert len(await store.recent(limit=50)) == 1
        assert [c.code for c in store.file.conditions()] == ["record_incomplete"]


async def test_another_programs_tables_are_set_aside(tmp_path):
    path = tmp_path / "reports.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE floor (weather TEXT)")
        other.execute("CREATE TABLE report (weather TEXT)")
    other.close()
    async with HistoryStore.open(path) as store:
        alarm = Alarm(name="log", code="chain_broken", message="m", at=as_moment(5))
        await store.write(RecordBatch(10, [], [], [], [], [alarm]))
        assert len(await store.alarms(100, 5)) == 1
        assert (tmp_path / "reports.db.damaged").exists()


async def test_where_no_file_can_be_written_the_record_is_kept_in_memory(tmp_path):
    (tmp_path / "spans.db").mkdir()
    (tmp_path / "data").write_text("a file where the directory should be")
    async with SpanStore.open(tmp_path / "spans.db") as store:
        await store.add([span(1)])
        assert store.count == 1
        (condition,) = store.file.conditions()
        assert "kept in memory" in condition.message
    async with Observability.open("prod", "c1", tmp_path / "data", environ={}) as observability:
        assert len(observability.conditions()) == 2


async def test_a_full_disk_is_said_and_over_when_there_is_room_again(tmp_path):
    async with SpanStore.open(tmp_path / "spans.db") as store:
        await store.add([span(1)])
        pages = store.file.connection.execute("PRAGMA page_count").fetchone()[0]
        await store.file.run(lambda: store.file.connection.execute(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(Unavailable) as caught:
            await store.add([span(number) for number in range(2, 5000)])
        assert caught.value.code == "record_unavailable"
        assert [c.severity for c in store.file.conditions()] == ["warning"]
        await store.file.run(lambda: store.file.connection.execute("PRAGMA max_page_count = 100000"))
        await store.add([span(2)])
        assert store.file.conditions() == []
