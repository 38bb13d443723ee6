"""Questions and answers between two nodes on one link, as UDP datagrams between their VTEP addresses. Pure.

A probe has the addresses of pods' packets (the first of each range), so a cloud that checks addresses
judges it as
it judges these. The kernel says by which device one came in, and the firewall lets in only what comes from that
member's MAC; an answer counts only with the token of its question, which nobody else has seen.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PROBE_PORT = 33443
MARK = b"isd1"
TOKEN_BYTES = 8
QUESTION, ANSWER = 1, 2
_BODY = struct.Struct("!4sBxxxQQ8s")
BYTES = _BODY.size


class Probe(NamedTuple):
    """``sender`` and ``receiver`` are the epochs of the ranges between which it goes."""

    kind: int
    sender: int
    receiver: int
    token: bytes


def encode(probe: Probe) -> bytes:
    """The datagram's content."""
    return _BODY.pack(MARK, probe.kind, probe.sender, probe.receiver, probe.token)


def decode(content: bytes) -> Probe | None:
    """What a datagram says; None when it is no probe."""
    if len(content) != BYTES:
        return None
    mark, kind, sender, receiver, token = _BODY.unpack(content)
    if mark != MARK or kind not in {QUESTION, ANSWER}:
        return None
    return Probe(kind, sender, receiver, token)
