"""Where a controller serves its console unless told otherwise. Loopback: elsewhere it demands a token."""

from __future__ import annotations

CONSOLE_HOST, CONSOLE_PORT = "127.0.0.1", 7480
"""The port is unassigned by IANA when chosen."""
CONSOLE = f"{CONSOLE_HOST}:{CONSOLE_PORT}"
