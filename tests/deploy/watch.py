"""What the kernel of a node announces: links, addresses, neighbours, FDB, routes, firewall."""

from __future__ import annotations

import contextlib
import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.nodeagent.site import Node
from tests.waiting import wait_for as until

ROWS = ("ip -o monitor link address neigh route", "bridge monitor fdb")
FIREWALL = "nft monitor"
NUMBERS = itertools.count()


class Watch:
    """What the kernel of one node announces about anything of ours, until stopped."""

    def __init__(self, node: Node) -> None:
        self.node = node
        number = next(NUMBERS)  # of two that watch one node each writes a file of its own
        self._files: dict[str, IO[bytes]] = {
            watch: (node.directory / f"{watch.split()[0]}-{number}.log").open("xb")
            for watch in (*ROWS, FIREWALL)
        }
        self._processes = [
            subprocess.Popen(["ip", "netns", "exec", node.name, *watch.split()], stdout=file, stderr=file)
            for watch, file in self._files.items()
        ]
        until(self._listening, "the watches listen")

    def _listening(self) -> bool:
        """The kernel lists a socket for each of them."""
        owners = self.node.run("cat /proc/net/netlink").split()
        return all(str(process.pid) in owners for process in self._processes)

    def rows(self) -> list[str]:
        """Device, addresses, neighbours, FDB and routes of ours that came, changed or went.

        The device of the probes comes and goes with its agent: no packet of anybody else is on it.
        """
        return [
            line
            for watch in ROWS
            for line in self._lines(watch)
            if ("isthmus" in line or "proto 84" in line) and "isthmus-probe" not in line
        ]

    def everything(self) -> list[str]:
        """The rows, and whatever happened to a firewall: there is none here but ours."""
        return [*self.rows(), *self._lines(FIREWALL)]

    def _lines(self, watch: str) -> list[str]:
        # Opened anew: whoever moves the place in the program's own file has it write over what it wrote.
        whole = Path(self._files[watch].name).read_text().rpartition("\n")[0]
        return [line.strip() for line in whole.splitlines()]

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        for file in self._files.values():
            file.close()


@contextlib.contextmanager
def watching(*nodes: Node) -> Iterator[list[Watch]]:
    watches = [Watch(node) for node in nodes]
    try:
        yield watches
    finally:
        for watch in watches:
            watch.stop()
