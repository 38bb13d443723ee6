"""Files beside others that are to take their places: what of them processes have left that were killed."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from pathlib import Path

LEFT_S = 3600.0
"""So old is no file that somebody still writes; a process that stood still for longer fails."""


def pattern(name: str = "", tag: str = r"[0-9a-f]{8}", end: str = "") -> re.Pattern[str]:
    """Names of files that wait to become ``name`` (any, if empty): ``.NAME.TAG`` and ``end``."""
    return re.compile(rf"\.{re.escape(name) if name else '.+'}\.{tag}{re.escape(end)}")


def drop_left(folder: Path, names: re.Pattern[str]) -> list[Path]:
    """Remove the files of that folder with such names that nobody can be writing any more; which.

    Only regular ones older than LEFT_S, of this account or of the folder's. What cannot be looked at or removed
    stays: it is in nobody's way.
    """
    gone = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        owners = {os.geteuid(), folder.stat().st_uid}
        oldest = time.time() - LEFT_S
        for entry in entries:
            if entry.name[0] != "." or names.fullmatch(entry.name) is None:
                continue
            with contextlib.suppress(OSError):
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(found.st_mode) and found.st_uid in owners and found.st_mtime < oldest:
                    Path(entry.path).unlink()
                    gone.append(Path(entry.path))
    return gone
