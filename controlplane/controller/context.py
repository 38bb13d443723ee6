"""What decisions may know of the world outside the log, asked for once for each group of commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from controlplane.cluster.decision import EMPTY_CONTEXT, DecisionContext, Tick
from events.protocol.commands import Command


class ContextSource(Protocol):
    """What decisions may know of the world outside the log: other clusters on the same bus."""

    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:
        """The context, fresh enough for these commands. Raises Unavailable.

        Cancelled, it leaves nothing behind.
        """
        ...


class NoContext:
    """Nothing is known of it."""

    async def context_for(self, commands: Sequence[Command | Tick]) -> DecisionContext:  # noqa: ARG002  the port's
        return EMPTY_CONTEXT
