"""Keeps a controller up whose log holds an event that cannot be followed.

A poison event (one that contradicts the state, is damaged, or comes from a newer release) ends neither the
process nor the answers: it is named in an alarm, in ``isthmus cluster show`` and on ``/healthz``; questions are
answered from the state before it, commands are refused with ``log_poisoned``. Ending instead would make a
supervisor start the controller again and again, each time up to the same event.

Another controller may be able to follow (a newer release in the middle of an upgrade): one that has halted
yields the leadership to it. And the log may be mended, so it is read again from time to time. By policy
(``park``) the leading one says in the log that the event is parked, and everybody goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from controlplane.controller.hooks import Observer
from controlplane.controller.replication.replica import Replica
from events.errors import VerificationFailed

log = logging.getLogger("isthmus.controller")

ALARM = "log"
"""The alarm's name in the metrics."""
YIELD_S = 1.0
"""How often a controller that has halted and leads asks for one that can decide."""
AGAIN_S = 5.0
"""How often the event is read again."""


@dataclass(slots=True, eq=False)
class HaltedLog:
    """Follows the log with a replica.

    While it is halted, ``yield_leadership`` is awaited again and again (it tells whether another has taken the
    lead), and then ``park``, with the error that names the event: it tells whether to read on at once.
    """

    replica: Replica
    observer: Observer
    yield_leadership: Callable[[], Awaitable[bool]]
    park: Callable[[VerificationFailed], Awaitable[bool]] | None = None

    async def run(self) -> None:
        """Follow for ever. Raises nothing. Cancelled, the replica stands where it is."""
        said = ""
        while True:
            try:
                await self.replica.follow()
            except VerificationFailed as error:
                if error.message != said:
                    said = error.message
                    self.observer.alarmed(ALARM, error)
                await self._wait_halted(error)

    async def _wait_halted(self, error: VerificationFailed) -> None:
        """Return when the log is to be read again."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + AGAIN_S
        while loop.time() < until_s:
            if not await self.yield_leadership() and self.park is not None and await self.park(error):
                return
            await asyncio.sleep(YIELD_S)
