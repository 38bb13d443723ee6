"""Keeps WireGuard in step with the log: device, own key, peers with their ranges, and the routes into it.

Desired − device, as for rows: what the log says of members with keys against what the device has, at every
change of the view, and wholly now and again. What the log says counts as applied only when it is here, too:
the cluster's next step towards encryption rests on it. Nothing of this is in a packet's way out: a sealed peer
has a blackhole under its route, so that a device that is gone, or a peer without a key, costs packets and lets
none out in the clear.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import msgspec

from events.bus.retry import happened
from events.errors import Refused
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.membership.node_key import OwnKey, age_s, ask_for_another
from nodeagent.membership.peers import Peer
from nodeagent.membership.values import first_address
from nodeagent.membership.view import View
from nodeagent.netlink.rows import address_bytes
from nodeagent.ways.table import Exit, WayTable
from nodeagent.wireguard import link
from nodeagent.wireguard.device import PeerSettings, WireGuardDevice
from nodeagent.wireguard.managed import KEEPALIVE_S, ManagedDevice
from nodeagent.wireguard.pairs import PAIRS, Pair

log = logging.getLogger("isthmus.agent.wireguard")

LOOK_S = 1.0
"""Longest time until a device that somebody took away is there again."""
WAITING_LOOK_S, PATIENCE_S = 0.2, 10.0
"""Between two looks for sessions that are still to come; after so long it is a condition that they do not."""
ANNOUNCE_S = 30.0
"""Between two requests to have the next key in the log."""
GAP_S, GAP_SHARE = 0.02, 5
"""Shortest pause between two steps, in seconds, and in times of what the last one took."""
CONDITION = "encryption"
NO_GATEWAY = bytes(4)


class Keeper:
    """Run it. ``kind`` is None where WireGuard cannot be used; ``why_not`` says why."""

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        conditions: Conditions,
        tunnel: TunnelDevice,
        *,
        key: OwnKey,
        kind: Callable[[str], WireGuardDevice] | None,
        why_not: str,
        ways: WayTable,
        lead: Callable[[Mapping[tuple[str, int], Exit]], Awaitable[None]],
        compare: Callable[[str], None],
    ) -> None:
        """``kind`` makes the port to a device of that name, ``lead`` takes ways into WireGuard by range and
        epoch, ``compare`` asks for a comparison of rows.
        """
        self._config, self._view, self._conditions, self._tunnel = config, view, conditions, tunnel
        self._key, self.why_not, self._ways = key, why_not, ways
        self._lead, self._compare = lead, compare
        self._on_confirmed: Callable[[], None] = lambda: None
        self._wake = asyncio.Event()
        self._covered = 0
        self.devices: dict[Pair, ManagedDevice] = (
            {
                pair: ManagedDevice(kind(pair.name(config.device)), pair.port(config.wireguard_port))
                for pair in PAIRS
            }
            if kind is not None
            else {}
        )
        """All that this node may have, by slots; few of them are there. Empty: WireGuard cannot be used."""
        self._off_done = False
        self._waiting_since = 0.0
        self._asked_at = float("-inf")
        self._announce: Callable[[], None] = lambda: None
        self.waits = 0
        """Peers that are to be reached encrypted soon, and with which there is no session yet."""

    @property
    def port(self) -> int:
        """First UDP port by which peers reach this node encrypted; 0 where WireGuard cannot be used here."""
        return self._config.wireguard_port if self.devices else 0

    def indexes(self) -> list[int]:
        """The devices that are there."""
        return [device.index for device in self.devices.values() if device.index]

    def notify(self, on_confirmed: Callable[[], None], announce: Callable[[], None]) -> None:
        """Name whom to call after each step that changed what is confirmed, and when there is another key."""
        self._on_confirmed, self._announce = on_confirmed, announce

    def confirmed(self, sequence: int) -> int:
        """How much of the log up to ``sequence`` WireGuard follows; all of it where nothing is encrypted."""
        return sequence if self._view.encryption.off else min(sequence, self._covered)

    def line(self) -> str:
        """How it is, for people."""
        if not self.devices:
            return f"cannot be used: {self.why_not}"
        kind = next(iter(self.devices.values())).device.kind
        if self._view.encryption.off:
            return f"off; {kind}, key {self._key.public}"
        known = self._peers()
        shaken = sum(self._session(peer) for peer in known)
        return f"on: {kind}, {len(known)} peers, {shaken} with a session, key {self._key.public}"

    def _peers(self) -> list[Peer]:
        """Those that WireGuard has to know."""
        return [peer for peer in self._view.peers if peer.encrypts and peer.key and peer.port]

    def _session(self, peer: Peer) -> bool:
        return any(device.session(peer.key) for device in self.devices.values())

    def follow(self) -> None:
        """The view or the kernel side changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; the device stays, and packets go on."""
        while True:
            started = time.monotonic()
            try:
                await self._step()
            except (OSError, Refused) as error:
                self._covered = min(self._covered, self._view.encryption.since - 1)
                for device in self.devices.values():
                    device.forget()
                self._conditions.set(
                    CONDITION, f"WireGuard is not as it should be, and nothing is sent in its place: {error}"
                )
                self._on_confirmed()
            await asyncio.sleep(max(GAP_S, GAP_SHARE * (time.monotonic() - started)))
            hurry = self.waits or any(device.greeting for device in self.devices.values())
            await happened(self._wake, within_s=WAITING_LOOK_S if hurry else LOOK_S)
            self._wake.clear()

    async def _step(self) -> None:
        view, own, spec = self._view, self._view.own, self._tunnel.spec
        self._follow_key()
        if view.encryption.off:
            await self._off()
            return
        if own is None or spec is None:
            return
        self._off_done = False
        if not self.devices:
            self._conditions.set(
                CONDITION,
                f"the cluster encrypts, and this node cannot: {self.why_not}. Nothing is sent in the clear "
                "instead; `isthmus doctor` says what to do",
            )
            return
        sequence, peers = view.sequence, self._peers()
        wanted = self._wanted(peers)
        settings = link.Wanted(spec.mtu, first_address(own.cidr), self._config.device)
        again = await asyncio.to_thread(self._bring, settings, wanted)
        source = address_bytes(settings.address)
        indexes = {pair: Exit(NO_GATEWAY, device.index, source) for pair, device in self.devices.items()}
        await self._lead({(peer.cidr, peer.epoch): indexes[self._pair(peer)] for peer in peers})
        if again:
            self._compare("encryption")  # a device that was down has taken its routes with it
        self._tell_ways()
        confirmed = self._covered, self.waits
        self._count_waiting()
        self._covered = sequence
        if confirmed != (self._covered, self.waits):
            self._on_confirmed()

    def _pair(self, peer: Peer) -> Pair:
        """The device that packets to a peer leave by."""
        del peer
        return Pair(0, 0)

    def _wanted(self, peers: Sequence[Peer]) -> dict[Pair, dict[str, PeerSettings]]:
        """The peers of each device, by key."""
        view = self._view
        wanted: dict[Pair, dict[str, PeerSettings]] = {}
        hidden = _behind_nat(view, view.node)
        for peer in peers:
            pair = self._pair(peer)
            there = wanted.setdefault(pair, {})
            before = there.get(peer.key)
            ranges = (*before.allowed, peer.cidr) if before is not None else (peer.cidr,)
            alive_s = KEEPALIVE_S if hidden or peer.stage == "accepting" else 0
            where = ("", 0) if _behind_nat(view, peer.node) else (peer.underlay, pair.turned.port(peer.port))
            there[peer.key] = PeerSettings(where, tuple(sorted(ranges)), alive_s)
        for pair, there in wanted.items():
            self.devices[pair].greet(set(there))
        return wanted

    def _count_waiting(self) -> None:
        """Peers that take both, and with which no session was made: where a port is closed, the cluster does
        not go on, and no packet is lost.
        """
        view = self._view
        waiting = [
            peer
            for peer in (view.peers if view.encryption.scope != "off" else ())
            if peer.stage == "accepting" and not self._session(peer)
        ]
        now = time.monotonic()
        if not waiting:
            self._conditions.clear(CONDITION)
        elif not self.waits:
            self._waiting_since = now
        elif now - self._waiting_since > PATIENCE_S:
            first = waiting[0]
            self._conditions.set(
                CONDITION,
                f"{len(waiting)} peers take no encrypted packets yet, the first: {first.node}. Is UDP "
                f"port {first.port} open between the nodes? Until then packets go as before",
            )
        self.waits = len(waiting)

    def _bring(self, settings: link.Wanted, wanted: Mapping[Pair, Mapping[str, PeerSettings]]) -> bool:
        """In a worker thread: all devices and their peers; whether one had to be set up."""
        again = False
        for pair, device in self.devices.items():
            if pair in wanted:
                again |= device.bring(self._key, settings, wanted[pair], eager=bool(self.waits))
            else:
                device.remove()
        return again

    def _follow_key(self) -> None:
        """Another key takes the place of this node's once the log has it. Raises Refused, OSError."""
        view, directory, now = self._view, self._config.state_dir, time.monotonic()
        days = self._config.rotate_key_days
        if days and self._key.next is None and age_s(directory) > days * 86_400:
            ask_for_another(directory)
        self._key.look(directory)
        if self._key.next is None:
            return
        own = view.members.get(view.node)
        if own is not None and (own.uid, own.key) == (view.uid, self._key.next.public):
            self._key.take_next(directory)
            for device in self.devices.values():
                device.forget()
            log.info("the key of this node is %s from now on", self._key.public)
        elif now - self._asked_at > ANNOUNCE_S:
            self._asked_at = now
            self._announce()

    async def _off(self) -> None:
        """Nothing is encrypted, nor is to be: the device goes, once nothing leads into it."""
        if self._off_done or not self.devices:
            return
        await self._lead({})
        self._tell_ways()
        for device in self.devices.values():
            await asyncio.to_thread(device.remove)
        self._off_done, self.waits = True, 0
        self._conditions.clear(CONDITION)

    def _tell_ways(self) -> None:
        now = time.monotonic()
        self._ways.keep(self._view.peers.get)
        for peer in self._view.peers:
            way = self._ways.of(peer)
            if way.encrypted != peer.sealed:
                self._ways.set(peer, msgspec.structs.replace(way, encrypted=peer.sealed), now)


def _behind_nat(view: View, node: str) -> bool:
    """Whether nobody else can know where the node's packets come from until they do."""
    member = view.members.get(node)
    return member is not None and member.behind_nat
