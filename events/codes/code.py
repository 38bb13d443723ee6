"""What one error code says."""

from __future__ import annotations

from typing import NamedTuple


class Code(NamedTuple):
    """One row of the table. ``kind`` is a class name of :mod:`events.errors`."""

    kind: str
    meaning: str
    remedy: str
