"""Nodes of the simulated cluster: machines with a kernel, an agent's real view, and a life of their own."""

from __future__ import annotations

import asyncio
from typing import Any

from events.chain import verify_link
from events.codec import decode
from events.protocol.commands import JoinNode, LeaveNode
from events.status import AgentStatus
from nodeagent.membership.peers import PeerChange
from nodeagent.membership.view import View
from tests.simulation.clients import GIVE_UP_S, Client
from tests.simulation.controllers import SimController, now
from tests.simulation.faults import Weather
from tests.simulation.truth import Kernel, WatchedLog, Wrong
from tests.simulation.wires import WiredLog

REPORT_S = 1.0
FORGED = 0.3
"""How many reports are followed by a forged one."""


class SimNode:
    """One machine: joins, follows, leaves, is reinstalled."""

    def __init__(
        self,
        number: int,
        log: WatchedLog,
        weather: Weather,
        client: Client,
        controllers: list[SimController],
    ) -> None:
        self.name = f"n{number}"
        self._number = number
        self._log = log
        self._weather = weather
        self._client = client
        self._controllers = controllers
        self._installs = 0
        self._dice = weather.dice("life", self.name)
        self._agent: asyncio.Task[None] | None = None
        self._applied = 0
        self._wanted = False
        self._down = False
        self.view: View | None = None
        self.reinstall()

    def reinstall(self) -> None:
        """A new uid, an empty kernel, no cache."""
        self._installs += 1
        self.uid = f"{self.name}-install-{self._installs}"
        self.kernel: Kernel = {}
        self._log.kernels[self.uid] = self.kernel

    # --- life --------------------------------------------------------------------------------------------

    async def live(self, until_s: float) -> None:
        """Join, and then whatever the dice say, until ``until_s``; in the end the node is a member or out."""
        loop, dice = asyncio.get_running_loop(), self._dice
        await asyncio.sleep(dice.uniform(0.0, 1.5))
        while loop.time() < until_s:
            await self._join()
            await self._want(agent=True)
            await asyncio.sleep(dice.uniform(0.5, 6.0))
            fate = dice.random()
            if fate < 0.35:
                await self._want(agent=False)
                await self._client.send(LeaveNode(node=self.name, uid=self.uid))
                self.kernel.clear()
                self.reinstall()
            elif fate < 0.55:
                await self._want(agent=False)
                self.reinstall()
            elif fate < 0.8:
                await self._want(agent=False)
                await asyncio.sleep(dice.uniform(0.1, 2.0))
                await self._want(agent=True)
        await self._want(agent=False)
        await self._join()
        await self._want(agent=True)

    async def _join(self) -> None:
        """Refused because an operator fenced this uid: reinstall, as a person would. No range: wait."""
        loop = asyncio.get_running_loop()
        give_up_s = loop.time() + GIVE_UP_S
        while True:
            reply = await self._client.send(
                JoinNode(
                    node=self.name,
                    uid=self.uid,
                    kind="external" if self._number % 2 else "cloud",
                    underlay=f"192.168.0.{self._number + 1}",
                )
            )
            if reply == "node_fenced":
                self.reinstall()
            elif reply is None:
                return
            elif loop.time() > give_up_s:
                raise Wrong(f"{self.name} cannot join for {GIVE_UP_S:g} s: {reply}")
            else:
                await asyncio.sleep(1.0)

    async def obey_schedule(self) -> None:
        """The agent's process is killed when the schedule says so; the kernel keeps its rows."""
        loop = asyncio.get_running_loop()
        for fault in self._weather.crashes(self.name):
            await asyncio.sleep(max(0.0, fault.at_s - loop.time()))
            self._down = True
            await self._settle()
            await asyncio.sleep(fault.for_s)
            self._down = False
            await self._settle()

    async def recover(self) -> None:
        """After everything: a node whose uid was fenced under it is reinstalled, as its owner would."""
        while True:
            await asyncio.sleep(2.0)
            if self.uid in self._log.state.fenced:
                await self._want(agent=False)
                self.reinstall()
                await self._join()
                await self._want(agent=True)

    # --- the agent ---------------------------------------------------------------------------------------

    async def _want(self, *, agent: bool) -> None:
        self._wanted = agent
        await self._settle()

    async def _settle(self) -> None:
        """The agent runs exactly when it is wanted and not down, with the machine's present uid."""
        running = self._agent
        if running is not None and (self._down or not self._wanted):
            self._agent = None
            running.cancel()
            outcome = (await asyncio.gather(running, return_exceptions=True))[0]
            if isinstance(outcome, Exception):
                raise outcome
            self.view = None
        if self._agent is None and self._wanted and not self._down:
            self._agent = asyncio.create_task(self._follow(self.uid))

    async def _follow(self, uid: str) -> None:
        view = self.view = View(self._log.cluster, self.name, uid)
        kernel = self.kernel
        synced = False
        self._applied = 0
        reporting = asyncio.create_task(self._report_for_ever(view))
        wire = WiredLog(self._log, self._weather, self.name, lambda _s, _a: None)
        try:
            async for batch in wire.read(follow=True):
                for message in batch.messages:
                    view.head = verify_link(
                        view.head, message.sequence, message.subject, message.headers, message.body
                    )
                    event: Any = decode(message).event
                    changes = view.apply(message.sequence, event)
                    if synced:
                        await asyncio.sleep(self._dice.choice((0.0, 0.0, 0.01)))  # netlink takes its time
                        for change in changes:
                            _write(kernel, change)
                if batch.pending == 0 and not synced:
                    # The first full comparison: whatever the kernel has too much goes, what lacks comes.
                    wanted = {peer.cidr: peer.epoch for peer in view.peers}
                    kernel.clear()
                    kernel.update(wanted)
                    synced = True
                if synced:
                    self._applied = view.sequence
                    self._say(view)
        finally:
            reporting.cancel()

    async def _report_for_ever(self, view: View) -> None:
        while True:
            await asyncio.sleep(REPORT_S)
            self._say(view)

    def _say(self, view: View) -> None:
        status = AgentStatus(
            node=self.name, uid=view.uid, applied=self._applied, sent_at=now(), interval_s=REPORT_S
        )
        loop = asyncio.get_running_loop()
        dice = self._weather.dice("report", self.name)
        for controller in self._controllers:
            for target in (self.name, controller.name):
                if self._weather.strikes("lose reports", target) or self._weather.until("cut", target):
                    break
            else:
                # Reports overtake each other.
                loop.call_later(dice.uniform(0.001, 0.2), controller.report, status, context=controller.context)
        self._forge()

    def _forge(self) -> None:
        """Somebody with this machine's credentials speaks for another, which then has applied everything."""
        dice, state = self._weather.dice("forge", self.name), self._log.state
        others = sorted(uid for uid, name in state.by_uid.items() if name != self.name)
        if not others or dice.random() > FORGED:
            return
        forged = AgentStatus(
            node=self.name,
            uid=dice.choice(others),
            applied=dice.choice((state.sequence, state.sequence + 1, 10**12)),
            sent_at=now(),
            interval_s=REPORT_S,
        )
        for controller in self._controllers:
            asyncio.get_running_loop().call_later(
                dice.uniform(0.001, 0.2), controller.report, forged, context=controller.context
            )


def _write(kernel: Kernel, change: PeerChange) -> None:
    before, after = change
    if before is not None and (after is None or after.cidr != before.cidr):
        kernel.pop(before.cidr, None)
    if after is not None:
        kernel[after.cidr] = after.epoch
