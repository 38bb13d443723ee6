"""Files that somebody names: read within a bound, and without waiting for what never comes.

Opening a FIFO waits for its writer, and nobody says so; a device may have no end. A process substitution of
the shell is a FIFO, too, so one that has a writer is read to its end, however slowly that writes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

WRITER_S = 5.0
"""How long a FIFO may be without a writer."""
WHOLE_LIMIT_BYTES = 64 * 1024 * 1024
_LOOK_S = 0.05
_CHUNK_BYTES = 1 << 20


def read_up_to(path: str | Path, size: int) -> bytes:
    """At most ``size`` bytes of the beginning. Raises OSError, also for a FIFO that nobody writes to."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        kind = os.fstat(handle).st_mode
        found = b""
        if stat.S_ISFIFO(kind):
            found = _first(handle, path, size)
        elif stat.S_ISDIR(kind):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        os.set_blocking(handle, True)
        parts = [found]
        left = size - len(found)
        while left > 0 and (part := os.read(handle, min(left, _CHUNK_BYTES))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)
    finally:
        os.close(handle)


def read_whole(path: str | Path, limit: int | None = None) -> bytes:
    """All of it. Raises OSError, also for more than ``limit`` bytes [:data:`WHOLE_LIMIT_BYTES`]."""
    limit = WHOLE_LIMIT_BYTES if limit is None else limit
    found = read_up_to(path, limit + 1)
    if len(found) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit:,} bytes", str(path))
    return found


def read_regular(path: str | Path, limit: int | None = None) -> bytes:
    """All of a file that a program wrote for itself: a FIFO or a device in its place is refused at once.

    Raises OSError, also for more than ``limit`` bytes [:data:`WHOLE_LIMIT_BYTES`].
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return read_whole(path, limit)


def check_regular(path: str | Path) -> None:
    """For files that a library opens, again and again. Raises OSError for a FIFO or a folder."""
    mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISFIFO(mode):
        raise OSError(errno.ESPIPE, "it is a FIFO, and is read anew at each connection", str(path))


def _first(handle: int, path: str | Path, size: int) -> bytes:
    """The first bytes of a FIFO; empty once a writer is there that has not written yet."""
    deadline = time.monotonic() + WRITER_S
    while True:
        try:
            found = os.read(handle, min(size, _CHUNK_BYTES))
        except BlockingIOError:
            return b""
        if found:
            return found
        if time.monotonic() > deadline:
            raise OSError(errno.ENXIO, f"it is a FIFO that nobody writes to (waited {WRITER_S:g} s)", str(path))
        time.sleep(_LOOK_S)  # poll(2) would not wait: it tells a FIFO without a writer as hung up at once
