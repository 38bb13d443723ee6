"""What changes in the kernel without us: links, addresses, and rows that somebody else touched.

A BPF program on the socket makes the kernel keep to itself what is not our business: neighbours of
other devices, and the echo of our own writes where it carries our port id. What arrives is parsed
into small values; this module decides nothing.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
from typing import NamedTuple

from nodeagent.netlink import dump
from nodeagent.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    IFF_LOWER_UP,
    IFF_NOARP,
    IFF_UP,
    NLMSG_HEADER,
    PROBE_PROTOCOL,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_PRIORITY,
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
)
from nodeagent.netlink.rows import ODD, Kind, route_key
from nodeagent.netlink.socket import Subscription

BUFFER_BYTES = 2 << 20
READS_LIMIT = 4096
"""Datagrams taken in one go; the rest waits for the next turn of the event loop."""

_SO_ATTACH_FILTER = 26
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER = 1, 3, 4, 10
_IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 18, 1, 2
_IFLA_VXLAN_LOCAL, _IFLA_VXLAN_LOCAL6 = 4, 17
_IFA_ADDRESS, _IFA_LOCAL = 1, 2


class LinkChange(NamedTuple):
    """A device appeared, changed, or is gone."""

    ifindex: int
    name: str
    up: bool
    mtu: int
    mac: bytes
    gone: bool
    local: bytes = b""
    """For a vxlan device the address that its packets come from."""
    master: int = 0
    arp: bool = True
    carrier: bool = True


class AddressChange(NamedTuple):
    """An IPv4 address was added to a device, or removed from it."""

    ifindex: int
    address: bytes
    gone: bool


class RowChange(NamedTuple):
    """A row with that key was written (``value`` as in the tables) or removed (``value`` None)."""

    kind: Kind
    key: bytes
    value: bytes | None
    second: bool = False
    """Whether it is on the second device."""


class Overflow(NamedTuple):
    """Notifications were lost: only reading everything back tells what happened."""


Notice = LinkChange | AddressChange | RowChange | Overflow

FOREIGN = ODD + b"foreign route"


class Monitor(Subscription):
    """Change notifications: wait for :meth:`fileno`, then :meth:`read`."""

    def __init__(self) -> None:
        groups = (RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV4_ROUTE)
        super().__init__(groups, BUFFER_BYTES)
        self._ifindex = self._second = 0

    def watch(self, ifindex: int, own_port: int, second: int = 0) -> None:
        """Listen to the neighbours of this device only (and of the second one, where there is one), and not to
        what ``own_port`` itself wrote."""
        self._ifindex, self._second = ifindex, second
        program = _filter(ifindex, own_port, second or ifindex)
        buffer = ctypes.create_string_buffer(program)
        self._socket.setsockopt(
            socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HL", len(program) // 8, ctypes.addressof(buffer))
        )

    def read(self) -> list[Notice]:
        """Everything that has arrived (at most READS_LIMIT datagrams). Raises OSError."""
        notices: list[Notice] = []
        for data in self.datagrams(READS_LIMIT):
            notices += [Overflow()] if data is None else parse(data, self._ifindex, self._second)
        return notices


def parse(data: bytes, ifindex: int, second: int = 0) -> list[Notice]:
    """The notices in one datagram. Malformed bytes count as a loss; never raises."""
    notices: list[Notice] = []
    try:
        for header, offset in dump.messages(data):
            notice = _notice(data, offset, header, ifindex, second)
            if notice is not None:
                notices.append(notice)
    except (dump.MalformedMessage, struct.error):
        notices.append(Overflow())
    return notices


def _notice(data: bytes, offset: int, header: dump.Header, ifindex: int, second: int) -> Notice | None:
    start, end = offset + NLMSG_HEADER, offset + header.length
    if header.type in (RTM_NEWLINK, RTM_DELLINK):
        family, _, index, flags, _ = _IFINFO.unpack_from(data[start:end])
        if family == AF_BRIDGE:
            return None  # a bridge port changed, the device did not
        found = dump.attributes(data, start + _IFINFO.size, end)
        return LinkChange(
            index,
            found.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace"),
            bool(flags & IFF_UP),
            int.from_bytes(found.get(_IFLA_MTU, b""), sys.byteorder),
            found.get(_IFLA_ADDRESS, b""),
            header.type == RTM_DELLINK,
            _vxlan_local(found.get(_IFLA_LINKINFO, b"")),
            int.from_bytes(found.get(_IFLA_MASTER, b""), sys.byteorder),
            not flags & IFF_NOARP,
            bool(flags & IFF_LOWER_UP),
        )
    if header.type in (RTM_NEWADDR, RTM_DELADDR):
        family, _, _, _, index = _IFADDR.unpack_from(data[start:end])
        found = dump.attributes(data, start + _IFADDR.size, end)
        address = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS, b""))
        return AddressChange(index, address, header.type == RTM_DELADDR) if family == AF_INET else None
    if header.type in (RTM_NEWNEIGH, RTM_DELNEIGH):
        kind = Kind.FDB if data[start : start + 1] == bytes([AF_BRIDGE]) else Kind.NEIGHBOUR
        read = dump.fdb_row if kind is Kind.FDB else dump.neighbour_row
        row = read(data, offset, header, ifindex)
        beside = row is None and second != 0
        row = read(data, offset, header, second) if beside else row
        if row is None:
            return None
        return RowChange(kind, row[0], None if header.type == RTM_DELNEIGH else row[1], beside)
    if header.type in (RTM_NEWROUTE, RTM_DELROUTE):
        return _route_notice(data, offset, header, ifindex)
    return None


def _vxlan_local(info: bytes) -> bytes:
    outer = dump.attributes(info, 0, len(info))
    if outer.get(_IFLA_INFO_KIND, b"").rstrip(b"\0") != b"vxlan":
        return b""
    data = outer.get(_IFLA_INFO_DATA, b"")
    inner = dump.attributes(data, 0, len(data))
    return inner.get(_IFLA_VXLAN_LOCAL, inner.get(_IFLA_VXLAN_LOCAL6, b""))


def _route_notice(data: bytes, offset: int, header: dump.Header, ifindex: int) -> RowChange | None:
    """A route of ours, or one that took the place of one of ours (same range and metric)."""
    ours = dump.route_row(data, offset, header, ifindex)
    if ours is not None:
        return RowChange(Kind.ROUTE, ours[0], None if header.type == RTM_DELROUTE else ours[1])
    start = offset + NLMSG_HEADER
    family, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(data[start : offset + header.length])
    if family != AF_INET or table != RT_TABLE_MAIN or length > 32 or header.type == RTM_DELROUTE:
        return None
    if protocol == PROBE_PROTOCOL:
        return None
    found = dump.attributes(data, start + _RTMSG.size, offset + header.length)
    network, priority = found.get(RTA_DST, bytes(4)), found.get(RTA_PRIORITY, bytes(4))
    if len(network) != 4 or len(priority) != 4:
        return None
    return RowChange(Kind.ROUTE, route_key(network, length, int.from_bytes(priority, sys.byteorder)), FOREIGN)


# Classic BPF (linux/filter.h). Loads are big-endian; the messages are in host order.
_LD_H, _LD_W, _JEQ, _RET = 0x28, 0x20, 0x15, 0x06
_KEEP = 0xFFFFFFFF


def _filter(ifindex: int, own_port: int, second: int) -> bytes:
    """Drop neighbours of other devices than these two, and neighbours and routes that ``own_port`` wrote."""

    def half(value: int) -> int:
        return int.from_bytes(struct.pack("=H", value), "big")

    def word(value: int) -> int:
        return int.from_bytes(struct.pack("=I", value), "big")

    program = (
        (_LD_H, 0, 0, 4),  # nlmsg_type
        (_JEQ, 3, 0, half(RTM_NEWNEIGH)),  # → neighbour
        (_JEQ, 2, 0, half(RTM_DELNEIGH)),  # → neighbour
        (_JEQ, 4, 0, half(RTM_NEWROUTE)),  # → writer
        (_JEQ, 3, 6, half(RTM_DELROUTE)),  # → writer, else keep
        (_LD_W, 0, 0, NLMSG_HEADER + 4),  # neighbour: ndm_ifindex
        (_JEQ, 1, 0, word(ifindex)),  # → writer
        (_JEQ, 0, 2, word(second)),  # → writer, else drop
        (_LD_W, 0, 0, 12),  # writer: nlmsg_pid
        (_JEQ, 0, 1, word(own_port)),  # → drop, else keep
        (_RET, 0, 0, 0),  # drop
        (_RET, 0, 0, _KEEP),  # keep
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
