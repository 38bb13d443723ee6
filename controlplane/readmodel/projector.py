"""Feeds the read model: from the log until it has caught up, then from this process's own broadcast.

A poison event (one that cannot be applied) stops the projection with an alarm that names it, unless the log
says that it is parked (:mod:`events.parking`): then it is left out. Where its rows were written before that
was known, the read model is made anew without it. A stopped projection does not stop the controller:
commands go on, and a rebuild that is switched in is picked up here.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from controlplane.changes import Changes, Lagged, Subscription
from controlplane.readmodel.asof import parked_rows
from controlplane.readmodel.rebuild import rebuild
from controlplane.readmodel.store import Store, current_generation, generation_file, is_damage, prune
from events.bus.retry import happened
from events.codec import Recorded
from events.errors import IsthmusError, Refused, Unavailable, VerificationFailed
from events.log import LogReader
from events.reading import ParkedEvents, verified

log = logging.getLogger("isthmus.controller")

T = TypeVar("T")

BATCH = 2000
"""Events of one transaction: large enough that its fixed cost vanishes, small enough to be live."""

BURST = 500
"""Events at once from which on more are likely to follow: half of a full append."""

GATHER = 20_000
"""Events of a burst that are left waiting while more come in; so many may also come while they are written."""

GATHER_S = 0.5
"""Longest time that they are left waiting."""

GAP_S = 0.1
"""A burst is over when nothing has come for this long."""

LOOK_S = 1.0
"""How often a rebuilt generation is looked for."""


class _Damaged(Exception):
    """The current file is not what was written."""


class _Switched(Exception):
    """Another generation is current."""


class ProjectionObserver(Protocol):
    """Who is told how the projection goes. Both methods return at once."""

    def projected(self, *, last: int, count: int, took_s: float) -> None:
        """The read model holds everything up to ``last``; ``count`` events took ``took_s`` seconds."""
        ...

    def alarmed(self, name: str, error: IsthmusError) -> None:
        """The projection has stopped: a person must look."""
        ...


class Projector:
    """Owns the store of one directory while it runs; ``on_projected`` is called with each new checkpoint."""

    def __init__(
        self,
        directory: Path,
        event_log: LogReader,
        changes: Changes,
        *,
        observer: ProjectionObserver,
        on_projected: Callable[[int], None] = lambda _sequence: None,
    ) -> None:
        self._directory = directory
        self._log = event_log
        self._changes = changes
        self._observer = observer
        self._on_projected = on_projected
        self._parked = ParkedEvents()
        self._moved = asyncio.Event()
        self._asked = asyncio.Event()
        self._askers = 0
        self._opening = asyncio.Lock()
        self.store: Store | None = None
        self._damage: sqlite3.Error | None = None
        self.stalled: IsthmusError | None = None
        """Why the projection has stopped, while it has."""

    @property
    def sequence(self) -> int:
        """Everything up to here can be queried."""
        return self.store.checkpoint.sequence if self.store else 0

    async def open(self) -> Store:
        """Open the store (``run`` does, too). Cancelled, it is open or it is not; safe to repeat."""
        async with self._opening:
            if self.store is None:
                self.store = await Store.open(self._directory, self._log.cluster)
            return self.store

    async def query(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Ask the store. Raises Unavailable(log_unavailable) when it shows damage: then it is made anew.

        Cancelled, the question ends in its thread.
        """
        store = await self.open()
        try:
            return await store.run(question)
        except sqlite3.Error as error:
            if not is_damage(error):
                raise
            self._damage = error
            raise Unavailable(
                "log_unavailable", f"the read model was damaged ({error}) and is being made anew; ask again"
            ) from error

    async def close(self) -> None:
        """Close the store. Cancelled, the connection may not be closed yet."""
        store, self.store = self.store, None
        if store is not None:
            await store.close()

    async def reached(self, sequence: int, *, timeout_s: float = 5.0) -> None:
        """Wait until ``sequence`` is projected (read your own writes).

        Raises the reason when the projection has stopped, and Unavailable(log_unavailable) in time. Cancelled,
        only the waiting ends.
        """
        if self.sequence >= sequence:
            return
        self._askers += 1
        self._asked.set()
        try:
            async with asyncio.timeout(timeout_s):
                while self.sequence < sequence:
                    if self.stalled is not None:
                        raise self.stalled
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            raise Unavailable(
                "log_unavailable",
                f"the read model is at {self.sequence}, it did not reach {sequence} within {timeout_s:g} s",
                sequence=self.sequence,
            ) from None
        finally:
            self._askers -= 1
            if not self._askers:
                self._asked.clear()

    async def run(self) -> None:
        """Project for ever. Cancelled, the file holds whole transactions only: :meth:`close` it."""
        pause_s = 0.1
        while True:
            try:
                await self._project()
            except _Switched:
                await self._reopen()
            except Lagged:
                log.info("the projection fell behind at %d; reading the log", self.sequence)
            except Unavailable as error:
                log.warning("the projection waits for the log: %s", error.message)
                await asyncio.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)
                continue
            except _Damaged as damage:
                log.warning("the read model is damaged (%s): it is made anew from the log", damage)
                await self.close()
                self.store = await Store.renew(self._directory, self._log.cluster)
                continue
            except sqlite3.Error as error:
                if is_damage(error):
                    self._damage = error
                    continue
                # A full or failing disk. The read model is a cache: the controller works on without it.
                self.stalled = Refused(
                    "internal",
                    f"the read model in {self._directory} cannot be written ({error}); it stands at "
                    f"{self.sequence} and is tried again",
                )
                self._moved.set()
                self._observer.alarmed("disk", self.stalled)
                await self.close()
                await asyncio.sleep(pause_s)
                pause_s = min(5.0, pause_s * 2)
                continue
            except VerificationFailed as error:
                if await self._leave_out():
                    continue
                self.stalled = error
                self._moved.set()
                self._observer.alarmed("projection", error)
                await self._until_switched()
                await self._reopen()
            pause_s = 0.1

    async def _project(self) -> None:
        self._look()
        store = await self.open()
        subscription = self._changes.subscribe(limit=GATHER)
        try:
            await self._catch_up(store)
            while True:
                self._look()
                try:
                    async with asyncio.timeout(LOOK_S):
                        run = await anext(subscription)
                except TimeoutError:
                    continue
                except StopAsyncIteration:
                    await asyncio.Event().wait()  # the controller is stopping and will cancel this task
                    continue
                run = await self._gather(subscription, run)
                done = store.checkpoint.sequence
                fresh = [recorded for recorded in run if recorded.sequence > done]
                if fresh and fresh[0].sequence != done + 1:
                    raise Lagged
                await self._apply(store, fresh)
        finally:
            subscription.close()

    async def _gather(self, subscription: Subscription, run: list[Recorded]) -> list[Recorded]:
        """The rest of a burst, unless somebody waits for what has come of it.

        Deciding and projecting share one interpreter: in a burst of commands their answers come first.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + GATHER_S
        while BURST <= len(run) < GATHER and loop.time() < until:
            if await happened(self._asked, within_s=min(GAP_S, until - loop.time())):
                return run
            more = subscription.take()
            if not more:
                return run
            run += more
        return run

    async def _catch_up(self, store: Store) -> None:
        """Everything that the log holds now. The next batch is verified and decoded while one is written."""
        writing: asyncio.Task[None] | None = None
        try:
            async for recorded, _, _ in verified(self._log, store.checkpoint, self._parked.known):
                if writing is not None:
                    await writing
                writing = asyncio.create_task(self._apply(store, recorded))
            if writing is not None:
                await writing
        finally:
            if writing is not None and not writing.done():
                # What is under way is one transaction: it ends by itself, with its checkpoint.
                await asyncio.gather(writing, return_exceptions=True)

    async def _apply(self, store: Store, events: Sequence[Recorded]) -> None:
        clock = asyncio.get_running_loop().time
        for start in range(0, len(events), BATCH):
            part = events[start : start + BATCH]
            before = clock()
            await store.apply(part)
            self._on_projected(store.checkpoint.sequence)
            self.stalled = None
            self._moved.set()
            self._observer.projected(last=store.checkpoint.sequence, count=len(part), took_s=clock() - before)

    async def _leave_out(self) -> bool:
        """Whether the log says of more events than are known here that they are parked."""

        async def begin_anew(_parked: frozenset[int]) -> None:
            report = await rebuild(self._log, self._directory)
            log.info("the read model was made anew without the parked events: %s", report.file)
            await self._reopen()

        try:
            store = await self.open()
            done = store.checkpoint.sequence
            left_out = await store.run(lambda connection: parked_rows(connection, done))
            return await self._parked.learn(self._log, sequence=done, left_out=left_out, begin_anew=begin_anew)
        except (IsthmusError, sqlite3.Error) as error:
            log.warning("the parked events cannot be left out yet: %s", error)
            return False

    def _look(self) -> None:
        damage, self._damage = self._damage, None
        if damage is not None:
            raise _Damaged(str(damage))
        number = current_generation(self._directory)
        if self.store is not None and number and generation_file(self._directory, number) != self.store.path:
            raise _Switched

    async def _until_switched(self) -> None:
        while True:
            try:
                self._look()
            except _Switched:
                return
            await asyncio.sleep(LOOK_S)

    async def _reopen(self) -> None:
        await self.close()
        self.stalled = None
        store = await self.open()
        self._moved.set()
        prune(self._directory, current_generation(self._directory))
        log.info("the read model is now %s, at %d", store.path.name, store.checkpoint.sequence)
