"""Leadership: one of several controllers takes the requests, the others fold along, warm.

A controller leads from when it holds the lease until it loses it, gives it up, or cannot renew it
for the lease's lifetime by its own clock (:mod:`controlplane.controller.leadership.term`). Leading means to
be subscribed, to answer and to let time make decisions; who writes is settled by the append's condition, so
two that both believe to lead disturb but never contradict each other. A new leader answers nothing before its
fold has the log's last word (``CONSISTENCY.md`` beside this package says what follows from it).

A planned handover overlaps: the leader asks for a successor; one that is warm subscribes first, lets what
comes wait, and says so; only then the leader drains its own subscriptions and gives up the lease.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from controlplane.controller.leadership.lease import Lease
from controlplane.controller.leadership.term import Term, running_s
from controlplane.controller.replication.outcomes import Succeeded
from controlplane.controller.tasks import end
from events.bus.retry import DICE, happened, jittered_s
from events.errors import IsthmusError, Unavailable

log = logging.getLogger("isthmus.controller")

POLLS_PER_TTL = 5
"""How often within the lease's lifetime a follower looks, and three of five renewals may fail."""

BACKOFF_TTLS = 2.0
"""Lifetimes of the lease that a controller which cannot decide leaves between two tries to lead."""

ASIDE_TTLS = 4.0
"""Lifetimes of the lease for which a controller that stepped aside does not try to lead."""

PROMISE_S = 5.0
"""How long a successor that said "ready" stays subscribed without holding the lease."""


class LeaderDuties(Protocol):
    """What leading switches on and off."""

    async def prepare(self) -> None:
        """Take requests from now on, and let them wait. Idempotent. Cancelled, it may be repeated."""
        ...

    async def begin(self, term: Term) -> None:
        """Answer requests, from the log's last word on. May be repeated for the same term.

        Raises Unavailable when that cannot be had now, and Succeeded when another controller's term has begun.
        Cancelled, it may be begun again.
        """
        ...

    async def end(self) -> None:
        """Take no more requests. Those taken are answered first if the term is valid, else told to ask again.

        Idempotent. Cancelled, some that were taken may not be answered: they ask again.
        """
        ...


@dataclass(slots=True, eq=False)
class Leadership:
    """Holds the lease while it can, and tells ``duties`` to begin and to end.

    ``ready`` says whether this controller is warm.

    ``halted`` says that it will not be, because its fold has halted: then it leads only where nobody else
    does, so that questions are answered, and steps aside for whoever can decide.
    """

    lease: Lease
    duties: LeaderDuties
    name: str
    ready: Callable[[], bool]
    on_change: Callable[[bool], None] = lambda _leading: None
    halted: Callable[[], bool] = lambda: False
    jitter: random.Random = DICE
    clock: Callable[[], float] = running_s
    _term: Term | None = None
    _promised_until_s: float = 0.0
    _hurry: asyncio.Event = field(default_factory=asyncio.Event)
    _stepping_down: bool = False
    _aside_until_s: float = 0.0
    leading: bool = False
    """Whether this controller believes to hold the lease; see also :attr:`in_office`."""
    serving: bool = False
    """Whether it leads and takes requests."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set and replaced at every change of ``leading`` and ``serving``."""

    @property
    def in_office(self) -> bool:
        """Whether this controller leads in a term that is valid now, by a clock that counts pauses."""
        return self.leading and self._term is not None and self._term.valid

    async def run(self) -> None:
        """Follow and lead, for ever. On cancellation it ends leading, and gives up the lease."""
        try:
            while True:
                term = self._term = await self._until_acquired()
                self._set_leading(True)
                log.info("controller %s leads", self.name)
                beginning = asyncio.create_task(self._begin(term), name="begin the term")
                try:
                    await self._until_lost(term, beginning)
                finally:
                    term.end()
                    await end([beginning])
                    self._set_leading(False)
                log.warning("controller %s leads no longer", self.name)
                await self.duties.end()
        finally:
            if self._term is not None:
                self._term.end()
            if self.leading:
                self._set_leading(False)
            await self.duties.end()
            with suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(1.0):
                    await self.lease.release()

    async def _begin(self, term: Term) -> None:
        """Serve once the fold has the log's last word; tried for as long as the term lasts."""
        said = ""
        while True:
            try:
                await self.duties.prepare()
                await self.duties.begin(term)
                self._set_serving(True)
            except Succeeded:
                log.warning("controller %s: another one leads already", self.name)
                term.end()
            except IsthmusError as error:
                if error.message != said:
                    said = error.message
                    log.warning("controller %s leads and cannot answer yet: %s", self.name, said)
                await asyncio.sleep(self.lease.ttl_s / POLLS_PER_TTL)
                continue
            return

    async def step_down(self) -> None:
        """Give up the lease after the requests taken are answered, and do not ask for it again.

        Cancelled, the lease may be kept until it runs out by itself.
        """
        self._stepping_down = True
        await self._give_up()

    async def step_aside(self) -> None:
        """The same, but lead again some time later if nobody else does.

        Cancelled, the lease may be kept until it runs out by itself.
        """
        self._aside_until_s = asyncio.get_running_loop().time() + ASIDE_TTLS * self.lease.ttl_s
        await self._give_up()

    async def _give_up(self) -> None:
        await self.duties.end()
        self._set_leading(False)
        await self.lease.release()

    def promise(self) -> None:
        """The leader is about to step down: look more often for a while."""
        self._promised_until_s = asyncio.get_running_loop().time() + PROMISE_S
        self._hurry.set()

    def _set_leading(self, leading: bool) -> None:
        self.leading = leading
        self.on_change(leading)
        self._set_serving(False)

    def _set_serving(self, serving: bool) -> None:
        self.serving = serving
        self.changed.set()
        self.changed = asyncio.Event()

    async def _until_acquired(self) -> Term:
        """The new term. It counts from before the lease was asked for."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            backoff_until_s = max(self._aside_until_s, began_s + BACKOFF_TTLS * self.lease.ttl_s)
            willing = self.ready() or (self.halted() and loop.time() >= backoff_until_s)
            if willing and not self._stepping_down:
                began_s = loop.time()
                asked_s = self.clock()
                with suppress(Unavailable):
                    if await self.lease.acquire():
                        self._promised_until_s = 0.0
                        return Term(asked_s + self.lease.ttl_s, clock=self.clock)
            promised = self._promised_until_s > loop.time()
            if self._promised_until_s and not promised:
                self._promised_until_s = 0.0
                await self.duties.end()  # somebody else got it
            self._hurry.clear()
            poll_s = jittered_s(self.lease.ttl_s / POLLS_PER_TTL, 0.2, dice=self.jitter)
            await happened(self._hurry, within_s=0.05 if promised else poll_s)

    async def _until_lost(self, term: Term, beginning: asyncio.Task[None]) -> None:
        """Renew until that fails. The lifetime counts from before the renewal was sent.

        Raises what ended ``beginning``: one that will never serve must not keep the lease from others.
        """
        while True:
            await asyncio.sleep(self.lease.ttl_s / POLLS_PER_TTL)
            if beginning.done():
                beginning.result()
            if not self.leading or term.ended:  # it was given up meanwhile: renewing would take it again
                return
            asked_s = self.clock()
            try:
                if not await self.lease.renew():
                    return
                term.extend(asked_s + self.lease.ttl_s)
            except Unavailable as error:
                if not term.valid:
                    log.warning("the lease ran out unrenewed: %s", error.message)
                    return


class LeadershipTransfer:
    """Both sides of a planned change of the leader, over plain requests on the bus."""

    def __init__(
        self, client: Client, cluster: str, leadership: Leadership, duties: LeaderDuties, *, name: str
    ) -> None:
        self._nats = client
        self._subject = f"isthmus.{cluster}.controllers.handover"
        self._leadership = leadership
        self._duties = duties
        self._name = name
        self._ready = leadership.ready
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        """Listen for leaders that are about to stop. Cancelled, it listens or it does not."""
        self._subscription = await self._nats.subscribe(self._subject, cb=self._on_request)

    async def yield_leadership(self, *, timeout_s: float = 1.0) -> bool:
        """Step aside if another is ready to lead; whether one was.

        Cancelled, it may lead still, and another may be waiting to.
        """
        if not self._leadership.leading:
            return False
        with suppress(NatsError, TimeoutError, Unavailable):
            reply = await self._nats.request(self._subject, self._name.encode(), timeout=timeout_s)
            log.info("controller %s yields to %s", self._name, reply.data.decode(errors="replace"))
            await self._leadership.step_aside()
            return True
        return False

    async def leave(self, *, timeout_s: float = 1.0) -> None:
        """Before stopping: find a successor that is subscribed already, then step down.

        Without one within ``timeout_s`` the lease is given up all the same. Cancelled, the lease may be kept
        until it runs out by itself.
        """
        if not self._leadership.leading:
            return
        try:
            if self._subscription is not None:
                # Not listening itself, it hears at once when nobody else is there.
                await self._subscription.unsubscribe()
            reply = await self._nats.request(self._subject, self._name.encode(), timeout=timeout_s)
            log.info("controller %s hands over to %s", self._name, reply.data.decode(errors="replace"))
        except (NatsError, TimeoutError):
            log.info("controller %s stops; no successor answered", self._name)
        with suppress(Unavailable):
            await self._leadership.step_down()

    async def _on_request(self, message: Msg) -> None:
        if self._leadership.leading or not self._ready() or message.data.decode() == self._name:
            return
        await self._duties.prepare()
        self._leadership.promise()
        await message.respond(self._name.encode())
