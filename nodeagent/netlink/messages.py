"""Encoders for the three hot messages, as packed bytes.

One :class:`struct.Struct` per shape writes header, fixed part and attributes in a single call:
some hundred thousand messages a second, where a general encoder makes a few thousand. The shapes
that a join writes keep their constant fields as ready bytes, and :func:`encode_run` writes many of one shape
at once. Tests prove each byte against pyroute2.
The sequence number in the header is the caller's: it is what an error refers to.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from functools import lru_cache
from itertools import chain, groupby, repeat
from typing import NamedTuple

from nodeagent.netlink import columns
from nodeagent.netlink.constants import (
    AF_BRIDGE,
    AF_INET,
    FDB_STATE,
    NDA_DST,
    NDA_IFINDEX,
    NDA_LLADDR,
    NDA_PORT,
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
    RT_SCOPE_LINK,
    RT_SCOPE_UNIVERSE,
    RT_TABLE_MAIN,
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_OIF,
    RTA_PREFSRC,
    RTA_PRIORITY,
    RTAX_MTU,
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
from nodeagent.netlink.rows import BLACKHOLE, SIDE_ROUTE_BYTES, Kind, split_route_key, split_side_route

_HEADER = "=IHHII"  # length, type, flags, sequence, port id
_NDMSG = "BBHiHBB"  # family, pad, pad, ifindex, state, flags, type
_RTMSG = "BBBBBBBBI"  # family, dst_len, src_len, tos, table, protocol, scope, type, flags

_NEIGHBOUR_KEY = struct.Struct(_HEADER + _NDMSG + "HH4s")
_FDB4 = struct.Struct(_HEADER + _NDMSG + "HH6sxx" + "HH4s")
_FDB6 = struct.Struct(_HEADER + _NDMSG + "HH6sxx" + "HH16s")
_FDB4_PORT = struct.Struct(_HEADER + _NDMSG + "HH6sxx" + "HH4s" + "HH2sxx")
_FDB_KEY = struct.Struct(_HEADER + _NDMSG + "HH6sxx")
_ROUTE_PLAIN = struct.Struct(_HEADER + _RTMSG + "HH4s" + "HHI")
_NEIGHBOUR_DUMP = struct.Struct(_HEADER + _NDMSG + "HHI")
_ROUTE_DUMP = struct.Struct(_HEADER + _RTMSG)
_NOOP = struct.Struct(_HEADER)

_PUT = NLM_F_REQUEST | NLM_F_CREATE | NLM_F_REPLACE

# A join's messages: constants as "s" fields, in the order of the message.
_START, _ATTRIBUTE = struct.Struct("=IHH"), struct.Struct("=HH")
_DST4, _LLADDR = _ATTRIBUTE.pack(8, NDA_DST), _ATTRIBUTE.pack(10, NDA_LLADDR)

_NEIGHBOUR_PUT = struct.Struct("=8sI4x4si8s4s4s6s10s")
_NEIGHBOUR_START = _START.pack(_NEIGHBOUR_PUT.size, RTM_NEWNEIGH, _PUT)
_NEIGHBOUR_FAMILY = bytes([AF_INET, 0, 0, 0])
_NEIGHBOUR_STATE = struct.pack("=HBB", NUD_PERMANENT, 0, 0) + _DST4
_NEIGHBOUR_OWNER = struct.pack("=xxHHBxxx", 5, NDA_PROTOCOL, PROTOCOL)

_FDB4_PUT = struct.Struct("=8sI4x4si8s6s6s4s")
_FDB4_START = _START.pack(_FDB4_PUT.size, RTM_NEWNEIGH, _PUT)
_FDB_FAMILY = bytes([AF_BRIDGE, 0, 0, 0])
_FDB_STATE = struct.pack("=HBB", FDB_STATE, NTF_SELF, 0) + _LLADDR
_FDB_DST4 = b"\0\0" + _DST4

_ROUTE_PUT = struct.Struct("=8sI4xBB14s4s4s4s4si4sI")
_ROUTE_START = _START.pack(_ROUTE_PUT.size, RTM_NEWROUTE, _PUT)
_ROUTE_FIXED = struct.pack(
    "=BBBBBBI", 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_UNICAST, RTNH_F_ONLINK
) + _ATTRIBUTE.pack(8, RTA_DST)
_ROUTE_PUT_MTU = struct.Struct(_ROUTE_PUT.format + "8sI")
_ROUTE_START_MTU = _START.pack(_ROUTE_PUT_MTU.size, RTM_NEWROUTE, _PUT)
_MTU = _ATTRIBUTE.pack(12, RTA_METRICS) + _ATTRIBUTE.pack(8, RTAX_MTU)
_GATEWAY, _OIF, _PRIORITY = (_ATTRIBUTE.pack(8, kind) for kind in (RTA_GATEWAY, RTA_OIF, RTA_PRIORITY))


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


_new = tuple.__new__  # a named tuple's own constructor is a Python function


class Run(NamedTuple):
    """Operations of one action and kind, as the columns of their keys and values."""

    action: Action
    kind: Kind
    keys: Sequence[bytes]
    values: Sequence[bytes]

    def operations(self) -> list[Operation]:
        """Each by itself."""
        fields = zip(repeat(self.action), repeat(self.kind), self.keys, self.values)
        return list(map(_new, repeat(Operation), fields))


class Operations:
    """Operations in the order of their runs: a cold start has three of ten thousand, and no object for each."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self.runs = tuple(run for run in runs if run.keys)

    def __len__(self) -> int:
        return sum(len(run.keys) for run in self.runs)

    def __iter__(self) -> Iterator[Operation]:
        return chain.from_iterable(run.operations() for run in self.runs)

    def only(self, wanted: Callable[[Operation], bool]) -> Operations:
        """Those that ``wanted`` says, asked once for each in their order."""
        chosen = []
        for run in self.runs:
            found = [operation for operation in run.operations() if wanted(operation)]
            keys, values = tuple(op.key for op in found), tuple(op.value for op in found)
            chosen.append(Run(run.action, run.kind, keys, values))
        return Operations(chosen)

    def count_of(self, *, action: Action | None = None, kind: Kind | None = None) -> int:
        """How many have this action and this kind (None: any)."""
        return sum(
            len(run.keys) for run in self.runs if action in (None, run.action) and kind in (None, run.kind)
        )


def put_neighbour(ifindex: int, sequence: int, address: bytes, mac: bytes) -> bytes:
    """``ip neigh replace ADDRESS lladdr MAC nud permanent protocol 84``."""
    return _NEIGHBOUR_PUT.pack(
        _NEIGHBOUR_START, sequence, _NEIGHBOUR_FAMILY, ifindex, _NEIGHBOUR_STATE, address, _LLADDR, mac,
        _NEIGHBOUR_OWNER,
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
    """``bridge fdb replace MAC dst ADDRESS [port PORT] self permanent``.

    NTF_SELF is needed: without it the kernel looks for a bridge above and answers EOPNOTSUPP.
    """
    if len(destination) == 4:
        return _FDB4_PUT.pack(
            _FDB4_START, sequence, _FDB_FAMILY, ifindex, _FDB_STATE, mac, _FDB_DST4, destination
        )
    if len(destination) == 6:
        return _FDB4_PORT.pack(
            56, RTM_NEWNEIGH, _PUT, sequence, 0,
            AF_BRIDGE, 0, 0, ifindex, FDB_STATE, NTF_SELF, 0,
            10, NDA_LLADDR, mac, 8, NDA_DST, destination[:4], 6, NDA_PORT, destination[4:],
        )  # fmt: skip
    return _FDB6.pack(
        60, RTM_NEWNEIGH, _PUT, sequence, 0,
        AF_BRIDGE, 0, 0, ifindex, FDB_STATE, NTF_SELF, 0,
        10, NDA_LLADDR, mac, 20, NDA_DST, destination,
    )  # fmt: skip


def drop_fdb(ifindex: int, sequence: int, mac: bytes, destination: bytes) -> bytes:
    """``bridge fdb del MAC dst ADDRESS [port PORT] self``; with an empty destination the whole entry.

    With a destination that the row does not have, the kernel reports success and deletes nothing:
    whoever deletes reads back.
    """
    if len(destination) == 6:
        return _FDB4_PORT.pack(
            56, RTM_DELNEIGH, NLM_F_REQUEST, sequence, 0,
            AF_BRIDGE, 0, 0, ifindex, FDB_STATE, NTF_SELF, 0,
            10, NDA_LLADDR, mac, 8, NDA_DST, destination[:4], 6, NDA_PORT, destination[4:],
        )  # fmt: skip
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
    """``ip route replace RANGE via GATEWAY dev … onlink proto 84 metric M [mtu N]``.

    ``gateway`` is a route's value as :mod:`nodeagent.netlink.rows` defines it: without one it is a blackhole.
    """
    network, length, priority = split_route_key(key)
    if gateway == BLACKHOLE:
        return _ROUTE_PLAIN.pack(
            44, RTM_NEWROUTE, _PUT, sequence, 0,
            AF_INET, length, 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_UNIVERSE, RTN_BLACKHOLE, 0,
            8, RTA_DST, network, 8, RTA_PRIORITY, priority,
        )  # fmt: skip
    if len(gateway) == SIDE_ROUTE_BYTES:
        return _put_side_route(sequence, key, gateway)
    if len(gateway) == 4:
        return _ROUTE_PUT.pack(
            _ROUTE_START, sequence, AF_INET, length, _ROUTE_FIXED, network, _GATEWAY, gateway, _OIF, ifindex,
            _PRIORITY, priority,
        )  # fmt: skip
    return _ROUTE_PUT_MTU.pack(
        _ROUTE_START_MTU, sequence, AF_INET, length, _ROUTE_FIXED, network, _GATEWAY, gateway[:4],
        _OIF, ifindex, _PRIORITY, priority, _MTU, int.from_bytes(gateway[4:], "big"),
    )  # fmt: skip


def _put_side_route(sequence: int, key: bytes, value: bytes) -> bytes:
    """``ip route replace RANGE [via GATEWAY] dev … [onlink] [src ADDRESS] proto 84 metric M mtu N``."""
    network, length, priority = split_route_key(key)
    gateway, mtu, device, source = split_side_route(value)
    on_link = not any(gateway)
    found = _ATTRIBUTE.pack(8, RTA_DST) + network
    if not on_link:
        found += _ATTRIBUTE.pack(8, RTA_GATEWAY) + gateway
    found += struct.pack("=HHIHHI", 8, RTA_OIF, device, 8, RTA_PRIORITY, priority)
    if any(source):
        found += _ATTRIBUTE.pack(8, RTA_PREFSRC) + source
    found += _MTU + struct.pack("=I", mtu)
    size = _ROUTE_DUMP.size + len(found)
    return (
        _ROUTE_DUMP.pack(
            size, RTM_NEWROUTE, _PUT, sequence, 0,
            AF_INET, length, 0, 0, RT_TABLE_MAIN, PROTOCOL, RT_SCOPE_LINK if on_link else RT_SCOPE_UNIVERSE,
            RTN_UNICAST, 0 if on_link else RTNH_F_ONLINK,
        )
        + found
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


Encoder = Callable[[int, int, bytes, bytes], bytes]
"""(ifindex, sequence, key, value) → message."""

ENCODERS: tuple[tuple[Encoder, Encoder, Encoder], ...] = (
    (put_neighbour, put_fdb, put_route),
    (_encode_drop_neighbour, drop_fdb, _encode_drop_route),
)
"""By action, then by kind."""

BULK = 16
"""From so many messages of one shape on, writing them at once is cheaper."""


def encode(operations: Sequence[Operation], first_sequence: int, ifindex: int) -> bytes:
    """The messages of some operations, numbered from ``first_sequence``."""
    encoders = ENCODERS
    return b"".join([
        encoders[action][kind](ifindex, number, key, value)
        for number, (action, kind, key, value) in enumerate(operations, first_sequence)
    ])  # fmt: skip


def encode_run(run: Run, first_sequence: int, ifindex: int) -> bytes | bytearray:
    """The same for a run of many."""
    action, kind, keys, values = run
    if len(set(map(len, values))) == 1:
        return _encode_alike(run, first_sequence, ifindex)
    parts, start = [], 0
    for _, alike in groupby(values, len):
        end = start + len(list(alike))
        part = Run(action, kind, keys[start:end], values[start:end])
        parts.append(_encode_alike(part, first_sequence + start, ifindex))
        start = end
    return b"".join(parts)


def _encode_alike(run: Run, first_sequence: int, ifindex: int) -> bytes | bytearray:
    """All values are of one length."""
    action, kind, keys, values = run
    size = len(values[0])
    if len(keys) < BULK or (kind is Kind.ROUTE and size == SIDE_ROUTE_BYTES):
        return encode(run.operations(), first_sequence, ifindex)
    template = ENCODERS[action][kind](ifindex, 0, keys[0], values[0])
    return columns.write(template, _shape(action, kind, len(keys[0]), size), first_sequence, keys, values)


@lru_cache(maxsize=32)
def _shape(action: Action, kind: Kind, key_bytes: int, value_bytes: int) -> columns.Shape:
    encoder = ENCODERS[action][kind]
    return columns.shape(lambda key, value: encoder(1, 0, key, value), key_bytes, value_bytes)
