"""Keeping the status stream in being.

It lives in the servers' memory (:func:`events.jetstream.stream.status_stream_settings`), so a single
server that was killed comes back without it, while the controller that made it lives on. Agents repeat
their reports; there only has to be a stream again that takes them, also where its replicas have lost
their leader for good (:func:`events.jetstream.stream.Absence`).
"""

from __future__ import annotations

import asyncio
import logging

from nats.aio.client import Client

from events.bus.retry import happened, raise_if_cancelled
from events.errors import IsthmusError, Unavailable
from events.jetstream.stream import Absence, ensure_stream, has_leader, status_stream_settings

log = logging.getLogger("isthmus.controller")

LOOK_AGAIN_S = 10.0
"""A restart of the server that we are connected to is noticed at once; one elsewhere within this time."""

RETRY_S = 1.0


class StatusStreamMaintainer:
    """Makes the cluster's status stream again whenever it is gone. :meth:`look` says: look now."""

    def __init__(self, client: Client, cluster: str, *, replicas: int | None) -> None:
        self._client = client
        self._settings = status_stream_settings(cluster)
        self._replicas = replicas
        self._wake = asyncio.Event()
        self._absence = Absence(client, self._settings["name"])

    def look(self) -> None:
        """The connection was restored: the server may be a new one."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. What goes wrong is logged and tried again."""
        while True:
            raise_if_cancelled()
            self._wake.clear()
            pause_s = LOOK_AGAIN_S
            try:
                await self._ensure()
            except IsthmusError as error:
                log.warning("the agents' reports cannot be kept: %s", error.message)
                pause_s = RETRY_S
            await happened(self._wake, within_s=pause_s)

    async def _ensure(self) -> None:
        """Raises Unavailable without a stream that has a leader; after a while of that it is deleted."""
        problem: Unavailable | None = None
        try:
            info = await ensure_stream(self._client, self._settings, replicas=self._replicas)
            if not has_leader(info):
                problem = Unavailable("log_unavailable", f"stream {self._settings['name']} has no leader")
        except Unavailable as error:
            problem = error
        if problem is None:
            self._absence.over()
            return
        await self._absence.lasts()
        raise problem
