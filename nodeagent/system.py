"""Running the system's own programs, each with a deadline, and telling systemd that the agent has started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import Mapping
from typing import NamedTuple

SEARCH_PATH = "/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin:/usr/local/bin"
"""An ordinary PATH does not show all of the programs."""
NOTIFY_SOCKET = "NOTIFY_SOCKET"


class Completed(NamedTuple):
    """How a program ended: its exit code, and what it wrote."""

    code: int
    out: str
    err: str


def find(program: str) -> str | None:
    """Where the program is; None when it is not installed."""
    return shutil.which(program, path=SEARCH_PATH)


async def run(
    *command: str, stdin: str = "", env: Mapping[str, str] | None = None, timeout_s: float
) -> Completed:
    """Run a program to its end; ``env`` adds to this process's environment.

    Raises TimeoutError, OSError. Late or cancelled, the program is killed first; what it did by then stays.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Completed(process.returncode or 0, out.decode(errors="replace"), err.decode(errors="replace"))


def tell_ready() -> None:
    """Tell systemd, by the protocol of sd_notify(3), that the unit has started.

    What is ordered behind it begins then. Where the environment names no socket (in a container, by hand)
    nothing is told; what cannot be told is left out: systemd says itself that it waits in vain.
    """
    address = os.environ.pop(NOTIFY_SOCKET, "")
    if not address.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"READY=1", f"\0{address[1:]}" if address[0] == "@" else address)
