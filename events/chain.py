"""The hash chain: each event vouches for itself and for everything before it.

``digest(n) = SHA-256(digest(n−1) ‖ frame(n))`` where the frame is the sequence, the subject, the
identity headers in a fixed order, the length of the body, and the body exactly as stored. The
digest travels in the header ``ce-chain``. A missing, changed, reordered or inserted event breaks
the chain at that sequence, for anyone who has the log: live, in a mirror or in an archive.

Headers that the server adds or strips (``Nats-Expected-*``, ``Nats-Batch-*``) are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import NamedTuple

from events.errors import VerificationFailed

CHAIN_HEADER = "ce-chain"

CHAINED_HEADERS: tuple[str, ...] = (
    "ce-specversion",
    "ce-id",
    "ce-type",
    "ce-source",
    "ce-time",
    "ce-datacontenttype",
    "ce-actor",
    "ce-commandid",
    "ce-correlationid",
    "ce-causationid",
    "ce-txindex",
    "ce-txcount",
    "traceparent",
    "tracestate",
)
"""The identity headers, in hashing order; an absent one counts as empty. Never reordered, never shortened."""

_new = tuple.__new__  # a named tuple's own constructor is a Python function

_NEWLINES = len(CHAINED_HEADERS) + 2
_ABSENT = ("",) * len(CHAINED_HEADERS)


class Head(NamedTuple):
    """The end of a log: the last sequence (0 when empty) and the chain's digest there (32 bytes)."""

    sequence: int
    digest: bytes

    @property
    def hex(self) -> str:
        """The digest as 64 hexadecimal digits, as the header carries it."""
        return self.digest.hex()


def genesis(cluster: str) -> Head:
    """The head of the cluster's empty log: bound to the name, so that logs cannot be swapped."""
    return Head(0, sha256(f"isthmus/{cluster}".encode()).digest())


def stated_digest(text: str) -> bytes | None:
    """The digest that an event or a description states in hexadecimal; None when the text is no digest."""
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return digest if len(digest) == 32 else None


def link(previous: bytes, sequence: int, subject: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The digest of the event that follows ``previous`` (32 bytes each).

    Raises VerificationFailed(chain_broken) when a header value holds a newline: it could be read
    as two values.
    """
    values = map(headers.get, CHAINED_HEADERS, _ABSENT)
    frame = "\n".join((str(sequence), subject, *values, str(len(body))))
    if frame.count("\n") != _NEWLINES:
        raise _two_values(sequence)
    return sha256(b"%b%b\n%b" % (previous, frame.encode(), body)).digest()


class Linker:
    """:func:`link` for the events of one transaction, which differ in id, type and index alone: half of it."""

    __slots__ = ("_after", "_before", "_version")

    def __init__(self, version: str, before: str, after: str) -> None:
        """The values that they share, one a line: the headers ``before`` the index, and those ``after`` it."""
        self._version = version
        self._before = before
        self._after = after

    def link(  # noqa: PLR0917  by position: two of these calls are made for every join
        self, previous: bytes, sequence: int, subject: str, name: str, type_name: str, index: int, body: bytes
    ) -> bytes:
        """The digest of the event ``name`` of type ``type_name``. Raises as :func:`link` does."""
        frame = (
            f"{sequence}\n{subject}\n{self._version}\n{name}\n{type_name}\n"
            f"{self._before}\n{index}\n{self._after}\n{len(body)}"
        )
        if frame.count("\n") != _NEWLINES:
            raise _two_values(sequence)
        return sha256(b"%b%b\n%b" % (previous, frame.encode(), body)).digest()


def _two_values(sequence: int) -> VerificationFailed:
    return VerificationFailed(
        "chain_broken", f"event {sequence}: an identity header contains a line break", sequence=sequence
    )


def verify_link(head: Head, sequence: int, subject: str, headers: Mapping[str, str], body: bytes) -> Head:
    """Check one stored event against the head before it and return the new head.

    Raises VerificationFailed: ``sequence_gap`` when events are missing between, ``chain_broken``
    when the hash does not follow.
    """
    last, previous = head
    if sequence != last + 1:
        raise VerificationFailed(
            "sequence_gap",
            f"event {last + 1} is missing: the log continues with event {sequence}",
            expected=last + 1,
            found=sequence,
        )
    digest = link(previous, sequence, subject, headers, body)
    stated = headers.get(CHAIN_HEADER, "")
    if digest.hex() != stated:
        raise VerificationFailed(
            "chain_broken",
            f"event {sequence} ({subject}): its content hashes to {digest.hex()[:16]}…, "
            f"it states {stated[:16] or 'nothing'}…",
            sequence=sequence,
            computed=digest.hex(),
            stated=stated,
        )
    return _new(Head, (sequence, digest))
