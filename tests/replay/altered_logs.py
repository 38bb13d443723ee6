"""Logs and archives for the tests of verification, altered as a forger would, and what is found in them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from events.chain import CHAIN_HEADER, genesis, link
from events.codec import StoredMessage, decode
from events.errors import VerificationFailed
from replay.archive import writer as writing
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.history import History
from replay.verification.outcome import Report, Wanted
from replay.verification.verify import verify
from tests.replay.histories import CLUSTER, ListLog, history

MESSAGES = history(11, 160)


def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives of few events have several segments and parts of an index."""
    monkeypatch.setattr(writing, "EVENTS_PER_SEGMENT", 16)
    monkeypatch.setattr(writing, "INDEX_EVERY", 3)


def judge(messages: list[StoredMessage], **wanted: object) -> Report:
    async def run() -> Report:
        return await verify(await History.open(ListLog(messages)), Wanted(**wanted))  # type: ignore[arg-type]

    return asyncio.run(run())


def judge_file(path: Path, **wanted: object) -> Report:
    async def run() -> Report:
        try:
            archive = ArchiveLog(path)
        except VerificationFailed:
            archive = ArchiveLog(path, by_manifest=False)
        try:
            return await verify(await archive_history(archive), Wanted(**wanted))  # type: ignore[arg-type]
        finally:
            archive.close()

    return asyncio.run(run())


def write(path: Path, messages: list[StoredMessage], **more: object) -> Path:
    writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="test")
    writer.add(messages)
    writer.finish(**more)  # type: ignore[arg-type]
    return path


def errors(report: Report) -> set[tuple[str, int]]:
    return {(finding.code, finding.sequence) for finding in report.findings if finding.level == "error"}


def altered(messages: list[StoredMessage], at: int, **fields: object) -> list[StoredMessage]:
    changed = list(messages)
    changed[at - 1] = changed[at - 1]._replace(**fields)
    return changed


def digest_at(sequence: int) -> str:
    state = ClusterState(CLUSTER)
    for message in MESSAGES[:sequence]:
        recorded = decode(message)
        evolve(state, recorded.sequence, recorded.event)
    return state_digest(state)


def rechained(messages: list[StoredMessage], start: int) -> list[StoredMessage]:
    """A forger who knows the format recomputes every digest from ``start`` on."""
    done = messages[: start - 1]
    digest = bytes.fromhex(done[-1].headers[CHAIN_HEADER]) if done else genesis(CLUSTER).digest
    for message in messages[start - 1 :]:
        digest = link(digest, message.sequence, message.subject, message.headers, message.body)
        done.append(message._replace(headers={**message.headers, CHAIN_HEADER: digest.hex()}))
    return done
