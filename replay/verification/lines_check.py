"""Judging event lines without any state: the hash chain, order, envelope, transactions, form, subject.

A pure function of the lines and of the digest that the lines before them state, so that segments are
checked in any order and in other processes. Behind a broken link the check goes on from what the
event states of itself: one changed event is one finding, not an avalanche.

The hot loop repeats :func:`events.chain.link` in a faster form (a test holds the two together).
"""

from __future__ import annotations

from datetime import datetime
from hashlib import sha1, sha256
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from events.chain import CHAINED_HEADERS
from events.codec import UnknownEvent, decode_event
from events.envelope import from_headers
from events.errors import VerificationFailed
from events.ids import event_id
from events.subjects import event as subject_of
from events.types import EVENT_TYPES, Event
from replay.archive.lines import ChainLine, decode_chain_lines, line_body
from replay.verification.findings import FINDINGS_LIMIT, Finding

_COUNT = len(CHAINED_HEADERS)
_FRAME_BREAKS = _COUNT + 2
_Raw = msgspec.Raw
_NAMESPACE = UUID("5f2b6c8e-9d0a-5e5f-8a43-0f6f3f0f7d31").bytes
_TIME_LENGTH = len("2026-03-02T08:00:00.000000Z")

CLOCKS = "clocks"
"""The check whose findings are only counted: an imported log has the times of its import throughout."""

CLOCK_TOLERANCE_NS = 60 * 10**9
"""Server time and event time further apart are worth a word: a clock is off, or was set."""


class Transaction(NamedTuple):
    """Where a transaction stands at the edge of some lines: the event at ``place`` of ``size``."""

    command: str
    place: int
    size: int


class LinesResult(NamedTuple):
    """The judgement of some lines. ``digest`` is what the last one states (32 bytes).

    ``opening`` is the first line's place in its transaction, ``closing`` the last line's;
    ``commands`` has eight bytes for each transaction that begins here: a hash of its first event's id.
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


def check_lines(data: bytes, cluster: str, before: bytes, after: int) -> LinesResult:
    """Judge the event lines in ``data``, which follow sequence ``after`` with digest ``before``.

    Raises VerificationFailed(archive_damaged) when the text is no event lines at all.
    """
    try:
        lines = decode_chain_lines(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise VerificationFailed(
            "archive_damaged", f"the lines behind event {after} are unreadable ({error})", sequence=after + 1
        ) from error
    findings: list[Finding] = []
    astuple: Any = msgspec.structs.astuple
    forms = _forms(cluster)
    fromisoformat = datetime.fromisoformat
    previous, sequence, last_ns = before, after, 0
    command, index, count = "", -1, 0
    opening = Transaction("", 0, 1)
    begun: list[str] = []
    minute = ""  # the time stamp's shape is read slowly once for each minute, and compared in between
    for line in lines:
        seq = line.seq
        subject = line.subject
        headers = astuple(line.headers)
        (
            spec,
            given,
            event_type,
            _,
            time,
            content,
            _,
            this,
            _,
            _,
            place_text,
            of_text,
            *_,
            stated,
            message_id,
        ) = headers
        raw = line.body
        body = bytes(raw) if type(raw) is _Raw else line_body(line)
        frame = "\n".join((str(seq), subject, *headers[:_COUNT], str(len(body))))
        digest = sha256(b"%b%b\n%b" % (previous, frame.encode(), body)).digest()
        if digest.hex() != stated or frame.count("\n") != _FRAME_BREAKS:
            findings.append(_broken(line, digest, stated))
            digest = _as_digest(stated) or digest
        previous = digest
        if seq != sequence + 1:
            findings.append(_gap(sequence, seq))
        sequence = seq

        # Its place in its transaction: the events of one command stand together, 0 … count − 1.
        try:
            place, of = int(place_text), int(of_text)
            fromisoformat(time)
            odd = False
        except ValueError:
            place, of, odd = 0, 1, True
        if index < 0:
            opening = Transaction(this, place, of)
        elif place != index + 1 if (index + 1 < count and this == command) else (place or index + 1 != count):
            findings.append(_torn(seq, Transaction(command, index, count), Transaction(this, place, of)))
        if not place:
            begun.append(given)
        command, index, count = this, place, of

        # Its form, as far as it is cheap to see (of the id, a UUIDv5, the first 32 bits); whatever is
        # unusual goes to the slow judges.
        recorded_ns = line.recorded_ns
        if (
            odd
            or line.type != event_type
            or sha1(_NAMESPACE + f"{this}/{place_text}".encode()).hexdigest()[:8] != given[:8]  # noqa: S324
            or recorded_ns < last_ns
            or (message_id and message_id != given)
            or len(time) != _TIME_LENGTH
            or spec != "1.0"
            or not content
            or time[:16] != minute
        ):
            minute = time[:16]
            findings.extend(_form(line, headers, cluster, last_ns))
        last_ns = max(last_ns, recorded_ns)
        form = forms.get(event_type)
        try:
            if form is None:
                fits = False
            else:
                decoder, entity, prefix, suffix = form
                name = entity(decoder(body))
                fits = subject == prefix + name + suffix or subject == (
                    prefix + name.replace(".", "_").replace("/", "-") + suffix
                )
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            fits = False
        if not fits:
            findings.extend(_content(line, event_type, body, cluster))
        if len(findings) > FINDINGS_LIMIT:
            break
    return LinesResult(
        lines[0].seq if lines else 0,
        sequence,
        len(lines),
        previous,
        opening,
        Transaction(command, max(index, 0), max(count, 1)),
        b"".join([_short(given) for given in begun]),
        lines[0].recorded_ns if lines else 0,
        last_ns,
        findings,
    )


def _short(given: str) -> bytes:
    """Eight bytes of an event id, to find repeated ones in little memory."""
    try:
        return bytes.fromhex(given[:8] + given[24:32])
    except ValueError:
        return sha256(given.encode()).digest()[:8]


_FORMS: dict[str, dict[str, tuple[Any, Any, str, str]]] = {}


def _forms(cluster: str) -> dict[str, tuple[Any, Any, str, str]]:
    """Type name → its decoder, the getter of its entity, and the subject before and behind the entity."""
    forms = _FORMS.get(cluster)
    if forms is None:
        forms = _FORMS[cluster] = {
            cls.type_name(): (
                msgspec.json.Decoder(cls).decode,
                cls.entity.fget,  # type: ignore[attr-defined]  # a property, read without the descriptor
                f"isthmus.{cluster}.events.{cls.aggregate}.",
                f".{cls.verb}",
            )
            for cls in EVENT_TYPES
        }
    return forms


def _content(line: ChainLine, event_type: str, body: bytes, cluster: str) -> list[Finding]:
    try:
        event: Event = decode_event(event_type, body, line.seq)
    except VerificationFailed as error:
        return [Finding(check="schema", code=error.code, message=error.message, sequence=line.seq)]
    if type(event) is UnknownEvent:
        return [
            Finding(
                check="schema",
                code="event_unknown",
                message=f"event {line.seq} is of type {event_type!r}, which this program does not know",
                sequence=line.seq,
            )
        ]
    subject = subject_of(cluster, event.aggregate, event.entity, event.verb)
    if subject != line.subject:
        return [
            Finding(
                check="schema",
                code="event_malformed",
                message=f"event {line.seq} stands on subject {line.subject}, its content belongs on {subject}",
                sequence=line.seq,
            )
        ]
    return []


def _form(line: ChainLine, headers: tuple[str, ...], cluster: str, last_ns: int) -> list[Finding]:
    """The slow judge of an envelope that looks unusual."""
    found: list[Finding] = []

    def note(message: str, code: str = "event_malformed", level: Any = "error") -> None:
        found.append(
            Finding(
                check="envelope",
                code=code,
                message=f"event {line.seq}: {message}",
                sequence=line.seq,
                level=level,
            )
        )

    named = dict(zip((*CHAINED_HEADERS, "ce-chain", "Nats-Msg-Id"), headers, strict=True))
    present = {name: value for name, value in named.items() if value}
    try:
        envelope = from_headers(present, line.seq)
    except VerificationFailed as error:
        return [Finding(check="envelope", code=error.code, message=error.message, sequence=line.seq)]
    if envelope.time.tzinfo is None:
        note("its ce-time has no zone")
    elif abs(envelope.time.timestamp() * 1e9 - line.recorded_ns) > CLOCK_TOLERANCE_NS:
        message = f"its own time and the server's are more than {CLOCK_TOLERANCE_NS // 10**9} s apart"
        found.append(Finding(check=CLOCKS, code="clock", message=message, sequence=line.seq, level="warning"))
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
    what = (
        f"events {sequence + 1} to {seq - 1} are missing"
        if seq > sequence + 1
        else f"event {seq} stands behind event {sequence}"
    )
    return Finding(check="gap", code="sequence_gap", message=what, sequence=sequence + 1)


def _broken(line: ChainLine, digest: bytes, stated: str) -> Finding:
    return Finding(
        check="chain",
        code="chain_broken",
        message=f"event {line.seq} ({line.subject}): its content and what stands before it hash to "
        f"{digest.hex()[:16]}…, it states {stated[:16] + '…' if stated else 'nothing'}",
        sequence=line.seq,
    )


def _torn(seq: int, before: Transaction, this: Transaction) -> Finding:
    return Finding(
        check="transactions",
        code="event_malformed",
        message=f"event {seq} is number {this.place} of {this.size} of command {this.command[:40]}, behind "
        f"number {before.place} of {before.size} of command {before.command[:40]}: a batch is torn or mixed",
        sequence=seq,
    )


def joins(before: Transaction, this: Transaction, seq: int) -> list[Finding]:
    """Whether the transaction at the end of some lines goes on properly in the next."""
    if before.place + 1 < before.size and this.command == before.command:
        fine = this.place == before.place + 1
    else:
        fine = this.place == 0 and before.place + 1 == before.size
    return [] if fine else [_torn(seq, before, this)]


def _as_digest(stated: str) -> bytes | None:
    try:
        digest = bytes.fromhex(stated)
    except ValueError:
        return None
    return digest if len(digest) == 32 else None
