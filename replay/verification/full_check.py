"""Judging event lines without any state: the hash chain, order, envelope, transactions, form, subject.

A pure function of the lines and of the digest that the lines before them state, so that segments are
checked in any order and in other processes. Behind a broken link the check goes on from what the
event states of itself: one changed event is one finding, not an avalanche.

Here is the careful judge, who looks at each line and says what is wrong with it. It is asked only
where the fast one (:mod:`replay.verification.fast_check`) saw something unusual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

import msgspec

from events.chain import CHAINED_HEADERS, stated_digest
from events.codec import UnknownEvent, decode_event
from events.envelope import from_headers
from events.errors import VerificationFailed
from events.ids import event_id
from events.subjects import event as subject_of
from events.types import Event
from replay.archive.lines import ChainLine, decode_chain_lines, line_body
from replay.verification.fast_check import STRETCH, Position, Transaction, plain, short_id
from replay.verification.findings import FINDINGS_LIMIT, Finding
from replay.verification.index_digest import digest_of, index_line

_COUNT = len(CHAINED_HEADERS)
_FRAME_BREAKS = _COUNT + 2
_HEADERS = (*CHAINED_HEADERS, "ce-chain", "Nats-Msg-Id")
_astuple: Any = msgspec.structs.astuple

CLOCKS = "clocks"
"""The check whose findings are only counted: an imported log has the times of its import throughout."""

CLOCK_TOLERANCE_NS = 60 * 10**9
"""Server time and event time further apart are worth a word: a clock is off, or was set."""

_NOWHERE = Transaction("", 0, 1)


class LinesResult(NamedTuple):
    """The judgement of some lines. ``digest`` is what the last one states (32 bytes).

    ``opening`` is the first line's place in its transaction, ``closing`` the last line's;
    ``commands`` has eight bytes for each transaction that begins here: a hash of its first event's id.
    ``index_digest`` is the digest of what the events speak of, where it was wanted, ``low_ns`` the earliest
    server time (0: not looked at), and ``payload`` what the fold needs of them
    (:mod:`replay.verification.fold_payload`), where it was wanted and no line is unusual.
    """

    first: int
    last: int
    lines: int
    digest: bytes
    opening: Transaction
    closing: Transaction
    commands: bytes
    first_ns: int
    last_ns: int
    findings: list[Finding]
    index_digest: bytes = b""
    payload: bytes = b""
    low_ns: int = 0


def check_lines(
    data: bytes,
    cluster: str,
    before: bytes,
    after: int,
    *,
    with_index: bool = False,
    with_payload: bool = False,
) -> LinesResult:
    """Judge the event lines in ``data``, which follow sequence ``after`` with digest ``before``.

    With ``with_index`` the result says what the events speak of, with ``with_payload`` what the fold
    needs of them.

    Raises VerificationFailed(archive_damaged) when the text is no event lines at all.
    """
    findings: list[Finding] = []
    position = Position(before, after, with_index=with_index, with_payload=with_payload)
    first = first_ns = count = 0
    for part in _stretches(data):
        behind = position.sequence
        lines: Sequence[ChainLine] | None = plain(part, cluster, position)
        if lines is not None:
            findings.extend(_clocks(lines))
            found = position.sequence - behind
        elif lines := _decoded(part, behind):
            full_check(lines, cluster, position, findings)
            found = len(lines)
        else:
            continue
        if not count:
            first, first_ns = lines[0].seq, lines[0].recorded_ns
        count += found
        if len(findings) > FINDINGS_LIMIT:
            break
    return LinesResult(
        first,
        position.sequence,
        count,
        position.digest,
        position.opening or _NOWHERE,
        position.closing or _NOWHERE,
        bytes(position.begun),
        first_ns,
        position.last_ns,
        findings,
        digest_of(position.index_text) if position.index_text is not None else b"",
        b"".join(position.payload or ()),
        position.low_ns,
    )


def _stretches(data: bytes) -> Iterator[bytes]:
    """``data`` in parts of whole lines."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start + STRETCH) + 1 or len(data)
        yield data[start:end]
        start = end


def _decoded(data: bytes, after: int) -> Sequence[ChainLine]:
    try:
        return decode_chain_lines(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationFailed(
            "archive_damaged", f"the lines behind event {after} are unreadable ({error})", sequence=after + 1
        ) from error


def full_check(lines: Sequence[ChainLine], cluster: str, position: Position, findings: list[Finding]) -> None:
    """Judge each line for itself and move ``position`` behind them."""
    position.payload = None
    for line in lines:
        headers: tuple[str, ...] = _astuple(line.headers)
        stated = headers[_COUNT]
        body = line_body(line)
        frame = "\n".join((str(line.seq), line.subject, *headers[:_COUNT], str(len(body))))
        digest = sha256(b"%b%b\n%b" % (position.digest, frame.encode(), body)).digest()
        if digest.hex() != stated or frame.count("\n") != _FRAME_BREAKS:
            findings.append(_broken(line, digest, stated))
            digest = stated_digest(stated) or digest
        position.digest = digest
        if line.seq != position.sequence + 1:
            findings.append(_gap(position.sequence, line.seq))
        position.sequence = line.seq

        named = dict(zip(_HEADERS, headers, strict=True))
        this = _place(named)
        if position.opening is None:
            position.opening = this
        elif position.closing is not None and not _follows(position.closing, this):
            findings.append(_torn(line.seq, position.closing, this))
        position.closing = this
        if not this.place and named["ce-id"]:
            position.begun += short_id(named["ce-id"])

        findings.extend(_form(line, named, cluster, position.last_ns))
        position.low_ns = min(position.low_ns, line.recorded_ns)
        position.last_ns = max(position.last_ns, line.recorded_ns)
        findings.extend(_content(line, named["ce-type"], body, cluster))
        if position.index_text is not None:
            position.index_text.append(index_line(line.subject, body))
        if len(findings) > FINDINGS_LIMIT:
            return


def _place(named: dict[str, str]) -> Transaction:
    """Where an event says that it stands; alone, when it does not say it properly (its form is judged)."""
    try:
        return Transaction(named["ce-commandid"], int(named["ce-txindex"]), int(named["ce-txcount"]))
    except ValueError:
        return Transaction(named["ce-commandid"], 0, 1)


def _follows(before: Transaction, this: Transaction) -> bool:
    """Whether an event may stand behind another: the events of one command stand together, in order."""
    if before.left > 0:
        return this == before._replace(place=before.place + 1)
    return before.left == 0 and this.place == 0


def _clocks(lines: Sequence[ChainLine]) -> list[Finding]:
    """The lines whose own time is far from the server's."""
    return [
        _apart(line.seq)
        for line in lines
        if _are_apart(datetime.fromisoformat(_astuple(line.headers)[4]), line.recorded_ns)
    ]


def _are_apart(moment: datetime, recorded_ns: int) -> bool:
    return abs(moment.timestamp() * 1e9 - recorded_ns) > CLOCK_TOLERANCE_NS


def _apart(sequence: int) -> Finding:
    message = f"its own time and the server's are more than {CLOCK_TOLERANCE_NS // 10**9} s apart"
    return Finding(CLOCKS, "clock", message, sequence, level="warning")


def _content(line: ChainLine, event_type: str, body: bytes, cluster: str) -> list[Finding]:
    try:
        event: Event = decode_event(event_type, body, line.seq)
    except VerificationFailed as error:
        return [Finding("schema", error.code, error.message, line.seq)]
    if type(event) is UnknownEvent:
        return [
            Finding(
                "schema",
                "event_unknown",
                f"event {line.seq} is of type {event_type!r}, which this program does not know",
                line.seq,
            )
        ]
    subject = subject_of(cluster, event.aggregate, event.entity, event.verb)
    if subject != line.subject:
        return [
            Finding(
                "schema",
                "event_malformed",
                f"event {line.seq} stands on subject {line.subject}, its content belongs on {subject}",
                line.seq,
            )
        ]
    return []


def _form(line: ChainLine, named: dict[str, str], cluster: str, last_ns: int) -> list[Finding]:
    """What is wrong with an envelope."""
    found: list[Finding] = []

    def note(message: str, code: str = "event_malformed", level: Any = "error") -> None:
        found.append(Finding("envelope", code, f"event {line.seq}: {message}", line.seq, level=level))

    present = {name: value for name, value in named.items() if value}
    try:
        envelope = from_headers(present, line.seq)
    except VerificationFailed as error:
        return [Finding("envelope", error.code, error.message, line.seq)]
    if envelope.time.tzinfo is None:
        note("its ce-time has no zone")
    elif _are_apart(envelope.time, line.recorded_ns):
        found.append(_apart(line.seq))
    if line.type != envelope.type:
        note(f"the line says {line.type!r}, the header ce-type {envelope.type!r}")
    if named["Nats-Msg-Id"] and named["Nats-Msg-Id"] != envelope.id:
        note(f"Nats-Msg-Id {named['Nats-Msg-Id'][:40]!r} is not its ce-id {envelope.id[:40]!r}")
    if named["ce-specversion"] != "1.0":
        note(f"ce-specversion is {named['ce-specversion']!r}")
    if not line.subject.startswith(f"isthmus.{cluster}.events."):
        note(f"its subject {line.subject} is not of cluster {cluster}")
    if envelope.id != event_id(envelope.command_id, envelope.tx_index):
        note(f"its id {envelope.id} does not follow from command {envelope.command_id}")
    if line.recorded_ns < last_ns:
        note("the server's time went backwards here", level="warning")
    return found


def _gap(sequence: int, seq: int) -> Finding:
    if seq == sequence + 2:
        what = f"event {sequence + 1} is missing"
    elif seq > sequence:
        what = f"events {sequence + 1} to {seq - 1} are missing"
    else:
        what = f"event {seq} stands behind event {sequence}"
    return Finding("gap", "sequence_gap", what, sequence + 1)


def _broken(line: ChainLine, digest: bytes, stated: str) -> Finding:
    return Finding(
        "chain",
        "chain_broken",
        f"event {line.seq} ({line.subject}): its content and what stands before it hash to "
        f"{digest.hex()[:16]}…, it states {stated[:16] + '…' if stated else 'nothing'}",
        line.seq,
    )


def _torn(seq: int, before: Transaction, this: Transaction) -> Finding:
    return Finding(
        "transactions",
        "event_malformed",
        f"event {seq} is number {this.place} of {this.size} of command {this.command[:40]}, behind "
        f"number {before.place} of {before.size} of command {before.command[:40]}: a batch is torn or mixed",
        seq,
    )


def joins(before: Transaction, this: Transaction, seq: int) -> list[Finding]:
    """Whether the transaction at the end of some lines goes on properly in the next."""
    return [] if _follows(before, this) else [_torn(seq, before, this)]
