"""``verify``: every claim that a log makes, checked; whatever is wrong, found and located.

Two lines of work go on side by side over the same segments: *form* (hash chain, order, envelopes,
transactions, schema, subjects; pure functions of the lines, in worker processes) and *meaning*
(the fold, the invariants at every sequence, state digests at the signed checkpoints; here).
A finding never ends the run; only the fold ends at an event that it cannot take, and says where.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from functools import partial

from events.chain import Head, genesis, stated_digest
from events.errors import VerificationFailed
from events.reading import stated_head
from replay.archive import lines
from replay.archive.pods import problems
from replay.archive.reader import ArchiveLog, SegmentPlace
from replay.history import History, Progress
from replay.verification.archive_check import check_file, check_segment
from replay.verification.chain_state import ChainState
from replay.verification.findings import Finding, Findings
from replay.verification.folding import Folding
from replay.verification.full_check import LinesResult, check_lines
from replay.verification.index_check import check_run, check_spans, runs, stated_digests
from replay.verification.outcome import Check, Report, Wanted
from replay.verification.shared_memory import SharedMemory, Slot
from replay.verification.workers import Workers

INLINE_EVENTS = 60_000
"""A log up to this long is checked in this process: starting others would take longer."""


async def verify(history: History, wanted: Wanted, progress: Progress | None = None) -> Report:
    """Check the whole history. Raises Unavailable when a live log cannot be read to its end.

    Cancelled, its worker processes are ended.
    """
    began, started = datetime.now(UTC), time.perf_counter()
    findings, facts = Findings(history.parked), 0
    archive = history.index.archive
    begin = _beginning(history, archive)
    jobs = wanted.jobs or min(8, os.cpu_count() or 1)
    if history.end - history.start <= INLINE_EVENTS:
        jobs = 0
    with SharedMemory(active=jobs > 0) as memory:  # closed when the workers have ended
        async with Workers(jobs) as workers:
            if archive is not None:
                for file in archive.files:
                    findings.extend(check_file(file, public_keys=wanted.public_keys))
                    findings.extend(check_spans(file))
                facts = _check_pods(archive, findings)
            if begin.sequence == 0 and begin != genesis(history.cluster):
                findings.add(_foreign_start(history.cluster))
            chain = ChainState(findings, begin)
            folding = Folding(history, findings, wanted)
            try:
                if archive is not None:
                    await _over_archive(archive, chain, folding, workers, memory, progress)
                else:
                    await _over_stream(history, chain, folding, workers, progress)
                await workers.settle()
            except VerificationFailed as error:
                findings.add(Finding("gap", error.code, error.message, chain.head.sequence + 1))
            for run in chain.mismatched:
                await workers.put(findings.extend, check_run, *run)
            await workers.settle()
            workers.dismiss()
            chain.finish()
            signed = [file.tail for file in archive.files if file.tail] if archive is not None else []
            folding.finish(chain.head, {tail.key for tail in signed if tail.signature})
    return Report(
        cluster=history.cluster,
        source=history.source,
        first=begin.sequence + 1,
        last=chain.head.sequence,
        events=chain.events,
        head=chain.head.hex,
        state_digest=folding.digest(),
        recorded_from=_moment(chain.first_ns),
        recorded_to=_moment(chain.last_ns),
        began=began,
        took_s=round(time.perf_counter() - started, 3),
        checks=_checks(findings, chain, folding, archive, facts),
        findings=findings.kept,
        errors=findings.errors,
        warnings=findings.warnings,
        program=_program(),
    )


async def _over_archive(  # noqa: PLR0917  what a run is made of
    archive: ArchiveLog,
    chain: ChainState,
    folding: Folding,
    workers: Workers,
    memory: SharedMemory,
    progress: Progress | None,
) -> None:
    before, after = chain.head.digest, chain.head.sequence
    due = {
        (file.path, events[0].first): (file.path, blocks, events)
        for file in archive.files
        for blocks, events in runs(file)
        if events
    }

    def take(place: SegmentPlace, slot: Slot | None, judged: tuple[LinesResult, int]) -> None:
        result, left = judged
        segment = place.segment
        chain.take_segment((place.file.path, segment.offset), result)
        text = memory.take(slot, left) if slot is not None else b""
        if text and not folding.wants(segment.last) and not folding.parks(segment.first, segment.last):
            if folding.alive:
                folding.take_bare(result.first, text)
        elif folding.alive or folding.wants(segment.last):
            try:
                _meaning(folding, place.file.data(segment), segment.last)
            except VerificationFailed:
                folding.stop(segment.first, "its segment is damaged")  # the form check reports the damage
        if progress:
            progress(segment.last)

    for place in archive.places:
        path, segment = place.file.path, place.segment
        if run := due.pop((path, segment.first), None):
            await workers.put(partial(chain.hold, run), stated_digests, *run)
        slot = memory.acquire()
        job = (path, segment, archive.cluster, before, after, slot)
        await workers.put(partial(take, place, slot), check_segment, *job)
        before, after = stated_digest(segment.head) or bytes(32), segment.last


async def _over_stream(
    history: History, chain: ChainState, folding: Folding, workers: Workers, progress: Progress | None
) -> None:
    before, after = chain.head.digest, chain.head.sequence

    def hole(first: int, last: int) -> None:
        # The check of the lines behind it reports it; a state without these events would be none.
        folding.stop(first, f"events {first} to {last} are missing" if last > first else "it is missing")

    async for batch in history.messages(after=after, on_hole=hole):
        data = lines.encode_messages(batch)
        await workers.put(chain.take, check_lines, data, history.cluster, before, after)
        after, before = stated_head(batch[-1])
        _meaning(folding, data, after)
        if progress:
            progress(after)


def _meaning(folding: Folding, data: bytes, last: int) -> None:
    if folding.wants(last):
        folding.compare_chains(data, last)
    if folding.alive:
        folding.take(data)


def _beginning(history: History, archive: ArchiveLog | None) -> Head:
    if archive is None:
        return genesis(history.cluster)
    header = archive.files[0].header
    return Head(header.after, stated_digest(header.after_head) or bytes(32))


def _foreign_start(cluster: str) -> Finding:
    return Finding(
        "chain", "chain_broken", f"the log does not begin at the genesis digest of cluster {cluster!r}", 1
    )


def _check_pods(archive: ArchiveLog, findings: Findings) -> int:
    """How many facts of pods the archive carries; whatever is wrong with them is found."""
    try:
        count, wrong = problems(archive)
    except VerificationFailed:  # a damaged segment of notes: said of the file
        return 0
    findings.extend([Finding("pods", "archive_damaged", text, 0) for text in wrong])
    return count


def _checks(
    findings: Findings, chain: ChainState, folding: Folding, archive: ArchiveLog | None, facts: int
) -> list[Check]:
    def check(
        name: str, title: str, looked_at: int, unit: str, *, done: bool = True, detail: str = ""
    ) -> Check:
        return Check(
            name=name,
            title=title,
            looked_at=looked_at,
            unit=unit,
            errors=sum(found.check == name and found.level == "error" for found in findings.kept),
            done=done,
            detail=detail,
        )

    count = chain.events
    rows = [
        check("chain", "Hash chain: each event follows from all before it", count, "events"),
        check("gap", "No gap: every sequence is present, in order", count, "events"),
        check("envelope", "Envelope: identity, times and type of each event", count, "events"),
        check(
            "transactions",
            "Transactions: each command's events stand together, once",
            chain.commands,
            "commands",
        ),
        check("schema", "Schema: each body is of its type, on its subject", count, "events"),
        *folding.checks(check),
    ]
    if archive is not None:
        segments = sum(len(file.segments) for file in archive.files)
        rows.insert(
            0, check("archive", "Archive file: segments, index, manifest, signature", segments, "segments")
        )
        if facts:
            rows.append(
                check("pods", "Pods: what nodes told of them, well formed (beside the log)", facts, "facts")
            )
    return rows


def _moment(recorded_ns: int) -> datetime | None:
    return datetime.fromtimestamp(recorded_ns / 1e9, UTC) if recorded_ns else None


def _program() -> str:
    from events.codes.extras import our_version

    return f"isthmus {our_version()}"
