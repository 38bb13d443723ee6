"""Probes as IPv4 packets, and what an answer is an answer to. Pure: bytes in, bytes out.

Three questions go to a peer, each by the way that a pod's packet takes:

* an echo request to its VTEP address, which the peer's kernel answers, whatever release its agent has;
* a datagram to a closed port there, answered by "port unreachable": hosts that drop echoes often let it be;
* a *call* to the peer's own probe address. Its agent answers twice: from the port that was asked, and from
  another one. For connection tracking the second is a connection that somebody else begins.
"""

from __future__ import annotations

import socket
import struct
from typing import Literal, NamedTuple

from nodeagent.netlink.rows import address_bytes
from nodeagent.path_mtu.probe import IPV4, PROBE_PORT, UDP, checksum, datagram, ipv4

CALL_PORT = 33440
"""Where a probe device takes calls; the answers come from the port after it."""

MARK = b"isthmus!"
TOKEN_BYTES = 8

_ICMP = struct.Struct("!BBHHH")
_ECHO_REPLY, _UNREACHABLE, _ECHO_REQUEST = 0, 3, 8


class ProbeReply(NamedTuple):
    """Something came back: the token of the question (for ``port``: the source port that was used)."""

    kind: Literal["echo", "port", "heard", "call"]
    sender: bytes
    token: bytes
    passes: bool = False
    """``heard``: whether the peer's own packets pass, as it has confirmed lately."""


class ProbeRequest(NamedTuple):
    """A peer asks: what to send back while own packets pass, and while that is not confirmed."""

    passing: tuple[bytes, ...]
    otherwise: tuple[bytes, ...]


def icmp(kind: int, identifier: int, number: int, payload: bytes = b"") -> bytes:
    """An ICMP message (RFC 792) about an echo."""
    body = _ICMP.pack(kind, 0, 0, identifier, number) + payload
    return _ICMP.pack(kind, 0, checksum(body), identifier, number) + payload


def echo_request(source: str, target: str, token: bytes) -> bytes:
    """An echo request with the token inside."""
    echo = icmp(_ECHO_REQUEST, 0x1574, 1, MARK + token)
    return ipv4(socket.IPPROTO_ICMP, address_bytes(source), address_bytes(target), echo)


def closed_port(source: str, target: str, token: bytes) -> bytes:
    """A datagram to a port that nobody has; its source port (the token's first two bytes) comes back."""
    return datagram(source, port_of(token), target, PROBE_PORT, MARK + token)


def call(source: str, target: str, token: bytes) -> bytes:
    """A call to a peer's probe address."""
    return datagram(source, port_of(token), target, CALL_PORT, MARK + token)


def port_of(token: bytes) -> int:
    """The source port of a question: out of the upper half, so that no service of ours has it."""
    return int.from_bytes(token[:2], "big") | 0x8000


def parse(packet: bytes, own: bytes) -> ProbeReply | ProbeRequest | None:
    """What a packet that came out of the probe device is; None when it is none of our business.

    ``own`` is the device's address: anything addressed elsewhere is not looked at.
    """
    if len(packet) < IPV4.size or packet[0] >> 4 != 4:
        return None
    header = (packet[0] & 15) * 4
    protocol, source, target = packet[9], packet[12:16], packet[16:20]
    body = packet[header:]
    if target != own:
        return None
    if protocol == socket.IPPROTO_ICMP and len(body) >= _ICMP.size:
        return _icmp_of(body, source, own)
    if protocol == socket.IPPROTO_UDP and len(body) >= UDP.size:
        return _udp_of(body, source, own)
    return None


def _icmp_of(body: bytes, source: bytes, own: bytes) -> ProbeReply | ProbeRequest | None:
    kind, _, _, identifier, number = _ICMP.unpack_from(body)
    payload = body[_ICMP.size :]
    if kind == _ECHO_REPLY and payload.startswith(MARK):
        return ProbeReply("echo", source, payload[len(MARK) : len(MARK) + TOKEN_BYTES])
    if kind == _ECHO_REQUEST:
        reply = ipv4(socket.IPPROTO_ICMP, own, source, icmp(_ECHO_REPLY, identifier, number, payload))
        return ProbeRequest((reply,), (reply,))
    if kind == _UNREACHABLE and len(payload) >= IPV4.size + 4:
        inner = (payload[0] & 15) * 4
        if payload[9] == socket.IPPROTO_UDP and len(payload) >= inner + 4:
            # An administrative refusal comes from the peer's filter: the packet did arrive there.
            return ProbeReply("port", payload[16:20], payload[inner : inner + 2])
    return None


def _udp_of(body: bytes, source: bytes, own: bytes) -> ProbeReply | ProbeRequest | None:
    source_port, target_port, _, _ = UDP.unpack_from(body)
    payload = body[UDP.size :]
    if not payload.startswith(MARK):
        return None
    token = payload[len(MARK) : len(MARK) + TOKEN_BYTES]
    if target_port == CALL_PORT:
        asked, asker = socket.inet_ntoa(own), socket.inet_ntoa(source)
        replies = [
            datagram(asked, port, asker, source_port, MARK + token + flag)
            for port, flag in ((CALL_PORT, b"+"), (CALL_PORT, b"-"), (CALL_PORT + 1, b""))
        ]
        return ProbeRequest((replies[0], replies[2]), (replies[1], replies[2]))
    if target_port == port_of(token) and source_port == CALL_PORT:
        return ProbeReply("heard", source, token, payload[len(MARK) + TOKEN_BYTES :] == b"+")
    if target_port == port_of(token) and source_port == CALL_PORT + 1:
        return ProbeReply("call", source, token)
    return None
