"""A follower of the log as a task, and what it has seen."""

from __future__ import annotations

import asyncio

from events.chain import genesis
from events.jetstream.live import LiveReader
from tests.contract.samples import CLUSTER, verified
from tests.waiting import until


class Following:
    """A task that follows and what it has seen."""

    def __init__(self, reader: LiveReader, after: int = 0) -> None:
        self.seen: list[int] = []
        self.head = genesis(CLUSTER)
        self.live = asyncio.Event()
        self._reader = reader
        self._after = after
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async for batch in self._reader.read(after=self._after, follow=True):
            self.seen += [message.sequence for message in batch.messages]
            if self._after == 0:
                self.head = verified(batch.messages, self.head)
            if batch.pending == 0:
                self.live.set()

    async def reaches(self, sequence: int, within_s: float = 15.0) -> None:
        await until(
            lambda: self.task.done() or bool(self.seen and self.seen[-1] >= sequence), within_s=within_s
        )
        if self.task.done():
            self.task.result()

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task}, timeout=30)
        assert self.task.done(), f"a cancelled follower goes on: {self.task.get_stack()}"
