"""Tells the controllers which pods began and ended here: at most one report a second, none lost by a wait.

What no controller has taken stays in :class:`~nodeagent.pods.facts.PodFacts`, on disk and bounded.
"""

from __future__ import annotations

import asyncio
import logging
import random

from events.bus.client import ControllerClient
from events.errors import IsthmusError
from events.protocol.pods import FACTS_A_REQUEST, PodFact, ReportPods
from nodeagent.config import AgentConfig
from nodeagent.membership.session import BusSession
from nodeagent.membership.view import View
from nodeagent.pods.facts import PodFacts

log = logging.getLogger("isthmus.agent.pods")

PAUSE_S = 1.0
RETRY_S, RETRY_LONGEST_S = 2.0, 300.0
"""A controller of 0.2 does not know the question, and is asked ever more rarely."""


class PodReporter:
    """:meth:`run` it."""

    def __init__(self, config: AgentConfig, view: View, session: BusSession, facts: PodFacts) -> None:
        self._config, self._view, self._session, self._facts = config, view, session, facts

    async def run(self) -> None:
        """Until cancelled; a report that is under way then is repeated by the next life."""
        retry_s = RETRY_S
        while True:
            await self._facts.changed.wait()
            self._facts.changed.clear()
            while self._facts.unsent:
                if await self._send(self._facts.unsent[:FACTS_A_REQUEST]):
                    retry_s = RETRY_S
                    await asyncio.sleep(PAUSE_S)
                else:
                    await asyncio.sleep(retry_s * random.uniform(0.7, 1.3))  # noqa: S311  spreads nodes, no secret
                    retry_s = min(2 * retry_s, RETRY_LONGEST_S)

    async def _send(self, facts: tuple[PodFact, ...]) -> bool:
        """Whether they are done with."""
        client, view, node = self._session.client, self._view, self._config.node
        if client is None or not client.is_connected or not view.joined or self._session.held:
            return False
        controller = ControllerClient(client, self._config.cluster, actor=f"node/{node}")
        try:
            reply = await controller.send(ReportPods(node=node, uid=view.uid, facts=facts), timeout_s=8.0)
        except IsthmusError as error:
            log.debug("%d facts of pods wait: %s", len(facts), error.message)
            return False
        refused = reply.result.get("refused") or {}
        for index, why in refused.items():
            log.warning("what was told of a pod with %s is refused: %s", facts[int(index)].address, why)
        await self._facts.taken(facts)
        return True
