"""Encoders for the three hot messages, as packed bytes.

One :class:`struct.Struct` per shape writes header, fixed part and attributes in a single call:
some hundred thousand messages a second, where a general encoder makes a few thousand. Tests prove
each byte against pyroute2. The sequence number in the header is the caller's: it is what an error
refers to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

from nodeagent.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    FDB_STATE,
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDA_PROTOCOL,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_NOOP,
    NTF_SELF,
    NUD_PERMANENT,
    PROTOCOL,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PRIORITY,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTN_BLACKHOLE,
    RTN_UNICAST,
    RTNH_F_ONLINK,
)
from nodeagent.rows import BLACKHOLE, Kind, split_route_key

_HEADER = "=IHHII"  # length, type, flags, sequence, port id
_NDMSG = "BBHiHBB"  # family, pad, pad, ifindex, state, flags, type
_RTMSG = "BBBBBBBBI"  # family, dst_len, src_len, tos, table, protocol, scope, type, flags

_NEIGHBOUR_PUT = struct.Struct(_HEADER + _NDMSG + "HH4s" + "HH6sxx" + "HHBxxx")
_NEIGHBOUR_KEY = struct.Struct(_HEADER + _NDMSG + "HH4s")
_FDB4 = struct.Struct(_HEADER + _NDMSG + "HH6sxx" + "HH4s")
_FDB6 = struct.Struct(_HEADER + _NDMSG + "HH6sxx" + "HH16s")
_FDB_KEY = struct.Struct(_HEADER + _NDMSG + "HH6sxx")
_ROUTE = struct.Struct(_HEADER + _RTMSG + "HH4s" + "HH4s" + "HHI" + "HHI")
_ROUTE_PLAIN = struct.Struct(_HEADER + _RTMSG + "HH4s" + "HHI")
_NEIGHBOUR_DUMP = struct.Struct(_HEADER + _NDMSG + "HHI")
_ROUTE_DUMP = struct.Struct(_HEADER + _RTMSG)
_NOOP = struct.Struct(_HEADER)

_PUT = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE


class Action(IntEnum):
    """What to do with a row."""

    PUT = 0
    DROP = 1


class Operation(NamedTuple):
    """One row to write or to remove.

    When dropping, ``value`` is the value that the row is known to have: an FDB row is removed only
    if its destination is that one (empty: whatever it is), a route by its key alone.
    """

    action: Action
    kind: Kind
    key: bytes
    value: bytes


def put_neighbour(ifindex: int, sequence: int, address: bytes, mac: bytes) -> bytes:
    """``ip neigh replace ADDRESS lladdr MAC nud permanent protocol 84``."""
    return _NEIGHBOUR_PUT.pack(
        56, RTM_NEWNEIGH, _PUT, sequence, 0,
        AF_INET, 0, 0, ifindex, NUD_PERMANENT, 0, 0,
        8, NDA_DST, address, 10, NDA_LLADDR, mac, 5, NDA_PROTOCOL, PROTOCOL,
    )  # fmt: skip


def drop_neighbour(ifindex: int, sequence: int, address: bytes) -> bytes:
    """``ip neigh del ADDRESS``. The kernel answers ENOENT when it is absent."""
    return _NEIGHBOUR_KEY.pack(
        36, RTM_DELNEIGH, NLM_F_REQUEST, sequence, 0, AF_INET, 0, 0, ifindex, 0, 0, 0, 8, NDA_DST, address
    )


def get_neighbour(ifindex: int, sequence: int, address: bytes) -> bytes:
    """``ip neigh get ADDRESS``: one entry, for reading back. ENOENT when it is absent."""
    return _NEIGHBOUR_KEY.pack(
        36, RTM_GETNEIGH, NLM_F_REQUEST, sequence, 0, AF_INET, 0, 0, ifindex, 0, 0, 0, 8, NDA_DST, address
    )


def put_fdb(ifindex: int, sequence: int, mac: bytes, destination: bytes) -> bytes:
    """``bridge fdb replace MAC dst ADDRESS self permanent``.

    NTF_SELF is needed: without it the kernel looks for a bridge above and answers EOPNOTSUPP.
    """
    wide = len(destination) == 16
    return (_FDB6 if wide else _FDB4).pack(
        60 if wide else 48, RTM_NEWNEIGH, _PUT, sequence, 0,
        AF_BRIDGE, 0, 0, ifindex, FDB_STATE, NTF_SELF, 0,
        10, NDA_LLADDR, mac, 20 if wide else 8, NDA_DST, destination,
    )  # fmt: skip


def drop_fdb(ifindex: int, sequence: int, mac: bytes, destination: bytes) -> bytes:
    """``bridge fdb del MAC dst ADDRESS self``; with an empty destination the whole entry.

    With a destination that the row does not have, the kernel reports success and deletes nothing:
    whoever deletes reads back.
    """
    if len(destination) not in (4, 16):
        return _FDB_KEY.pack(
            40, RTM_DELNEIGH, NLM_F_REQUEST, sequence, 0,
            AF_BRIDGE, 0, 0, ifindex, FDB_STATE, NTF_SELF, 0, 10, NDA_LLADDR, mac,
        )  # fmt: skip
    wide = len(destination) == 16
    return (_FDB6 if wide else _FDB4).pack(
        60 if wide else 48, RTM_DELNEIGH, NLM_F_REQUEST, sequence, 0,
        AF_BRIDGE, 0, 0, ifindex, FDB_STATE, NTF_SELF, 0,
        10, NDA_LLADDR, mac, 20 if wide else 8, NDA_DST, destination,
    )  # fmt: skip


def get_fdb(ifindex: int, sequence: int, mac: bytes) -> bytes:
    """``bridge fdb get MAC dev … self``: one row, for reading back. ENOENT when it is absent."""
    return _FDB_KEY.pack(
        40, RTM_GETNEIGH, NLM_F_REQUEST, sequence, 0,
        AF_BRIDGE, 0, 0, ifindex, 0, NTF_SELF, 0, 10, NDA_LLADDR, mac,
    )  # fmt: skip


def put_route(ifindex: int, sequence: int, key: bytes, gateway: bytes) -> bytes:
    """``ip route replace RANGE via GATEWAY dev … onlink proto 84 metric M``; without gateway a blackhole."""
    network, length, priority = split_route_key(key)
    if gateway == BLACKHOLE:
        return _ROUTE_PLAIN.pack(
            44, RTM_NEWROUTE, _PUT, sequence, 0,
            AF_INET, length, 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_BLACKHOLE, 0,
            8, RTA_DST, network, 8, RTA_PRIORITY, priority,
        )  # fmt: skip
    return _ROUTE.pack(
        60, RTM_NEWROUTE, _PUT, sequence, 0,
        AF_INET, length, 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK,
        8, RTA_DST, network, 8, RTA_GATEWAY, gateway, 8, RTA_OIF, ifindex, 8, RTA_PRIORITY, priority,
    )  # fmt: skip


def drop_route(sequence: int, key: bytes) -> bytes:
    """``ip route del RANGE proto 84 metric M``, whatever its type. ESRCH when it is absent."""
    network, length, priority = split_route_key(key)
    return _ROUTE_PLAIN.pack(
        44, RTM_DELROUTE, NLM_F_REQUEST, sequence, 0,
        AF_INET, length, 0, 0, RT_TABLE_MAIN, PROTOCOL, 255, 0, 0,  # scope 255: any (RT_SCOPE_NOWHERE)
        8, RTA_DST, network, 8, RTA_PRIORITY, priority,
    )  # fmt: skip


def barrier(sequence: int) -> bytes:
    """A message that does nothing and is acknowledged: behind it every error of the batch has arrived."""
    return _NOOP.pack(16, NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, sequence, 0)


def dump_neighbours(ifindex: int, sequence: int) -> bytes:
    """Ask for the IPv4 neighbours of one device (filtered by the kernel)."""
    return _NEIGHBOUR_DUMP.pack(
        36, RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0,
        AF_INET, 0, 0, 0, 0, 0, 0, 8, NDA_IFINDEX, ifindex,
    )  # fmt: skip


def dump_fdb(ifindex: int, sequence: int) -> bytes:
    """Ask for the FDB of one device (filtered by the kernel)."""
    return _NEIGHBOUR_DUMP.pack(
        36, RTM_GETNEIGH, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0,
        AF_BRIDGE, 0, 0, 0, 0, 0, 0, 8, NDA_IFINDEX, ifindex,
    )  # fmt: skip


def dump_routes(sequence: int, *, protocol: int = PROTOCOL) -> bytes:
    """Ask for the IPv4 routes of the main table with our protocol (0: all), filtered by the kernel."""
    return _ROUTE_DUMP.pack(
        28, RTM_GETROUTE, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0,
        AF_INET, 0, 0, 0, RT_TABLE_MAIN, protocol, 0, 0, 0,
    )  # fmt: skip


def _encode_drop_route(ifindex: int, sequence: int, key: bytes, value: bytes) -> bytes:  # noqa: ARG001
    return drop_route(sequence, key)


def _encode_drop_neighbour(ifindex: int, sequence: int, key: bytes, value: bytes) -> bytes:  # noqa: ARG001
    return drop_neighbour(ifindex, sequence, key)


ENCODERS: dict[tuple[Action, Kind], Callable[[int, int, bytes, bytes], bytes]] = {
    (Action.PUT, Kind.NEIGHBOUR): put_neighbour,
    (Action.PUT, Kind.FDB): put_fdb,
    (Action.PUT, Kind.ROUTE): put_route,
    (Action.DROP, Kind.NEIGHBOUR): _encode_drop_neighbour,
    (Action.DROP, Kind.FDB): drop_fdb,
    (Action.DROP, Kind.ROUTE): _encode_drop_route,
}
"""(action, kind) → encoder(ifindex, sequence, key, value)."""


def encode(operation: Operation, ifindex: int, sequence: int) -> bytes:
    """One operation as a message for the device ``ifindex``."""
    action, kind, key, value = operation
    return ENCODERS[action, kind](ifindex, sequence, key, value)
