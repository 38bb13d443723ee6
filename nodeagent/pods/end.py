"""Ends pods whose addresses belong to a range that this node no longer has. On purpose only.

The processes in the pod's network namespace end (the container runtime then starts the pod anew, with an
address of the new range), its link to the host is removed, and its lease is given back.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from nodeagent.dataplane.preflight import foreign_routes
from nodeagent.netlink import links
from nodeagent.pods.addresses import release

TERM_S = 10.0
"""How long the processes have to end by themselves."""
LOOK_S = 0.05
_LOCAL = re.compile(r"\|-- (\S+)\n\s+/32 host LOCAL")


def end(addresses: Iterable[str], data_dir: Path) -> dict[str, int]:
    """End the pods with these addresses; address → processes that were ended. Raises OSError.

    When it returns, no process has one of the addresses any more. Interrupted, some are ended and some not;
    repeating it is safe.
    """
    wanted = set(addresses)
    ended = dict.fromkeys(sorted(wanted), 0)
    by_address = processes(wanted)
    alive = {pid: space for pids in by_address.values() for pid, space in pids.items()}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid, space in alive.items():
            _signal(pid, space, number)
        deadline = time.monotonic() + TERM_S
        while alive and time.monotonic() < deadline:
            alive = {pid: space for pid, space in alive.items() if _is_in(pid, space)}
            time.sleep(LOOK_S if alive else 0)
        if not alive:
            break
    for route in foreign_routes():
        address = str(route.network.network_address)
        if route.network.prefixlen == 32 and address in wanted:
            links.remove_veth(route.ifindex)
    for address in wanted:
        release(data_dir, address)
        ended[address] = len(by_address.get(address, ()))
    return ended


def processes(addresses: set[str]) -> dict[str, dict[int, str]]:
    """Address → the processes in the network namespace that has it, and which that is; our own is left out."""
    own = _space("self")
    spaces: dict[str, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                space = _space(entry.name)
                if space != own:
                    spaces.setdefault(space, set()).add(int(entry.name))
    found: dict[str, dict[int, str]] = {}
    for space, pids in spaces.items():
        for pid in pids:
            with contextlib.suppress(OSError):
                local = set(_LOCAL.findall(Path(f"/proc/{pid}/net/fib_trie").read_text()))
                for address in local & addresses:
                    found.setdefault(address, {}).update(dict.fromkeys(pids, space))
                break
    return found


def _space(process: int | str) -> str:
    """The network namespace that a process is in."""
    return str(Path(f"/proc/{process}/ns/net").readlink())


def _is_in(pid: int, space: str) -> bool:
    """Not when it has ended, though its parent has not noticed, nor when another process has its number now."""
    try:
        return _space(pid) == space
    except OSError:
        return False


def _signal(pid: int, space: str, number: int) -> None:
    try:
        process = os.pidfd_open(pid)  # means it, whoever has its number later
    except ProcessLookupError:
        return
    try:
        if _is_in(pid, space):
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                signal.pidfd_send_signal(process, number)
    finally:
        os.close(process)
