"""``export`` and ``import``: a log into an archive, an archive into an empty stream, and nothing lost between.

An export streams, may be interrupted at any point and continued, and can be incremental. It checks
each link on the way and says if one is broken, but writes it all the same: a damaged log is evidence.

An import is disaster recovery: it goes into an empty stream only (or continues its own interrupted
work), keeps subjects, identity headers and bodies byte for byte, and reads everything back.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from controlplane.controller.publishing.checkpoints import Checkpoint
from events.chain import CHAIN_HEADER, CHAINED_HEADERS, Head, genesis
from events.codec import OutgoingMessage, StoredMessage
from events.errors import IsthmusError, Refused, VerificationFailed
from events.log import BATCH_LIMIT, EventLog
from events.protocol.pods import PodPage
from events.reading import linked, stated_head
from replay.archive.directory import ArchiveFile, half_made
from replay.archive.format import Note
from replay.archive.pods import FACT, notes_of, pods_end
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter, Signer
from replay.archive_index import archive_history
from replay.history import History, Progress
from replay.output_files import cannot_write

Pods = Callable[[int], AsyncIterator[PodPage]]
"""The facts of pods that are kept behind a place of their stream, page by page."""
_KEPT = frozenset((*CHAINED_HEADERS, CHAIN_HEADER, "Nats-Msg-Id"))
_encode = msgspec.json.Encoder().encode


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """What an export did. ``broken`` counts links that do not hold, ``first_broken`` names the first.

    ``pods`` counts the facts of pods that were written now.
    """

    path: str
    mode: Literal["new", "continued", "increment"]
    first: int
    last: int
    written: int
    head: str
    size_bytes: int
    pods: int
    broken: int
    first_broken: str
    signed_by: str


async def export(
    history: History,
    path: str | Path,
    *,
    resume: bool = False,
    since: str | Path | None = None,
    signer: Signer | None = None,
    checkpoints: Sequence[Checkpoint] = (),
    pods: Pods | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the history to ``path``, and what is kept of ``pods`` behind what the file has of them already.

    With ``resume`` an existing file (finished or interrupted) is continued in place; with ``since`` a
    new file is made that continues that earlier archive. Raises Refused(archive_exists,
    archive_mismatch) and VerificationFailed(log_truncated) when the log is shorter than the archive.

    However it ends, the file is a readable prefix; running it again with ``resume`` goes on. Cancelled, the
    file holds whole segments and can be continued.
    """
    mode: Literal["new", "continued", "increment"] = "new"
    if resume and Path(path).exists() and not half_made(path):  # noqa: ASYNC240  once, before the work
        mode = "continued"
        await _check_joint(history, _end_of(path), str(path))
        writer = ArchiveWriter.resume(path)
    else:
        position = genesis(history.cluster)
        if history.start:
            position = Head(history.start, bytes.fromhex(await _digest_at(history, history.start)))
        if since is not None:
            mode = "increment"
            cluster, position = _end_of(since)
            await _check_joint(history, (cluster, position), str(since))
        writer = ArchiveWriter.create(path, history.cluster, position, source=history.source)
    first, head, broken, first_broken = writer.position.sequence, writer.position, 0, ""
    known = _pods_end([since] if since is not None else [path] if mode == "continued" else [])
    try:
        async for batch in history.messages(after=first):
            for message in batch:
                try:
                    head = linked(head, message)
                except VerificationFailed as error:
                    broken += 1
                    first_broken = first_broken or error.message
                    head = stated_head(message)
            writer.add(batch)
            if progress:
                progress(head.sequence)
        writer.note([Note(note="checkpoint", content=msgspec.Raw(_encode(item))) for item in checkpoints])
        facts = 0
        if pods is not None:
            async for notes in notes_of(pods(known)):
                writer.note(notes)
                facts += sum(note.note == FACT for note in notes)
        manifest = writer.finish(signer)
    except BaseException as error:
        writer.abandon()
        _remove_if_empty(path)
        if isinstance(error, OSError):
            raise cannot_write(path, error) from error
        raise
    return Exported(
        path=str(path),
        mode=mode,
        first=manifest.first,
        last=manifest.last,
        written=manifest.last - first,
        head=manifest.head,
        size_bytes=Path(path).stat().st_size,  # noqa: ASYNC240  once, after it
        pods=facts,
        broken=broken,
        first_broken=first_broken,
        signed_by=signer.public_hex if signer else "",
    )


def _remove_if_empty(path: str | Path) -> None:
    """Without any event a file is worth nothing, and only in the way of the next export."""
    with suppress(IsthmusError, OSError), ArchiveFile(path) as file:
        if file.events:
            return
    Path(path).unlink(missing_ok=True)


def _pods_end(paths: Sequence[str | Path]) -> int:
    """Up to where a file has facts of pods already."""
    if not paths:
        return 0
    archive = ArchiveLog(*paths)
    try:
        return pods_end(archive)
    finally:
        archive.close()


def _end_of(path: str | Path) -> tuple[str, Head]:
    with ArchiveFile(path) as file:
        return file.header.cluster, Head(file.last, bytes.fromhex(file.head))


async def _digest_at(history: History, sequence: int) -> str:
    if sequence == 0:
        return genesis(history.cluster).hex
    if sequence == history.start:
        return history.index.start_digest or genesis(history.cluster).hex
    return (await history.message(sequence)).headers.get(CHAIN_HEADER, "")


async def _check_joint(history: History, end: tuple[str, Head], name: str) -> None:
    cluster, head = end
    if cluster != history.cluster:
        raise Refused(
            "archive_mismatch", f"{name} is of cluster {cluster!r}, {history.source} of {history.cluster!r}"
        )
    if head.sequence > history.end:
        raise VerificationFailed(
            "log_truncated",
            f"{name} ends with event {head.sequence}, {history.source} already with event {history.end}: "
            f"{head.sequence - history.end} events are missing from the log",
            archive=head.sequence,
            log=history.end,
        )
    found = await _digest_at(history, head.sequence)
    if found != head.hex:
        raise Refused(
            "archive_mismatch",
            f"{name} has digest {head.hex[:16]}… behind event {head.sequence}, "
            f"{history.source} has {found[:16]}…: they are different histories",
            sequence=head.sequence,
        )


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """What an import did. ``verified`` counts the events read back and compared."""

    cluster: str
    found: int
    written: int
    last: int
    head: str
    verified: int


async def import_archive(
    archive: ArchiveLog, log: EventLog, progress: Progress | None = None, verified: Progress | None = None
) -> Imported:
    """Write all of ``archive`` into ``log``, which is empty or holds the beginning of the same history.

    Raises Refused(stream_not_empty, archive_mismatch), VerificationFailed when the archive is damaged or what
    was read back differs, and Unavailable; running it again goes on where it stopped. Cancelled, the log holds
    whole commands from the beginning on: running it again goes on.
    """
    if archive.cluster != log.cluster:
        raise Refused(
            "archive_mismatch",
            f"the archive is of cluster {archive.cluster!r}, the stream of {log.cluster!r}: subjects and "
            f"the hash chain carry the name; import it with --cluster {archive.cluster}",
        )
    source = await archive_history(archive)
    head = await log.head()
    await _check_prefix(source, head)
    position = head
    async for batch in source.messages(after=head.sequence):
        for part in _transactions(batch):
            for message in part:
                position = linked(position, message)
            await log.append(
                [as_published(message) for message in part], expected=part[0].sequence - 1, timeout_s=30
            )
        if progress:
            progress(position.sequence)
    compared = await _compare(source, log, verified)
    end = await log.head()
    if end != source.head:
        raise VerificationFailed(
            "digest_mismatch",
            f"the stream ends with event {end.sequence} ({end.hex[:16]}…), "
            f"the archive with event {source.end} ({source.head.hex[:16]}…)",
        )
    return Imported(
        cluster=log.cluster,
        found=head.sequence,
        written=end.sequence - head.sequence,
        last=end.sequence,
        head=end.hex,
        verified=compared,
    )


async def _check_prefix(source: History, head: Head) -> None:
    if head.sequence > source.end or head.sequence < source.start:
        raise Refused(
            "stream_not_empty",
            f"the stream holds events up to {head.sequence}, the archive events {source.start + 1} to "
            f"{source.end}: an import goes into an empty stream",
            stream=head.sequence,
        )
    if await _digest_at(source, head.sequence) != head.hex:
        raise Refused(
            "stream_not_empty",
            f"the stream holds {head.sequence} events of another history: an import goes into an empty stream",
            stream=head.sequence,
        )


def as_published(message: StoredMessage) -> OutgoingMessage:
    """As it was first published: what a server or a batch added to the headers stays behind."""
    headers = {name: value for name, value in message.headers.items() if name in _KEPT}
    return OutgoingMessage(message.subject, headers, message.body)


def _transactions(batch: Sequence[StoredMessage]) -> Iterator[Sequence[StoredMessage]]:
    """Runs of at most an atomic batch, cut between commands wherever that is possible."""
    start = 0
    while start < len(batch):
        end = min(start + BATCH_LIMIT, len(batch))
        if end < len(batch):
            cut = end
            while cut > start and batch[cut].headers.get("ce-txindex", "0") != "0":
                cut -= 1
            end = cut if cut > start else end
        yield batch[start:end]
        start = end


async def _compare(source: History, log: EventLog, progress: Progress | None) -> int:
    """Read everything back and compare it, message by message."""
    theirs = source.messages(after=source.start)
    waiting: list[StoredMessage] = []
    compared = 0
    async for batch in log.read(after=source.start, until=source.end):
        for message in batch.messages:
            while not waiting:
                waiting = list(reversed(await anext(theirs)))
            original = waiting.pop()
            if (
                message.sequence != original.sequence
                or message.subject != original.subject
                or message.body != original.body
                or any(message.headers.get(name) != original.headers.get(name) for name in _KEPT)
            ):
                raise VerificationFailed(
                    "digest_mismatch",
                    f"event {original.sequence} was read back differently from how the archive has it",
                    sequence=original.sequence,
                )
            compared += 1
        if progress and batch.messages:
            progress(batch.messages[-1].sequence)
    return compared
