"""Finding in a log gives the same answers live, in an archive and by hand; also where times ran backwards."""

from __future__ import annotations

import re
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane.readmodel.asof import sequence_at
from controlplane.readmodel.schema import SCHEMA
from events.chain import genesis
from events.codec import StoredMessage
from events.protocol.commands import DefineCluster
from replay.archive import writer as writing
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.history import History
from replay.queries.stats import stats
from replay.verification.outcome import Wanted
from replay.verification.verify import verify
from replay.when import When
from tests.replay.histories import CLUSTER, Author, ListLog, history

MESSAGES = history(3, steps=60)[:64]
BEGIN_NS = 1_772_438_400_000_000_000
STEPS_S = st.sampled_from([0.0, 0.5, 1.0, 3.0, -1.0, -3.0, 60.0, -60.0, 3600.0, -3600.0])


def at_times(steps_s: list[float]) -> list[StoredMessage]:
    """The events, recorded by a clock that makes these steps."""
    now_ns, found = BEGIN_NS, []
    for message, step_s in zip(MESSAGES, steps_s, strict=True):
        now_ns += int(step_s * 1e9)
        found.append(message._replace(recorded_ns=now_ns))
    return found


def write(path: Path, messages: list[StoredMessage]) -> Path:
    path.unlink(missing_ok=True)
    writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="test")
    writer.add(messages)
    writer.finish()
    return path


def by_hand(messages: list[StoredMessage], moment_ns: int) -> int:
    return max((m.sequence for m in messages if m.recorded_ns <= moment_ns), default=0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(STEPS_S, min_size=len(MESSAGES), max_size=len(MESSAGES)), st.data())
async def test_the_last_event_by_a_moment_is_the_same_one_everywhere(
    tmp_path, monkeypatch, steps_s, data
) -> None:
    monkeypatch.setattr(writing, "EVENTS_PER_SEGMENT", 7)
    messages = at_times(steps_s)
    of_an_event = st.sampled_from([m.recorded_ns for m in messages])
    moments = [*data.draw(st.lists(of_an_event, min_size=4, max_size=4)), BEGIN_NS - 10**18, BEGIN_NS + 10**18]
    live = await History.open(ListLog(messages))
    archive = ArchiveLog(write(tmp_path / "log", messages))
    earlier = ArchiveLog(tmp_path / "log")
    earlier.places = [  # as release 0.2 wrote them
        place._replace(segment=msgspec.structs.replace(place.segment, low_ns=0)) for place in earlier.places
    ]
    pasts = [live, await archive_history(archive), await archive_history(earlier)]
    model = sqlite3.connect(":memory:")
    model.executescript(SCHEMA)
    model.executemany(
        "INSERT INTO event (sequence, time_us, type, entity) VALUES (?, ?, '', '')",
        [(m.sequence, m.recorded_ns // 1000) for m in messages],
    )
    for moment_ns in moments:
        for off_us in (0, 1, -1):
            moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment_ns // 1000 + off_us)
            expected = by_hand(messages, moment_ns + off_us * 1000)
            for past in pasts:
                assert (await past.resolve(When("then", moment=moment))).sequence == expected
            assert sequence_at(model, moment) == expected
    archive.close()
    earlier.close()
    model.close()


async def test_times_that_run_backwards_are_said_with_the_answer(tmp_path) -> None:
    steps_s = [1.0] * len(MESSAGES)
    steps_s[30], steps_s[33] = 3600.0, -3600.0
    messages = at_times(steps_s)
    archive = ArchiveLog(write(tmp_path / "log", messages))
    for past in (await History.open(ListLog(messages)), await archive_history(archive)):
        for at, later in ((40, 31), (31, 33), (20, 0), (29, 0)):
            moment = datetime.fromtimestamp(messages[at].recorded_ns / 1e9, UTC)
            point = await past.resolve(When("then", moment=moment))
            found = await past.later_before(point)
            assert (found.sequence if found is not None else 0) == later
    archive.close()


async def test_a_segment_that_states_other_times_than_its_events_have_is_found(tmp_path) -> None:
    messages = at_times([1.0] * len(MESSAGES))
    path = write(tmp_path / "log", messages)
    stated = re.search(rb'"low_ns":(\d+)', path.read_bytes())
    assert stated is not None
    archive = ArchiveLog(path)
    archive.places = [
        place._replace(segment=msgspec.structs.replace(place.segment, low_ns=place.segment.low_ns + 1))
        for place in archive.places
    ]
    report = await verify(await archive_history(archive), Wanted())
    assert any("other recorded times" in found.message for found in report.findings)
    archive.close()


@pytest.mark.parametrize("kind", ["node", "range", "clb", "cluster", "address"])
async def test_an_archive_finds_what_reading_all_of_it_finds(tmp_path, kind) -> None:
    archive = ArchiveLog(write(tmp_path / "log", MESSAGES))
    live, past = await History.open(ListLog(MESSAGES)), await archive_history(archive)
    names = await live.names(kind)
    assert names == await past.names(kind)
    assert names or kind == "clb"
    for name in names:
        for newest_first in (False, True):
            both = [
                [r.sequence async for r in each.about(kind, name, after=5, until=60, newest_first=newest_first)]
                for each in (live, past)
            ]
            assert both[0] == both[1]
        if kind == "node":
            assert await live.last_about_node(name) == await past.last_about_node(name)
    archive.close()


async def test_a_nodes_history_has_what_was_found_of_its_paths(tmp_path) -> None:
    author = Author(3)
    author.do(DefineCluster(container_cidr="10.8.0.0/24", pods_per_node=16, services=64))
    while len(author.state.nodes) < 3:
        author.step()
    before = author.head.sequence
    author.paths()
    first, second, third = sorted(author.state.nodes)[:3]
    archive = ArchiveLog(write(tmp_path / "log", author.messages))
    for past in (await History.open(ListLog(author.messages)), await archive_history(archive)):
        found = {
            name: [r.event.verb async for r in past.about("node", name, after=before)]
            for name in (first, second, third)
        }
        assert found == {
            first: ["lost", "lost", "restored", "restored"], second: ["lost", "restored"], third: []
        }  # fmt: skip
    assert (await verify(await archive_history(archive), Wanted())).sound
    archive.close()


async def test_no_duration_is_negative_where_times_run_backwards() -> None:
    steps_s = [1.0] * len(MESSAGES)
    steps_s[20], steps_s[40], steps_s[50] = 3600.0, -7200.0, 3600.0
    found = await stats(await History.open(ListLog(at_times(steps_s))))
    for spread in (found.lifetimes, found.drain, found.rest):
        assert spread.count == 0 or spread.minimum >= 0
    assert found.recorded_from is not None
    assert found.recorded_to is not None
    assert found.recorded_from <= found.recorded_to
