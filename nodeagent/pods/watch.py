"""Keeps track of the pods on this node, so that no address is given to a second one elsewhere.

A node that loses its range says which pods still have addresses of it: the range is not reused before they are
gone. As long as there are any, nothing new starts here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

from events.bus.retry import happened
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.membership.view import View
from nodeagent.pods.addresses import Pods, find

log = logging.getLogger("isthmus.agent.pods")

PERIOD_S, HURRY_S = 15.0, 1.0
"""Between two looks; the shorter one while there are pods with addresses of a range that is not this node's."""
SHOWN = 5


class PodWatch:
    """:meth:`run` looks now and then, and soon after :meth:`look`."""

    def __init__(self, config: AgentConfig, view: View, conditions: Conditions) -> None:
        self._config, self._view, self._conditions = config, view, conditions
        self._wake = asyncio.Event()
        self._on_change: Callable[[], None] = lambda: None
        self.on_look: Callable[[Pods, datetime], Awaitable[None]] | None = None
        """Called after each look that succeeded, with what it found and when it began."""
        self.pods: Pods | None = None
        """What the last look found; None before the first, and when it failed."""
        self._found_for = ""

    def notify(self, on_change: Callable[[], None]) -> None:
        """Name whom to call when something changed."""
        self._on_change = on_change

    def look(self) -> None:
        """Look soon."""
        self._wake.set()

    @property
    def strays(self) -> tuple[str, ...]:
        """Addresses of pods in ranges that are not this node's."""
        return self.pods.strays if self.pods is not None else ()

    @property
    def settled(self) -> bool:
        """Whether it is known for the present range that no pod has an address of another one."""
        own = self._view.own.cidr if self._view.own is not None else ""
        return self.pods is not None and self._found_for == own and not self.pods.strays

    def stray_ranges(self) -> tuple[str, ...]:
        """The ranges of these addresses."""
        size = self._view.plan.range_size if self._view.plan is not None else 0
        length = 33 - size.bit_length() if size else 32
        return self.pods.ranges(length) if self.pods is not None else ()

    async def run(self) -> None:
        """Until cancelled. What goes wrong becomes a condition, and what is known then counts as not known."""
        while True:
            await self._look()
            await happened(self._wake, within_s=HURRY_S if self.strays or not self._view.joined else PERIOD_S)
            self._wake.clear()

    async def _look(self) -> None:
        view = self._view
        plan, own, sequence = view.plan, view.own.cidr if view.own is not None else "", view.sequence
        if plan is None:
            return
        before, began = (self.pods, self._found_for), datetime.now(UTC)
        try:
            self.pods = await asyncio.to_thread(
                find,
                self._config.pod_directory,
                plan.cidrs,
                own,
                device=self._config.device,
                sequence=sequence,
            )
            self._found_for = own
            self._conditions.clear("pods unknown")
            if self.on_look is not None:
                await self.on_look(self.pods, began)
        except OSError as error:
            self.pods = None
            self._conditions.set("pods unknown", f"the pods' addresses cannot be read: {error}")
        self._tell()
        if before != (self.pods, self._found_for):
            self._on_change()

    def _tell(self) -> None:
        strays = self.strays
        if not strays:
            self._conditions.clear("pods")
            return
        more = f" and {len(strays) - SHOWN} more" if len(strays) > SHOWN else ""
        self._conditions.set(
            "pods",
            f"{len(strays)} pods run with addresses of a range that this node no longer has: "
            f"{', '.join(strays[:SHOWN])}{more}. New pods wait until they are gone. End them all: "
            + self._config.quote("isthmus agent end-pods --yes"),
        )
