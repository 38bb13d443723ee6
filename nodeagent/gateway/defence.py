"""Defends what this node holds, for as long as the log's last word certainly says that it does.

A gateway that reaches only a server without a majority sees a bus that answers, and the address may have
been given to another one behind its back. So each defence lasts no longer than the evidence
(:mod:`events.jetstream.freshness`), and without any the kernel yields to whoever announces the address
(:mod:`nodeagent.gateway.rules`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from nats.aio.client import Client

from events import subjects
from events.errors import IsthmusError, Unavailable
from events.jetstream.freshness import MirrorContact, last_word
from nodeagent.dataplane.underlay import Underlay
from nodeagent.firewall import ruleset
from nodeagent.gateway import rules
from nodeagent.gateway.arp_announcer import BEAT_S, ArpAnnouncer
from nodeagent.gateway.readiness import GatewayReadiness
from nodeagent.membership.view import View

log = logging.getLogger("isthmus.agent.gateway")


class GatewayContext(Protocol):
    """What the gateway needs of the agent's other parts."""

    @property
    def view(self) -> View: ...
    def link(self) -> Underlay | None: ...
    def bus(self) -> Client | None: ...
    def caught_up(self) -> bool: ...


class Defence:
    """:meth:`run` repeats it once a second. ``standing`` says which held addresses are on the link now."""

    def __init__(
        self,
        cluster: str,
        context: GatewayContext,
        announcer: ArpAnnouncer,
        readiness: GatewayReadiness,
        standing: Callable[[], list[str]],
    ) -> None:
        self._cluster = cluster
        self._context = context
        self._announcer = announcer
        self._readiness = readiness
        self._standing = standing
        self._contact = MirrorContact()

    async def run(self, wake: Callable[[], None]) -> None:
        """Until cancelled: defend and announce while that is right. ``wake`` is called after each turn."""
        while True:
            await asyncio.sleep(self._announcer.pause_s())
            if self._standing():
                try:
                    await self._turn()
                except (IsthmusError, OSError, TimeoutError) as error:
                    self._announcer.close()
                    self._readiness.failed()
                    log.warning("held addresses could not be defended: %s", error)
            wake()  # look after addresses that somebody took away

    async def _turn(self) -> None:
        left_s = await self.certain_s()
        held = self._standing()  # the log may have moved on meanwhile
        if left_s > 0 and held:
            await ruleset.nft(rules.render_defence(held, left_s))
            self._announcer.announce(held)

    async def certain_s(self) -> float:
        """For how long the view certainly is the log's last word about CLB pairs; 0 when nobody says so.

        Asked of the log itself: a connection that is just there again says nothing about what was missed.
        Cancelled, it leaves nothing behind.
        """
        client = self._context.bus()
        if client is None or not client.is_connected or not self._context.caught_up():
            return 0.0
        known = self._context.view.sequence
        wildcard = subjects.aggregate_wildcard(self._cluster, "clb")
        try:
            found = await last_word(
                client,
                subjects.stream(self._cluster),
                wildcard,
                known=known,
                contact=self._contact,
                timeout_s=BEAT_S,
            )
        except Unavailable:
            return 0.0
        if found.sequence > self._context.view.sequence:
            return 0.0
        return min(rules.DEFENCE_S, found.certain_s)
