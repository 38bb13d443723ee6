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
    alive = {pid for pids in by_address.values() for pid in pids}
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + TERM_S
        while alive and time.monotonic() < deadline:
            alive = {pid for pid in alive if _runs(pid)}
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


def processes(addresses: set[str]) -> dict[str, set[int]]:
    """Address → the processes in the network namespace that has it; this namespace is left out."""
    own = str(Path("/proc/self/ns/net").readlink())
    spaces: dict[str, set[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                space = str((entry / "ns" / "net").readlink())
                if space != own:
                    spaces.setdefault(space, set()).add(int(entry.name))
    found: dict[str, set[int]] = {}
    for pids in spaces.values():
        for pid in pids:
            with contextlib.suppress(OSError):
                local = set(_LOCAL.findall(Path(f"/proc/{pid}/net/fib_trie").read_text()))
                for address in local & addresses:
                    found.setdefault(address, set()).update(pids)
                break
    return found


def _runs(pid: int) -> bool:
    """Whether it has not ended; one that only waits to be noticed by its parent has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except OSError:
        return False
