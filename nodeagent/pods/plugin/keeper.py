"""The CNI plugin's side of the agent: its socket, what of the chain is installed, and the facts of pods."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path

from nodeagent.config import AgentConfig
from nodeagent.pods import facts as pod_facts
from nodeagent.pods.addresses import Pods
from nodeagent.pods.chain import STANDARD, Chain, directories, look, socket_path
from nodeagent.pods.facts import PodFacts
from nodeagent.pods.plugin.answers import PluginAnswers, Standing
from nodeagent.pods.plugin.server import PluginSocket

log = logging.getLogger("isthmus.agent.cni")

LOOK_S = 15.0
"""Between two looks at what is installed: a plugin that comes or goes changes the CNI file within it."""


class PluginKeeper:
    """:meth:`run` it. ``changed`` is called when another chain is installed."""

    def __init__(
        self,
        config: AgentConfig,
        facts: PodFacts,
        *,
        standing: Callable[[], Standing],
        changed: Callable[[], None],
        results: Path = pod_facts.RESULTS,
    ) -> None:
        self._config, self.facts, self._changed, self._results = config, facts, changed, results
        self._path = socket_path(config.state_dir)
        self.chain: Chain | None = STANDARD if config.cni_own_plugin == "off" else None
        """What is installed; None before the first look."""
        self.socket = PluginSocket(self._path, PluginAnswers(facts, standing))

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.to_thread(self.facts.load)
        if self._config.cni_own_plugin == "off":
            return
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.socket.run(), name="CNI socket")
            tasks.create_task(self._follow(), name="CNI chain")

    async def _follow(self) -> None:
        places, before = directories(self._config.cni_bin_dir), self.chain
        while True:
            self.chain = await asyncio.to_thread(
                look, self._config.cni_plugin, places, self._path, shaping=self._config.cni_bandwidth
            )
            if self.chain != before:
                if self.chain.directory or before is not None:
                    log.info("the CNI chain ends with %s", self.chain.directory or "the standard plugins")
                before = self.chain
                self._changed()
            await asyncio.sleep(LOOK_S)

    async def on_look(self, pods: Pods, began: datetime) -> None:
        """A look at the host found these pods. Raises OSError. Cancelled, some of it may be noted."""
        if not self.facts.enabled:
            return
        network = self._config.network
        leases = await asyncio.to_thread(pod_facts.leases, self._config.pod_directory / network)
        name = partial(pod_facts.remembered_pod, self._results, network)
        await self.facts.compare(leases, {*pods.homes, *pods.strays}, began, name)
