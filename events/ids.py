"""Identifiers. Order in this system is the log's sequence; ids only say *the same* or *another*."""

from __future__ import annotations

import os
import time
import uuid
from hashlib import sha1

# A namespace of our own, so that our UUIDv5 never meet anybody else's. Fixed for ever.
EVENT_NAMESPACE = uuid.UUID("5f2b6c8e-9d0a-5e5f-8a43-0f6f3f0f7d31")
_NAMESPACE_BYTES = EVENT_NAMESPACE.bytes
_VARIANT = {digit: f"{int(digit, 16) & 0x3 | 0x8:x}" for digit in "0123456789abcdef"}
"""A hexadecimal digit with its upper two bits as RFC 9562 wants them in the variant's place."""


def new_id() -> str:
    """A UUIDv7 (RFC 9562): 48 bits of Unix milliseconds, then random bits. Sorts roughly by time."""
    value = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return str(uuid.UUID(int=value))


def event_id(command_id: str, index: int) -> str:
    """The id of the ``index``-th event that a command causes.

    Deterministic (UUIDv5), so that a command repeated after a lost acknowledgement meets its own
    events instead of writing them twice.
    """
    # uuid.uuid5, without building the object: two of these are made for every join.
    text = sha1(b"%b%b/%d" % (_NAMESPACE_BYTES, command_id.encode(), index)).hexdigest()  # noqa: S324
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"
