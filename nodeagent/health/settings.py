"""What the kernel says of the host: whether it and each of its devices forward (one dump, whatever their
number), and how many connections it tracks.
"""

from __future__ import annotations

import struct

from nodeagent.dataplane.host_settings import read_sysctl
from nodeagent.netlink import dump
from nodeagent.netlink.constants import AF_INET, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_HEADER
from nodeagent.netlink.socket import dumped

RTM_NEWNETCONF, RTM_GETNETCONF = 80, 82
_IFINDEX, _FORWARDING = 1, 2
ALL, DEFAULT = -1, -2
"""The kernel's device numbers for "all" and for "what a new device begins with"."""

CONNECTIONS = "net/netfilter/nf_conntrack"
CONNECTIONS_MAX = "net.netfilter.nf_conntrack_max"
CONNECTIONS_SHARE = 0.95
"""Of the table; from here on it is called full."""

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


def full_of_connections() -> str:
    """A sentence when the table of tracked connections is as good as full in this namespace; else empty.

    The kernel then drops packets of new connections, says so in its own log alone ("nf_conntrack: table full"),
    and lets those that it knows pass.
    """
    count, most = read_sysctl(f"{CONNECTIONS}_count"), read_sysctl(f"{CONNECTIONS}_max")
    if not count or not most or not int(most) or int(count) < CONNECTIONS_SHARE * int(most):
        return ""
    return (
        f"the kernel tracks {int(count):,} connections, and {CONNECTIONS_MAX} is {int(most):,}: when the table "
        "is full, packets of new ones are dropped, of pods and of the tunnel alike. On the host: "
        f"sysctl -w {CONNECTIONS_MAX}={2 * int(most)}, and keep it in /etc/sysctl.d"
    )
