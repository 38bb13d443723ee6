"""A NATS connection that loses, repeats and reorders what comes on plain subjects, by a seed.

Wraps a real one; only the delivery of subscriptions below ``prefix`` is disturbed, as a network
and a server under pressure would.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

Callback = Callable[[Msg], Awaitable[None]]


class LaggingClient:
    """A connection to a replica that lacks an event which the stream's leader holds, for ``times`` looks."""

    def __init__(self, client: Client, lacks: int, *, times: int) -> None:
        self._client = client
        self._lacks = lacks
        self.times = times

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def subscribe(self, subject: str, *, cb: Callback, **options: Any) -> Any:
        async def lacking(message: Msg) -> None:
            pulled = message.reply.split(".") if message.reply.startswith("$JS.ACK.") else []
            sequence = pulled[5] if pulled else (message.headers or {}).get("Nats-Sequence", "")
            if sequence == str(self._lacks) and self.times:
                self.times -= 1
                return
            await cb(message)

        return await self._client.subscribe(subject, cb=lacking, **options)


class LossyClient:
    """``lose``, ``repeat`` and ``delay`` are probabilities per message."""

    def __init__(
        self,
        client: Client,
        prefix: str,
        seed: int,
        *,
        lose: float = 0.2,
        repeat: float = 0.2,
        delay: float = 0.3,
    ) -> None:
        self._client = client
        self._prefix = prefix
        self._random = random.Random(seed)
        self._lose, self._repeat, self._delay = lose, repeat, delay
        self._late: list[Msg] = []
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def subscribe(self, subject: str, *, cb: Callback, **options: Any) -> Any:
        if not subject.startswith(self._prefix):
            return await self._client.subscribe(subject, cb=cb, **options)

        async def disturbed(message: Msg) -> None:
            if self._random.random() < self._lose:
                self.lost += 1
                return
            if self._random.random() < self._delay:
                self._late.append(message)
                return
            await cb(message)
            if self._random.random() < self._repeat:
                await cb(message)
            while self._late and self._random.random() < 0.5:
                await cb(self._late.pop(self._random.randrange(len(self._late))))

        return await self._client.subscribe(subject, cb=disturbed, **options)
