"""Where pods are attached to this node, and what else happens to devices. It reads and changes nothing.

A pod's host side is the device to which a route of the node's own range leads: a veth (``ptp``, one address)
or a bridge (``bridge``, the range). What the CNI plugin calls it does not matter.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from ipaddress import IPv4Network
from typing import NamedTuple

from nodeagent.netlink import dump, messages
from nodeagent.netlink.constants import (
    AF_INET,
    NETLINK_ADD_MEMBERSHIP,
    NLMSG_DONE,
    NLMSG_HEADER,
    PROTOCOL,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_OIF,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_LINK,
    SOL_NETLINK,
)
from nodeagent.netlink.socket import DATAGRAM_BYTES, NetlinkChannel, force_buffers

BUFFER_BYTES = 4 << 20
READS_LIMIT = 8192
_RTNLGRP_TC = 4
_RTM_GETQDISC = 38
_RTPROT_KERNEL, _RTPROT_BOOT, _RTPROT_STATIC = 2, 3, 4
_RTMSG = struct.Struct("=BBBBBBBBI")
_TCMSG = struct.Struct("=BxxxiIII")
_TCA_KIND = 1
_IFINFO = struct.Struct("=BxHiII")
_IFLA_MTU = 4
_SIOCETHTOOL, _GDRVINFO = 0x8946, 3
_SIOCGIFHWADDR, _ARPHRD_ETHER = 0x8927, 1
_IFREQ = struct.Struct("16sP16x")


class Ports(NamedTuple):
    """Devices by index: pods' veths, and bridges with pods."""

    veths: frozenset[int]
    bridges: frozenset[int]


def find(own_range: str, tunnel: int) -> Ports:
    """Whom the own range's routes lead to. Raises OSError."""
    own = IPv4Network(own_range)
    indexes: set[int] = set()
    channel = NetlinkChannel()
    try:
        for protocol in (_RTPROT_KERNEL, _RTPROT_BOOT, _RTPROT_STATIC):
            channel.send(messages.dump_routes(1, protocol=protocol))
            done = False
            while not done:
                data = channel.receive()
                for header, offset in dump.messages(data):
                    done = done or header.type == NLMSG_DONE
                    if header.type == RTM_NEWROUTE:
                        network, ifindex = _route(data, offset, header)
                        if network is not None and ifindex not in {0, tunnel} and network.subnet_of(own):
                            indexes.add(ifindex)
    finally:
        channel.close()
    drivers = {index: driver(index) for index in indexes}
    return Ports(
        frozenset(index for index, name in drivers.items() if name == "veth"),
        frozenset(index for index, name in drivers.items() if name == "bridge"),
    )


def _route(data: bytes, offset: int, header: dump.Header) -> tuple[IPv4Network | None, int]:
    family, length, _, _, table, protocol, *_ = _RTMSG.unpack_from(data, offset + NLMSG_HEADER)
    if family != AF_INET or table != RT_TABLE_MAIN or protocol == PROTOCOL:
        return None, 0
    found = dump.attributes(data, offset + NLMSG_HEADER + _RTMSG.size, offset + header.length)
    network = found.get(RTA_DST, bytes(4))
    return IPv4Network((network, length)), int.from_bytes(found.get(RTA_OIF, b""), "little")


def driver(ifindex: int) -> str:
    """What kind of device it is, as its driver says; empty when it has gone or does not say."""
    try:
        name = socket.if_indextoname(ifindex).encode()
        record = ctypes.create_string_buffer(struct.pack("=I32s", _GDRVINFO, b""), 256)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            fcntl.ioctl(sock, _SIOCETHTOOL, _IFREQ.pack(name, ctypes.addressof(record)))
    except OSError:
        return ""
    return record.raw[4:36].partition(b"\0")[0].decode("ascii", "replace")


def is_ethernet(ifindex: int) -> bool:
    """Whether its packets begin with an Ethernet header."""
    try:
        name = socket.if_indextoname(ifindex).encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            answer = fcntl.ioctl(sock, _SIOCGIFHWADDR, struct.pack("16sH22x", name, 0))
    except OSError:
        return False
    return bool(struct.unpack_from("=H", answer, 16)[0] == _ARPHRD_ETHER)


_SHAPERS_OF_NOBODY = frozenset({"noqueue", "pfifo_fast", "fq_codel", "fq", "mq", "pfifo", "noop"})
"""Queues that only order packets; any other may drop, delay or redirect by rules of its owner."""


def filtered() -> dict[int, str]:
    """Devices whose traffic somebody shapes or filters by tc: index → kind of the qdisc. Raises OSError."""
    found: dict[int, str] = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as sock:
        sock.bind((0, 0))
        sock.settimeout(5.0)
        sock.send(
            struct.pack("=IHHII", NLMSG_HEADER + _TCMSG.size, _RTM_GETQDISC, 0x301, 1, 0) + bytes(_TCMSG.size)
        )
        done = False
        while not done:
            data = sock.recv(DATAGRAM_BYTES)
            for header, offset in dump.messages(data):
                done = done or header.type == NLMSG_DONE
                if header.type == _RTM_GETQDISC - 2:
                    _, ifindex, _, _, _ = _TCMSG.unpack_from(data, offset + NLMSG_HEADER)
                    attributes = dump.attributes(
                        data, offset + NLMSG_HEADER + _TCMSG.size, offset + header.length
                    )
                    kind = attributes.get(_TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
                    if kind not in _SHAPERS_OF_NOBODY:
                        found[ifindex] = kind
    return found


class DeviceMonitor:
    """Tells that routes of a range, devices or queues changed. Not blocking: wait for :meth:`fileno`."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._mtus: dict[int, bytes] = {}
        try:
            force_buffers(self._socket, BUFFER_BYTES)
            self._socket.bind((0, 0))
            for group in (RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, _RTNLGRP_TC):
                self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def changed(self, own_range: str) -> bool:
        """Take all that has arrived; whether any of it may concern the path. Raises OSError."""
        own = IPv4Network(own_range) if own_range else None
        found = False
        for _ in range(READS_LIMIT):
            try:
                data = self._socket.recv(DATAGRAM_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
                continue
            try:
                found = self._concerns(data, own) or found
            except (dump.MalformedMessage, struct.error):
                found = True
        return found

    def _concerns(self, data: bytes, own: IPv4Network | None) -> bool:
        for header, offset in dump.messages(data):
            start = offset + NLMSG_HEADER
            if header.type in {RTM_NEWROUTE, RTM_DELROUTE}:
                if data[start + 5] == PROTOCOL:  # our own rows, ten thousand of them at a cold start
                    continue
                network, _ = _route(data, offset, header)
                if own is None or network is None or network.subnet_of(own):
                    return True
            elif header.type in {RTM_NEWLINK, RTM_DELLINK}:
                _, _, ifindex, _, _ = _IFINFO.unpack_from(data, start)
                attributes = dump.attributes(data, start + _IFINFO.size, offset + header.length)
                if header.type == RTM_DELLINK:
                    self._mtus.pop(ifindex, None)
                    return True
                mtu = attributes.get(_IFLA_MTU, b"")
                if self._mtus.get(ifindex) != mtu:
                    self._mtus[ifindex] = mtu
                    return True
            else:
                return True
        return False
