"""Tells when somebody touches our nftables table, whoever it is (ourselves included).

The kernel announces every committed change of the ruleset to a multicast group. A change that names our
table, and a loss of announcements, are reasons to look; what was changed is for the looker to find out.
"""

from __future__ import annotations

import errno
import socket

from nodeagent.netlink.constants import NETLINK_ADD_MEMBERSHIP, SOL_NETLINK
from nodeagent.netlink.socket import DATAGRAM_BYTES, force_buffers

NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
BUFFER_BYTES = 1 << 20
READS_LIMIT = 4096


class RulesetMonitor:
    """Not blocking: wait for :meth:`fileno`, then ask :meth:`touched`."""

    def __init__(self, table: str) -> None:
        self._name = table.encode() + b"\0"
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        try:
            force_buffers(self._socket, BUFFER_BYTES)
            self._socket.bind((0, 0))
            self._socket.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
            self._socket.setblocking(False)
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For the event loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def touched(self) -> bool:
        """Take everything that has arrived; whether any of it may concern our table. Raises OSError."""
        found = False
        for _ in range(READS_LIMIT):
            try:
                found = self._name in self._socket.recv(DATAGRAM_BYTES) or found
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True
        return found
