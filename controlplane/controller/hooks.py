"""Where tracing and metrics attach to a controller.

An :class:`Observer` is told what happened to each command and batch, with durations; of a group of commands by
one call. It may never slow down or fail the command path: observers return at once and their errors are
logged. Stored events are broadcast by :mod:`controlplane.changes`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from events.errors import IsthmusError

if TYPE_CHECKING:
    from controlplane.controller.requests import Request

log = logging.getLogger("isthmus.controller")


class TraceContext(NamedTuple):
    """The W3C context that a command's events carry."""

    traceparent: str
    tracestate: str


class DecidedCommand(NamedTuple):
    """One command of a group that was decided: seconds that it waited and took, and how many events it caused.

    ``again``: it had been decided before, and that came to nothing.
    """

    request: Request
    waited_s: float
    took_s: float
    events: int
    again: bool


class AnsweredCommand(NamedTuple):
    """One answer on its way; ``took_s`` (seconds) counts from receipt."""

    request: Request
    took_s: float
    error: IsthmusError | None


class Observer:
    """Base of what watches a controller. Durations are seconds; every method returns at once."""

    def received(self, request: Request) -> TraceContext | None:  # noqa: ARG002  for those that care
        """A command was taken into the queue. The context returned, if any, replaces the request's own."""
        return None

    def decided(self, commands: Sequence[DecidedCommand]) -> None:
        """A group of commands was decided, in this order."""

    def appended(self, requests: Sequence[Request], *, first: int, last: int, took_s: float) -> None:
        """The group's events are stored as ``first`` … ``last``."""

    def answered(self, commands: Sequence[AnsweredCommand], *, sequence: int) -> None:
        """The answers are on their way; the log stood at ``sequence``."""

    def projected(self, *, last: int, count: int, took_s: float) -> None:
        """The read model holds everything up to ``last``."""

    def alarmed(self, name: str, error: IsthmusError) -> None:
        """Something needs a person: a broken chain, a stopped projection, a lost lease."""
        log.error("ALARM %s: %s [%s]", name, error.message, error.code)
