"""Judging an archive file as a file: descriptions, manifest, tail, hidden bytes, index, signature.

The content of the event segments is judged by :mod:`replay.verification.full_check`.
"""

from __future__ import annotations

from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import msgspec

from events.chain import stated_digest
from events.errors import VerificationFailed
from replay.archive.directory import ArchiveFile, decompress
from replay.archive.format import Manifest, Segment, signed_text
from replay.verification.fast_check import Transaction
from replay.verification.findings import Finding, key_names
from replay.verification.full_check import LinesResult, check_lines
from replay.verification.shared_memory import Slot, store


class Reporter(Protocol):
    """Takes note of one thing that is wrong with the file."""

    def __call__(self, message: str, code: str = ..., sequence: int = ...) -> None: ...


def check_file(file: ArchiveFile, *, public_keys: Collection[str] = ()) -> list[Finding]:
    """Everything about ``file`` that can be said without looking into its events."""
    found: list[Finding] = []

    def note(message: str, code: str = "archive_damaged", sequence: int = 0) -> None:
        found.append(Finding("archive", code, f"{file.path}: {message}", sequence))

    hopped = list(file.hop())
    end = hopped[-1].data + hopped[-1].length if hopped else 0
    if file.tail is None:
        last = max((segment.last for segment in hopped if segment.kind == "events"), default=file.header.after)
        note(
            f"it has no end: an export that was interrupted, or a file cut behind event {last} "
            f"(byte {end:,} of {file.file_size:,})",
            "log_truncated",
            last + 1,
        )
        return found
    if end != file.tail_offset:
        last = max((segment.last for segment in hopped if segment.kind == "events"), default=0)
        note(
            f"bytes {end:,} to {file.tail_offset:,} belong to no segment (behind event {last})",
            sequence=last + 1,
        )
    _check_manifest(file, hopped, note)
    for segment in hopped:
        if segment.kind in ("events", "manifest"):
            continue
        try:
            file.data(segment, check=True)
        except VerificationFailed as error:
            note(error.message.partition(": ")[2], sequence=segment.first)
    if file.tail.signature:
        _check_signature(file, public_keys, note)
    return found


def _check_manifest(file: ArchiveFile, hopped: list[Segment], note: Reporter) -> None:
    place = next((segment for segment in hopped if segment.kind == "manifest"), None)
    if file.tail is None or place is None or place.offset != file.tail.manifest:
        note("its manifest is not where the tail says")
        return
    try:
        data = file.data(place, check=True)
        manifest = msgspec.json.decode(data, type=Manifest)
    except (VerificationFailed, msgspec.MsgspecError, UnicodeDecodeError) as error:
        note(f"its manifest is unreadable ({error})")
        return
    if sha256(data).hexdigest() != file.tail.root:
        note("its manifest has another hash than the tail states")
    listed = {segment.offset: segment for segment in manifest.segments}
    present = {segment.offset: segment for segment in hopped if segment.kind != "manifest"}
    for offset in sorted(listed.keys() | present.keys()):
        if listed.get(offset) != present.get(offset):
            segment = listed.get(offset) or present[offset]
            what = "missing" if offset not in present else "not listed" if offset not in listed else "changed"
            note(
                f"the {segment.kind} segment at byte {offset:,} "
                f"(events {segment.first}…{segment.last}) is {what}",
                sequence=segment.first,
            )
    stated = (manifest.cluster, manifest.after, manifest.after_head)
    if stated != (file.header.cluster, file.header.after, file.header.after_head):
        note("its header and its manifest name different logs")


def _check_signature(file: ArchiveFile, public_keys: Collection[str], note: Reporter) -> None:
    if file.tail is None:
        return
    from controlplane.controller.publishing.checkpoints import signature_holds

    if public_keys and file.tail.key not in public_keys:
        note(
            f"it is signed by key {file.tail.key[:16]}…, not by {key_names(public_keys)}",
            code="checkpoint_mismatch",
        )
    elif not signature_holds(file.tail.key, file.tail.signature, signed_text(file.tail.root)):
        note("its signature does not hold: it was altered after signing", code="checkpoint_mismatch")


def check_segment(  # noqa: PLR0917  what names a segment's content
    path: str, segment: Segment, cluster: str, before: bytes, after: int, slot: Slot | None
) -> tuple[LinesResult, int]:
    """Judge one event segment of a file, in any process. Damage comes back as findings.

    What the fold needs is left in ``slot``; the second result is how many bytes of it are used.
    """
    result = _check_segment(path, segment, cluster, before, after, with_payload=slot is not None)
    return result._replace(payload=b""), store(slot, result.payload) if slot is not None else 0


def _check_segment(
    path: str, segment: Segment, cluster: str, before: bytes, after: int, *, with_payload: bool
) -> LinesResult:
    findings: list[Finding] = []
    try:
        with Path(path).open("rb") as file:
            file.seek(segment.data)
            raw = file.read(segment.length)
        if sha256(raw).hexdigest() != segment.sha256:
            findings.append(_damage(path, segment, "has another SHA-256 than it states"))
        result = check_lines(
            decompress(path, segment, raw), cluster, before, after, with_index=True, with_payload=with_payload
        )
    except VerificationFailed as error:
        findings.append(_damage(path, segment, f"is unreadable ({error.message})"))
        return lost(segment, before, findings)
    wrong = (result.first, result.last, result.lines) != (segment.first, segment.last, segment.count)
    if (segment.low_ns or result.low_ns) != result.low_ns or segment.from_ns != result.first_ns:
        findings.append(_damage(path, segment, "states other recorded times than its events have"))
    if wrong or result.digest.hex() != segment.head:
        findings.append(_damage(path, segment, "holds other events than it states"))
    return result._replace(findings=[*findings, *result.findings])


def lost(segment: Segment, before: bytes, findings: list[Finding]) -> LinesResult:
    """The result for a segment that cannot be read: the check goes on behind it by its description."""
    digest = stated_digest(segment.head) or before
    unknown = Transaction("", 0, 1)
    return LinesResult(
        segment.first, segment.last, 0, digest, unknown, unknown, b"", segment.from_ns, segment.to_ns, findings
    )


def _damage(path: str, segment: Segment, what: str) -> Finding:
    return Finding(
        "archive",
        "archive_damaged",
        f"{path}: the segment at byte {segment.offset:,} with events {segment.first}…{segment.last} {what}",
        segment.first,
    )
