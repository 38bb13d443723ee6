"""An incident capsule: a stretch of the log, the state before it and the agents' reports, in one file.

A capsule is an archive (every replay command works on it) that begins later and carries notes: the
canonical text of the state before its first event, and what the agents had last reported. The lab
re-runs it step by step: :func:`steps` gives each command's events with the state behind them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import msgspec

from controlplane.cluster.digest import canonical, state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from events.chain import CHAIN_HEADER, Head, genesis
from events.codec import Recorded, decode
from events.errors import Refused, Usage
from events.reading import verified
from events.status import AgentStatus
from replay.archive.format import Note
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.history import History, Point, Progress
from replay.output_files import cannot_write
from replay.queries.states import States, base
from replay.when import When

_encode = msgspec.json.Encoder().encode


class CapsuleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a capsule is about. ``digest`` is the state's before the first event."""

    cluster: str
    source: str
    begin: Point
    end: Point
    digest: str
    nodes: int
    reports: int
    made: datetime
    reason: str = ""


class CapsuleStep(NamedTuple):
    """One command of a capsule: its events, and the state behind them (not to be changed)."""

    number: int
    events: Sequence[Recorded]
    state: ClusterState


async def make_capsule(
    states: States,
    begin: Point,
    end: Point,
    path: str | Path,
    *,
    reason: str = "",
    progress: Progress | None = None,
) -> CapsuleInfo:
    """Pack ``(begin, end]`` into a new file. Raises Usage for an empty stretch, Refused(archive_exists).

    Cancelled, no file is left.
    """
    if end.sequence <= begin.sequence:
        raise Usage("usage", f"nothing lies between event {begin.sequence} and event {end.sequence}")
    history = states.history
    begin, end = await _whole(history, begin, end)
    state, _ = await states.at(begin.sequence, progress)
    if begin.sequence == 0:
        head = genesis(history.cluster)
    else:
        message = await history.message(begin.sequence)
        head = Head(begin.sequence, bytes.fromhex(message.headers[CHAIN_HEADER]))
    reports = await history.reports()
    about = CapsuleInfo(
        cluster=history.cluster,
        source=history.source,
        begin=begin,
        end=end,
        digest=state_digest(state),
        nodes=len(state.nodes),
        reports=len(reports),
        made=datetime.now(UTC),
        reason=reason,
    )
    writer = ArchiveWriter.create(path, history.cluster, head, source=f"capsule of {history.source}")
    try:
        writer.note(
            [
                Note(note="capsule", content=msgspec.Raw(_encode(about))),
                Note(note="state", content=msgspec.Raw(_encode(canonical(state).decode()))),
                *(Note(note="status", content=msgspec.Raw(_encode(report))) for report in reports),
            ]
        )
        async for batch in history.messages(after=begin.sequence, until=end.sequence):
            writer.add(batch)
            if progress:
                progress(batch[-1].sequence)
        writer.finish()
    except BaseException as error:
        writer.abandon()
        Path(path).unlink(missing_ok=True)  # noqa: ASYNC240  a half capsule is of no use to anybody
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
    return about


async def _whole(history: History, begin: Point, end: Point) -> tuple[Point, Point]:
    """The stretch with its first and its last command whole: half a decision explains nothing."""
    first = decode(await history.message(begin.sequence + 1))
    last = decode(await history.message(end.sequence))
    if first.envelope.tx_index:
        begin = await history.resolve(When(begin.asked, sequence=begin.sequence - first.envelope.tx_index))
    missing = last.envelope.tx_count - 1 - last.envelope.tx_index
    if missing:
        end = await history.resolve(When(end.asked, sequence=min(history.end, end.sequence + missing)))
    return begin, end


class Capsule:
    """An opened capsule; close it. Raises Refused(archive_foreign) for an archive that is none.

    Cancelled, its coroutines leave nothing behind.
    """

    def __init__(self, path: str | Path) -> None:
        self.archive = ArchiveLog(path)
        try:
            found = self.archive.decoded_notes("capsule", CapsuleInfo)
        except BaseException:
            self.archive.close()
            raise
        if not found:
            self.archive.close()
            raise Refused(
                "archive_foreign",
                f"{path} is an archive, but no capsule: make one with `isthmus replay capsule`",
            )
        self.about = found[0]

    def close(self) -> None:
        """Release the file."""
        self.archive.close()

    def reports(self) -> list[AgentStatus]:
        """What the agents had last reported when the capsule was made."""
        return self.archive.decoded_notes("status", AgentStatus)

    async def begin(self) -> ClusterState:
        """The state before the first event. Raises VerificationFailed(digest_mismatch)."""
        return base(await archive_history(self.archive))

    async def steps(self) -> AsyncIterator[CapsuleStep]:
        """Each command in order, with the state behind it. The same state object moves on from step to step."""
        state = await self.begin()
        waiting: list[Recorded] = []
        number = 0
        header = self.archive.files[0].header
        async for batch in verified(self.archive, Head(header.after, bytes.fromhex(header.after_head))):
            for recorded in batch.events:
                evolve(state, recorded.sequence, recorded.event)
                waiting.append(recorded)
                if recorded.envelope.tx_index + 1 >= recorded.envelope.tx_count:
                    number += 1
                    yield CapsuleStep(number, tuple(waiting), state)
                    waiting = []
        if waiting:
            yield CapsuleStep(number + 1, tuple(waiting), state)
