"""Pod facts in an archive: notes beside the events, as controllers kept them when the archive was made.

``pod`` is one fact (:class:`events.protocol.pods.KeptFact`); ``pods`` says up to where and since when facts
were kept at that moment. An archive that is continued gets those that came since.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime

import msgspec

from events.protocol.pods import KeptFact, PodPage, PodsView
from replay.archive.format import Note
from replay.archive.reader import ArchiveLog

FACT, KEPT = "pod", "pods"


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """Of one export: ``since`` when facts were kept then, ``last``: their stream's end, ``at`` which time."""

    since: datetime | None
    last: int
    at: datetime


class ArchivedPods(msgspec.Struct, frozen=True):
    """What an archive has of pods. ``until`` is the moment of the last export with any; None: it has none."""

    view: PodsView
    until: datetime | None


async def notes_of(pages: AsyncIterator[PodPage], *, now: datetime | None = None) -> AsyncIterator[list[Note]]:
    """The pages as notes, and at the end what they were. Raises what the pages raise.

    Cancelled, the pages are.
    """
    last: PodPage | None = None
    async for page in pages:
        last = page
        if page.facts:
            yield [Note(note=FACT, content=msgspec.Raw(msgspec.json.encode(fact))) for fact in page.facts]
    if last is not None and last.kept:
        kept = Kept(since=last.since, last=last.last, at=now or datetime.now(UTC))
        yield [Note(note=KEPT, content=msgspec.Raw(msgspec.json.encode(kept)))]


def pods_end(archive: ArchiveLog) -> int:
    """Up to which place of the stream an archive has the facts; 0 for one without any.

    Raises VerificationFailed(archive_damaged).
    """
    facts = archive.notes(FACT)
    last = msgspec.json.decode(facts[-1], type=KeptFact).sequence if facts else 0
    return max((last, *(kept.last for kept in archive.decoded_notes(KEPT, Kept))))


def facts_of(archive: ArchiveLog) -> list[KeptFact]:
    """All facts of an archive, in order. Raises VerificationFailed(archive_damaged)."""
    return archive.decoded_notes(FACT, KeptFact)


def page_of(archive: ArchiveLog, after: int) -> PodPage:
    """The facts of an archive behind a place, as one page. Raises VerificationFailed(archive_damaged)."""
    kept = archive.decoded_notes(KEPT, Kept)
    return PodPage(
        kept=bool(kept),
        since=min((each.since for each in kept if each.since is not None), default=None),
        last=max((each.last for each in kept), default=0),
        facts=tuple(fact for fact in facts_of(archive) if fact.sequence > after),
    )


def pods_in(archive: ArchiveLog, address: str, node: str) -> ArchivedPods:
    """What an archive has of the pods that had an address on a node.

    Raises VerificationFailed(archive_damaged).
    """
    kept = archive.decoded_notes(KEPT, Kept)
    if not kept:
        return ArchivedPods(PodsView(kept=False), None)
    mark = msgspec.json.encode(address)
    texts: Iterable[bytes] = (text for text in archive.notes(FACT) if mark in text)
    found = [msgspec.json.decode(text, type=KeptFact) for text in texts]
    mine = tuple(each for each in found if each.node == node and each.fact.address == address)
    since = min((each.since for each in kept if each.since is not None), default=None)
    return ArchivedPods(PodsView(kept=True, since=since, facts=mine), max(each.at for each in kept))


def problems(archive: ArchiveLog) -> tuple[int, list[str]]:
    """How many facts an archive has, and what is wrong with them, in words. Raises VerificationFailed."""
    found: list[str] = []
    texts = archive.notes(FACT)
    for number, text in enumerate(texts, 1):
        try:
            kept = msgspec.json.decode(text, type=KeptFact)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            found.append(f"pod fact {number:,} is unreadable: {error}")
            continue
        fact = kept.fact
        if fact.pod.problem() or (fact.until is not None and fact.until < fact.since):
            found.append(f"pod fact {number:,} (place {kept.sequence:,}) cannot be true")
    return len(texts), found
