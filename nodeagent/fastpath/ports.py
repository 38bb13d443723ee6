"""Where pods are attached to this node, and what else happens to devices. It reads and changes nothing.

A pod's host side is the device to which a route of the node's own range leads: a veth (``ptp``, one address)
or a bridge (``bridge``, the range). What the CNI plugin calls it does not matter.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import sys
from ipaddress import IPv4Network
from typing import NamedTuple

from nodeagent.dataplane.host_settings import ethtool
from nodeagent.dataplane.preflight import foreign_route, foreign_routes
from nodeagent.netlink import dump
from nodeagent.netlink.constants import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_HEADER,
    PROTOCOL,
    RTM_DELLINK,
    RTM_DELROUTE,
    RTM_NEWLINK,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_LINK,
)
from nodeagent.netlink.socket import Subscription, dumped

BUFFER_BYTES = 4 << 20
READS_LIMIT = 8192
_RTNLGRP_TC = 4
_RTM_NEWQDISC, _RTM_GETQDISC = 36, 38
_PLUGINS_PROTOCOLS = (2, 3, 4)  # RTPROT_KERNEL, RTPROT_BOOT, RTPROT_STATIC
_TCMSG = struct.Struct("=BxxxiIII")
_TCA_KIND = 1
_IFINFO = struct.Struct("=BxHiII")
_RTM_GETLINK = 18
_IFLA_MTU, _IFLA_XDP, _IFLA_MAX_MTU = 4, 43, 51
_IFLA_XDP_ATTACHED = 2
_WIDEST = 65535
_ETHTOOL_GDRVINFO = 3
_SIOCGIFHWADDR, _ARPHRD_ETHER = 0x8927, 1


class Ports(NamedTuple):
    """Devices by index: pods' veths, and bridges with pods."""

    veths: frozenset[int]
    bridges: frozenset[int]


def find(own_range: str, tunnel: int) -> Ports:
    """Whom the own range's routes lead to. Raises OSError."""
    own = IPv4Network(own_range)
    routes = foreign_routes(tunnel, _PLUGINS_PROTOCOLS)  # not all: other nodes' routes may be thousands
    indexes = {route.ifindex for route in routes if route.ifindex and route.network.subnet_of(own)}
    drivers = {index: driver(index) for index in indexes}
    return Ports(
        frozenset(index for index, name in drivers.items() if name == "veth"),
        frozenset(index for index, name in drivers.items() if name == "bridge"),
    )


def driver(ifindex: int) -> str:
    """What kind of device it is, as its driver says; empty when it has gone or does not say."""
    try:
        record = ctypes.create_string_buffer(struct.pack("=I32s", _ETHTOOL_GDRVINFO, b""), 256)
        ethtool(socket.if_indextoname(ifindex), record)
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


DEFAULTS = frozenset({"pfifo_fast", "fq_codel", "fq", "mq", "pfifo"})
"""Queues that the kernel gives to a device by itself, but never to veths, bridges and vxlan devices: on these
any queue is somebody's, and may drop or delay packets (``fq maxrate``)."""


def filtered() -> dict[int, str]:
    """Devices with a queue or filter of tc: index → kind of the qdisc. Raises OSError."""
    found: dict[int, str] = {}
    flags = NLM_F_REQUEST | NLM_F_DUMP
    head = struct.pack("=IHHII", NLMSG_HEADER + _TCMSG.size, _RTM_GETQDISC, flags, 1, 0)
    for data, start, end in dumped(head + bytes(_TCMSG.size), _RTM_NEWQDISC):
        _, ifindex, _, _, _ = _TCMSG.unpack_from(data, start)
        attributes = dump.attributes(data, start + _TCMSG.size, end)
        kind = attributes.get(_TCA_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
        if kind not in {"noqueue", "noop"}:
            found[ifindex] = kind
    return found


class Xdp(NamedTuple):
    """Devices by index where XDP programs judge packets: ``here`` at it, ``beyond`` at its other end, natively.

    The host cannot see the latter, which are in a pod. But while one is there, the kernel lets no frame larger
    than a page be sent to it (``veth_xdp_set``), and says so as the largest MTU of the host's side.
    """

    here: frozenset[int]
    beyond: frozenset[int]


def xdp() -> Xdp:
    """Where they are. Raises OSError."""
    here, beyond = set(), set()
    head = struct.pack("=IHHII", NLMSG_HEADER + _IFINFO.size, _RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    for data, start, end in dumped(head + bytes(_IFINFO.size), RTM_NEWLINK):
        _, _, ifindex, _, _ = _IFINFO.unpack_from(data, start)
        attributes = dump.attributes(data, start + _IFINFO.size, end)
        nested = attributes.get(_IFLA_XDP, b"")
        if any(dump.attributes(nested, 0, len(nested)).get(_IFLA_XDP_ATTACHED, b"")):
            here.add(ifindex)
        if int.from_bytes(attributes.get(_IFLA_MAX_MTU, b""), sys.byteorder) < _WIDEST:
            beyond.add(ifindex)
    return Xdp(frozenset(here), frozenset(beyond))


class DeviceMonitor(Subscription):
    """Tells that routes of a range, devices or queues changed. Not blocking: wait for :meth:`fileno`."""

    def __init__(self) -> None:
        super().__init__((RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE, _RTNLGRP_TC), BUFFER_BYTES)
        self._known: dict[int, tuple[bytes, ...]] = {}

    def changed(self, own_range: str) -> bool:
        """Take all that has arrived; whether any of it may concern the path. Raises OSError."""
        own = IPv4Network(own_range) if own_range else None
        found = False
        for data in self.datagrams(READS_LIMIT):
            try:
                found = data is None or self._concerns(data, own) or found
            except (dump.MalformedMessage, struct.error):
                found = True
        return found

    def _concerns(self, data: bytes, own: IPv4Network | None) -> bool:
        for header, offset in dump.messages(data):
            start = offset + NLMSG_HEADER
            if header.type in {RTM_NEWROUTE, RTM_DELROUTE}:
                if data[start + 5] == PROTOCOL:  # our own rows, ten thousand of them at a cold start
                    continue
                route = foreign_route(data, start, offset + header.length)
                if own is None or route is None or route.network.subnet_of(own):
                    return True
            elif header.type in {RTM_NEWLINK, RTM_DELLINK}:
                _, _, ifindex, _, _ = _IFINFO.unpack_from(data, start)
                attributes = dump.attributes(data, start + _IFINFO.size, offset + header.length)
                if header.type == RTM_DELLINK:
                    self._known.pop(ifindex, None)
                    return True
                now = tuple(attributes.get(kind, b"") for kind in (_IFLA_MTU, _IFLA_XDP, _IFLA_MAX_MTU))
                if self._known.get(ifindex) != now:
                    self._known[ifindex] = now
                    return True
            else:
                return True
        return False
