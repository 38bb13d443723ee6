"""Dumps of neighbours, FDB and routes → row tables.

Almost every message of a dump of our own rows has one and the same layout, so many are read at once
(:mod:`nodeagent.netlink.columns`); whatever looks different goes to a general attribute parser, which decides
whether it is a row of ours in an odd form. Bytes come from outside: every length is checked, and nothing
but :class:`MalformedMessage` is raised for any input.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import NamedTuple

from nodeagent.netlink.columns import Layout, big_endian
from nodeagent.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    FDB_STATE,
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDA_NH_ID,
    NDA_PORT,
    NDA_PROTOCOL,
    NDA_SRC_VNI,
    NDA_VNI,
    NLM_F_CAPPED,
    NLMSG_ERROR,
    NLMSG_HEADER,
    NLMSGERR_ATTR_MSG,
    NTF_SELF,
    NUD_PERMANENT,
    PROTOCOL,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTA_TABLE,
    RTAX_MTU,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
    RTNH_STATE,
)
from nodeagent.netlink.rows import BLACKHOLE, ODD, STRAY, Table, route_key, route_value, side_route_value


class MalformedMessage(ValueError):
    """Bytes that are no well-formed netlink message. The dump is discarded as a whole."""


class Header(NamedTuple):
    """``struct nlmsghdr``: length in bytes with the header, type, flags, sequence, port id."""

    length: int
    type: int
    flags: int
    sequence: int
    port: int


class Failure(NamedTuple):
    """An error of one message: its sequence, the errno (0: an acknowledgement), the kernel's words."""

    sequence: int
    errno: int
    text: str


Row = tuple[bytes, bytes]
"""Key and value, as the tables hold them."""

_NLMSG = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NDMSG = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
_RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_U32 = struct.Struct("=I")
_ACKNOWLEDGEMENT = struct.Struct("=8sI4xi16x")  # length, type, flags; sequence; errno; the request's header
_ACKNOWLEDGED = struct.pack("=IHH", _ACKNOWLEDGEMENT.size, NLMSG_ERROR, NLM_F_CAPPED)
_acknowledgement = _ACKNOWLEDGEMENT.unpack

_DST4 = _ATTRIBUTE.pack(8, NDA_DST)
_LLADDR = _ATTRIBUTE.pack(10, NDA_LLADDR)
_PROTOCOL_ATTRIBUTE = struct.pack("=HHB", 5, NDA_PROTOCOL, PROTOCOL)
_PREFIX_LENGTHS = bytes(range(33))
_ODD_FDB = frozenset((NDA_VNI, NDA_IFINDEX, NDA_SRC_VNI, NDA_NH_ID))


def read_neighbours(data: bytes, ifindex: int, table: Table) -> None:
    """Add the IPv4 neighbours of the device in one datagram to ``table``; not permanent ones as STRAY.

    Raises MalformedMessage.
    """
    _read(data, ifindex, table, _neighbours(ifindex), kind=RTM_NEWNEIGH, general=neighbour_row)


def read_fdb(data: bytes, ifindex: int, table: Table) -> None:
    """Add the FDB rows of the device in one datagram to ``table``. Raises MalformedMessage."""
    _read(data, ifindex, table, _fdb(ifindex), kind=RTM_NEWNEIGH, general=fdb_row)


def read_routes(data: bytes, ifindex: int, table: Table) -> None:
    """Add the main table's IPv4 routes with our protocol in one datagram to ``table``.

    A route of ours that leads to another device than ``ifindex`` has a value that names that device.
    Raises MalformedMessage.
    """
    _read(data, ifindex, table, _routes(ifindex), kind=RTM_NEWROUTE, general=route_row)


# The layouts as the kernel writes them; what is padding here is a key, a value, or of no interest.


@lru_cache(maxsize=8)
def _neighbours(ifindex: int) -> Layout:
    head = struct.pack("=IH", 84, RTM_NEWNEIGH)
    fixed = struct.pack("=BxxxiH", AF_INET, ifindex, NUD_PERMANENT)
    return Layout(
        "=6s10x10s2x4s4x4s6x30x5s3x",
        (head, fixed, _DST4, _LLADDR, _PROTOCOL_ATTRIBUTE),
        key=range(32, 36),
        value=range(40, 46),
    )


@lru_cache(maxsize=8)
def _fdb(ifindex: int) -> Layout:
    head = struct.pack("=IH", 68, RTM_NEWNEIGH)
    fixed = struct.pack("=BxxxiHB", AF_BRIDGE, ifindex, FDB_STATE, NTF_SELF)
    return Layout(
        "=6s10x11sx4s6x2x4s4x20x", (head, fixed, _LLADDR, _DST4), key=range(32, 38), value=range(44, 48)
    )


@lru_cache(maxsize=8)
def _routes(ifindex: int) -> Layout:
    head = struct.pack("=IH", 68, RTM_NEWROUTE)
    fixed = _RTMSG.pack(AF_INET, 0, 0, 0, RT_TABLE_MAIN, PROTOCOL, 0, RTN_UNICAST, RTNH_F_ONLINK)
    table_dst = _ATTRIBUTE.pack(8, RTA_TABLE) + _U32.pack(RT_TABLE_MAIN) + _ATTRIBUTE.pack(8, RTA_DST)
    device = _ATTRIBUTE.pack(8, RTA_OIF) + _U32.pack(ifindex)
    priority, gateway = _ATTRIBUTE.pack(8, RTA_PRIORITY), _ATTRIBUTE.pack(8, RTA_GATEWAY)
    return Layout(
        "=6s10xsx10s12s4x4s4x4s4x8s",
        (head, fixed[:1], fixed[2:], table_dst, priority, gateway, device),
        key=(*range(40, 44), 17, *big_endian(48, 4)),  # as route_key() has it
        value=range(56, 60),
        choice=(17, _PREFIX_LENGTHS),
    )


def _read(
    data: bytes,
    ifindex: int,
    table: Table,
    layout: Layout,
    *,
    kind: int,
    general: Callable[[bytes, int, Header, int], Row | None],
) -> None:
    """Add the rows of the messages of type ``kind`` in ``data``: those of the layout many at once.

    After a message that is not of it, only as many are tried at once as have proven to be: otherwise a
    datagram of odd ones would be looked through again for each.
    """
    offset, size = 0, len(data)
    window = size
    while offset < size:
        count = min((size - offset) // layout.step, window)
        taken = layout.leading(data, offset, count) if count else 0
        if taken:
            table.update(zip(*layout.read(data, offset, taken), strict=True))
            offset += taken * layout.step
            if taken == count:
                window *= 2
                continue
        window = taken + 1
        header = header_at(data, offset)
        if header.type == kind and (row := general(data, offset, header, ifindex)):
            table[row[0]] = row[1]
        offset += (header.length + 3) & ~3


def neighbour_row(data: bytes, offset: int, header: Header, ifindex: int) -> Row | None:
    """Key and value of any neighbour message; None when it is another device's or family's."""
    family, device, state, _, _ = _fixed(_NDMSG, data, offset, header)
    if family != AF_INET or device != ifindex:
        return None
    found = attributes(data, offset + NLMSG_HEADER + _NDMSG.size, offset + header.length)
    address, mac = found.get(NDA_DST, b""), found.get(NDA_LLADDR, b"")
    if len(address) != 4:
        return None
    if not state & NUD_PERMANENT:
        return address, STRAY
    if len(mac) != 6 or found.get(NDA_PROTOCOL) != bytes([PROTOCOL]):
        return address, _odd("mac", mac, "state", state)
    return address, mac


def fdb_row(data: bytes, offset: int, header: Header, ifindex: int) -> Row | None:
    """Key and value of any FDB message; None when it is another device's."""
    family, device, state, _, _ = _fixed(_NDMSG, data, offset, header)
    if family != AF_BRIDGE or device != ifindex:
        return None
    found = attributes(data, offset + NLMSG_HEADER + _NDMSG.size, offset + header.length)
    mac, destination = found.get(NDA_LLADDR, b""), found.get(NDA_DST, b"")
    if len(mac) != 6:
        return None
    if not state & NUD_PERMANENT or len(destination) not in (4, 16) or not _ODD_FDB.isdisjoint(found):
        return mac, _odd("dst", destination, "state", state)
    port = found.get(NDA_PORT, b"")
    if port and (len(destination), len(port)) != (4, 2):
        return mac, _odd("dst", destination, "port", int.from_bytes(port, "big"))
    return mac, destination + port


def route_row(data: bytes, offset: int, header: Header, ifindex: int) -> Row | None:
    """Key and value of any route message; None unless it is an IPv4 main-table route of our protocol.

    Raises MalformedMessage.
    """
    family, length, _, tos, table, protocol, _, kind, flags = _fixed(_RTMSG, data, offset, header)
    found = attributes(data, offset + NLMSG_HEADER + _RTMSG.size, offset + header.length)
    if len(found.get(RTA_TABLE, b"")) == _U32.size:
        (table,) = _U32.unpack(found[RTA_TABLE])
    if family != AF_INET or table != RT_TABLE_MAIN or protocol != PROTOCOL or length > 32:
        return None
    network = found.get(RTA_DST, bytes(4))
    priority = found.get(RTA_PRIORITY, bytes(4))
    if len(network) != 4 or len(priority) != _U32.size:
        raise MalformedMessage("a route whose network or metric has not four bytes")
    key = route_key(network, length, _U32.unpack(priority)[0])
    if kind == RTN_BLACKHOLE:
        return key, BLACKHOLE
    gateway = found.get(RTA_GATEWAY, b"")
    flags &= ~RTNH_STATE
    plain = kind == RTN_UNICAST and tos == 0 and len(gateway) == 4 and flags == RTNH_F_ONLINK
    device = found.get(RTA_OIF, b"")
    metrics = attributes(found.get(RTA_METRICS, b""), 0, len(found.get(RTA_METRICS, b"")))
    mtu = metrics.pop(RTAX_MTU, b"")
    (limit,) = _U32.unpack(mtu) if len(mtu) == _U32.size and not metrics else (0,)
    source = found.get(RTA_PREFSRC, b"")
    if plain and device == _U32.pack(ifindex) and not source:
        if not metrics and not mtu:
            return key, gateway
        if limit:
            return key, route_value(gateway, limit)
    on_link = kind == RTN_UNICAST and tos == 0 and not gateway and not flags
    if (plain or on_link) and limit and len(device) == _U32.size and device != _U32.pack(ifindex):
        return key, side_route_value(gateway or bytes(4), limit, _U32.unpack(device)[0], source)
    return key, _odd("via", gateway, "flags", flags)


def header_at(data: bytes, offset: int) -> Header:
    """The header of the message at an offset, its length checked. Raises MalformedMessage."""
    left = len(data) - offset
    if left < NLMSG_HEADER:
        raise MalformedMessage(f"{left} bytes behind the last message, a header has {NLMSG_HEADER}")
    header = Header(*_NLMSG.unpack_from(data, offset))
    if not NLMSG_HEADER <= header.length <= left:
        raise MalformedMessage(f"a message of {header.length} bytes with {left} left")
    return header


def messages(data: bytes) -> Iterator[tuple[Header, int]]:
    """Each message of a datagram with the offset of its header. Raises MalformedMessage."""
    offset = 0
    while offset < len(data):
        header = header_at(data, offset)
        yield header, offset
        offset += (header.length + 3) & ~3


def attributes(data: bytes, start: int, end: int) -> dict[int, bytes]:
    """The attributes between two offsets by type (flag bits removed; the last one of a type wins).

    Raises MalformedMessage.
    """
    found: dict[int, bytes] = {}
    while end - start >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if not _ATTRIBUTE.size <= length <= end - start:
            raise MalformedMessage(f"an attribute of {length} bytes with {end - start} left")
        found[kind & 0x3FFF] = data[start + _ATTRIBUTE.size : start + length]
        start += (length + 3) & ~3
    return found


def acknowledges(data: bytes, sequence: int) -> bool:
    """Whether a datagram is nothing but the plain acknowledgement of that message (the usual answer)."""
    return len(data) == 36 and _acknowledgement(data) == (_ACKNOWLEDGED, sequence, 0)


def error(data: bytes, offset: int, header: Header) -> Failure:
    """Read an NLMSG_ERROR. Raises MalformedMessage."""
    start = offset + NLMSG_HEADER + 4 + NLMSG_HEADER
    if offset + header.length < start:
        raise MalformedMessage(f"an error message of {header.length} bytes")
    (negative,) = struct.unpack_from("=i", data, offset + NLMSG_HEADER)
    request = Header(*_NLMSG.unpack_from(data, offset + NLMSG_HEADER + 4))
    if not header.flags & NLM_F_CAPPED:
        start += max(0, ((request.length + 3) & ~3) - NLMSG_HEADER)
    words = attributes(data, start, offset + header.length).get(NLMSGERR_ATTR_MSG, b"")
    return Failure(request.sequence, -negative, words.rstrip(b"\0").decode("ascii", "replace"))


def _fixed(layout: struct.Struct, data: bytes, offset: int, header: Header) -> tuple[int, ...]:
    if header.length < NLMSG_HEADER + layout.size:
        raise MalformedMessage(f"a message of type {header.type} with {header.length} bytes")
    return layout.unpack_from(data, offset + NLMSG_HEADER)


def _odd(name: str, raw: bytes, other: str, number: int) -> bytes:
    return ODD + f"odd {name}={raw.hex() or '-'} {other}={number:#x}".encode()
