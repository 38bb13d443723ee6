"""The log's reading contract on archive files, and what makes the file what it is."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from events.chain import genesis
from events.codec import StoredMessage
from events.errors import IsthmusError, Refused
from events.log import LogReader
from events.memory import MemoryLog
from replay.archive import lines
from replay.archive import writer as writing
from replay.archive.directory import ArchiveFile
from replay.archive.postings import keys_of
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from tests.contract.samples import CLUSTER, everything, fill
from tests.contract.suite import ReaderContract, ReaderOver
from tests.replay.histories import CLUSTER as PAST
from tests.replay.histories import history


@pytest.fixture
def reader_over(tmp_path: Path) -> Iterator[ReaderOver]:
    opened: list[ArchiveLog] = []

    async def make(count: int) -> LogReader:
        log = MemoryLog(CLUSTER)
        await fill(log, count)
        path = tmp_path / f"{count}.isthmus"
        writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="contract")
        async for batch in log.read():
            writer.add(batch.messages)
        writer.finish()
        opened.append(ArchiveLog(path))
        return opened[-1]

    yield make
    for archive in opened:
        archive.close()


class TestArchiveLog(ReaderContract):
    """Everything in the reader's part of the suite."""


class TestSeveralFiles(ReaderContract):
    """The same on a base and its increments."""

    @pytest.fixture
    def reader_over(self, tmp_path: Path) -> Iterator[ReaderOver]:
        opened: list[ArchiveLog] = []

        async def make(count: int) -> LogReader:
            log = MemoryLog(CLUSTER)
            await fill(log, count)
            messages = await everything(log)
            position, paths = genesis(CLUSTER), []
            for part in range(3):
                share = messages[len(messages) * part // 3 : len(messages) * (part + 1) // 3]
                path = tmp_path / f"{count}-{part}.isthmus"
                writer = ArchiveWriter.create(path, CLUSTER, position, source="contract")
                writer.add(share)
                position = writer.position
                writer.finish()
                paths.append(path)
            opened.append(ArchiveLog(*reversed(paths)))
            return opened[-1]

        yield make
        for archive in opened:
            archive.close()


@pytest.fixture
def messages() -> list[StoredMessage]:
    return history(11, 150)


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "EVENTS_PER_SEGMENT", 16)
    monkeypatch.setattr(writing, "INDEX_EVERY", 3)


def write(path: Path, messages: list[StoredMessage]) -> None:
    writer = ArchiveWriter.create(path, PAST, genesis(PAST), source="test")
    writer.add(messages)
    writer.finish()


def read(path: Path) -> list[StoredMessage]:
    archive = ArchiveLog(path)
    try:
        return asyncio.run(everything(archive))
    finally:
        archive.close()


def test_any_zstd_program_prints_the_whole_content_as_json_lines(tmp_path, messages):
    write(tmp_path / "log", messages)
    with (tmp_path / "log").open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        rows = [json.loads(line) for line in reader.read().splitlines()]
    assert rows[0]["isthmus_archive"] == 1
    events = [row for row in rows if isinstance(row, dict) and "seq" in row]
    assert [row["seq"] for row in events] == list(range(1, len(messages) + 1))
    for row, message in zip(events, messages, strict=True):
        assert row["type"] == message.headers["ce-type"]
        assert row["body"] == json.loads(message.body)
        assert row["headers"] == dict(message.headers)


def test_the_command_line_zstd_agrees(tmp_path, messages):
    write(tmp_path / "log.zst", messages)
    printed = subprocess.run(["zstd", "-dc", tmp_path / "log.zst"], capture_output=True, check=True).stdout
    assert sum(b'"seq":' in line for line in printed.splitlines()) == len(messages)


BODIES = [
    b'{"a": 1}',
    b'{"a":1}\n',
    b' {"a":1}',
    b'{"a":\n1}',
    b"",
    b"\xff\x00",
    b'{"a":"\xff"}',
    b"not json",
    b'{"text":"\xe2\x82\xac"}',
    b"[1,2]",
]


@pytest.mark.parametrize("body", BODIES)
def test_every_body_comes_back_byte_for_byte(tmp_path, body):
    message = StoredMessage(1, "isthmus.past.events.node.x.joined", {"ce-type": "node.joined.v1"}, body, 5)
    assert lines.messages(lines.encode_messages([message])) == [message]


@given(st.binary(max_size=60) | st.text(max_size=30).map(str.encode))
def test_no_body_at_all_is_changed(body):
    message = StoredMessage(7, "s", {"ce-type": "?", "x": "y"}, body, 1)
    data = lines.encode_messages([message])
    assert data.count(b"\n") == 1
    assert lines.messages(data) == [message]


@pytest.mark.parametrize("given", [1, 15, 16, 17, 48, 49, 100])
def test_an_interrupted_export_is_a_readable_prefix_and_goes_on(tmp_path, messages, given):
    path = tmp_path / "log"
    writer = ArchiveWriter.create(path, PAST, genesis(PAST), source="test")
    writer.add(messages[:given])
    writer.close()
    assert read(path) == messages[:given]
    again = ArchiveWriter.resume(path)
    assert again.position.sequence == given
    again.add(messages[given:])
    again.finish()
    assert read(path) == messages


def test_a_file_cut_at_any_byte_is_a_readable_prefix_or_no_archive(tmp_path, messages):
    path = tmp_path / "log"
    write(path, messages[:60])
    whole = path.read_bytes()
    for cut in range(0, len(whole), 97):
        path.write_bytes(whole[:cut])
        codes = set()
        try:
            found = read(path)
        except IsthmusError as error:
            found = []
            codes = {error.code}
        assert found == messages[: len(found)]
        assert codes <= {"archive_foreign", "archive_damaged"}


def test_a_file_cut_at_any_byte_can_be_continued(tmp_path, messages):
    path = tmp_path / "log"
    write(path, messages[:60])
    whole = path.read_bytes()
    for cut in range(len(whole) - 1, 600, -811):
        path.write_bytes(whole[:cut])
        writer = ArchiveWriter.resume(path)
        writer.add(messages[writer.position.sequence :])
        writer.finish()
        assert read(path) == messages


def test_a_finished_file_is_continued_in_place(tmp_path, messages):
    path = tmp_path / "log"
    write(path, messages[:40])
    writer = ArchiveWriter.resume(path)
    writer.add(messages[40:])
    writer.finish()
    assert read(path) == messages
    with ArchiveFile(path) as file:
        assert file.tail is not None
        assert list(file.hop()) == file.segments


def test_the_index_names_every_event_about_a_thing(tmp_path, messages):
    path = tmp_path / "log"
    writer = ArchiveWriter.create(path, PAST, genesis(PAST), source="test")
    writer.add(messages[:100])
    writer.close()  # the last segments have no index yet
    for finished in (False, True):
        if finished:
            ArchiveWriter.resume(path).finish()
        archive = ArchiveLog(path)
        expected: dict[str, list[int]] = {}
        for message in messages[:100]:
            for key in keys_of(message):
                expected.setdefault(key, []).append(message.sequence)
        assert {key: archive.sequences(key) for key in expected} == expected
        assert archive.sequences("node/nobody") == []
        archive.close()


def test_files_that_do_not_join_are_refused(tmp_path, messages):
    write(tmp_path / "a", messages[:30])
    other = ArchiveWriter.create(tmp_path / "b", PAST, genesis(PAST), source="test")
    other.add(messages[:10])
    other.finish()
    with pytest.raises(Refused) as refused:
        ArchiveLog(tmp_path / "a", tmp_path / "b")
    assert refused.value.code == "archive_mismatch"


def test_an_existing_file_is_never_overwritten(tmp_path, messages):
    write(tmp_path / "a", messages[:5])
    with pytest.raises(Refused) as refused:
        write(tmp_path / "a", messages)
    assert refused.value.code == "archive_exists"
    assert read(tmp_path / "a") == messages[:5]


@given(st.binary(max_size=400))
def test_no_file_at_all_breaks_the_reader(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(content)
    with pytest.raises(IsthmusError) as refused:
        ArchiveLog(path)
    assert refused.value.code in ("archive_foreign", "archive_damaged")


def test_a_description_that_promises_too_much_is_refused_before_memory_is_taken(tmp_path, messages):
    from replay.archive.format import describe, pack

    data = zstandard.ZstdCompressor().compress(bytes(64 * 1024 * 1024))
    segment = describe("header", data, 10)
    (tmp_path / "bomb").write_bytes(pack(segment, data))
    with pytest.raises(IsthmusError) as refused:
        ArchiveLog(tmp_path / "bomb")
    assert refused.value.code == "archive_damaged"


async def test_following_an_archive_sees_what_an_export_adds(tmp_path, messages, monkeypatch):
    from replay.archive import reader

    monkeypatch.setattr(reader, "_FOLLOW_POLL_S", 0.01)
    path = tmp_path / "log"
    write(path, messages[:20])
    archive = ArchiveLog(path)
    seen: list[int] = []
    live = asyncio.Event()

    async def follow() -> None:
        async for batch in archive.read(follow=True, until=50):
            seen.extend(m.sequence for m in batch.messages)
            if not batch.pending:
                live.set()

    async with asyncio.timeout(60):
        following = asyncio.create_task(follow())
        await live.wait()
        writer = ArchiveWriter.resume(path)
        writer.add(messages[20:50])
        writer.finish()
        await following
    archive.close()
    assert seen == list(range(1, 51))


def test_the_documented_line_is_the_line():
    line = msgspec.json.decode(lines.encode_messages(history(1, 3)[:1]))
    assert list(line) == ["type", "seq", "recorded_ns", "subject", "headers", "body"]
