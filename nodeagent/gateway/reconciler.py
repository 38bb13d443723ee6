"""Holds the addresses that the log gives to this node: rules, address, announcements, checks.

Order of taking: rules, then the way to the previous holder (:mod:`nodeagent.gateway.previous_holders`), then
the address, then the announcement. What another gateway was given stays until that one is there
(:mod:`nodeagent.gateway.graceful_release`), and then the address goes first.
Nothing is given up on a loss of the bus or at the end of the agent: the kernel goes on as it is, and
yields by itself to whoever announces the address (:mod:`nodeagent.gateway.rules`), unless the address is
defended (:mod:`nodeagent.gateway.defence`).
"""

from __future__ import annotations

import asyncio
import logging

from events.errors import IsthmusError
from events.protocol.clb import Backend, BackendKey, Holder
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.underlay import Underlay
from nodeagent.firewall import ruleset
from nodeagent.gateway import conntrack, link, rules
from nodeagent.gateway.arp_announcer import BEAT_S, ArpAnnouncer
from nodeagent.gateway.defence import Defence, GatewayContext
from nodeagent.gateway.graceful_release import LOOK_S, GracefulRelease, ServedAddress
from nodeagent.gateway.health import Health
from nodeagent.gateway.previous_holders import Candidate, PreviousHolders
from nodeagent.gateway.readiness import GatewayReadiness
from nodeagent.gateway.reporter import HealthReporter
from nodeagent.gateway.rules import Listener

log = logging.getLogger("isthmus.agent.gateway")


class GatewayReconciler:
    """One node's part in CLB pairs. :meth:`run` does everything; :meth:`wake` says that the view changed."""

    def __init__(self, config: AgentConfig, conditions: Conditions, context: GatewayContext) -> None:
        self._config = config
        self._conditions = conditions
        self._context = context
        self._wake = asyncio.Event()
        self.health = Health(self._verdict_changed)
        self._applied: tuple[object, ...] | None = None
        self._held: dict[str, Holder] = {}
        self._there: set[str] = set()  # held addresses that are on the link
        self._taken: dict[str, int] = {}  # address → the epoch for which it was announced
        self._served: dict[str, ServedAddress] = {}  # held, or until their new holder is there
        self.readiness = GatewayReadiness(config, context.link)
        self._announcer = ArpAnnouncer(context.link)
        self._defence = Defence(config.cluster, context, self._announcer, self.readiness, self._standing)
        self._reporter = HealthReporter(config, context, self.health, self._holders)
        self.previous_holders = PreviousHolders(conditions)
        self.graceful_release = GracefulRelease()

    def wake(self) -> None:
        """Something that this depends on may have changed."""
        self._wake.set()

    def _verdict_changed(self) -> None:
        self._reporter.due()
        self._wake.set()

    @property
    def marked(self) -> bool:
        """Whether the log says that this node is a gateway."""
        return self._config.node in self._context.view.traffic.gateways

    @property
    def serves(self) -> bool:
        """Whether it is one: by the log, and by its own settings."""
        return self._config.gateway and self.marked

    def status_line(self) -> str:
        """This node's part in one line, for its status; empty where gateways do not matter."""
        return self.readiness.status_line(marked=self.marked)

    def held(self) -> tuple[str, ...]:
        """What this node holds, in words for its status."""
        return tuple(
            f"{h.address} ({h.purpose} of {h.name}, epoch {h.epoch})"
            + ("" if h.address in self._there else " NOT on the link")
            for h in self._held.values()
        )

    def _holders(self) -> list[Holder]:
        return list(self._held.values())

    def _standing(self) -> list[str]:
        """Held addresses that are on the link, with rules for them in the kernel."""
        return sorted(self._there & self._held.keys()) if self._applied is not None else []

    async def run(self) -> None:
        """Until cancelled; everything stays in the kernel."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(), name="gateway rules")
                if self._config.gateway:
                    tasks.create_task(self._defence.run(self.wake), name="gateway beat")
                    tasks.create_task(self._reporter.run(), name="gateway health")
        finally:
            await self.health.close()
            self._announcer.close()
            self.previous_holders.close()

    async def _follow(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._step()
                self._conditions.clear("gateway")
                self.readiness.succeeded()
            except (IsthmusError, OSError, TimeoutError) as error:
                self._applied = None
                self.readiness.failed()
                self._conditions.set("gateway", getattr(error, "message", "") or str(error) or "timed out")
                await asyncio.sleep(BEAT_S)
                self._wake.set()

    async def _step(self) -> None:
        view = self._context.view
        if self.marked and not self._config.gateway:
            self._conditions.set(
                "gateway mark", "this node is marked as a gateway, but its agent runs without --gateway"
            )
        else:
            self._conditions.clear("gateway mark")
        if not self._config.gateway or view.plan is None:
            return
        # One moment of the view for the whole step: it goes on while the kernel is being written.
        traffic, caught_up, vxlan_port = view.traffic, self._context.caught_up(), view.plan.port
        held = {holder.address: holder for holder in traffic.held_by(self._config.node, view.uid)}
        if not caught_up and not held:
            return  # a view that is still being read says nothing yet
        served = {
            address: ServedAddress(holder, self._previous_holder(holder)) for address, holder in held.items()
        }
        elsewhere = traffic.holders.keys() - held.keys()
        releasing: dict[str, ServedAddress] = {}
        if caught_up:
            releasing = await self.graceful_release.follow(self._served, held, elsewhere, self._announcer.ask)
        served |= releasing
        behind = {one.holder: traffic.behind(one.holder) for one in served.values()}
        present = await asyncio.to_thread(link.ours)
        for entry in present:
            if entry.address not in served and caught_up:
                await asyncio.to_thread(link.remove, entry.address, entry.ifindex)
                self._announcer.on_released(entry.address)
                self._taken.pop(entry.address, None)
                log.info("address %s given up", entry.address)
        self._held, self._served = held, served
        if releasing:
            asyncio.get_running_loop().call_later(LOOK_S, self._wake.set)
        await self.health.follow({key: b for backends in behind.values() for key, b in backends.items()})
        await self._write(behind, vxlan_port)
        underlay = self._context.link()
        if underlay is None or not underlay.present:
            return
        self.readiness.carrier = await asyncio.to_thread(link.carrier, underlay.ifindex)
        previous = [one.previous for one in served.values() if one.previous is not None]
        await self.previous_holders.look(previous, sorted(elsewhere - releasing.keys()), underlay.device)
        here = {entry.address for entry in present if entry.ifindex == underlay.ifindex}
        self._there = {
            address
            for address, holder in held.items()
            if address in here and self._taken.get(address, holder.epoch) == holder.epoch
        }
        for address, holder in held.items():
            if address not in self._there and traffic.holders.get(address) == holder:
                await self._take(holder, underlay)

    async def _write(self, behind: dict[Holder, dict[BackendKey, Backend]], vxlan_port: int) -> None:
        """The tables as they have to be; a run of nft only when something changed."""
        addresses = [holder.address for holder in behind]
        listeners = self._listeners(behind)
        wanted = (tuple(addresses), tuple(listeners), vxlan_port)
        if wanted == self._applied:
            return
        await ruleset.nft(rules.render(addresses, listeners, vxlan_port))
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
                    count = await asyncio.to_thread(conntrack.forget_datagrams, holder.address, dead)
                    if count:
                        log.info("%d UDP flows to %s are balanced anew", count, holder.address)
            self._conditions.clear("gateway flows")
        except OSError as error:
            self._conditions.set("gateway flows", f"UDP flows to dead backends stay with them: {error}")

    def _previous_holder(self, holder: Holder) -> Candidate | None:
        """The machine that held the address before."""
        machine, underlay = self._context.view.traffic.former.get(holder.address, ""), self._context.link()
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

    async def _take(self, holder: Holder, underlay: Underlay) -> None:
        address = holder.address
        certain_s = await self._defence.certain_s()
        if certain_s > 0:
            await ruleset.nft(rules.render_defence(list(self._held), certain_s))
        else:
            # A remembered view, or one that nobody vouches for: somebody else may hold it by now.
            other = await self._announcer.taken(address)
            if other:
                why = "no bus says that it is ours now"
                self._conditions.set("gateway yields", f"{address} is answered by {other}; {why}")
                return
        self._conditions.clear("gateway yields")
        await asyncio.to_thread(link.add, address, underlay.ifindex, underlay.device)
        self._announcer.on_acquired(address)
        self._there.add(address)
        self._taken[address] = holder.epoch
        log.info("address %s taken (epoch %d)", address, holder.epoch)
