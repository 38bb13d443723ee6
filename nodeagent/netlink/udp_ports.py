"""Who holds a UDP port in this network namespace: sockets as ``/proc/net`` lists them, and their programs."""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

TABLES = (Path("/proc/net/udp"), Path("/proc/net/udp6"))
_LOCAL, _INODE = 1, 9


class Holder(NamedTuple):
    """Of a socket that is bound to the port. ``pid`` 0: it is the kernel's own, or its process is not shown."""

    port: int
    pid: int = 0
    arguments: tuple[str, ...] = ()
    """The process's command line."""

    def __str__(self) -> str:
        if not self.pid:
            return "the kernel, or a program that this account may not look at"
        return f"{Path(self.arguments[0]).name if self.arguments else 'a program'} (process {self.pid})"


def holders(ports: Container[int]) -> list[Holder]:
    """Who holds any of these ports, for IPv4 or for all, in the order of the ports. Raises OSError.

    O(sockets), and O(open files of all processes) if there is one.
    """
    sockets = {inode: port for port, inode in _sockets() if port in ports}
    if not sockets:
        return []
    owners = _owners(sockets)
    found = {(port, *owners.get(inode, (0, ()))) for inode, port in sockets.items()}
    return [Holder(*one) for one in sorted(found)]


def bound() -> set[int]:
    """All ports that are held. Raises OSError."""
    return {port for port, _ in _sockets()}


def _sockets() -> Iterator[tuple[int, str]]:
    for table in TABLES:
        if table.exists():  # without IPv6 there is one less
            for line in table.read_text().splitlines()[1:]:
                words = line.split()
                yield int(words[_LOCAL].rpartition(":")[2], 16), words[_INODE]


def _owners(inodes: Container[str]) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Process and command line of those of the sockets whose process is shown to us."""
    found: dict[str, tuple[int, tuple[str, ...]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it ended, or belongs to another account
            for file in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):  # it was closed meanwhile
                    kind, _, inode = str(file.readlink()).rstrip("]").partition(":[")
                    if kind == "socket" and inode in inodes:
                        words = (entry / "cmdline").read_text(errors="replace").split("\0")
                        found[inode] = int(entry.name), tuple(filter(None, words))
    return found
