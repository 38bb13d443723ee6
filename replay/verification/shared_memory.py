"""A place in memory where worker processes leave what is too big for a pipe.

One memory file of this process, cut into slots; a worker opens it through ``/proc``, so that there is
no name, nothing to clean up, and nothing left behind by a process that is killed. Where a system has
no such thing, nothing is handed over, and the taker reads for itself.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple, Self

SLOT_SIZE = 4 * 1024 * 1024
"""Bytes that fit into one slot. Memory is used only for what was written."""


class Slot(NamedTuple):
    """Where a worker may leave something: a file and the byte at which its part begins."""

    path: str
    offset: int


class SharedMemory:
    """``with SharedMemory(active=…)``: :meth:`acquire` a slot, let a worker :func:`store`, :meth:`take` it.

    To be closed only when no worker is left: its number may be another file's by then.
    """

    def __init__(self, *, active: bool) -> None:
        self._fd = -1
        self._path = ""
        self._slots = 0
        self._free: list[Slot] = []
        if active:
            with contextlib.suppress(AttributeError, OSError):  # not Linux, or no memory to be had
                self._fd = os.memfd_create("isthmus-verify")
                self._path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def acquire(self) -> Slot | None:
        """A slot that nobody uses: the one that came back last, whose memory is there, or a new one."""
        if self._free:
            return self._free.pop()
        if self._fd < 0:
            return None
        self._slots += 1
        return Slot(self._path, (self._slots - 1) * SLOT_SIZE)

    def take(self, slot: Slot, length: int) -> bytes:
        """What was left in ``slot``; the slot is free again."""
        data = os.pread(self._fd, length, slot.offset) if length else b""
        self._free.append(slot)
        return data


def store(slot: Slot, data: bytes) -> int:
    """Leave ``data`` in ``slot``, in any process: how much of it is there now, all or nothing."""
    if len(data) > SLOT_SIZE:
        return 0
    try:
        fd = os.open(slot.path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return len(data) if os.pwrite(fd, data, slot.offset) == len(data) else 0
    except OSError:
        return 0
    finally:
        os.close(fd)
