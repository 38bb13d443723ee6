"""A TUN device with the last address of the node's range: what it is given is forwarded like a pod's packet.

It meets the host's routes, policy rules, forwarding switches and FORWARD chains, takes the tunnel, and the
answer comes back the same way. Needs CAP_NET_ADMIN and ``/dev/net/tun``, no namespace and no raw socket. The
last address of a range is given to no pod. The device goes with the file descriptor, however the agent ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeagent.config import DEVICE_NAME_LIMIT
from nodeagent.dataplane.host_settings import switch_ipv6_off

PATH = "/dev/net/tun"
PROTOCOL = 85
"""Marks the one route to the probe address; our rows have 84, and a comparison must not take it for one."""

READS_LIMIT = 64
_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_RTN_BROADCAST = 3
_RT_TABLE_LOCAL = 255
_IFREQ = struct.Struct("16sH22x")


def device_name(tunnel: str) -> str:
    """The probe device that belongs to a tunnel device."""
    return f"{tunnel[: DEVICE_NAME_LIMIT - 6]}-probe"


def probe_address(cidr: str) -> str:
    """The address of a range's probe device: the last one."""
    return str(IPv4Network(cidr).broadcast_address)


class ProbeDevice:
    """Open while it is used. ``received`` is called on the event loop with each packet that comes out."""

    def __init__(self, name: str, address: str, mtu: int, received: Callable[[bytes], None]) -> None:
        self.name, self.address, self.mtu = name, address, mtu
        self._received = received
        self._descriptor = -1
        self.index = 0

    def open(self) -> None:
        """Make the device and its route; blocks for milliseconds, in a worker thread. Raises OSError."""
        descriptor = os.open(PATH, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _TUNSETIFF, _IFREQ.pack(self.name.encode(), _IFF_TUN | _IFF_NO_PI))
            with contextlib.suppress(OSError):
                switch_ipv6_off(self.name)
            with IPRoute() as route:
                self.index = socket.if_nametoindex(self.name)
                route.link("set", index=self.index, mtu=self.mtu, state="up")
                route.route("replace", dst=f"{self.address}/32", oif=self.index, proto=PROTOCOL, scope="link")
        except OSError:
            os.close(descriptor)
            raise
        except NetlinkError as error:
            os.close(descriptor)
            raise OSError(error.code, str(error)) from error
        self._descriptor = descriptor

    def listen(self) -> None:
        """Begin to hand on what comes out, on the running event loop."""
        asyncio.get_running_loop().add_reader(self._descriptor, self._ready)

    def mend(self) -> None:
        """Put back what somebody took: the route, the link's state. Blocks; raises OSError."""
        with IPRoute() as route:
            try:
                (link,) = route.link("get", index=self.index)
                if link["state"] != "up":
                    route.link("set", index=self.index, state="up")
                route.route("replace", dst=f"{self.address}/32", oif=self.index, proto=PROTOCOL, scope="link")
                self._release(route)
            except NetlinkError as error:
                raise OSError(error.code, str(error)) from error

    def _release(self, route: Any) -> None:
        """The address is unicast here. A bridge with the whole range makes the kernel take it for a broadcast
        address; nobody sends broadcasts to pods of other hosts, so that entry goes."""
        (found,) = route.route("get", dst=self.address)
        if found["type"] == _RTN_BROADCAST:
            route.route(
                "del",
                dst=f"{self.address}/32",
                table=_RT_TABLE_LOCAL,
                type=_RTN_BROADCAST,
                scope="link",
                oif=found.get_attr("RTA_OIF"),
            )

    def send(self, packet: bytes) -> None:
        """Let a packet enter the host. Raises OSError when the device is down or full."""
        os.write(self._descriptor, packet)

    def close(self) -> None:
        """The device goes, and its route with it."""
        if self._descriptor >= 0:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _ready(self) -> None:
        for _ in range(READS_LIMIT):
            try:
                packet = os.read(self._descriptor, 65535)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in {errno.EBADFD, errno.EIO}:  # removed under us: the next round makes it anew
                    self.close()
                return
            self._received(packet)

    @property
    def is_open(self) -> bool:
        """Whether it is there."""
        return self._descriptor >= 0


def packed(address: str) -> bytes:
    """Four bytes of an address."""
    return IPv4Address(address).packed
