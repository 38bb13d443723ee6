"""Holding the index inside an archive to the events that it speaks of.

The answers about one thing (``history``, ``who``, ``blame``) trust the index: a forged one would hide
an event that is in the file, or show one that has nothing to do with the question, while chain and
checksums are whole. So each run of index segments is compared with its events: by the digests of what
both say (:mod:`replay.verification.index_digest`), and where these differ, by building it anew.

What the reader does with an index is what counts here: it takes the span ``first`` … ``last`` as
indexed, looks only into blocks whose ``keys`` enclose the wanted one, and finds the line by its text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, chain, groupby, islice, pairwise, repeat
from operator import lt

import msgspec

from events.errors import VerificationFailed
from replay.archive.directory import ArchiveFile
from replay.archive.format import INDEX_EVERY, IndexLine, Segment
from replay.archive.postings import Postings, encode_postings
from replay.verification.findings import Finding
from replay.verification.index_digest import digest_of

_decode_lines = msgspec.json.Decoder(IndexLine).decode_lines


def runs(file: ArchiveFile) -> Iterator[tuple[tuple[Segment, ...], tuple[Segment, ...]]]:
    """The index segments that belong together, each with the event segments of their span.

    Events that the reader takes as indexed though no index segment speaks of them come without any:
    right only if none of them has a key. Behind the last index segment the reader looks for itself.
    """
    indexed = file.header.after
    for (first, last), blocks in _groups(file):
        unspoken = (segment for segment in file.events if indexed < segment.first and segment.last < first)
        for part in _batched(unspoken, INDEX_EVERY):
            yield (), part
        yield blocks, tuple(s for s in file.events if first <= s.first and s.last <= last)
        indexed = max(indexed, last)


def _batched(segments: Iterator[Segment], count: int) -> Iterator[tuple[Segment, ...]]:
    """Tuples of up to ``count`` (itertools.batched is there from Python 3.12 on)."""
    while part := tuple(islice(segments, count)):
        yield part


def _groups(file: ArchiveFile) -> Iterator[tuple[tuple[int, int], tuple[Segment, ...]]]:
    for span, blocks in groupby(file.index, key=lambda segment: (segment.first, segment.last)):
        yield span, tuple(blocks)


def check_spans(file: ArchiveFile) -> list[Finding]:
    """Whether each run of the index speaks of whole event segments, and of none that another spoke of."""
    found = []
    indexed = file.header.after
    firsts, lasts = {segment.first for segment in file.events}, {segment.last for segment in file.events}
    for (first, last), _ in _groups(file):
        if first <= indexed or first not in firsts or last not in lasts:
            message = f"its index has a part for events {first}…{last}, behind one that ends with {indexed}"
            found.append(_finding(file.path, message, first))
        indexed = max(indexed, last)
    return found


def stated_digests(path: str, blocks: Sequence[Segment], events: Sequence[Segment]) -> list[bytes]:
    """What each segment of ``events`` speaks of, as the index ``blocks`` tell it; in any process.

    Nothing when the index is not exactly as one is written, or cannot be read.
    """
    first, last = events[0].first, events[-1].last
    if any(later.first != earlier.last + 1 for earlier, later in pairwise(events)):
        return []
    told = [""] * (last - first + 1)
    before = ""
    with ArchiveFile(path, by_manifest=False) as file:
        for block in blocks:
            try:
                text = file.data(block)
                lines = _decode_lines(text)
            except (VerificationFailed, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return []
            keys = [line.key for line in lines]
            if (
                not keys
                or block.keys != (keys[0], keys[-1])
                or not all(map(lt, [before, *keys], keys))
                or b"\\" in text  # a tab in a key, it may be, which would tell of two
                or encode_postings(lines) != text
            ):
                return []
            before = keys[-1]
            counts = [len(line.sequences) for line in lines]
            sequences = list(chain.from_iterable([line.sequences for line in lines]))
            if not all(counts) or min(sequences) < first or max(sequences) > last:
                return []
            rising = bytearray(map(lt, sequences, sequences[1:]))
            for end in accumulate(counts[:-1]):
                rising[end - 1] = True  # another key begins here
            if not all(rising):
                return []
            tabbed = map(repeat, ["\t" + key for key in keys], counts)
            for sequence, key in zip(sequences, chain.from_iterable(tabbed), strict=True):
                told[sequence - first] += key
    lines_of = ("\n".join([*told[s.first - first : s.last - first + 1], ""]) for s in events)
    return [digest_of([text]) for text in lines_of]


def check_run(path: str, blocks: Sequence[Segment], events: Sequence[Segment]) -> list[Finding]:
    """Build the index of ``events`` anew and compare it with ``blocks``, in any process.

    A segment that cannot be read is the form check's finding, not one of these.
    """
    collected = Postings()
    with ArchiveFile(path, by_manifest=False) as file:
        try:
            for segment in events:
                collected.add_lines(file.data(segment))
            texts = [file.data(block) for block in blocks]
        except (VerificationFailed, msgspec.MsgspecError, ValueError, RecursionError):
            return []
    stated: list[IndexLine] = []
    for block, text in zip(blocks, texts, strict=True):
        try:
            lines = _decode_lines(text)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return [
                _finding(path, f"an index line at byte {block.offset:,} is unreadable ({error})", block.first)
            ]
        if not lines or block.keys != (lines[0].key, lines[-1].key) or encode_postings(lines) != text:
            return [
                _finding(
                    path,
                    f"the index segment at byte {block.offset:,} is not written as an index is: "
                    f"keys {block.keys[0]!r} to {block.keys[1]!r} would not be found in it",
                    block.first,
                )
            ]
        stated.extend(lines)
    wrong = _differences(stated, collected.lines())
    if not wrong:
        return []
    key, sequence, what = min(wrong, key=lambda item: (item[1], item[0], item[2]))
    more = f" (and {len(wrong) - 1} more entries are wrong)" if len(wrong) > 1 else ""
    return [_finding(path, f"its index {what} event {sequence} for {key!r}{more}", sequence)]


def _differences(stated: Sequence[IndexLine], true: Sequence[IndexLine]) -> list[tuple[str, int, str]]:
    """Each entry that is wrong: key, sequence, and what the index does with it."""
    if stated == true:
        return []
    wrong: list[tuple[str, int, str]] = []
    wrong.extend(
        (later.key, min(later.sequences, default=0), "lists out of order")
        for earlier, later in pairwise(stated)
        if earlier.key >= later.key
    )
    said = {line.key: line.sequences for line in stated}
    meant = {line.key: line.sequences for line in true}
    for key in said.keys() | meant.keys():
        has, should = said.get(key, []), meant.get(key, [])
        if has == should:
            continue
        difference = set(has) ^ set(should)
        wrong.extend((key, seq, "hides" if seq in should else "shows a foreign") for seq in difference)
        if not difference:
            wrong.append((key, min(has), "lists out of order"))
    return wrong


def _finding(path: str, message: str, sequence: int) -> Finding:
    return Finding("archive", "archive_damaged", f"{path}: {message}", max(sequence, 0))
