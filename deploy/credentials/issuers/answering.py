"""How an issuer answers many machines: some at a time, more that wait, and the rest told to ask again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import msgspec
from nats.aio.msg import Msg

from events.bus.enrolment import EnrolReply
from events.errors import IsthmusError, Overloaded
from events.printable import printable

log = logging.getLogger("isthmus.issuer")

QUEUE = "issuers"
"""The queue group: each request reaches one issuer."""
AT_ONCE = 32
WAITING_MAX = 1024
"""Requests that wait; whoever comes then is told to ask again."""
MESSAGE_LIMIT = 1000
_encode = msgspec.json.Encoder().encode


class Answering:
    """Answers each request in a task of its own: what some want takes the servers a while."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self.issued = 0
        self.refused = 0

    async def take(self, message: Msg, answer: Callable[[Msg], Awaitable[EnrolReply]]) -> None:
        """Begin to answer; what ``answer`` refuses is the reply, too. Cancelled, the asker asks again."""
        if len(self._tasks) >= WAITING_MAX:
            await self._refuse(
                message, Overloaded("overloaded", f"{WAITING_MAX:,} machines ask at once: ask again")
            )
            return
        task = asyncio.create_task(self._answer(message, answer), name=f"answer to {message.subject}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Give up what is being answered; its askers ask again. Cancelled, some of it may go on."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _answer(self, message: Msg, answer: Callable[[Msg], Awaitable[EnrolReply]]) -> None:
        async with self._slots:
            try:
                reply = await answer(message)
            except IsthmusError as error:
                await self._refuse(message, error)
            except Exception:  # a defect, told in the log: it must not end the service of all others
                log.exception("%s: not answered", message.subject)
            else:
                self.issued += 1
                if message.reply:
                    await message.respond(_encode(reply))

    async def _refuse(self, message: Msg, error: IsthmusError) -> None:
        self.refused += 1
        said = printable(error.message, MESSAGE_LIMIT)  # it repeats what a stranger has sent
        log.warning("%s: refused: %s [%s]", message.subject, said, error.code)
        if message.reply:
            await message.respond(_encode(EnrolReply(code=error.code, message=said)))
