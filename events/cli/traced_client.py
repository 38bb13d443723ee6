"""The command line's client: with spans, since traces begin at a person's hand, and with a look into the log.

Telemetry starts with the first command that is sent, so that questions stay fast. When the command
is done its spans go to the built-in store over the same connection, and to a collector if one is
configured. A trace that cannot be delivered is lost in silence: it never changes a command's outcome.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from nats.errors import Error as NatsError

from events import subjects
from events.bus.client import ControllerClient
from events.protocol.commands import Command, CommandReply

if TYPE_CHECKING:
    from events.codec import Recorded


class TracedClient(ControllerClient):
    """A controller client of one run of the command line."""

    _outbox: Any = None

    async def send(
        self, command: Command, *, headers: dict[str, str] | None = None, **how: Any
    ) -> CommandReply:
        """Cancelled, the command may have taken effect all the same."""
        import click

        from events.telemetry.role import Telemetry
        from events.telemetry.spans import Outbox

        if self._telemetry is None:
            self._outbox = Outbox(instance=self.actor)
            self._telemetry = Telemetry.start(
                "cli", instance=self.actor, cluster=self.cluster, sink=self._outbox
            )
        context = click.get_current_context(silent=True)
        name = context.command_path if context is not None else "isthmus"
        with self._telemetry.span(name, root=True, attributes={"isthmus.actor": self.actor}):
            return await super().send(command, headers=headers, **how)

    async def history(self, aggregate: str, entity: str) -> list[Recorded]:
        """Every event about one thing, in order, from the log itself. Raises Unavailable.

        Cancelled, it leaves nothing behind.
        """
        from events.codec import decode
        from events.jetstream.direct import DirectReader

        reader = DirectReader(self._nats, subjects.stream(self.cluster))
        found = await reader.every(subjects.event(self.cluster, aggregate, entity, ">"))
        await reader.close()
        return [decode(message) for message in found]

    async def hand_over(self) -> None:
        """Deliver the spans; at most about two seconds, and only when a collector is slow.

        Cancelled, spans may be lost.
        """
        if self._telemetry is None:
            return
        from events.telemetry.spans import encode_spans

        closing = asyncio.create_task(self._telemetry.close())
        records = self._outbox.take()
        with suppress(NatsError, TimeoutError, OSError):
            if records and self._nats.is_connected:
                await self._nats.publish(subjects.spans(self.cluster, role="cli"), encode_spans(records))
                await self._nats.flush(timeout=1)
        await closing
