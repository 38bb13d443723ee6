"""Whether the host and each of its devices forward, as the kernel says it: one dump, whatever their number."""

from __future__ import annotations

import struct

from nodeagent.netlink import dump
from nodeagent.netlink.constants import AF_INET, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_HEADER
from nodeagent.netlink.socket import dumped

RTM_NEWNETCONF, RTM_GETNETCONF = 80, 82
_IFINDEX, _FORWARDING = 1, 2
ALL, DEFAULT = -1, -2
"""The kernel's device numbers for "all" and for "what a new device begins with"."""

_HEADER = struct.Struct("=IHHII")


def forwarding() -> dict[int, bool]:
    """Device index (or :data:`ALL`, :data:`DEFAULT`) → whether IPv4 packets that come in there are forwarded.

    Raises OSError.
    """
    found: dict[int, bool] = {}
    body = struct.pack("=B3x", AF_INET)
    head = _HEADER.pack(NLMSG_HEADER + len(body), RTM_GETNETCONF, NLM_F_REQUEST | NLM_F_DUMP, 1, 0)
    for data, start, end in dumped(head + body, RTM_NEWNETCONF):
        attributes = dump.attributes(data, start + len(body), end)
        index, value = attributes.get(_IFINDEX), attributes.get(_FORWARDING)
        if index is not None and value is not None:
            found[int.from_bytes(index, "little", signed=True)] = value[0] != 0
    return found
