"""Tells the controller what the checks of backends say, whenever that differs from the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection

from events.bus.client import ControllerClient
from events.bus.retry import happened
from events.errors import IsthmusError
from events.protocol.clb import Holder
from events.protocol.commands import ReportHealth
from nodeagent.config import AgentConfig
from nodeagent.gateway.arp_announcer import BEAT_S
from nodeagent.gateway.defence import GatewayContext
from nodeagent.gateway.health import Health

log = logging.getLogger("isthmus.agent.gateway")

REPORT_TIMEOUT_S = 3.0
REASON_CHARACTERS = 200


class HealthReporter:
    """:meth:`run` reports for ever; :meth:`due` says that a verdict changed. ``held`` is what we answer for."""

    def __init__(
        self,
        config: AgentConfig,
        context: GatewayContext,
        health: Health,
        held: Callable[[], Collection[Holder]],
    ) -> None:
        self._config = config
        self._context = context
        self._health = health
        self._held = held
        self._due = asyncio.Event()

    def due(self) -> None:
        """Report soon."""
        self._due.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await happened(self._due, within_s=BEAT_S)
            self._due.clear()
            for holder in list(self._held()):
                await self._report(holder)

    async def _report(self, holder: Holder) -> None:
        client = self._context.bus()
        if client is None or not client.is_connected:
            return
        controller = ControllerClient(client, self._config.cluster, actor=f"node/{self._config.node}")
        for key, backend in self._context.view.traffic.behind(holder).items():
            verdict = self._health.verdict(key)
            if verdict is None or verdict[0] == backend.healthy:
                continue
            command = ReportHealth(
                node=holder.node,
                uid=holder.uid,
                epoch=holder.epoch,
                reservation=key.name,
                purpose=key.purpose,
                protocol=key.protocol,
                port=key.port,
                address=key.address,
                backend_port=key.backend_port,
                healthy=verdict[0],
                reason=verdict[1][:REASON_CHARACTERS],
            )
            try:
                await controller.send(command, timeout_s=REPORT_TIMEOUT_S)
            except IsthmusError as error:
                log.info("health of %s not recorded: %s [%s]", key.address, error.message, error.code)
