"""A kernel in memory that executes the same bytes: tables, errors and the documented quirks.

``test_kernel_contract.py`` runs one suite against this and the real kernel.

It knows one IPv4 main table and any number of vxlan devices.

Quirks it has, as observed on Linux 6.18:

* an FDB delete with a destination that the row does not have succeeds and deletes nothing;
* a route replace matches network and metric, whatever the protocol; another metric is a second route;
* link down flushes neighbours and routes of the device but keeps its FDB; up restores nothing;
* a change of the device's MAC flushes its neighbours, permanent ones too, and keeps the rest.
"""

from __future__ import annotations

import errno
import struct
from collections import deque
from typing import Any

from nodeagent.netlink import constants as c
from nodeagent.netlink.dump import Header, attributes, messages
from nodeagent.netlink.rows import route_value

_NDMSG = struct.Struct("=BxxxiHBB")
_RTMSG = struct.Struct("=BBBBBBBBI")
_HEADER = struct.Struct("=IHHII")
_DATAGRAM_LIMIT = 16384
_NDA_CACHEINFO, _NDA_PROBES = 3, 4

_Dump = list[bytes]


class MemoryKernel:
    """A :class:`~nodeagent.netlink.socket.Channel` onto tables in memory."""

    def __init__(self) -> None:
        self._answers: deque[bytes] = deque()
        self.up: dict[int, bool] = {}  # device → whether it is up
        self.neighbours: dict[tuple[int, bytes], tuple[bytes, int, int]] = {}  # → MAC, state, protocol
        self.fdb: dict[tuple[int, bytes], tuple[bytes, int]] = {}  # (device, MAC) → destination, state
        self.routes: dict[tuple[bytes, int, int], tuple[int, int, bytes, int, int]] = {}
        # (network, length, metric) → device, protocol, gateway, type, flags
        self.sent = 0

    # ------------------------------------------------------------------ what happens to devices

    def add_device(self, ifindex: int) -> None:
        """A vxlan device appears, up."""
        self.up[ifindex] = True

    def set_up(self, ifindex: int, *, up: bool) -> None:
        """Link up or down."""
        self.up[ifindex] = up
        if not up:
            self._flush(self.neighbours, ifindex)
            self.routes = {key: row for key, row in self.routes.items() if row[0] != ifindex}

    def change_mac(self, ifindex: int) -> None:
        """The device gets another MAC."""
        self._flush(self.neighbours, ifindex)

    def remove_device(self, ifindex: int) -> None:
        """The device goes, and everything on it."""
        self.set_up(ifindex, up=False)
        self._flush(self.fdb, ifindex)
        del self.up[ifindex]

    @staticmethod
    def _flush(table: dict[tuple[int, bytes], Any], ifindex: int) -> None:
        for key in [key for key in table if key[0] == ifindex]:
            del table[key]

    # ------------------------------------------------------------------ the channel

    def send(self, data: bytes) -> None:
        self.sent += 1
        for header, offset in messages(data):
            body = data[offset : offset + header.length]
            code = self._execute(header, body)
            if code or header.flags & c.NLM_F_ACK:
                inner = body[: c.NLMSG_HEADER]
                payload = struct.pack("=i", -code) + inner
                flags = c.NLM_F_CAPPED
                self._answers.append(
                    _HEADER.pack(c.NLMSG_HEADER + len(payload), c.NLMSG_ERROR, flags, header.sequence, 1)
                    + payload
                )

    def receive(self) -> bytes:
        """What the kernel would answer. Raises BlockingIOError when there is nothing."""
        if not self._answers:
            raise BlockingIOError(errno.EAGAIN, "nothing to read")
        return self._answers.popleft()

    def close(self) -> None:
        self._answers.clear()

    # ------------------------------------------------------------------ execution

    def _execute(self, header: Header, body: bytes) -> int:
        dump = header.flags & c.NLM_F_DUMP == c.NLM_F_DUMP
        if header.type == c.NLMSG_NOOP:
            return 0
        if header.type in (c.RTM_NEWNEIGH, c.RTM_DELNEIGH, c.RTM_GETNEIGH):
            family, ifindex, state, flags, _ = _NDMSG.unpack_from(body, c.NLMSG_HEADER)
            found = attributes(body, c.NLMSG_HEADER + _NDMSG.size, len(body))
            if dump:
                (ifindex,) = struct.unpack("=I", found[c.NDA_IFINDEX])
                self._reply(
                    header, self._fdb_dump(ifindex) if family == c.AF_BRIDGE else self._neigh_dump(ifindex)
                )
                return 0
            if ifindex not in self.up:
                return errno.ENODEV
            if family == c.AF_BRIDGE:
                return self._fdb_message(header, ifindex, state, flags, found)
            return self._neighbour_message(header, ifindex, state, found)
        if header.type in (c.RTM_NEWROUTE, c.RTM_DELROUTE, c.RTM_GETROUTE):
            fixed = _RTMSG.unpack_from(body, c.NLMSG_HEADER)
            if dump:
                self._reply(header, self._route_dump(fixed[5]))
                return 0
            found = attributes(body, c.NLMSG_HEADER + _RTMSG.size, len(body))
            return self._route_message(header, fixed, found)
        return errno.EOPNOTSUPP

    def _neighbour_message(self, header: Header, ifindex: int, state: int, found: dict[int, bytes]) -> int:
        key = (ifindex, found[c.NDA_DST])
        if header.type == c.RTM_GETNEIGH:
            if key not in self.neighbours:
                return errno.ENOENT
            self._answers.append(_numbered(self._neighbour_row(key), header.sequence, 0))
            return 0
        if header.type == c.RTM_DELNEIGH:
            return 0 if self.neighbours.pop(key, None) else errno.ENOENT
        if not self.up[ifindex]:
            return errno.ENETDOWN
        protocol = found.get(c.NDA_PROTOCOL, b"\0")[0]
        self.neighbours[key] = (found[c.NDA_LLADDR], state, protocol)
        return 0

    def _fdb_message(
        self, header: Header, ifindex: int, state: int, flags: int, found: dict[int, bytes]
    ) -> int:
        key = (ifindex, found[c.NDA_LLADDR])
        destination = found.get(c.NDA_DST, b"") + found.get(c.NDA_PORT, b"")
        if header.type == c.RTM_GETNEIGH:
            if key not in self.fdb:
                return errno.ENOENT
            self._answers.append(_numbered(self._fdb_row(key), header.sequence, 0))
            return 0
        if not flags & c.NTF_SELF:
            return errno.EOPNOTSUPP
        if header.type == c.RTM_DELNEIGH:
            if key not in self.fdb:
                return errno.ENOENT
            if not destination or self.fdb[key][0] == destination:
                del self.fdb[key]
            return 0  # also when the destination is another one: reported as done, nothing deleted
        if found[c.NDA_LLADDR][0] & 1 or not any(found[c.NDA_LLADDR]):
            return errno.EOPNOTSUPP  # replace of a multicast or flood entry
        self.fdb[key] = (destination, state)
        return 0

    def _route_message(self, header: Header, fixed: tuple[int, ...], found: dict[int, bytes]) -> int:
        _, length, _, _, _, protocol, _, kind, flags = fixed
        network = found.get(c.RTA_DST, bytes(4))
        (metric,) = struct.unpack("=I", found.get(c.RTA_PRIORITY, bytes(4)))
        if int.from_bytes(network, "big") & ((1 << (32 - length)) - 1):
            return errno.EINVAL  # host bits
        key = (network, length, metric)
        if header.type == c.RTM_DELROUTE:
            row = self.routes.get(key)
            if row is None or protocol not in (0, row[1]):
                return errno.ESRCH
            del self.routes[key]
            return 0
        if kind == c.RTN_BLACKHOLE:
            self.routes[key] = (0, protocol, b"", kind, 0)
            return 0
        (ifindex,) = struct.unpack("=I", found[c.RTA_OIF])
        if ifindex not in self.up:
            return errno.ENODEV
        if not self.up[ifindex]:
            return errno.ENETDOWN
        if not flags & c.RTNH_F_ONLINK:
            return errno.ENETUNREACH
        metrics = found.get(c.RTA_METRICS, b"")
        (mtu,) = struct.unpack("=I", attributes(metrics, 0, len(metrics)).get(c.RTAX_MTU, bytes(4)))
        self.routes[key] = (ifindex, protocol, route_value(found[c.RTA_GATEWAY], mtu), kind, flags)
        return 0

    # ------------------------------------------------------------------ dumps

    def _reply(self, request: Header, rows: _Dump) -> None:
        """The rows as multipart datagrams, and the end."""
        parts: list[bytes] = []
        size = 0
        for row in rows:
            message = _numbered(row, request.sequence, c.NLM_F_MULTI)
            if size + len(message) > _DATAGRAM_LIMIT:
                self._answers.append(b"".join(parts))
                parts, size = [], 0
            parts.append(message)
            size += len(message)
        if parts:
            self._answers.append(b"".join(parts))
        self._answers.append(_HEADER.pack(20, c.NLMSG_DONE, c.NLM_F_MULTI, request.sequence, 1) + bytes(4))

    def _neigh_dump(self, ifindex: int) -> _Dump:
        return [self._neighbour_row(key) for key in self.neighbours if key[0] == ifindex]

    def _neighbour_row(self, key: tuple[int, bytes]) -> bytes:
        mac, state, protocol = self.neighbours[key]
        body = _NDMSG.pack(c.AF_INET, key[0], state, 0, 1)
        body += _attribute(c.NDA_DST, key[1]) + _attribute(c.NDA_LLADDR, mac)
        body += _attribute(_NDA_PROBES, bytes(4)) + _attribute(_NDA_CACHEINFO, bytes(16))
        if protocol:
            body += _attribute(c.NDA_PROTOCOL, bytes([protocol]))
        return _HEADER.pack(16 + len(body), c.RTM_NEWNEIGH, 0, 0, 1) + body

    def _fdb_dump(self, ifindex: int) -> _Dump:
        return [self._fdb_row(key) for key in self.fdb if key[0] == ifindex]

    def _fdb_row(self, key: tuple[int, bytes]) -> bytes:
        destination, state = self.fdb[key]
        body = _NDMSG.pack(c.AF_BRIDGE, key[0], state, c.NTF_SELF, 1)
        body += _attribute(c.NDA_LLADDR, key[1])
        if destination:
            body += _attribute(c.NDA_DST, destination[:4] if len(destination) == 6 else destination)
        if len(destination) == 6:
            body += _attribute(c.NDA_PORT, destination[4:])
        body += _attribute(_NDA_CACHEINFO, bytes(16))
        return _HEADER.pack(16 + len(body), c.RTM_NEWNEIGH, 0, 0, 1) + body

    def _route_dump(self, protocol: int) -> _Dump:
        rows = []
        for (network, length, metric), (ifindex, proto, gateway, kind, flags) in self.routes.items():
            if protocol not in (0, proto):
                continue
            body = _RTMSG.pack(c.AF_INET, length, 0, 0, c.RT_TABLE_MAIN, proto, 0, kind, flags)
            body += _attribute(c.RTA_TABLE, struct.pack("=I", c.RT_TABLE_MAIN)) + _attribute(c.RTA_DST, network)
            body += _attribute(c.RTA_PRIORITY, struct.pack("=I", metric))
            if kind != c.RTN_BLACKHOLE:
                if len(gateway) == 8:
                    mtu = struct.pack("=I", int.from_bytes(gateway[4:], "big"))
                    body += _attribute(c.RTA_METRICS, _attribute(c.RTAX_MTU, mtu))
                body += _attribute(c.RTA_GATEWAY, gateway[:4])
                body += _attribute(c.RTA_OIF, struct.pack("=I", ifindex))
            rows.append(_HEADER.pack(16 + len(body), c.RTM_NEWROUTE, 0, 0, 1) + body)
        return rows


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _numbered(message: bytes, sequence: int, flags: int) -> bytes:
    """The message as an answer to request ``sequence``, padded to the next boundary."""
    length, kind, _, _, port = _HEADER.unpack_from(message)
    return _HEADER.pack(length, kind, flags, sequence, port) + message[16:] + bytes(-len(message) % 4)
