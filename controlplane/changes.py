"""Every stored event, broadcast once and in order to any number of subscribers in this process.

A subscriber may never slow down the command path: one that does not keep up loses its place and is
told so (:class:`Lagged`), and then reads the log.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress

from events.codec import Recorded

CHANGES_LIMIT = 8192
"""Events that one subscriber may be behind before it is dropped."""


class Lagged(Exception):
    """The subscriber fell behind by more than its bound; it must catch up from the log and subscribe anew."""


class Subscription:
    """One reader of :class:`Changes`. Iterating yields runs of consecutive events, waiting for more.

    Raises Lagged once when events were lost to the bound, and then ends.
    """

    def __init__(self, changes: Changes, limit: int) -> None:
        self._changes = changes
        self._limit = limit
        self._waiting: deque[Recorded] = deque()
        self._wake = asyncio.Event()
        self._lagged = False
        self._closed = False

    def offer(self, events: Sequence[Recorded]) -> None:
        """Called by the broadcast. Never blocks."""
        if self._lagged:
            return
        if len(self._waiting) + len(events) > self._limit:
            self._lagged = True
            self._waiting.clear()
        else:
            self._waiting.extend(events)
        self._wake.set()

    def lag(self) -> None:
        """Lose the place."""
        self._lagged = True
        self._waiting.clear()
        self._wake.set()

    @property
    def behind(self) -> int:
        """Events waiting."""
        return len(self._waiting)

    def close(self) -> None:
        """Stop receiving. Safe to repeat; a waiting reader ends."""
        self._closed = True
        self._changes.forget(self)
        self._wake.set()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> list[Recorded]:
        while not self._waiting:
            if self._lagged:
                self.close()
                raise Lagged
            if self._closed:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        return self.take()

    def take(self) -> list[Recorded]:
        """What has come by now, perhaps nothing."""
        run = list(self._waiting)
        self._waiting.clear()
        return run


class Changes:
    """Broadcasts each stored event once, in order, to every subscriber in this process."""

    def __init__(self) -> None:
        self._subscribers: list[Subscription] = []

    def subscribe(self, *, limit: int = CHANGES_LIMIT) -> Subscription:
        """Everything stored from now on. ``limit`` events may wait before the subscriber is dropped."""
        subscription = Subscription(self, limit)
        self._subscribers.append(subscription)
        return subscription

    def publish(self, events: Sequence[Recorded]) -> None:
        """Hand the events on."""
        for subscriber in tuple(self._subscribers):
            subscriber.offer(events)

    def lag(self) -> None:
        """What was broadcast is not what the state was made of: everybody must catch up from it anew."""
        for subscriber in tuple(self._subscribers):
            subscriber.lag()

    def forget(self, subscription: Subscription) -> None:
        """Used by :meth:`Subscription.close`."""
        with suppress(ValueError):
            self._subscribers.remove(subscription)

    def close(self) -> None:
        """End every subscription."""
        for subscriber in tuple(self._subscribers):
            subscriber.close()

    def statistics(self) -> dict[str, int]:
        """Subscribers, and the length of the longest queue."""
        return {
            "subscribers": len(self._subscribers),
            "behind_max": max((s.behind for s in self._subscribers), default=0),
        }
