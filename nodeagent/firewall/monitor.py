"""Tells when somebody touches our nftables table, whoever it is (ourselves included).

The kernel announces every committed change of the ruleset to a multicast group. A change that names our
table, and a loss of announcements, are reasons to look; what was changed is for the looker to find out.
"""

from __future__ import annotations

from nodeagent.netlink.socket import Subscription

NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
BUFFER_BYTES = 1 << 20
READS_LIMIT = 4096


class RulesetMonitor(Subscription):
    """Wait for :meth:`fileno`, then ask :meth:`touched`."""

    def __init__(self, table: str) -> None:
        super().__init__((NFNLGRP_NFTABLES,), BUFFER_BYTES, NETLINK_NETFILTER)
        self._name = table.encode() + b"\0"

    def touched(self) -> bool:
        """Take everything that has arrived; whether any of it may concern our table. Raises OSError."""
        found = False
        for data in self.datagrams(READS_LIMIT):
            found = data is None or self._name in data or found
        return found
