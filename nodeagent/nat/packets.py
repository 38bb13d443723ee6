"""What two nodes say to one another to find out what a NAT between them makes of their addresses. Pure.

A message is a datagram of the tunnel's own form (source and destination port are the cluster's VXLAN port,
then a VXLAN header), so it takes the mapping that packets of the tunnel take. Its VNI is reserved: no device
has it. Each message is sealed with a key that only these two nodes have, for these epochs of their ranges.

==========  ====================================================================================================
HELLO       from a node that wants to know how it is seen; ``number`` is larger than any before
ANSWER      to where the HELLO came from, with that ``address`` and ``port``; either this is ``KNOWN``, or
            there is a ``challenge``. It says for how long the sender has been asked without a break, and,
            in place of a challenge, which peers behind NAT have not asked (``MORE``: they are too many)
CONFIRM     the challenge, sent back from the same address and port: only this moves a row
DONE        it has moved
==========  ====================================================================================================
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

from nodeagent.dataplane.second_device import PROBE_VNI
from nodeagent.membership.peers import Peer

MARK = b"isthmus-nat"
"""Where an Ethernet frame in the tunnel has its addresses; behind it comes an EtherType that nobody else
uses."""
ETHERTYPE = 0x88B5
HELLO, ANSWER, CONFIRM, DONE = 1, 2, 3, 4
KNOWN, MORE = 1, 2
CHALLENGE_BYTES, SEAL_BYTES = 16, 16
NUMBER_MAX = 2**62
"""A larger one is no message's: what was used is kept in a file, and must be read again."""
LASTS_MAX_MS = 86_400_000
_BODY = struct.Struct("!11sBHQQ4sBBHQ4s16sI")
BYTES = _BODY.size + SEAL_BYTES
RECEIVER_AT = 22
"""Where a content has the epoch of whom it is for: 8 bytes."""
VXLAN_FLAGS = 0x08000000
_VXLAN = struct.Struct("!II")
_UDP = struct.Struct("!HHHH")
_IP = struct.Struct("!BBHHHBBH4s4s")
HEADERS = _IP.size + _UDP.size + _VXLAN.size
NOTHING = bytes(CHALLENGE_BYTES)
_SALT = b"isthmus behind NAT"


class Endpoint(NamedTuple):
    """An IPv4 address (4 bytes) and a UDP port, as somebody sees them."""

    address: bytes
    port: int

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.address))}:{self.port}"


class Message(NamedTuple):
    """``sender`` and ``receiver`` are epochs of ranges; ``network`` and ``length`` are the sender's range."""

    kind: int
    sender: int
    receiver: int
    network: bytes
    length: int
    number: int
    seen: Endpoint = Endpoint(bytes(4), 0)
    known: bool = False
    challenge: bytes = NOTHING
    lasts_ms: int = 0
    """For how long the sender has been asked without a break; of a day and more, a day."""
    more: bool = False


def pair_key(secret: bytes, one: Peer, other: Peer) -> bytes:
    """The key of a pair of nodes for these epochs (HKDF-SHA256), from the secret that they share."""
    first, second = sorted((one, other), key=lambda peer: (peer.epoch, peer.node))
    names = [(peer.node.encode(), peer.epoch.to_bytes(8, "big")) for peer in (first, second)]
    info = b"".join(len(name).to_bytes(2, "big") + name + epoch for name, epoch in names)
    extracted = hmac.digest(_SALT, secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def seal(message: Message, key: bytes) -> bytes:
    """The content of the datagram, behind its VXLAN header."""
    body = _BODY.pack(
        MARK, message.kind, ETHERTYPE, message.sender, message.receiver, message.network, message.length,
        KNOWN * message.known | MORE * message.more, message.seen.port, message.number, message.seen.address,
        message.challenge, min(message.lasts_ms, LASTS_MAX_MS),
    )  # fmt: skip
    return body + hmac.digest(key, body, hashlib.sha256)[:SEAL_BYTES]


def read(content: bytes) -> Message | None:
    """What a content claims; None when it has not the form. Nothing of it is proven before
    :func:`is_sealed`."""
    if len(content) != BYTES:
        return None
    mark, kind, ethertype, sender, receiver, network, length, *rest = _BODY.unpack_from(content)
    flags, port, number, address, challenge, lasts_ms = rest
    ours = mark == MARK and ethertype == ETHERTYPE and HELLO <= kind <= DONE
    if not ours or length > 32 or flags > KNOWN | MORE or number > NUMBER_MAX or lasts_ms > LASTS_MAX_MS:
        return None
    seen = Endpoint(address, port)
    known, more = bool(flags & KNOWN), bool(flags & MORE)
    return Message(kind, sender, receiver, network, length, number, seen, known, challenge, lasts_ms, more)


def is_sealed(content: bytes, key: bytes) -> bool:
    """Whether who has the key has written it."""
    body, given = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    return hmac.compare_digest(hmac.digest(key, body, hashlib.sha256)[:SEAL_BYTES], given)


def datagram(content: bytes, source: bytes, target: Endpoint, port: int) -> bytes:
    """The whole IPv4 packet from ``source`` (4 bytes), whose port is ``port``. An empty content keeps a
    mapping.

    The kernel fills in the checksum and the length of the IP header.
    """
    length = _UDP.size + _VXLAN.size + len(content)
    vxlan = _VXLAN.pack(VXLAN_FLAGS, PROBE_VNI << 8) + content
    udp = _UDP.pack(port, target.port, length, 0)
    pseudo = source + target.address + struct.pack("!HH", 17, length)
    check = _checksum(pseudo + udp + vxlan) or 0xFFFF
    head = _IP.pack(0x45, 0, 0, 0, 0, 64, 17, 0, source, target.address)
    return head + _UDP.pack(port, target.port, length, check) + vxlan


def opened(packet: bytes) -> tuple[bytes, Endpoint, bytes] | None:
    """Target address, source and content of a whole IPv4 packet; None when it is no message's."""
    ihl = (packet[0] & 15) * 4 if packet else 0
    if ihl < _IP.size or len(packet) < ihl + _UDP.size + _VXLAN.size:
        return None
    *_, source, target = _IP.unpack_from(packet)
    port, _, length, _ = _UDP.unpack_from(packet, ihl)
    if _VXLAN.unpack_from(packet, ihl + _UDP.size) != (VXLAN_FLAGS, PROBE_VNI << 8):
        return None
    content = packet[ihl + _UDP.size + _VXLAN.size : ihl + length]
    return target, Endpoint(source, port), content


def _checksum(data: bytes) -> int:
    words: tuple[int, ...] = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total: int = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF
