"""How large a packet may be on the way to a peer, without being cut into pieces.

The question is asked by real tunnel packets: an outer UDP datagram that must not be fragmented, to the
peer's VXLAN port, with a UDP datagram to a closed port of its VTEP address inside. The peer's kernel takes
it out of the tunnel and answers "port unreachable", back through the tunnel. So nothing has to listen
there, no raw socket is needed here, and firewalls on the way see what they let through anyway. (The
tunnel's own packets may be fragmented on the way: asked through the device, a path looks wider than it is.)

ICMP is rate-limited by hosts (Linux: bursts of six, then one a second for each asker), and packets get
lost: silence is only believed after several tries.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Callable, Iterable
from itertools import islice, zip_longest
from typing import Self

import msgspec

from nodeagent.membership.peers import Peer
from nodeagent.membership.values import first_address
from nodeagent.membership.view import View
from nodeagent.netlink.rows import address_bytes, mac_bytes

PROBE_PORT = 33434  # traceroute's first port: closed on any sane host
SMALLEST = 128
"""Outer bytes of the packet whose answer shows that the tunnel works at all."""

TRIES = 3
WAIT_S = 0.6
STEPS_LIMIT = 24
"""Questions until the answer is given as good as it is; halving 65,535 bytes takes 16."""

_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE, _IP_MTU = 10, 3, 14
_VXLAN = struct.Struct("!B3xI")
_ETHERNET = struct.Struct("!6s6sH")
IPV4 = struct.Struct("!BBHHHBBH4s4s")
UDP = struct.Struct("!HHHH")
_TTL = 64
_OUTER = 20 + 8
_INNER_FLAGS = 0x08  # the VNI is valid
_ETHERTYPE_IPV4 = 0x0800


class Path(msgspec.Struct, frozen=True, kw_only=True):
    """Both ends of a tunnel: underlay address, VTEP address and MAC of this node and of a peer."""

    vni: int
    port: int
    underlay: str
    vtep: str
    mac: str
    peer_underlay: str
    peer_vtep: str
    peer_mac: str

    def packet(self, source_port: int, outer_bytes: int) -> bytes:
        """The payload of the outer UDP datagram that makes an IP packet of ``outer_bytes``."""
        padding = bytes(outer_bytes - _OUTER - _VXLAN.size - _ETHERNET.size - IPV4.size - UDP.size)
        outer = _VXLAN.pack(_INNER_FLAGS, self.vni << 8)
        outer += _ETHERNET.pack(mac_bytes(self.peer_mac), mac_bytes(self.mac), _ETHERTYPE_IPV4)
        return outer + datagram(self.vtep, source_port, self.peer_vtep, PROBE_PORT, padding)


def ipv4(protocol: int, source: bytes, target: bytes, payload: bytes, *, flags: int = 0) -> bytes:
    """An IPv4 packet without options; ``flags`` are those of fragmentation."""
    fields = (0x45, 0, IPV4.size + len(payload), 0, flags, _TTL, protocol)
    header = IPV4.pack(*fields, 0, source, target)
    return IPV4.pack(*fields, checksum(header), source, target) + payload


def datagram(source: str, source_port: int, target: str, target_port: int, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram."""
    udp = UDP.pack(source_port, target_port, UDP.size + len(payload), 0) + payload
    return ipv4(socket.IPPROTO_UDP, address_bytes(source), address_bytes(target), udp)


def checksum(header: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(word for (word,) in struct.iter_unpack("!H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def path_to(peer: Peer, view: View, underlay: str) -> Path | None:
    """The way from this node (at ``underlay``) to a peer; None while this node has no range.

    None, too, for a peer to which everything is encrypted: a probe is a tunnel packet in the clear.
    """
    own, plan = view.own, view.plan
    if own is None or plan is None or peer.sealed:
        return None
    return Path(
        vni=plan.vni,
        port=plan.port,
        underlay=underlay,
        vtep=first_address(own.cidr),
        mac=own.vtep_mac,
        peer_underlay=peer.underlay,
        peer_vtep=first_address(peer.cidr),
        peer_mac=peer.vtep_mac,
    )


def sample(peers: Iterable[Peer], count: int) -> list[Peer]:
    """Up to ``count`` peers out of as many underlay networks (/24) as there are: ways differ by network."""
    networks: dict[str, list[Peer]] = {}
    for peer in sorted(peers, key=lambda peer: peer.epoch):
        networks.setdefault(peer.underlay.rpartition(".")[0], []).append(peer)
    in_turn = (peer for row in zip_longest(*networks.values()) for peer in row if peer is not None)
    return list(islice(in_turn, count))


async def measure(
    path: Path, wanted: int, *, wait_s: float = WAIT_S, going: Callable[[], bool] = lambda: True
) -> int:
    """The largest outer IP packet, up to ``wanted`` bytes, that arrives in one piece; 0 without any answer.

    Each question is asked up to three times, ``wait_s`` seconds apart. A router that says how much it can pass,
    or a route with a smaller MTU, is taken at its word. Raises OSError when this node does not have the path's
    own addresses. Nothing is sent any more once ``going`` says no: the peer is encrypted to by now. Cancelled,
    its socket is closed.
    """
    with _Probe(path, wait_s, going) as probe:
        if await probe.passes(wanted):
            return wanted
        if not await probe.passes(SMALLEST):
            return 0
        good, bad = SMALLEST, wanted
        for _ in range(STEPS_LIMIT):
            if bad - good <= 1:
                break
            said = probe.told
            size = said if good < said < bad else (good + bad) // 2
            if not await probe.passes(size):
                bad = size
            elif size == said:
                return size
            else:
                good = size
        return good


class _Probe:
    """Two sockets: one sends past the tunnel device, one has the inner port and gets the answers."""

    def __init__(self, path: Path, wait_s: float, going: Callable[[], bool]) -> None:
        self._path, self._wait_s, self._going = path, wait_s, going
        self.told = 0
        """What a router on the way said it can pass, or this node's own route; 0: nothing."""

    def __enter__(self) -> Self:
        path = self._path
        self._outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self._outer.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
            self._outer.bind((path.underlay, 0))
            self._outer.connect((path.peer_underlay, path.port))
            self._inner.bind((path.vtep, 0))
            self._inner.connect((path.peer_vtep, PROBE_PORT))
            for sock in (self._outer, self._inner):
                sock.setblocking(False)
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._outer.close()
        self._inner.close()

    async def passes(self, outer_bytes: int) -> bool:
        """Whether the peer answers a packet of that size."""
        if not self._heard(outer_bytes):
            return False
        packet = self._path.packet(self._inner.getsockname()[1], outer_bytes)
        for _ in range(TRIES):
            if not self._going() or not self._send(packet, outer_bytes):
                return False
            if await self._answered():
                return True
            if not self._heard(outer_bytes):
                return False
        return False

    def _send(self, packet: bytes, outer_bytes: int) -> bool:
        """Send it; False when it is known to be too large."""
        for _ in range(2):  # an error that an earlier packet left behind comes first
            try:
                self._outer.send(packet)
            except OSError as error:
                if error.errno == errno.EMSGSIZE and not self._heard(outer_bytes):
                    return False
            else:
                return True
        return True  # refused for another reason (no route, a full queue): silence will tell

    def _heard(self, outer_bytes: int) -> bool:
        """Look what the way is known to pass; False when that is less than ``outer_bytes``."""
        known = int(self._outer.getsockopt(socket.IPPROTO_IP, _IP_MTU))
        if known < outer_bytes:
            self.told = known
        return known >= outer_bytes

    async def _answered(self) -> bool:
        try:
            async with asyncio.timeout(self._wait_s):
                await asyncio.get_running_loop().sock_recv(self._inner, 1)
        except ConnectionRefusedError:
            return True
        except (TimeoutError, OSError):
            return False
        return True
