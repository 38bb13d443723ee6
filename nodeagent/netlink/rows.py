"""Kernel rows as flat tables of bytes: what is desired and what is there have the same shape.

Three mappings, each from a packed key to a packed value, so that ten thousand peers compare at
the speed of ``dict.__eq__`` and take a few megabytes:

==============  ==========================================  =============================
table           key                                         value
==============  ==========================================  =============================
``neighbours``  address (4)                                 MAC (6)
``fdb``         MAC (6)                                     underlay address (4 or 16), and the UDP
                                                            port (2) where it is not the device's
``routes``      network (4), prefix length (1), metric (4)  next hop (4), and the MTU (4) where the way is
                                                            narrower than the device; empty: blackhole;
                                                            over another device than the tunnel: next hop
                                                            (zeros: none), MTU, device index and source,
                                                            4 each
==============  ==========================================  =============================

A row that the kernel holds in another form than we write it (not permanent, other device, other
protocol, extra attributes) has a value that starts with :data:`ODD`: it differs from every desired
value and is therefore written again. Pure; no input or output.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from ipaddress import ip_address
from socket import AF_INET, AF_INET6, inet_aton, inet_pton
from typing import NamedTuple

Table = dict[bytes, bytes]

ODD = b"!"
"""First byte of a value that is no plain row of ours. Its length is not 0, 4, 6, 8 or 16."""

STRAY = b"!stray-entry"
"""An entry on our device that is not permanent: the kernel's own business unless we want its key."""


class Kind(IntEnum):
    """Which table a row is in."""

    NEIGHBOUR = 0
    FDB = 1
    ROUTE = 2

    __hash__ = int.__hash__  # an enumeration's own is written in Python, and rows are looked up by kind


class Rows(NamedTuple):
    """All rows of one node, or some of them."""

    neighbours: Table
    fdb: Table
    routes: Table

    @classmethod
    def empty(cls) -> Rows:
        """No rows; the tables are fresh and may be filled."""
        return cls({}, {}, {})


BLACKHOLE = b""


_ROUTE_KEY = struct.Struct("!4sBI")
_SIDE = struct.Struct("!4sII4s")
SIDE_ROUTE_BYTES = _SIDE.size
"""Length of the value of a route over another device than the tunnel."""


def route_key(network: bytes, prefix_length: int, priority: int | None = None) -> bytes:
    """The key of a route; the metric is the range's address as a number unless given.

    Routes of one device, protocol and metric share one hash chain in the kernel, which makes their
    insertion quadratic (50,000 routes: 31 s of kernel time). A pure function of the range keeps the
    metric stable: another metric for the same range would make a second route.
    """
    if priority is None:
        return b"%b%c%b" % (network, prefix_length, network)
    return _ROUTE_KEY.pack(network, prefix_length, priority)


def route_value(next_hop: bytes, mtu: int = 0) -> bytes:
    """The value of a route; ``mtu`` in bytes is the largest inner packet, 0 the device's own."""
    return next_hop + mtu.to_bytes(4, "big") if mtu else next_hop


def preferred_key(network: bytes, prefix_length: int) -> bytes:
    """The key of the route that wins over the tunnel's to the same range: a quarter of its metric.

    Ranges have four addresses at least, so these metrics differ as the ranges do.
    """
    return route_key(network, prefix_length, int.from_bytes(network, "big") >> 2)


def is_preferred(key: bytes) -> bool:
    """Whether a route's key is such a one."""
    return key[:4] != key[5:]


def side_route_value(next_hop: bytes, mtu: int, device: int, source: bytes) -> bytes:
    """The value of a route over another device; ``next_hop`` and ``source`` are four zero bytes for none."""
    return _SIDE.pack(next_hop, mtu, device, source or bytes(4))


def split_side_route(value: bytes) -> tuple[bytes, int, int, bytes]:
    """Next hop, MTU, device index and source of such a value."""
    next_hop, mtu, device, source = _SIDE.unpack(value)
    return next_hop, mtu, device, source


def split_route_key(key: bytes) -> tuple[bytes, int, int]:
    """Network, prefix length and metric of a route's key."""
    network, length, priority = _ROUTE_KEY.unpack(key)
    return network, length, priority


def split_cidr(cidr: str) -> tuple[bytes, int]:
    """First address and prefix length of ``10.3.7.0/26``. Raises OSError, ValueError for anything else."""
    address, _, length = cidr.partition("/")
    return inet_aton(address), int(length)


def address_bytes(text: str) -> bytes:
    """An IPv4 or IPv6 address as 4 or 16 bytes. Raises OSError for anything else."""
    return inet_pton(AF_INET6, text) if ":" in text else inet_pton(AF_INET, text)


def mac_bytes(text: str) -> bytes:
    """``66:01:02:03:04:05`` as six bytes. Raises ValueError for anything else."""
    value = bytes.fromhex(text.replace(":", ""))
    if len(value) != 6:
        raise ValueError(f"{text!r} is not a MAC address")
    return value


def mac_text(mac: bytes) -> str:
    """Six bytes as ``66:01:02:03:04:05``."""
    return mac.hex(":")


def describe(kind: Kind, key: bytes, value: bytes) -> str:
    """A row in the words of ``ip`` and ``bridge``, for people."""
    if kind is Kind.NEIGHBOUR:
        return f"neighbour {ip_address(key)} lladdr {_value(value, mac=True)}"
    if kind is Kind.FDB:
        return f"fdb {mac_text(key)} dst {_value(value)}"
    network, length, priority = split_route_key(key)
    target = "blackhole" if value == BLACKHOLE else f"via {_value(value)}"
    if len(value) == SIDE_ROUTE_BYTES:
        next_hop, mtu, device, _ = split_side_route(value)
        target = f"{f'via {ip_address(next_hop)} ' if any(next_hop) else ''}dev #{device} mtu {mtu}"
    return f"route {ip_address(network)}/{length} {target} metric {priority}"


def _value(value: bytes, *, mac: bool = False) -> str:
    if not value:
        return "nothing"
    if len(value) == 8:
        return f"{ip_address(value[:4])} mtu {int.from_bytes(value[4:], 'big')}"
    if value.startswith(ODD) and len(value) not in (4, 6, 16):
        return f"(foreign form: {value[1:].decode('ascii', 'replace')})"
    if len(value) == 6 and not mac:
        return f"{ip_address(value[:4])} port {int.from_bytes(value[4:], 'big')}"
    return mac_text(value) if mac else str(ip_address(value))
