"""Who is on a link, and by which MAC: what the kernel knows, asked for many peers at once.

It changes nothing but the routes of :func:`follow_probe_routes`, which carry no pod's packets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from socket import inet_ntoa

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nodeagent.netlink import dump, messages
from nodeagent.netlink.constants import (
    AF_INET,
    NDA_DST,
    NDA_LLADDR,
    PROBE_PROTOCOL,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
)
from nodeagent.netlink.socket import dumped

PROBE_TOS = 0x04
"""Marks the probes of direct ways in their IP header: there is a route of its own for each peer and this
mark."""

_NDMSG = struct.Struct("=BxxxiHBB")
_PLAIN = struct.Struct("=BxxxiHBB4s4s4s6s")
"""As the kernel writes almost every one: behind the header the address, then the MAC."""
_DST, _LLADDR = struct.pack("=HH", 8, NDA_DST), struct.pack("=HH", 10, NDA_LLADDR)
_RTMSG = struct.Struct("=BBBBBBBBI")
_UNUSABLE = 0x01 | 0x20 | 0x40  # incomplete, failed, no ARP


def on_link(addresses: Iterable[str], device: int, source: str) -> set[str]:
    """Those addresses to which the kernel sends from ``source`` by this device and without a gateway.

    Blocks for a fraction of a millisecond each. Raises OSError.
    """
    found: set[str] = set()
    with IPRoute() as socket:
        for address in addresses:
            try:
                (route,) = socket.route("get", dst=address, src=source)
            except NetlinkError:
                continue  # no way there at all
            if route.get_attr("RTA_OIF") == device and route.get_attr("RTA_GATEWAY") is None:
                found.add(address)
    return found


def macs(device: int) -> dict[str, bytes]:
    """The MACs of the neighbours on a device, by IPv4 address, as far as the kernel has found them out.

    Raises OSError.
    """
    found: dict[str, bytes] = {}
    for data, start, end in dumped(messages.dump_neighbours(device, 1), RTM_NEWNEIGH):
        if end - start >= _PLAIN.size:
            family, index, state, _, _, first, address, second, mac = _PLAIN.unpack_from(data, start)
            if first == _DST and second == _LLADDR:
                if family == AF_INET and index == device and not state & _UNUSABLE:
                    found[inet_ntoa(address)] = mac
                continue
        family, index, state, _, _ = _NDMSG.unpack_from(data, start)
        attributes = dump.attributes(data, start + _NDMSG.size, end)
        address, mac = attributes.get(NDA_DST, b""), attributes.get(NDA_LLADDR, b"")
        usable = not state & _UNUSABLE and len(address) == 4 and len(mac) == 6
        if family == AF_INET and index == device and usable:
            found[inet_ntoa(address)] = mac
    return found


def follow_probe_routes(wanted: Mapping[str, str], device: int) -> None:
    """Lead probes to each VTEP address of ``wanted`` straight to the underlay address that it names.

    Routes to others, left by an earlier life, go. Raises OSError for what the kernel refuses.
    """
    there: dict[str, tuple[str, int]] = {}
    for data, start, end in dumped(messages.dump_routes(1, protocol=PROBE_PROTOCOL), RTM_NEWROUTE):
        attributes = dump.attributes(data, start + _RTMSG.size, end)
        target, gateway = attributes.get(RTA_DST, b""), attributes.get(RTA_GATEWAY, b"")
        if _RTMSG.unpack_from(data, start)[5] == PROBE_PROTOCOL and len(target) == len(gateway) == 4:
            oif = int.from_bytes(attributes.get(RTA_OIF, b""), "little")
            there[inet_ntoa(target)] = inet_ntoa(gateway), oif
    changed = {vtep: hop for vtep, hop in wanted.items() if there.get(vtep) != (hop, device)}
    gone = there.keys() - wanted.keys()
    if not changed and not gone:
        return
    try:
        with IPRoute() as socket:
            for vtep, hop in changed.items():
                socket.route(
                    "replace", dst=f"{vtep}/32", tos=PROBE_TOS, gateway=hop, oif=device, flags=["onlink"],
                    proto=PROBE_PROTOCOL,
                )  # fmt: skip
            for vtep in gone:
                socket.route("del", dst=f"{vtep}/32", tos=PROBE_TOS, proto=PROBE_PROTOCOL)
    except NetlinkError as error:
        raise OSError(error.code, str(error)) from error
