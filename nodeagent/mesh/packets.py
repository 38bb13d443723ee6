"""Questions and answers of the mesh as UDP datagrams between probe addresses. Pure: bytes in, bytes out.

Both come from the last address of the sender's range, which no pod has and which the firewall of its node lets
nobody else use; whoever is no member is not looked at. A question has a token that comes back, and a
*word* that
its sender got with an earlier answer: only a question with the right word counts as heard from that member, so
what is sent blindly in another's name changes nothing.
"""

from __future__ import annotations

import socket
import struct
from hashlib import blake2b
from typing import NamedTuple

from nodeagent.path_mtu.probe import UDP, ipv4

MESH_PORT = 33442
MARK = b"ismesh01"
TOKEN_BYTES = WORD_BYTES = 8
NO_WORD = bytes(WORD_BYTES)
QUESTION, ANSWER = 1, 2
DF = 0x4000

_BODY = struct.Struct("!8sBBH8s8s")
_HEADERS = 20 + 8
SMALLEST = _HEADERS + _BODY.size


class Message(NamedTuple):
    """``size``: bytes of the whole inner packet."""

    sender: bytes
    kind: int
    large: bool
    token: bytes
    word: bytes
    size: int


def message(
    source: bytes, target: bytes, kind: int, token: bytes, word: bytes, *, large: bool = False, size: int = 0
) -> bytes:
    """An IPv4 packet; ``size`` bytes of it, never cut on its way, when it is large."""
    body = _BODY.pack(MARK, kind, int(large), 0, token, word)
    if large:
        body += bytes(max(0, size - SMALLEST))
    udp = UDP.pack(MESH_PORT, MESH_PORT, UDP.size + len(body), 0) + body
    return ipv4(socket.IPPROTO_UDP, source, target, udp, flags=DF if large else 0)


def understand(packet: bytes, own: bytes) -> Message | None:
    """What a packet that came out of the probe device says; None when it is no message of the mesh."""
    if len(packet) < SMALLEST or packet[0] != 0x45 or packet[9] != socket.IPPROTO_UDP or packet[16:20] != own:
        return None
    if packet[20:24] != _PORTS or packet[28:36] != MARK:
        return None
    _, kind, large, _, token, word = _BODY.unpack_from(packet, _HEADERS)
    if kind not in {QUESTION, ANSWER}:
        return None
    return Message(packet[12:16], kind, bool(large), token, word, len(packet))


_PORTS = struct.pack("!HH", MESH_PORT, MESH_PORT)


def word_for(secret: bytes, address: bytes, epoch: int) -> bytes:
    """What the member at that address must say: nobody can know it who has not got an answer there."""
    return blake2b(address + epoch.to_bytes(8, "big"), key=secret, digest_size=WORD_BYTES).digest()
