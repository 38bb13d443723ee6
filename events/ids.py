"""Identifiers. Order in this system is the log's sequence; ids only say *the same* or *another*."""

from __future__ import annotations

import os
import time
import uuid
from hashlib import sha1

# A namespace of our own, so that our UUIDv5 never meet anybody else's. Fixed for ever.
_EVENT_NAMESPACE = uuid.UUID("5f2b6c8e-9d0a-5e5f-8a43-0f6f3f0f7d31")


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
    raw = bytearray(sha1(_EVENT_NAMESPACE.bytes + f"{command_id}/{index}".encode()).digest()[:16])  # noqa: S324
    raw[6] = raw[6] & 0x0F | 0x50
    raw[8] = raw[8] & 0x3F | 0x80
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
