"""What a handler of the fold raises."""

from __future__ import annotations


class Contradiction(Exception):
    """An event that cannot follow this state; the text says why."""
