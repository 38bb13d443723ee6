"""Hears when somebody wants a way traced: what a controller publishes to this node alone, and nobody stores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from events import subjects
from nodeagent.membership.session import BusSession

log = logging.getLogger("isthmus.agent.mesh")

HELD_MAX = 16
"""Requests that may wait; further ones are dropped."""


class TraceRequests:
    """``trace`` takes each request as bytes, from whomever they are: it checks them."""

    def __init__(self, session: BusSession, cluster: str, node: str, *, trace: Callable[[bytes], None]) -> None:
        self._session, self._trace = session, trace
        self._subject = subjects.trace_wanted(cluster, node)

    async def run(self) -> None:
        """Until cancelled; the subscription lives as long as the connection to the bus, and ends with it."""
        await self._session.caught_up.wait()
        client = self._session.client
        if client is None:
            return  # the connection has ended, and with it this process does

        async def wanted(message: Msg) -> None:
            self._trace(message.data)

        try:
            await client.subscribe(self._subject, cb=wanted, pending_msgs_limit=HELD_MAX)
        except NatsError as error:
            log.warning("nobody can ask this agent for traces: %s", error)
        await asyncio.Event().wait()
