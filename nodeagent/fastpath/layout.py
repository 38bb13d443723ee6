"""The records that the agent and the eBPF programs share, byte for byte as in ``fastpath.bpf.c``. Pure.

Addresses, ports and the VNI are in network order, the rest in the machine's.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable
from socket import inet_aton
from typing import NamedTuple

from nodeagent.membership.peers import Peer

RANGE = struct.Struct("=I4s")
"""Key of ``peers``: prefix length, network."""
PEER = struct.Struct("=4s6sHI2s2x")
"""Value of ``peers``: VTEP, its MAC, largest inner packet in bytes, the low 30 bits of the epoch and the way,
the outer UDP port."""
DIRECT, MAPPED = 1 << 31, 1 << 30
"""Ways other than the tunnel: address and MAC are of the peer's underlay device, on this node's link; or it is
reached by the second device, at an address and port where it was seen."""
SEALED = DIRECT | MAPPED
"""It is reached by WireGuard alone; the index of the device stands for an address."""
NODE = struct.Struct("=IIII4s4s2s6s4sIQ")
HELD = struct.Struct("=Q4s4x")
"""A capture's record: until when (monotonic clock), one pod's address or zeros for all."""

PERIOD_NS = 500_000_000
"""How long a verdict of the stack holds: within it, whatever changed in the stack reaches running flows."""

OVERHEAD = 50
"""Outer IPv4 20 + UDP 8 + VXLAN 8 + inner Ethernet 14 bytes."""

PEERS_LIMIT = 65536
"""``max_entries`` of ``peers``; further ranges take the stack."""

COUNTERS = (
    "fast_out",
    "fast_out_bytes",
    "fast_in",
    "fast_in_bytes",
    "slow_out",
    "slow_in",
    "learned_out",
    "learned_in",
    "wrong_source",
    "form",
    "size",
    "closing",
    "held",
    "failed",
)
"""The counters by place. ``slow_*`` are packets that the stack was asked about, ``learned_*`` its answers; the
rest are reasons why a packet took the stack: :data:`REASONS`."""
REASONS = {
    "wrong_source": "not from where the range of their source is",
    "form": "other than whole TCP and UDP packets, without options and with a checksum that somebody verified "
    "(merged datagrams out of the tunnel are none)",
    "size": "larger than what has passed",
    "closing": "that open or end a connection",
    "held": "taken off the path by a capture",
    "failed": "refused by the kernel",
}
COUNTERS_ROOM = 16


class Side(NamedTuple):
    """Another way to a peer than by the tunnel, or by the tunnel to a relay."""

    way: int
    """:data:`DIRECT`, :data:`MAPPED`, :data:`SEALED` or 0."""
    address: bytes
    port: int
    mac: bytes


class NodeRecord(NamedTuple):
    """What the programs know of this node. ``generation`` 0 sends everything through the stack."""

    generation: int = 0
    tunnel: int = 0
    underlay: int = 0
    local: bytes = bytes(4)
    vni: int = 0
    port: int = 0
    mac: bytes = bytes(6)
    direct: int = 0
    """Whether any peer may be reached without the tunnel."""
    second: int = 0
    """Index of the device for peers behind NAT; 0: there is none."""
    second_vni: int = 0

    def pack(self) -> bytes:
        """As the programs read it."""
        return NODE.pack(
            self.generation, self.tunnel, self.underlay, self.second, self.local, _vni(self.vni),
            self.port.to_bytes(2, "big"), self.mac, _vni(self.second_vni), self.direct, PERIOD_NS,
        )  # fmt: skip


def _vni(number: int) -> bytes:
    return (number << 8).to_bytes(4, "big")


_LENGTHS = {str(length): length.to_bytes(4, sys.byteorder) for length in range(33)}
_pack_peer = PEER.pack


def range_key(cidr: str) -> bytes:
    """The key of a range."""
    network, _, length = cidr.partition("/")
    return _LENGTHS[length] + inet_aton(network)


def peer_entry(peer: Peer, mtu: int, port: int, side: Side | None = None) -> tuple[bytes, bytes]:
    """Key and value of one peer with an IPv4 underlay; ``mtu`` is the largest inner packet in bytes.

    ``port`` is the tunnel's, ``side`` the way to it where that is another one. Raises OSError for another
    underlay.
    """
    if side is None:
        return next(iter(plain_entries((peer,), mtu, port).items()))
    epoch = peer.epoch & MAPPED - 1 | side.way
    return range_key(peer.cidr), _pack_peer(side.address, side.mac, mtu, epoch, side.port.to_bytes(2, "big"))


def plain_entries(peers: Iterable[Peer], mtu: int, port: int) -> dict[bytes, bytes]:
    """:func:`peer_entry` of peers that are reached by the tunnel itself.

    Written for speed: ten thousand of them are made at a start.
    """
    outer, epochs = port.to_bytes(2, "big"), MAPPED - 1
    lengths, pack, unhex = _LENGTHS, _pack_peer, bytes.fromhex
    return {
        lengths[length] + inet_aton(network): pack(
            inet_aton(peer.underlay), unhex(peer.vtep_mac.replace(":", "")), mtu, peer.epoch & epochs, outer
        )
        for peer in peers
        for network, _, length in (peer.cidr.partition("/"),)
    }
