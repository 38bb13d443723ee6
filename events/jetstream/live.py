"""Following the log without a consumer: for agents, so that ten thousand cost the server nothing each.

Live events come over plain subjects (the stream republishes what it has stored). Plain NATS may
lose, and reconnects do; so the reader knows its position and takes only the next sequence. A later
one than the next waits a moment for what is late, then what is missing is read from the stream by
direct get; an earlier one is a repetition and is dropped. A loss that nothing follows is found by
asking the stream at jittered intervals: short ones at first and after each reconnection, because the
servers of a cluster and a site's leaf tell each other of a new subscription only after the subscriber
was told that it stands, and what is published meanwhile does not come.

The stream may be a mirror at the site: what a lagging mirror does not hold yet is asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events import subjects
from events.bus.nats_fastpath import inline
from events.bus.retry import jittered_s, pauses, raise_if_cancelled
from events.chain import CHAIN_HEADER, Head
from events.codec import StoredMessage
from events.errors import IsthmusError, Unavailable, VerificationFailed
from events.jetstream.api import DEFAULT_PREFIX, ApiError, message_at, prefix_of
from events.jetstream.direct import DirectAnswer, DirectReader, carried_message
from events.jetstream.freshness import only_behind
from events.jetstream.read import log_head
from events.log import ReadBatch
from events.parking import parking_subjects

log = logging.getLogger("isthmus.live")

HELD_MAX = 4096
"""Live events held for order; beyond it the newest are dropped and read from the stream later."""
GAP_WAIT_S = 0.03
"""How long a late event may be late before the stream is asked; doubled at random, so that a loss
that hits all agents does not make all of them ask at once."""
MIRROR_WAIT_S = 5.0
"""How long a mirror may lack an event that came over the bus already, before the log counts as another one."""
SETTLING_S = 0.5
"""The first interval between two questions to the stream; each is twice the one before, up to ``check_s``."""
_TICK_S = 1.0
_FRUITLESS_MAX = 6


@dataclass
class LiveStatistics:
    """What the reader had to repair: for metrics and tests."""

    delivered: int = 0
    repeated: int = 0
    held: int = 0
    gaps: int = 0
    checks: int = 0


class LiveReader:
    """A LogReader that leaves nothing on the server.

    ``check_s`` is the mean time between two questions to the stream whether something was missed
    (a connection that lives does not lose messages, but the link of the leaf behind it does, unseen; a
    restored one is asked about at once).
    ``patience_s`` bounds a read that does not follow. ``recheck`` is awaited by a read that follows
    after each reconnection, before it goes on: behind the same address there may be a bus whose log
    was lost, or restored from a backup. What it raises ends the read.

    A read that follows yields an empty batch whenever the stream has confirmed that nothing is missing.
    Cancelled, its coroutines leave nothing behind.
    """

    def __init__(
        self,
        client: Client,
        cluster: str,
        *,
        prefix: str = DEFAULT_PREFIX,
        check_s: float = 20.0,
        patience_s: float = 10.0,
        gap_wait_s: float = GAP_WAIT_S,
        recheck: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._cluster = subjects.check_label(cluster, "cluster")
        self._prefix = prefix_of(client, prefix)
        self._direct = DirectReader(client, subjects.stream(cluster), prefix=prefix)
        self._check_s = check_s
        self._patience_s = patience_s
        self._gap_wait_s = gap_wait_s
        self._recheck = recheck
        self.statistics = LiveStatistics()
        self._heard = 0
        self._window: _Window | None = None

    def heard_of(self, sequence: int) -> None:
        """Somebody who knows says that the log has come this far: a read that follows looks for it soon."""
        self._heard = max(self._heard, sequence)
        if self._window is not None:
            self._window.heard_of(sequence)

    @property
    def cluster(self) -> str:
        return self._cluster

    async def head(self) -> Head:
        # Asked of the leader: a replica that lags would say that the log ends before our position.
        """The log's end, asked of its leader."""
        return await log_head(self._client, self._cluster, prefix=self._prefix, patience_s=self._patience_s)

    async def check_same(self, known: Head) -> None:
        """Pass if the log holds at ``known.sequence`` the event that was folded there.

        Raises VerificationFailed(log_replaced) when it holds another or none, Unavailable.
        """
        if known.sequence == 0:
            return
        found: tuple[int, dict[str, str]] | None = None
        async for left_s in pauses(asyncio.get_running_loop().time() + MIRROR_WAIT_S):
            stream = self._direct.stream
            try:
                found = await message_at(
                    self._client, self._prefix, stream, known.sequence, timeout_s=min(3.0, left_s)
                )
            except ApiError as error:
                raise Unavailable("log_unavailable", f"stream {stream}: {error}", stream=stream) from error
            if found is not None:
                break
        theirs = found[1].get(CHAIN_HEADER, "") if found is not None else ""
        if theirs == known.hex:
            return
        there = f"another event there ({theirs[:12] or 'no digest'}…)" if found is not None else "no such event"
        raise VerificationFailed(
            "log_replaced",
            f"the log was followed up to event {known.sequence} ({known.hex[:12]}…), the bus has {there}: "
            f"it was replaced or restored",
            sequence=known.sequence,
        )

    async def parkings(self) -> list[StoredMessage]:
        """See :class:`events.parking.Indexed`."""
        return await self._direct.every(parking_subjects(self._cluster))

    def read(
        self, *, after: int = 0, until: int | None = None, follow: bool = False
    ) -> AsyncIterator[ReadBatch]:
        return self._follow(after, until) if follow else self._read_stored(after, until)

    async def _read_stored(self, after: int, until: int | None) -> AsyncIterator[ReadBatch]:
        end = (await self.head()).sequence
        stop = end if until is None else min(until, end)
        position = after
        while position < stop:
            answer = await self._ask(position, stop, patient=False)
            if answer.messages:
                position = answer.messages[-1].sequence
                yield ReadBatch(answer.messages, stop - position)

    async def _follow(self, after: int, until: int | None) -> AsyncIterator[ReadBatch]:
        window = self._window = _Window(self._client, after, self.statistics)
        window.heard_of(self._heard)
        position, pause_s = after, SETTLING_S
        loop = asyncio.get_running_loop()
        try:
            # Subscribe first, then catch up: nothing can fall between.
            await window.open(subjects.live_wildcard(self._cluster))
            check_at = loop.time()
            while until is None or position < until:
                raise_if_cancelled()
                run = window.take(until)
                if run:
                    position = run[-1].sequence
                    yield ReadBatch(run, window.newest - position)
                    continue
                if not await window.wait(check_at, self._gap_wait_s):
                    continue
                if window.reconnected:
                    window.reconnected, pause_s = False, SETTLING_S
                    if self._recheck is not None:
                        await self._recheck()
                self.statistics.checks += 1
                if window.newest > position:
                    self.statistics.gaps += 1
                answer = await self._ask(position, until, patient=True)
                if answer.messages:
                    position = answer.messages[-1].sequence
                    window.advance(position)
                    yield ReadBatch(answer.messages, max(answer.pending, window.newest - position))
                    if answer.pending:
                        continue  # check again at once: more is stored
                elif window.newest <= position:
                    yield ReadBatch((), 0)  # the stream says that nothing is missing
                pause_s = min(pause_s, self._check_s)
                check_at = loop.time() + jittered_s(pause_s)
                pause_s *= 2
        finally:
            await window.close()
            await self._direct.close()

    async def _ask(self, position: int, stop: int | None, *, patient: bool) -> DirectAnswer:
        """What the stream holds behind ``position``, up to ``stop``; contiguous, or VerificationFailed.

        A hole is one only if the stream's leader has it, too.
        """
        level = logging.WARNING
        loop = asyncio.get_running_loop()
        while True:
            raise_if_cancelled()
            last: IsthmusError | None = None
            async for left_s in pauses(loop.time() + self._patience_s):
                try:
                    answer = await self._direct.after(position, timeout_s=min(3.0, left_s))
                except Unavailable as error:
                    last = error
                    if self._client.is_closed:
                        raise
                    continue
                if answer.messages or patient:
                    try:
                        return self._contiguous(answer, position, stop)
                    except VerificationFailed as gap:
                        if not await only_behind(self._client, self._prefix, self._direct.stream, gap):
                            raise
                        last = Unavailable("log_unavailable", f"a replica lags: {gap.message}")
                        continue
                # A replica or mirror that lags behind the one that told us the end.
            if not patient:
                raise last or Unavailable(
                    "log_unavailable", f"stream {self._direct.stream} does not yet hold event {position + 1}"
                )
            log.log(level, "stream %s: still unreadable: %s", self._direct.stream, last)
            level = logging.DEBUG  # said once, until it can be read again

    def _contiguous(self, answer: DirectAnswer, position: int, stop: int | None) -> DirectAnswer:
        messages = answer.messages
        for expected, message in enumerate(messages, position + 1):
            if message.sequence != expected:
                raise VerificationFailed(
                    "sequence_gap",
                    f"event {expected} is missing: stream {self._direct.stream} continues "
                    f"with event {message.sequence}",
                    expected=expected,
                    found=message.sequence,
                )
        pending = answer.pending
        if stop is not None and messages and messages[-1].sequence > stop:
            messages, pending = messages[: stop - position], 0
        self.statistics.delivered += len(messages)
        return DirectAnswer(messages, pending)


class _Window:
    """Live events behind the position, put in order. ``newest`` is the highest sequence heard of."""

    def __init__(self, client: Client, position: int, statistics: LiveStatistics) -> None:
        self._client = client
        self._position = position
        self._statistics = statistics
        self._held: dict[int, StoredMessage] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._reconnects = client.stats["reconnects"]
        self._late_at: float | None = None
        self._fruitless = 0  # questions in a row that brought nothing: the mirror lags
        self.newest = position
        self.reconnected = False
        """Whether the connection was restored since the last question to the stream."""

    async def open(self, wildcard: str) -> None:
        """Raises Unavailable(bus_unreachable) when the connection was closed for good."""
        try:
            self._subscription = inline(
                await self._client.subscribe(
                    wildcard, cb=self._on_message, pending_msgs_limit=0, pending_bytes_limit=0
                )
            )
        except NatsError as error:
            raise Unavailable("bus_unreachable", f"the bus connection failed: {error}") from error

    async def close(self) -> None:
        if hasattr(self, "_subscription"):
            with contextlib.suppress(NatsError, OSError):
                await self._subscription.unsubscribe()

    async def _on_message(self, message: Msg) -> None:
        stored = carried_message(message)
        if stored is None:
            return  # not from the stream: permissions should not let it through
        if stored.sequence <= self._position or stored.sequence in self._held:
            self._statistics.repeated += 1
            return
        self.newest = max(self.newest, stored.sequence)
        if len(self._held) < HELD_MAX or stored.sequence == self._position + 1:
            self._held[stored.sequence] = stored
        self._notify()

    def heard_of(self, sequence: int) -> None:
        """The log has come this far."""
        if sequence > self.newest:
            self.newest = sequence
            self._notify()

    def take(self, until: int | None) -> list[StoredMessage]:
        """The events that follow the position without a gap, removed from the window."""
        run: list[StoredMessage] = []
        while (until is None or self._position < until) and (
            message := self._held.pop(self._position + 1, None)
        ) is not None:
            run.append(message)
            self._position += 1
        self._statistics.delivered += len(run)
        if run:
            self._late_at, self._fruitless = None, 0
        return run

    def advance(self, position: int) -> None:
        """The stream gave everything up to ``position``."""
        for sequence in [held for held in self._held if held <= position]:
            del self._held[sequence]
        self._position = position
        self._late_at, self._fruitless = None, 0

    async def wait(self, check_at: float, gap_wait_s: float) -> bool:
        """Until the next event is here (False), or the stream should be asked (True).

        Raises Unavailable(bus_unreachable) when the connection was closed for good.
        """
        loop = asyncio.get_running_loop()
        while True:
            if self._position + 1 in self._held:
                return False
            if self._client.is_closed:
                raise Unavailable("bus_unreachable", "the connection to the bus was closed")
            now = loop.time()
            if self._client.is_connected:
                if self._client.stats["reconnects"] != self._reconnects:
                    self._reconnects = self._client.stats["reconnects"]
                    self.reconnected = True
                    return True
                if now >= check_at:
                    return True
            if self.newest > self._position:
                self._statistics.held = max(self._statistics.held, len(self._held))
                if self._late_at is None:
                    pause_s = gap_wait_s * 2 ** min(self._fruitless, _FRUITLESS_MAX)
                    self._late_at = now + jittered_s(1.5 * pause_s, 1 / 3)
                if now >= self._late_at:
                    self._late_at = None
                    self._fruitless += 1
                    return True
            due = min(check_at, self._late_at or check_at, now + _TICK_S)
            await self._until(loop, max(now + 0.001, due))

    def _notify(self) -> None:
        """Something has arrived."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _until(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        """Wait until something arrives, or ``due`` has come. A bare future: every event wakes every agent."""
        self._waiter = loop.create_future()
        timer = loop.call_at(due, _expire, self._waiter)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None


def _expire(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
