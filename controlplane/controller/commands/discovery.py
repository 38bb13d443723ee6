"""Service discovery: answers ``$SRV.PING``, ``$SRV.INFO`` and ``$SRV.STATS`` as NATS services do.

So ``nats micro ls`` and any monitoring that speaks the convention (ADR-32) see the controller. Written
here because the client library's helper subscribes and answers each request in ways that do not fit
group commit.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError

from events.codes.extras import our_version
from events.envelope import format_time
from events.errors import IsthmusError

NAME = "isthmus-controller"


class Discovery:
    """Counts what the endpoints do and tells whoever asks."""

    def __init__(self, client: Client, cluster: str, *, instance: str) -> None:
        self._nats = client
        self._cluster = cluster
        self._id = instance
        self._started = datetime.now(UTC)
        self._requests = {"command": 0, "query": 0}
        self._errors = {"command": 0, "query": 0}
        self._last_error = {"command": "", "query": ""}
        self._subscriptions: list[Subscription] = []

    async def open(self) -> None:
        """Subscribe to the three verbs, for all services, for ours by name, and for this one by id.

        Cancelled, :meth:`close` takes back what was subscribed.
        """
        for verb, handler in (("PING", self._ping), ("INFO", self._info), ("STATS", self._stats)):
            for suffix in ("", f".{NAME}", f".{NAME}.{self._id}"):
                self._subscriptions.append(await self._nats.subscribe(f"$SRV.{verb}{suffix}", cb=handler))

    async def close(self) -> None:
        """Unsubscribe. Idempotent. Cancelled, some subscriptions stay until the connection ends."""
        open_, self._subscriptions = self._subscriptions, []
        for subscription in open_:
            with suppress(NatsError):
                await subscription.unsubscribe()

    def count(self, endpoint: str, *, error: IsthmusError | None = None) -> None:
        """Count a request, or an error of one."""
        if error is None:
            self._requests[endpoint] += 1
        else:
            self._errors[endpoint] += 1
            self._last_error[endpoint] = f"{error.code}: {error.message}"

    def _identity(self, kind: str) -> dict[str, Any]:
        return {
            "type": f"io.nats.micro.v1.{kind}_response",
            "name": NAME,
            "id": self._id,
            "version": our_version(),
            "metadata": {"cluster": self._cluster},
        }

    def _endpoints(self) -> list[dict[str, Any]]:
        return [
            {
                "name": name,
                "subject": f"isthmus.{self._cluster}.{name}.>",
                "queue_group": "controllers",
                "metadata": {},
            }
            for name in ("command", "query")
        ]

    async def _ping(self, message: Msg) -> None:
        await self._answer(message, self._identity("ping"))

    async def _info(self, message: Msg) -> None:
        body = self._identity("info")
        body |= {"description": "The control plane of an Isthmus cluster", "endpoints": self._endpoints()}
        await self._answer(message, body)

    async def _stats(self, message: Msg) -> None:
        endpoints = [
            {
                **{key: endpoint[key] for key in ("name", "subject", "queue_group")},
                "num_requests": self._requests[endpoint["name"]],
                "num_errors": self._errors[endpoint["name"]],
                "last_error": self._last_error[endpoint["name"]],
                "processing_time": 0,
                "average_processing_time": 0,
            }
            for endpoint in self._endpoints()
        ]
        body = self._identity("stats")
        body |= {"started": format_time(self._started), "endpoints": endpoints}
        await self._answer(message, body)

    async def _answer(self, message: Msg, body: dict[str, Any]) -> None:
        if message.reply.startswith("_"):
            with suppress(NatsError):
                await self._nats.publish(message.reply, msgspec.json.encode(body))
