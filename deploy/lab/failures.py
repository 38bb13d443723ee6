"""What the lab raises."""

from __future__ import annotations


class CheckFailedError(Exception):
    """What had to hold does not; the message says what was seen instead."""


class CommandFailedError(RuntimeError):
    """A program ended with another code than 0; the message holds the command line and what it said."""
