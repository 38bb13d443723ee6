"""Files that a command leaves behind: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from events.bus.access.temporaries import drop_left, pattern
from events.errors import Refused


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A place to write a file to, beside ``path``; it takes that name when the block ends, and else is removed.

    What is no regular file (a terminal, a pipe) is written as it is. Raises Refused(archive_foreign) when the
    system refuses, for instance on a full disk or in a read-only directory.
    """
    target = Path(path)
    try:
        if target.exists() and not target.is_file():
            yield target
            return
        drop_left(target.parent, pattern(target.stem, r"\d+", f".new{target.suffix}"))
        beside = target.with_name(f".{target.stem}.{os.getpid()}.new{target.suffix}")
        try:
            yield beside
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: str | Path, error: OSError) -> Refused:
    """The refusal that tells of it."""
    return Refused("archive_foreign", f"cannot write {path}: {error.strerror or error}", path=str(path))
