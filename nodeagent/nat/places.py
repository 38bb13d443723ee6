"""A peer's place as rows and the firewall's set name it. Pure."""

from __future__ import annotations

import socket

from nodeagent.nat.packets import Endpoint
from nodeagent.netlink.rows import split_side_route
from nodeagent.ways.table import Exit


def exit_of(value: bytes) -> Exit | None:
    """Where a route of that value leads; None where it leads nowhere."""
    if len(value) == 16:
        gateway, _, device, source = split_side_route(value)
        return Exit(gateway, device, source)
    return Exit(value[:4]) if len(value) in {4, 8} else None


def destination_of(place: Endpoint, port: int) -> bytes:
    """The value of an FDB row; the kernel does not name the device's own port."""
    return place.address if place.port == port else place.address + place.port.to_bytes(2, "big")


def place_of(destination: bytes, port: int) -> Endpoint:
    """The place that such a value names."""
    return Endpoint(destination[:4], int.from_bytes(destination[4:], "big") or port)


def element_of(place: Endpoint) -> str:
    """An element of the set ``mapped``."""
    return f"{socket.inet_ntoa(place.address)} . {place.port}"
