"""UDP flows that connection tracking would keep where nobody answers. A blocking netlink call.

A flow of datagrams has no end: as long as a client sends, the kernel goes on sending its datagrams to the
backend chosen at the first of them, dead or not. So flows to a backend that fails its checks are
forgotten and balanced anew with their next datagram. TCP needs none of this: its connections end.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple


def forget_datagrams(address: str, dead: Collection[tuple[str, int]]) -> int:
    """Forget the UDP flows to a held address that go to one of these backends (address, port), or to none.

    Returns how many. Raises OSError (EPERM without CAP_NET_ADMIN).
    """
    wanted = NFCTAttrTuple(daddr=address, proto=socket.IPPROTO_UDP)
    forgotten = 0
    try:
        with NFCTSocket() as tracking:
            for entry in list(tracking.dump(tuple_orig=wanted)):
                original = NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_ORIG"))
                reply = NFCTAttrTuple.from_netlink(socket.AF_INET, entry.get_attr("CTA_TUPLE_REPLY"))
                if original.daddr != address or original.proto != socket.IPPROTO_UDP:
                    continue  # an older kernel does not filter
                if reply.saddr != address and (reply.saddr, reply.sport) not in dead:
                    continue
                try:
                    tracking.entry("del", tuple_orig=original)
                    forgotten += 1
                except NetlinkError as error:
                    if error.code != errno.ENOENT:  # ended by itself meanwhile
                        raise
    except NetlinkError as error:
        raise OSError(error.code, f"connection tracking of {address}: {error}") from error
    return forgotten
