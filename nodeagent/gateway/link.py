"""A held address on its link: added, removed, announced, asked for. Blocking calls of microseconds.

Ours are the addresses whose label ends in ``:clb``; nothing else is touched. Announcing and asking
need CAP_NET_RAW.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import time
from ipaddress import IPv4Address
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

LABEL = ":clb"
_LABEL_BYTES = 15  # IFNAMSIZ − 1

ETHERTYPE_ARP = 0x0806
_BROADCAST = b"\xff" * 6
_REQUEST, _REPLY = 1, 2
_RUNNING = 0x40  # IFF_RUNNING

ASK_AGAIN_S = 0.1
"""Between two questions for one address: either may be lost."""


class OnLink(NamedTuple):
    """One of our addresses as the kernel has it."""

    address: str
    ifindex: int


def ours() -> set[OnLink]:
    """The held addresses that the kernel has. Raises OSError."""
    with IPRoute() as route:
        return {
            OnLink(message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS"), message["index"])
            for message in route.get_addr(family=socket.AF_INET)
            if str(message.get_attr("IFA_LABEL") or "").endswith(LABEL)
        }


def add(address: str, ifindex: int, device: str) -> None:
    """Put the address on the link, alone (/32) and never as a source of our own packets. Raises OSError."""
    label = device[: _LABEL_BYTES - len(LABEL)] + LABEL
    with IPRoute() as route:
        try:
            route.addr(
                "add", index=ifindex, address=address, prefixlen=32, label=label, preferred=0, valid=0xFFFFFFFF
            )
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise OSError(error.code, f"address {address}: {error}") from error


def remove(address: str, ifindex: int) -> None:
    """Take the address away, if it is there. Raises OSError."""
    with IPRoute() as route:
        try:
            route.addr("del", index=ifindex, address=address, prefixlen=32)
        except NetlinkError as error:
            if error.code not in {errno.EADDRNOTAVAIL, errno.ENODEV}:
                raise OSError(error.code, f"address {address}: {error}") from error


def carrier(ifindex: int) -> bool:
    """Whether the link has another end: up, and its cable is in. Raises OSError."""
    with IPRoute() as route:
        try:
            return bool(route.get_links(ifindex)[0]["flags"] & _RUNNING)
        except (NetlinkError, IndexError):
            return False


class ArpSocket:
    """Sends and hears ARP on one device. Raises OSError (EPERM without CAP_NET_RAW)."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(
            socket.AF_PACKET,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.htons(ETHERTYPE_ARP),
        )
        try:
            self._socket.bind((device, ETHERTYPE_ARP))
            self.mac: bytes = self._socket.getsockname()[4]
        except OSError:
            self._socket.close()
            raise

    def announce(self, address: str) -> None:
        """A gratuitous request and a gratuitous reply: some listeners heed only the one, some the other.

        RFC 5227, section 3 (request), RFC 826 (any packet updates a known sender).
        """
        own = IPv4Address(address).packed
        for operation in (_REQUEST, _REPLY):
            target = _BROADCAST if operation == _REPLY else b"\0" * 6
            self._socket.send(frame(self.mac, operation, own, target, own))

    def ask(self, address: str) -> None:
        """Ask who has the address, without claiming anything (sender of zeros, RFC 5227)."""
        self._socket.send(frame(self.mac, _REQUEST, b"\0" * 4, b"\0" * 6, IPv4Address(address).packed))

    def taken(self, address: str, *, patience_s: float = 0.3) -> str:
        """Ask who has the address; the MAC of another machine that answers, or empty. Blocks that long."""
        self._forget()
        wanted = IPv4Address(address).packed
        deadline = time.monotonic() + patience_s
        asked_at = float("-inf")
        while True:
            now = time.monotonic()
            if now < deadline and now - asked_at >= ASK_AGAIN_S:
                asked_at = now
                self.ask(address)
            ready, _, _ = select.select([self._socket], [], [], max(0.0, min(ASK_AGAIN_S, deadline - now)))
            if ready:
                heard = self._socket.recv(128)
                if len(heard) >= 42 and heard[28:32] == wanted and heard[22:28] != self.mac:
                    return heard[22:28].hex(":")
            elif (
                now >= deadline
            ):  # and not before: an answer may lie there since we were last given the processor
                return ""

    def _forget(self) -> None:
        """Drop what was heard before a question: it answers an older one."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(128)

    def close(self) -> None:
        """Release the socket."""
        self._socket.close()


def frame(mac: bytes, operation: int, sender: bytes, target_mac: bytes, target: bytes) -> bytes:
    """An ARP packet for Ethernet and IPv4 (RFC 826) to everybody."""
    header = _BROADCAST + mac + struct.pack("!H", ETHERTYPE_ARP)
    return header + struct.pack("!HHBBH", 1, 0x0800, 6, 4, operation) + mac + sender + target_mac + target
