"""Routes without our mark: those of a network that was here before. Raises OSError as the kernel refuses."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from ipaddress import IPv4Address

from pyroute2.netlink.exceptions import NetlinkError

from nodeagent.netlink.links import kernel


def put_plain_routes(index: int, routes: Sequence[tuple[bytes, int, bytes]]) -> None:
    """``ip route replace NETWORK/LENGTH via GATEWAY dev … onlink``, with no mark of ours. Raises OSError."""
    with kernel() as socket:
        for network, length, gateway in routes:
            target = f"{IPv4Address(network)}/{length}"
            socket.route(
                "replace", dst=target, gateway=str(IPv4Address(gateway)), oif=index, flags=["onlink"], proto=3
            )


def drop_routes(index: int, routes: Sequence[tuple[bytes, int, int, int]]) -> None:
    """Remove routes over a device: (network, length, protocol, metric). One that is gone is no error."""
    with kernel() as socket:
        for network, length, protocol, metric in routes:
            target = f"{IPv4Address(network)}/{length}"
            priority = {"priority": metric} if metric else {}
            try:
                socket.route("del", dst=target, oif=index, proto=protocol, **priority)
            except NetlinkError as error:
                if error.code != errno.ESRCH:
                    raise
