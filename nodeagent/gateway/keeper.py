"""Holds the addresses that the log gives to this node: rules, address, announcements, checks.

Order of taking: rules, then the way to the former holder (:mod:`nodeagent.gateway.former`), then the
address, then the announcement. What another gateway was given stays until that one is there
(:mod:`nodeagent.gateway.leaving`), and then the address goes first.
Nothing is given up on a loss of the bus or at the end of the agent: the kernel goes on as it is, and
yields by itself to whoever announces the address (:mod:`nodeagent.gateway.rules`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Protocol

from nats.aio.client import Client

from events import subjects
from events.clb import Backend, BackendKey, Holder
from events.client import ControllerClient
from events.commands import ReportHealth
from events.errors import IsthmusError, Unavailable
from events.jetstream.api import last_sequence
from nodeagent import firewall
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.gateway import link, rules, tracked
from nodeagent.gateway.former import Candidate, FormerHolders
from nodeagent.gateway.health import Health
from nodeagent.gateway.leaving import LOOK_S, Leaving, Served
from nodeagent.gateway.rules import Listener
from nodeagent.underlay import Underlay
from nodeagent.view import View

log = logging.getLogger("isthmus.agent.gateway")

BEAT_S = 1.0
"""Between two announcements, confirmations of the bus, and a gateway's heartbeats."""

EAGER = (0.0, 0.1, 0.3)
"""Seconds after taking an address at which it is announced besides."""

REPORT_TIMEOUT_S = 3.0

FAILURES = 2
"""Failures in a row after which this node says that it cannot be a gateway, so that another one is chosen."""

UNABLE_REST_S = 60.0
"""How long it says so after the last failure: gateways that all fail must not pass an address around."""


class Surroundings(Protocol):
    """What the gateway's keeper needs of the agent around it."""

    @property
    def view(self) -> View: ...
    def link(self) -> Underlay | None: ...
    def bus(self) -> Client | None: ...
    def caught_up(self) -> bool: ...


class Gatekeeper:
    """One node's part in CLB pairs. :meth:`run` does everything; :meth:`wake` says that the view changed."""

    def __init__(self, config: AgentConfig, conditions: Conditions, around: Surroundings) -> None:
        self._config = config
        self._conditions = conditions
        self._around = around
        self._wake = asyncio.Event()
        self._report_due = asyncio.Event()
        self.health = Health(self._verdict_changed)
        self._applied: tuple[object, ...] | None = None
        self._held: dict[str, Holder] = {}
        self._there: set[str] = set()  # held addresses that are on the link
        self._taken: dict[str, int] = {}  # address → the epoch for which it was announced
        self._eager: dict[str, float] = {}  # address → when it was taken
        self._arp: tuple[str, link.ArpSocket] | None = None
        self._failures = 0
        self._failed_at = float("-inf")
        self._carrier = True
        self._served: dict[str, Served] = {}  # held, or until their new holder is there
        self.former = FormerHolders(conditions)
        self.leaving = Leaving()
        self.takeovers = 0

    def wake(self) -> None:
        """Something that this depends on may have changed."""
        self._wake.set()

    def _verdict_changed(self) -> None:
        self._report_due.set()
        self._wake.set()

    @property
    def marked(self) -> bool:
        """Whether the log says that this node is a gateway."""
        return self._config.node in self._around.view.traffic.gateways

    @property
    def able(self) -> bool:
        """Whether addresses given to this node would be held: its agent says so to the controller."""
        return not self.hindrance()

    def hindrance(self) -> str:
        """Why addresses given to this node would not be held; empty when they would."""
        if not self._config.gateway:
            return "the agent runs without --gateway"
        underlay = self._around.link()
        if underlay is None or not underlay.present or not self._carrier:
            return "the underlay link is down"
        if self._rests():
            return f"it failed {self._failures} times, and says so for {UNABLE_REST_S:.0f} s"
        return ""

    def _rests(self) -> bool:
        return self._failures >= FAILURES and time.monotonic() - self._failed_at < UNABLE_REST_S

    def says(self) -> str:
        """This node's part in one line, for its status; empty where gateways do not matter."""
        if not self._config.gateway:
            return "marked, but the agent runs without --gateway" if self.marked else ""
        hindrance = self.hindrance()
        if hindrance:
            return f"UNABLE: {hindrance}"
        return "ready" if self.marked else f"not marked yet: isthmus clb gateway add {self._config.node}"

    def held(self) -> tuple[str, ...]:
        """What this node holds, in words for its status."""
        return tuple(
            f"{h.address} ({h.purpose} of {h.name}, epoch {h.epoch})"
            + ("" if h.address in self._there else " NOT on the link")
            for h in self._held.values()
        )

    async def run(self) -> None:
        """Until cancelled; everything stays in the kernel."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(), name="gateway rules")
                if self._config.gateway:
                    tasks.create_task(self._beat(), name="gateway beat")
                    tasks.create_task(self._report_for_ever(), name="gateway health")
        finally:
            await self.health.close()
            self._drop_arp()
            self.former.close()

    # ------------------------------------------------------------------ rules and addresses

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._step()
                self._conditions.clear("gateway")
                self._failures = self._failures if self._rests() else 0
            except (IsthmusError, OSError, TimeoutError) as error:
                self._applied = None
                self._failed()
                self._conditions.set("gateway", getattr(error, "message", "") or str(error) or "timed out")
                await asyncio.sleep(BEAT_S)
                self._wake.set()

    def _failed(self) -> None:
        self._failures += 1
        self._failed_at = time.monotonic()

    async def _step(self) -> None:
        view = self._around.view
        if self.marked and not self._config.gateway:
            self._conditions.set(
                "gateway mark", "this node is marked as a gateway, but its agent runs without --gateway"
            )
        else:
            self._conditions.clear("gateway mark")
        if not self._config.gateway or view.plan is None:
            return
        # One moment of the view for the whole step: it goes on while the kernel is being written.
        traffic, caught_up, vxlan_port = view.traffic, self._around.caught_up(), view.plan.port
        held = {holder.address: holder for holder in traffic.held_by(self._config.node, view.uid)}
        if not caught_up and not held:
            return  # a view that is still being read says nothing yet
        served = {address: Served(holder, self._former(holder)) for address, holder in held.items()}
        elsewhere = traffic.holders.keys() - held.keys()
        leaving = await self.leaving.follow(self._served, held, elsewhere, self._ask) if caught_up else {}
        served |= leaving
        behind = {one.holder: traffic.behind(one.holder) for one in served.values()}
        present = await asyncio.to_thread(link.ours)
        for entry in present:
            if entry.address not in served and caught_up:
                await asyncio.to_thread(link.remove, entry.address, entry.ifindex)
                self._eager.pop(entry.address, None)
                self._taken.pop(entry.address, None)
                log.info("address %s given up", entry.address)
        self._held, self._served = held, served
        if leaving:
            asyncio.get_running_loop().call_later(LOOK_S, self._wake.set)
        await self.health.follow({key: b for backends in behind.values() for key, b in backends.items()})
        await self._write(behind, vxlan_port)
        underlay = self._around.link()
        if underlay is None or not underlay.present:
            return
        self._carrier = await asyncio.to_thread(link.carrier, underlay.ifindex)
        formers = [one.former for one in served.values() if one.former is not None]
        await self.former.look(formers, sorted(elsewhere - leaving.keys()), underlay.device)
        here = {entry.address for entry in present if entry.ifindex == underlay.ifindex}
        self._there = {
            address
            for address, holder in held.items()
            if address in here and self._taken.get(address, holder.epoch) == holder.epoch
        }
        for address, holder in held.items():
            if address not in self._there and traffic.holders.get(address) == holder:
                await self._take(holder, underlay, caught_up=caught_up)

    async def _write(self, behind: dict[Holder, dict[BackendKey, Backend]], vxlan_port: int) -> None:
        """The tables as they have to be; a run of nft only when something changed."""
        addresses = [holder.address for holder in behind]
        listeners = self._listeners(behind)
        wanted = (tuple(addresses), tuple(listeners), vxlan_port)
        if wanted == self._applied:
            return
        await firewall.nft(rules.render(addresses, listeners, vxlan_port))
        self._applied = wanted
        await self._forget_datagrams(behind)
        dead = [f"{item.protocol} {item.port} of {item.address}" for item in listeners if not item.targets]
        self._conditions.set("gateway backends", f"no healthy backend behind {', '.join(dead)}" if dead else "")

    async def _forget_datagrams(self, behind: dict[Holder, dict[BackendKey, Backend]]) -> None:
        """What fails here costs flows to dead backends, never the holding of the address."""
        try:
            for holder, backends in behind.items():
                flows = {key: backend for key, backend in backends.items() if key.protocol == "udp"}
                if flows:
                    dead = {(k.address, k.backend_port) for k, b in flows.items() if not self._healthy(k, b)}
                    count = await asyncio.to_thread(tracked.forget_datagrams, holder.address, dead)
                    if count:
                        log.info("%d UDP flows to %s are balanced anew", count, holder.address)
            self._conditions.clear("gateway flows")
        except OSError as error:
            self._conditions.set("gateway flows", f"UDP flows to dead backends stay with them: {error}")

    def _former(self, holder: Holder) -> Candidate | None:
        """The machine that held the address before."""
        machine, underlay = self._around.view.traffic.former.get(holder.address, ""), self._around.link()
        if not machine or underlay is None or machine == underlay.address:
            return None
        return Candidate(holder.address, holder.epoch, machine)

    def _listeners(self, behind: dict[Holder, dict[BackendKey, Backend]]) -> list[Listener]:
        found: list[Listener] = []
        for holder, backends in behind.items():
            ports = sorted({(key.protocol, key.port) for key in backends})
            for protocol, port in ports:
                keys = sorted(key for key in backends if (key.protocol, key.port) == (protocol, port))
                newest = max(keys, key=lambda key: backends[key].added)
                targets = tuple((k.address, k.backend_port) for k in keys if self._healthy(k, backends[k]))
                found.append(Listener(holder.address, protocol, port, backends[newest].affinity, targets))
        return found

    def _healthy(self, key: BackendKey, backend: Backend) -> bool:
        """By our own checks, and by the log's last word until there is a verdict of ours."""
        verdict = self.health.verdict(key)
        return verdict[0] if verdict is not None else backend.healthy

    async def _take(self, holder: Holder, underlay: Underlay, *, caught_up: bool) -> None:
        address = holder.address
        arp = self._arp_socket(underlay.device)
        if not caught_up:
            # A remembered view after a restart of the machine: somebody else may hold it by now.
            other = await asyncio.to_thread(arp.taken, address)
            if other:
                self._conditions.set("gateway yields", f"{address} is answered by {other}; the bus is away")
                return
        self._conditions.clear("gateway yields")
        if caught_up:
            await firewall.nft(rules.render_defence(list(self._held), rules.DEFENCE_S))
        await asyncio.to_thread(link.add, address, underlay.ifindex, underlay.device)
        arp.announce(address)
        self._eager[address] = time.monotonic()
        self._there.add(address)
        self._taken[address] = holder.epoch
        self.takeovers += 1
        log.info("address %s taken (epoch %d)", address, holder.epoch)

    def _arp_socket(self, device: str) -> link.ArpSocket:
        if self._arp is None or self._arp[0] != device:
            self._drop_arp()
            self._arp = device, link.ArpSocket(device)
        return self._arp[1]

    def _ask(self, address: str) -> None:
        """Ask on the underlay's link who has the address."""
        underlay = self._around.link()
        if underlay is not None and underlay.present:
            self._arp_socket(underlay.device).ask(address)

    def _drop_arp(self) -> None:
        if self._arp is not None:
            self._arp[1].close()
            self._arp = None

    # ------------------------------------------------------------------ the beat

    async def _beat(self) -> None:
        """Once a second: is the view current? Then defend and announce. Also the eager announcements."""
        while True:
            await asyncio.sleep(self._pause())
            held = sorted(self._there & self._held.keys())
            if not held:
                self._wake.set()
                continue
            started = time.monotonic()
            try:
                current = await self._current()
                held = sorted(self._there & self._held.keys())  # the log may have moved on meanwhile
                if current and held:
                    left_s = rules.DEFENCE_S - (time.monotonic() - started)
                    if left_s > 0 and self._applied is not None:
                        await firewall.nft(rules.render_defence(held, left_s))
                        self._announce(held)
            except (IsthmusError, OSError, TimeoutError) as error:
                self._drop_arp()
                self._failed()
                log.warning("held addresses could not be defended: %s", error)
            self._wake.set()  # look after addresses that somebody took away

    def _pause(self) -> float:
        now = time.monotonic()
        due = [moment + after - now for moment in self._eager.values() for after in EAGER]
        return max(0.02, min([BEAT_S, *(wait for wait in due if wait > 0)]))

    def _announce(self, held: list[str]) -> None:
        underlay = self._around.link()
        if underlay is None or not underlay.present:
            return
        arp = self._arp_socket(underlay.device)
        for address in held:
            arp.announce(address)

    async def _current(self) -> bool:
        """Whether the view has the log's last word about CLB pairs: only then may it be defended.

        Asked of the log itself: a connection that is just there again says nothing about what was missed.
        """
        client = self._around.bus()
        if client is None or not client.is_connected or not self._around.caught_up():
            return False
        cluster = self._config.cluster
        try:
            last = await last_sequence(
                client, subjects.stream(cluster), subjects.aggregate_wildcard(cluster, "clb"), timeout_s=BEAT_S
            )
        except Unavailable:
            return False
        return last <= self._around.view.sequence

    # ------------------------------------------------------------------ health reports

    async def _report_for_ever(self) -> None:
        """Tell the controller whenever our verdict differs from the log's, until it does not."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S):
                    await self._report_due.wait()
            self._report_due.clear()
            for holder in list(self._held.values()):
                await self._report(holder)

    async def _report(self, holder: Holder) -> None:
        client = self._around.bus()
        if client is None or not client.is_connected:
            return
        controller = ControllerClient(client, self._config.cluster, actor=f"node/{self._config.node}")
        for key, backend in self._around.view.traffic.behind(holder).items():
            verdict = self.health.verdict(key)
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
                reason=verdict[1][:200],
            )
            try:
                await controller.send(command, timeout_s=REPORT_TIMEOUT_S)
            except IsthmusError as error:
                log.info("health of %s not recorded: %s [%s]", key.address, error.message, error.code)
