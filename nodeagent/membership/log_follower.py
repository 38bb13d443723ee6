"""Follows the log: joins, reads, verifies, remembers, folds, and hands what changed to the reconciler.

The bus may be away at any moment, for any time: then nothing happens here, and nothing in the kernel.
Membership is read from the log only; the join command merely asks for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import cast

from msgspec.structs import replace
from nats.aio.client import Client

from events.bus.client import ControllerClient
from events.bus.connection import connect
from events.bus.enrolment import keep_fresh
from events.bus.retry import backoff_s, happened, jittered_s
from events.chain import CHAIN_HEADER
from events.codec import StoredMessage, UnknownEvent
from events.errors import BadRequest, IsthmusError, Unavailable, VerificationFailed
from events.jetstream.live import LiveReader
from events.jetstream.snapshots import SnapshotBucket
from events.log import LogReader, ReadBatch
from events.protocol.commands import INSTANCE, CommandReply, JoinNode
from events.reading import ParkedEvents, step
from events.telemetry.logs import at_sequence
from events.telemetry.role import Telemetry
from events.types import CidrAppended
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.membership.cache import Cache, Entry
from nodeagent.membership.cache_check import difference, view_from_log
from nodeagent.membership.node_key import Told, again_s, join_fields
from nodeagent.membership.peers import PeerChange
from nodeagent.membership.session import BusSession
from nodeagent.membership.view import View
from nodeagent.tracing import processing, receiving

log = logging.getLogger("isthmus.agent.bus")

RETRY_FIRST_S, RETRY_LONGEST_S = 0.2, 5.0
REFUSED_RETRY_S = 15.0
ROOM_SPREAD_S = 0.5
"""Nodes that wait for a range all see that there is room at the same moment: they ask within this time."""

LEAP_EVENTS = 2000
"""Events behind from which a snapshot is worth its transfer."""

HELD = "identity_twice"
"""The refusal of a machine whose identity another one has, which reports."""
HOPELESS = frozenset(
    {"node_fenced", "node_name_invalid", "forbidden", "static_range_refused", "bad_request", "wrong_cluster"}
)
"""Refusals that no waiting cures: a node that is no member yet gives up with them."""


class LogFollower:
    """One connection to the bus, for as long as it runs.

    ``apply(view, changes)`` takes the rows' changes of consecutive events. ``underlay`` says the
    address to join with, ``key`` what a join says of the own key (:func:`node_key.join_fields`).
    """

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        cache: Cache,
        conditions: Conditions,
        telemetry: Telemetry,
        *,
        session: BusSession | None = None,
        apply: Callable[[View, Sequence[PeerChange]], Awaitable[None]],
        underlay: Callable[[], str],
        key: Callable[[], Told] = lambda: Told("", 0, ""),
    ) -> None:
        self._config = config
        self.view = view
        self._cache = cache
        self._conditions = conditions
        self._telemetry = telemetry
        self._apply = apply
        self._underlay, self._key = underlay, key
        self.session = session or BusSession()
        self._stream: LiveReader | None = None
        self._parked = ParkedEvents(view.parked)
        self._rejoin = asyncio.Event()
        self._room = asyncio.Event()
        self._moved = False
        self._memory_checked = False

    def rejoin(self) -> None:
        """Ask for membership (again): at the start, and when the underlay address changed."""
        self._rejoin.set()

    def moved(self) -> None:
        """The node's address changed: its connection is dead without knowing it, and its peers must be told."""
        self._moved = True
        self._rejoin.set()

    async def run(self) -> None:
        """Until cancelled. Raises IsthmusError when a node that is no member can never become one."""
        self.session.client = await self._connect()
        try:
            self._connected(on=True)
            self.rejoin()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._join_whenever_asked(self.session.client), name="join")
                tasks.create_task(self._read_for_ever(self.session.client), name="read")
                if self._config.bus.credentials:
                    tasks.create_task(
                        keep_fresh(self.session.client, Path(self._config.bus.credentials)), name="credentials"
                    )
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            client, self.session.client = self.session.client, None
            await client.close()

    async def _connect(self) -> Client:
        failures = 0
        while True:
            try:
                client = await connect(
                    self._config.bus,
                    name=f"isthmus-agent/{self._config.node}",
                    on_disconnect=self._lost,
                    on_reconnect=self._again,
                )
            except Unavailable as error:
                self._conditions.set("bus", error.message)
                await asyncio.sleep(_again_s(failures))
                failures += 1
                continue
            self._conditions.clear("bus")
            return client

    async def _lost(self) -> None:
        self._connected(on=False)
        if self.session.client is None:
            return  # we hung up ourselves
        self._conditions.set("bus", "the connection to the bus is lost; the rows stay as they are")

    async def _again(self) -> None:
        self._connected(on=True)
        self._conditions.clear("bus")

    def _connected(self, *, on: bool) -> None:
        if on or self.session.connected:  # a try that failed is no contact
            self.session.last_at = time.monotonic()
        self.session.connected = on

    # ------------------------------------------------------------------ joining

    async def _join_whenever_asked(self, client: Client) -> None:
        controller = ControllerClient(
            client, self._config.cluster, actor=f"node/{self._config.node}", telemetry=self._telemetry
        )
        tries = 0
        while True:
            asked = await happened(self._rejoin, within_s=again_s(tries))
            if not asked and self._key_known():
                continue
            tries = 0 if asked else tries + 1
            self._rejoin.clear()
            if self._moved:
                self._moved = False
                await client.force_reconnect()
            failures = 0
            while True:
                self._room.clear()
                try:
                    await self._join(controller)
                except Unavailable as error:
                    self._conditions.set("join", error.message)
                    self.session.asked.set()
                    pause_s = _again_s(failures)
                except IsthmusError as error:
                    self._conditions.set("join", error.message)
                    self._hold(held=error.code == HELD)
                    if error.code in HOPELESS and not self.view.joined:
                        raise
                    # A cluster that is about to be defined is a matter of moments, other refusals are not.
                    soon = error.code in {"cluster_not_defined", HELD}
                    pause_s = _again_s(failures) if soon else jittered_s(REFUSED_RETRY_S, 0.3)
                else:
                    self._conditions.clear("join")
                    self._hold(held=False)
                    self.session.joined = True
                    break
                failures += 1
                await self._wait_for_room(pause_s)

    def _hold(self, *, held: bool) -> None:
        self.session.held = held
        self.session.asked.set()
        if held:
            self.session.admitted.clear()
        else:
            self.session.admitted.set()

    async def _wait_for_room(self, pause_s: float) -> None:
        """Until it is time to ask again, or the container network has grown."""
        if await happened(self._room, within_s=pause_s):
            await asyncio.sleep(jittered_s(ROOM_SPREAD_S / 2, 1.0))

    async def _join(self, controller: ControllerClient) -> None:
        underlay = self._underlay()
        command = JoinNode(
            node=self._config.node,
            uid=self.view.uid,
            kind=self._config.kind,
            underlay=underlay,
            announced=self._config.announced,
            site=self._config.site,
        )
        reply = await self._send(controller, command)
        if self._stream is not None:  # our own rows are behind this event: do not wait for the next one
            self._stream.heard_of(reply.sequence)
        log.info("joined as %s with %s: %s", self._config.node, underlay, reply.result.get("cidr", "?"))

    async def _send(self, controller: ControllerClient, command: JoinNode) -> CommandReply:
        """With the own key; controllers before 0.3 refuse what they do not know, and get it without."""
        headers = {INSTANCE: self.session.instance}
        keyed = replace(command, **join_fields(self._key(), self._config.nat))
        try:
            return await controller.send(keyed, headers=headers)
        except BadRequest as error:
            if "node_key" not in error.message:
                raise
        return await controller.send(command, headers=headers)

    def _key_known(self) -> bool:
        """Whether the log has the own key, if this node is a member."""
        own = self.view.members.get(self._config.node)
        return own is None or own.uid != self.view.uid or (own.key, own.port, own.beside) == self._key()

    # ------------------------------------------------------------------ reading

    async def _read_for_ever(self, client: Client) -> None:
        stream = self._stream = LiveReader(
            client,
            self._config.cluster,
            prefix=self._config.bus.api_prefix,
            recheck=lambda: self._check_same(stream),
        )
        failures = 0
        while True:
            pause_s = _again_s(failures)
            try:
                await self._check_same(stream)
                await self._check_memory(client, stream)
                await self._leap(client, stream)
                read = stream.read(after=self.view.sequence, follow=True)
                reader = cast("AsyncGenerator[ReadBatch, None]", read)
                async with aclosing(reader) as batches:  # it is closed before anything else is asked
                    async for batch in batches:
                        self._conditions.clear("log")
                        self.session.replaced = False
                        failures, pause_s = 0, _again_s(0)
                        await self.take(batch)
            except VerificationFailed as error:
                if await self._leave_out(stream):
                    continue
                # Our rows are right up to here; nothing that follows can be trusted.
                self._conditions.set("log", error.message)
                self.session.replaced = error.code == "log_replaced"
                pause_s = jittered_s(REFUSED_RETRY_S, 0.3)
            except Unavailable as error:
                self._conditions.set("log", error.message)
                failures += 1
            await asyncio.sleep(pause_s)

    async def _leave_out(self, stream: LogReader) -> bool:
        """Whether the log says of more events than are known here that they are parked.

        If the view was made with some of them, it is made again without.
        """

        async def begin_anew(parked: frozenset[int]) -> None:
            await self._become(await view_from_log(stream, self.view, parked))

        return await self._parked.learn(
            stream, sequence=self.view.sequence, left_out=self.view.parked, begin_anew=begin_anew
        )

    async def _check_memory(self, client: Client, stream: LogReader) -> None:
        """Once in a life: whether the remembered view is what the log says; if not, it is made anew."""
        if self._memory_checked:
            return
        if self.view.sequence:
            bucket = SnapshotBucket(client, self._config.cluster, prefix=self._config.bus.api_prefix)
            fresh = await view_from_log(stream, self.view, self._parked.known, bucket=bucket, heard=self._heard)
            wrong = difference(self.view, fresh)
            if wrong:
                log.error("the remembered view differs from the log (%s) and is made anew", wrong)
                await self._become(fresh)
        self._memory_checked = True

    def _heard(self) -> None:
        self.session.last_at = time.monotonic()

    async def _become(self, fresh: View) -> None:
        changes = self.view.become(fresh)
        self._snapshot_cache()
        await self._apply(self.view, changes)

    async def _check_same(self, stream: LiveReader) -> None:
        """Raises VerificationFailed(log_replaced) when the log is not the one followed, Unavailable."""
        try:
            await stream.check_same(self.view.head)
        except VerificationFailed as error:
            raise VerificationFailed(
                error.code,
                f"{error.message}. The rows stay as they are. If that log is the right one: stop the agent, "
                f"`{self._config.quote('isthmus agent forget --yes')}`, start it",
                **error.details,
            ) from error

    async def _leap(self, client: Client, stream: LogReader) -> None:
        """Far behind, take the latest snapshot instead of everything since; without one, read it all."""
        head = await stream.head()
        if head.sequence - self.view.sequence < LEAP_EVENTS:
            return
        try:
            bucket = SnapshotBucket(client, self._config.cluster, prefix=self._config.bus.api_prefix)
            snapshot = await bucket.latest()
        except IsthmusError as error:
            log.info("no snapshot is used: %s", error.message)
            return
        if snapshot is None or snapshot.sequence <= self.view.sequence:
            return
        changes = self.view.leap(snapshot)
        self.view.last_event_at = snapshot.made_at.timestamp()
        log.info("took the snapshot at event %d (%d members)", snapshot.sequence, len(snapshot.members))
        self._snapshot_cache()
        await self._apply(self.view, changes)

    def _snapshot_cache(self) -> None:
        try:
            self._cache.snapshot(self.view)
        except OSError as error:
            self._conditions.set("cache", f"the local cache cannot be written: {error.strerror}")

    async def take(self, batch: ReadBatch) -> None:
        """Verify, fold, remember and hand on what was read. Raises VerificationFailed.

        Cancelled, the view may have taken in a part, of which the cache knows: a new follower begins there.
        """
        self.session.last_at = time.monotonic()
        self.session.pending = batch.pending
        if batch.messages:
            with at_sequence(batch.messages[-1].sequence):
                await self._process(batch.messages)
        if batch.pending == 0:
            self.session.caught_up.set()

    async def _process(self, messages: Sequence[StoredMessage]) -> None:
        if not self._telemetry.tracing:
            await self._fold(messages)  # without spans a join costs a few dozen microseconds
            return
        cluster, live = self._config.cluster, self.session.caught_up.is_set()
        with processing(self._telemetry, cluster, self._config.node, messages, live=live):
            await self._fold(messages)

    async def _fold(self, messages: Sequence[StoredMessage]) -> None:
        """The rows first, the journal behind them: a packet waits for the rows only.

        A process killed between the two starts with a journal that is one batch short; the log has it.
        """
        before = self.view.sequence
        try:
            if not self._telemetry.tracing:
                changes, failure = self._take_in(messages)
                await self._apply(self.view, changes)
            else:
                with receiving(self._telemetry, self._config.cluster, len(messages)):
                    changes, failure = self._take_in(messages)
                with self._telemetry.span("apply", attributes={"isthmus.changes": len(changes)}) as span:
                    await self._apply(self.view, changes)
                    if changes and span.is_recording():  # no more lines than traces: no storm in full
                        first, last = messages[0].sequence, messages[-1].sequence
                        log.info("events %d to %d: %d changes of peers handed on", first, last, len(changes))
        finally:
            self._remember(messages[: self.view.sequence - before])
        if failure is not None:
            raise failure

    def _take_in(self, messages: Sequence[StoredMessage]) -> tuple[list[PeerChange], VerificationFailed | None]:
        """Fold the messages up to the first that is not sound."""
        view, parked = self.view, self._parked.known
        changes: list[PeerChange] = []
        for message in messages:
            sequence = message.sequence
            try:
                head, event = step(view.head, message, parked)
                changes += view.apply(sequence, event)
            except VerificationFailed as error:
                return changes, error  # what came before it is sound, and is applied
            if isinstance(event, UnknownEvent):
                # A newer controller's event: rows of members come from types that this agent knows.
                log.info(
                    "event %d has the type %s, which this agent does not know",
                    sequence,
                    event.type,
                    extra={"isthmus": {"sequence": sequence}},
                )
            view.head = head
            if type(event) is CidrAppended:
                self._room.set()
        return changes, None

    def _remember(self, messages: Sequence[StoredMessage]) -> None:
        """Append to the journal what has become part of the view."""
        if not messages:
            return
        self.view.last_event_at = decided_at = _decided_at(messages[-1])
        try:
            self._cache.append(
                [
                    Entry(m.sequence, m.headers[CHAIN_HEADER], m.headers.get("ce-type", ""), m.body, decided_at)
                    for m in messages
                    if m.sequence not in self._parked.known  # the journal then ends here; the log goes on
                ]
            )
            if self._cache.full:
                self._cache.snapshot(self.view)
            self._conditions.clear("cache")
        except OSError as error:
            self._conditions.set("cache", f"the local cache cannot be written: {error.strerror}")


def _again_s(failures: int) -> float:
    return backoff_s(failures, first_s=RETRY_FIRST_S, longest_s=RETRY_LONGEST_S)


def _decided_at(message: StoredMessage) -> float:
    """When the controller decided it (Unix seconds); 0 when the header says nothing readable."""
    try:
        return datetime.fromisoformat(message.headers["ce-time"]).timestamp()
    except (KeyError, ValueError):
        return 0.0
