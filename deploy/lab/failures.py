"""What a check of the lab raises."""

from __future__ import annotations


class CheckFailedError(Exception):
    """What had to hold does not; the message says what was seen instead."""
