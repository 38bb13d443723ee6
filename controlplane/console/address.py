"""Where a controller serves its console unless told otherwise. Loopback: elsewhere it demands a token."""

from __future__ import annotations

import ipaddress

CONSOLE_HOST, CONSOLE_PORT = "127.0.0.1", 7480
"""The port is unassigned by IANA when chosen."""
CONSOLE = f"{CONSOLE_HOST}:{CONSOLE_PORT}"


def is_loopback(host: str) -> bool:
    """Whether a listening address can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
