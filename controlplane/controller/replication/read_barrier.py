"""The read barrier: what is answered after it is as new as everything acknowledged before it was asked for.

One question to the log serves everybody who asked before it was sent; who comes while it is on its way waits
for the next. So a thousand questions at once cost two, and none is answered from what was asked too early.
"""

from __future__ import annotations

import asyncio

from controlplane.controller.replication.replica import Replica
from events.errors import IsthmusError, Unavailable
from events.log import EventLog

WITHIN_S = 3.0
"""Longest wait for the log's end and for the fold to get there."""


class ReadBarrier:
    """Of one replica. Must be run (:meth:`run`) while it is used."""

    def __init__(self, event_log: EventLog, replica: Replica) -> None:
        self._log = event_log
        self._replica = replica
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()

    async def passed(self) -> None:
        """Return when the replica's state has everything that was acknowledged before the call.

        Raises Unavailable when nobody can vouch for that in time, and VerificationFailed when the fold has
        halted. Cancelled, it leaves nothing behind.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wake.set()
        await future

    async def run(self) -> None:
        """Ask for those who wait, round after round, for ever. Cancelled, it tells them to ask again."""
        asked: list[asyncio.Future[None]] = []
        try:
            while True:
                while not self._waiting:
                    self._wake.clear()
                    await self._wake.wait()
                asked, self._waiting = self._waiting, []
                try:
                    last = await self._log.vouched_end(timeout_s=WITHIN_S)
                    await self._replica.reached(last, timeout_s=WITHIN_S)
                except IsthmusError as error:
                    for future in asked:
                        if not future.done():
                            future.set_exception(type(error)(error.code, error.message, **error.details))
                else:
                    for future in asked:
                        if not future.done():
                            future.set_result(None)
        finally:
            for future in [*asked, *self._waiting]:
                if not future.done():
                    future.set_exception(Unavailable("no_controller", "this controller stops; ask again"))
                    future.exception()  # perhaps nobody waits for it any more
            self._waiting = []
