"""The controller's subscriptions on the bus: commands, queries, service discovery.

Only the leading controller subscribes, in a queue group, so that a planned handover can overlap:
the successor subscribes before the predecessor drains. Answers go out through one task, in the
order in which they became known.

A reply subject is not checked by the server's permissions, so whoever may send a command could have
the controller publish its answer *as an event*. Hence answers go to inboxes only: subjects that
start with an underscore, which no stream of ours stores.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from controlplane.controller.agents.pod_facts import PodFacts
from controlplane.controller.commands.batch import not_leading
from controlplane.controller.commands.budgets import NodeBudgets
from controlplane.controller.commands.committer import Committer
from controlplane.controller.commands.discovery import Discovery
from controlplane.controller.commands.replies import encode_error, encode_reply
from controlplane.controller.requests import parse
from events.bus.nats_fastpath import Outgoing, forget, inline, publish_all
from events.errors import IsthmusError, Unavailable
from events.protocol.commands import Command, CommandReply

log = logging.getLogger("isthmus.controller")

QUEUE_GROUP = "controllers"
ANSWERS_LIMIT = 65_536
"""Answers that may wait for the connection; beyond it they are dropped and the caller asks again by id."""

_new = tuple.__new__  # a named tuple's own constructor is a Python function

Query = Callable[[str, bytes], Awaitable[bytes]]
"""Name and request body → response body; raises IsthmusError."""


class Endpoint:
    """Takes requests off the bus for one committer, while it is open."""

    def __init__(
        self,
        client: Client,
        cluster: str,
        committer: Committer,
        query: Query,
        *,
        instance: str,
        budgets: NodeBudgets | None = None,
        pods: PodFacts | None = None,
    ) -> None:
        """``pods`` takes what nodes tell of their pods, of which nothing is decided."""
        self._nats = client
        self._cluster = cluster
        self._committer = committer
        self._query = query
        self._budgets = budgets
        self._pods = pods
        self._discovery = Discovery(client, cluster, instance=instance)
        self._subscriptions: list[Subscription] = []
        self._opening = 0
        self._answers: deque[Outgoing] = deque(maxlen=ANSWERS_LIMIT)
        self._wake = asyncio.Event()
        self._sent = asyncio.Event()
        self._sent.set()

    async def open(self) -> None:
        """Subscribe. Idempotent. Raises Unavailable when the bus does not take it: nothing is subscribed then.

        Cancelled, :meth:`close` takes back what was subscribed.
        """
        if self._subscriptions:
            return
        base = f"isthmus.{self._cluster}"
        self._opening += 1
        opening = self._opening

        def take(subject: str, reply: str, headers: Mapping[str, str] | None, body: bytes) -> None:
            self._on_command(subject, reply, headers, body, opening)

        async def on_command(message: Msg) -> None:
            take(message.subject, message.reply, message.headers, message.data)

        try:
            commands = await self._nats.subscribe(f"{base}.command.>", queue=QUEUE_GROUP, cb=on_command)
            self._subscriptions.append(inline(commands, take))
            queries = await self._nats.subscribe(f"{base}.query.>", queue=QUEUE_GROUP, cb=self._on_query)
            self._subscriptions.append(queries)
            await self._discovery.open()
            await self._nats.flush()
        except (NatsError, TimeoutError) as error:
            await self.close(decide=False, timeout_s=0.5)
            raise Unavailable("bus_unreachable", f"the bus does not take subscriptions: {error}") from error

    async def close(self, *, decide: bool = True, timeout_s: float = 2.0) -> None:
        """Stop taking requests, wait until those taken are answered and the answers are sent.

        With ``decide`` what the server has sent already is still decided. Without, it is answered with the
        advice to ask again: it may have waited in a socket for longer than this controller's term lasted.
        Cancelled, no further request is taken, and answers may not have been sent.
        """
        open_, self._subscriptions = self._subscriptions, []
        if not decide:
            self._opening += 1
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            with suppress(NatsError, TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._discovery.close()
                    for subscription in open_:
                        # The server stops sending; what it already sent is still handled.
                        await subscription.drain()  # type: ignore[no-untyped-call]  # nats-py's gap
                    await self._committer.drained(timeout_s=timeout_s)
                    self._opening += 1
                    await self._sent.wait()
                    await self._nats.flush()
        finally:
            await self._give_back(open_)

    async def _give_back(self, subscriptions: Sequence[Subscription]) -> None:
        """What the server has not confirmed: else a connection that is restored would subscribe again.

        A controller that leads no longer would go on taking its share of the requests, and refuse them.
        """
        for subscription in subscriptions:
            with suppress(NatsError, OSError):
                await subscription.unsubscribe()
            forget(subscription)

    async def run(self) -> None:
        """Send answers for ever.

        Cancelled, answers that wait are lost: their callers ask again by their ids.
        """
        while True:
            while not self._answers:
                self._sent.set()
                self._wake.clear()
                await self._wake.wait()
            answers, self._answers = self._answers, deque(maxlen=ANSWERS_LIMIT)
            try:
                await publish_all(self._nats, answers)
            except NatsError as error:
                # The callers hear nothing and ask again by their command ids.
                log.warning("answers (at most %d) could not be sent: %s", len(answers), error)

    # --- requests -------------------------------------------------------------------------------------

    def _on_command(
        self, subject: str, reply: str, headers: Mapping[str, str] | None, body: bytes, opening: int
    ) -> None:
        """Take a request that came by the subscription of ``opening``: of an earlier one it is nobody's."""
        started = time.monotonic()
        node = kind = ""  # of the budget that is spent
        try:
            if opening != self._opening:
                raise not_leading()  # noqa: TRY301  answered like every other error
            if self._pods is not None and self._pods.wants(subject):
                self._pods.offer(subject, body, partial(self._answer, reply, "", ""))
            else:
                request = parse(self._cluster, subject, headers, body, received_s=started)
                if request.node and self._budgets is not None:
                    assert isinstance(request.command, Command)  # noqa: S101  what comes from the bus is no tick
                    kind = self._budgets.spend(request.node, request.command)
                    node = request.node
                self._committer.offer(request, partial(self._answer, reply, node, kind))
        except IsthmusError as error:
            self._answer(reply, node, kind, error)
        except Exception as error:  # whatever a request did, the next one must still be served
            log.exception("a request on %s failed", subject)
            defect = IsthmusError("internal", f"the request could not be handled: {type(error).__name__}")
            self._answer(reply, node, kind, defect)
        self._discovery.count("command")

    async def _on_query(self, message: Msg) -> None:
        name = message.subject.removeprefix(f"isthmus.{self._cluster}.query.")
        try:
            body, headers = await self._query(name, message.data), None
        except IsthmusError as error:
            body, headers = encode_error(error, now=datetime.now(UTC))
            self._discovery.count("query", error=error)
        except Exception as error:
            log.exception("the query %s failed", name)
            defect = IsthmusError("internal", f"the query {name[:64]!r} failed: {type(error).__name__}")
            body, headers = encode_error(defect, now=datetime.now(UTC))
        self._discovery.count("query")
        self._send(message.reply, body, headers)

    def _answer(self, reply: str, node: str, kind: str, outcome: CommandReply | IsthmusError) -> None:
        """Answer a request; what it has spent of the node's budget comes back if nothing is written."""
        if kind and self._budgets is not None:
            self._budgets.settle(node, kind, outcome)
        if isinstance(outcome, IsthmusError):
            self._discovery.count("command", error=outcome)
            body, headers = encode_error(outcome, now=datetime.now(UTC))
            self._send(reply, body, headers)
        else:
            self._send(reply, encode_reply(outcome), None)

    def _send(self, reply: str, body: bytes, headers: dict[str, str] | None) -> None:
        if not reply:
            return
        if not reply.startswith("_"):
            log.warning("a request wants its answer on %r, which is no inbox; it gets none", reply[:128])
            return
        limit = self._nats.max_payload or 1 << 20
        if len(body) > limit - 1024:
            error = Unavailable(
                "log_unavailable", f"the answer has {len(body):,} bytes, the bus carries {limit:,}"
            )
            body, headers = encode_error(error)
        if not self._answers:  # else they are on their way, and it is known
            self._sent.clear()
            self._wake.set()
        self._answers.append(_new(Outgoing, (reply, body, headers, "")))
