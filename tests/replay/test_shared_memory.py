"""What judges in other processes hand to the fold: the same events, the same verdict, nothing left over."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.cluster.digest import state_digest
from controlplane.cluster.state import ClusterState
from events.chain import CHAIN_HEADER, genesis, link
from events.codec import StoredMessage, decode
from events.types import RangeAllocated, RangeFreed
from replay.archive import lines
from replay.archive import writer as writing
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.verification import fold_payload
from replay.verification import verify as verifying
from replay.verification.full_check import check_lines
from replay.verification.outcome import Report, Wanted
from replay.verification.shared_memory import SLOT_SIZE, SharedMemory, store
from replay.verification.verify import verify
from tests.replay.histories import CLUSTER, history

MESSAGES = history(11, 160)
FREED = next(m.sequence for m in MESSAGES if type(decode(m).event) is RangeFreed)
ALLOCATED = [m.sequence for m in MESSAGES if type(decode(m).event) is RangeAllocated][3]


@given(st.integers(0, len(MESSAGES) - 1), st.integers(1, 80))
def test_what_is_handed_over_is_what_the_lines_say(first, count):
    part = MESSAGES[first : first + count]
    data = lines.encode_messages(part)
    before = bytes.fromhex(MESSAGES[first - 1].headers[CHAIN_HEADER]) if first else genesis(CLUSTER).digest
    result = check_lines(data, CLUSTER, before, first, with_payload=True)
    handed, facts = fold_payload.decode(result.payload), lines.facts(data)
    assert [item.body for item in handed] == [fact.body for fact in facts]
    assert [lines.own_time(item) for item in handed] == [lines.own_time(fact) for fact in facts]


def test_a_part_with_an_unusual_line_is_not_handed_over():
    part = list(MESSAGES[:12])
    part[7] = part[7]._replace(body=part[7].body.replace(b"}", b" }"))
    assert (
        check_lines(lines.encode_messages(part), CLUSTER, genesis(CLUSTER).digest, 0, with_payload=True).payload
        == b""
    )


def rechained(messages: list[StoredMessage]) -> list[StoredMessage]:
    digest, done = genesis(CLUSTER).digest, []
    for m in messages:
        digest = link(digest, m.sequence, m.subject, m.headers, m.body)
        done.append(m._replace(headers={**m.headers, CHAIN_HEADER: digest.hex()}))
    return done


def with_body(at: int, old: bytes, new: bytes) -> list[StoredMessage]:
    """A forger who knows the format alters one body."""
    changed = list(MESSAGES)
    assert old in changed[at - 1].body
    changed[at - 1] = changed[at - 1]._replace(body=changed[at - 1].body.replace(old, new, 1))
    return rechained(changed)


def with_time(at: int, time: str) -> list[StoredMessage]:
    changed = list(MESSAGES)
    changed[at - 1] = changed[at - 1]._replace(headers={**changed[at - 1].headers, "ce-time": time})
    return rechained(changed)


LOGS: dict[str, Callable[[], list[StoredMessage]]] = {
    "sound": lambda: MESSAGES,
    "a body that was altered": lambda: [
        m._replace(body=m.body.replace(b"}", b" }")) if m.sequence == 70 else m for m in MESSAGES
    ],
    "an event that is missing": lambda: [m for m in MESSAGES if m.sequence != 90],
    "another index, with a proper chain": lambda: with_body(ALLOCATED, b'"index":', b'"index":1'),
    "a body that is not of its type": lambda: with_body(ALLOCATED, b'"index":', b'"indices":'),
    "a range freed too early": lambda: with_time(FREED, "2020-01-01T00:00:00.000000Z"),
}  # fmt: skip


def judged(path: Path, jobs: int, **wanted: object) -> Report:
    async def run() -> Report:
        archive = ArchiveLog(path)
        try:
            return await verify(await archive_history(archive), Wanted(jobs=jobs, **wanted))  # type: ignore[arg-type]
        finally:
            archive.close()

    return asyncio.run(run())


@pytest.mark.parametrize("log", LOGS)
def test_other_processes_come_to_the_same_verdict_with_a_handover_and_without(tmp_path, monkeypatch, log):
    monkeypatch.setattr(writing, "EVENTS_PER_SEGMENT", 16)
    writer = ArchiveWriter.create(tmp_path / "log", CLUSTER, genesis(CLUSTER), source="test")
    writer.add(LOGS[log]())
    writer.finish()
    middle = len(MESSAGES) // 2
    state = ClusterState(CLUSTER)
    digest = state_digest(state)
    wanted = {
        "heads": [("somebody", middle, MESSAGES[middle - 1].headers[CHAIN_HEADER])],
        "states": [("somebody", middle, digest)],  # of an empty state, so that it is compared and differs
    }
    here = judged(tmp_path / "log", 0, **wanted)
    assert {finding.check for finding in here.findings if finding.sequence == middle} >= (
        {"states"} if log == "sound" else set()
    )
    monkeypatch.setattr(verifying, "INLINE_EVENTS", 0)
    for handed in (True, False):
        if not handed:
            monkeypatch.setattr(os, "memfd_create", refuse)
        there = judged(tmp_path / "log", 2, **wanted)
        assert there.findings == here.findings
        assert (there.checks, there.state_digest, there.head) == (here.checks, here.state_digest, here.head)
    assert not any(
        "isthmus-verify" in str(file.readlink())
        for file in Path("/proc/self/fd").glob("*")
        if file.is_symlink()
    )


def refuse(name: str) -> int:
    raise OSError(name)


def test_a_worker_leaves_and_the_owner_fetches():
    with (
        SharedMemory(active=True) as memory,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        one, other = memory.acquire(), memory.acquire()
        assert one is not None
        assert other is not None
        assert one != other
        assert pool.submit(store, one, b"of one").result() == 6
        assert pool.submit(store, other, b"of the other").result() == 12
        assert pool.submit(store, other, bytes(SLOT_SIZE + 1)).result() == 0, "what does not fit is not cut"
        assert memory.take(one, 6) == b"of one"
        assert memory.take(other, 12) == b"of the other"
        assert memory.acquire() == other, "a slot is used again"
    assert store(one, b"too late") == 0
    with SharedMemory(active=False) as none:
        assert none.acquire() is None
