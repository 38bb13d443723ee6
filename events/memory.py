"""The log in memory: for the simulation, for tests, and as the second implementation of the contract.

It keeps every promise of the port except surviving its process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

from events.chain import CHAIN_HEADER, Head, genesis
from events.codec import OutgoingMessage, StoredMessage
from events.errors import Refused
from events.log import ReadBatch, check_count


def _identity(message: OutgoingMessage | StoredMessage) -> tuple[str, str]:
    """The id and the chain digest: the same command decided by two controllers shares only the ids."""
    return message.headers["ce-id"], message.headers.get(CHAIN_HEADER, "")


class MemoryLog:
    """An EventLog in one process. ``clock_ns`` stamps what is stored (Unix nanoseconds)."""

    def __init__(
        self, cluster: str, *, clock_ns: Callable[[], int] = time.time_ns, batch_size: int = 500
    ) -> None:
        self._cluster = cluster
        self._clock_ns = clock_ns
        self._batch_size = batch_size
        self._messages: list[StoredMessage] = []
        self._ids: set[str] = set()
        self._grown = asyncio.Condition()

    @property
    def cluster(self) -> str:
        return self._cluster

    async def head(self) -> Head:
        """The last event and its digest. It never suspends: no cancellation comes inside of it."""
        if not self._messages:
            return genesis(self._cluster)
        last = self._messages[-1]
        return Head(last.sequence, bytes.fromhex(last.headers[CHAIN_HEADER]))

    async def vouched_end(self, *, timeout_s: float = 3.0) -> int:  # noqa: ARG002  the port's
        return len(self._messages)

    async def append(
        self,
        messages: Sequence[OutgoingMessage],
        *,
        expected: int,
        timeout_s: float = 5.0,  # noqa: ARG002  the port's; memory answers at once
    ) -> int:
        """As :meth:`events.log.EventLog.append` says.

        Raises Refused (``event_too_large``, ``wrong_last_sequence``). Cancelled, nothing is stored.
        """
        check_count(messages)
        actual = len(self._messages)
        if expected != actual:
            stored = self._messages[expected : expected + len(messages)]
            if messages and [_identity(m) for m in stored] == [_identity(m) for m in messages]:
                return expected + len(messages)
            raise Refused(
                "wrong_last_sequence",
                f"the decision was made on sequence {expected}, the log is at {actual}",
                expected=expected,
                actual=actual,
            )
        if any(message.id in self._ids for message in messages):
            raise Refused(
                "wrong_last_sequence",
                f"events with these ids are already stored at or before sequence {expected}",
                expected=expected,
                actual=actual,
                repeated=True,
            )
        now = self._clock_ns()
        self._ids.update(message.id for message in messages)
        self._messages.extend(
            StoredMessage(expected + i, m.subject, m.headers, m.body, now) for i, m in enumerate(messages, 1)
        )
        async with self._grown:
            self._grown.notify_all()
        return len(self._messages)

    async def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        """As :meth:`events.log.LogReader.read` says. Cancelled, it leaves nothing behind."""
        end = len(self._messages) if until is None else until
        position, live = after, False
        while True:
            stop = end if not follow else (until if until is not None else len(self._messages))
            chunk = self._messages[position : min(stop, position + self._batch_size)]
            if chunk:
                position = chunk[-1].sequence
                yield ReadBatch(chunk, max(0, min(stop, len(self._messages)) - position))
                live = position >= len(self._messages)
                continue
            if not follow or (until is not None and position >= until):
                return
            if not live:
                live = True
                yield ReadBatch((), 0)
                continue
            async with self._grown:
                while len(self._messages) <= position:
                    await self._grown.wait()
