"""What earlier agents of this node left: a file of the kernel's numbers of their programs, and one setting.

Numbers are unique, and the setting stays, until the machine starts anew: so the file holds for one boot.

Conntrack sees one packet of a fast flow in many; to it the others are out of TCP's window, so it has to be
liberal. It stays so when the fast path is switched off, because flows that were fast would be cut off, and what
it was before comes back when everything of ours is removed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import msgspec

from events.input_files import read_regular
from nodeagent.dataplane import host_settings
from nodeagent.fastpath import programs
from nodeagent.local_files import boot_id, write_atomically

FILE = "fastpath.json"
LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
IDS_LIMIT = 1000
"""Numbers that are remembered: those of the last hundred or so lives."""


class _Kept(msgspec.Struct):
    boot: str
    ids: list[int]
    devices: list[int]
    liberal_before: str = ""


class Predecessors:
    """``ids`` are of this boot; :meth:`note` adds those of this life before they hang."""

    def __init__(self, state_dir: Path, earlier: Mapping[int, Iterable[int]] = MappingProxyType({})) -> None:
        """``earlier``: what was found at devices, whatever the file says."""
        self._path = state_dir / FILE
        self._boot = boot_id()
        try:
            kept = msgspec.json.decode(read_regular(self._path), type=_Kept)
        except (OSError, ValueError, RecursionError):
            kept = _Kept(self._boot, [], [])
        current = kept.boot == self._boot
        self._ids = kept.ids[-IDS_LIMIT:] if current else []
        self._devices = set(kept.devices) if current else set()
        self._liberal_before = kept.liberal_before if current else ""
        self._ids += [number for number in earlier if number not in self._ids]
        self._devices.update(*earlier.values())
        self._written: tuple[frozenset[int], frozenset[int]] | None = None

    @property
    def ids(self) -> frozenset[int]:
        """Numbers of programs that are or were ours."""
        return frozenset(self._ids)

    def note(self, ids: Iterable[int], devices: Iterable[int]) -> None:
        """Remember what is about to hang, and where. Raises OSError."""
        self._ids += [number for number in sorted(ids) if number not in self._ids]
        state = frozenset(self._ids), frozenset(devices)
        if state == self._written:
            return
        self._devices |= state[1]
        self._keep()
        self._written = state

    def be_liberal(self) -> bool:
        """Let conntrack take TCP out of the window, and remember what it did before; whether it did not.

        Raises OSError.
        """
        before = host_settings.read_sysctl(LIBERAL)
        if before in {None, "1"}:
            return False
        if not self._liberal_before:
            self._liberal_before = str(before)
            self._keep()
        return host_settings.set_sysctl(LIBERAL, "1")

    def restore(self) -> bool:
        """Give conntrack its setting back; whether it had another one. Raises OSError."""
        return bool(self._liberal_before) and host_settings.set_sysctl(LIBERAL, self._liberal_before)

    def _keep(self) -> None:
        kept = _Kept(self._boot, self._ids[-IDS_LIMIT:], sorted(self._devices), self._liberal_before)
        write_atomically(self._path, msgspec.json.encode(kept))

    def take_off(self, keep: Container[int]) -> int:
        """Take the programs of earlier lives off the devices where they hung; how many. Raises OSError."""
        return programs.sweep(self._devices, self._ids, keep, named=False)
