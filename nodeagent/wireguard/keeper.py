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
from collections.abc import Awaitable, Callable, Mapping

import msgspec

from events.bus.retry import happened
from events.errors import Refused
from nodeagent.conditions import Conditions
from nodeagent.config import DEVICE_NAME_LIMIT, AgentConfig
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.membership.node_key import OwnKey, age_s, ask_for_another
from nodeagent.membership.values import first_address
from nodeagent.membership.view import View
from nodeagent.netlink.rows import address_bytes
from nodeagent.ways.table import Exit, WayTable
from nodeagent.wireguard import link
from nodeagent.wireguard.device import DeviceState, PeerSettings, WireGuardDevice, difference

log = logging.getLogger("isthmus.agent.wireguard")

LOOK_S = 1.0
"""Longest time until a device that somebody took away is there again."""
READ_S, READ_SHARE = 5.0, 100
"""Between two readings of all peers of the device: at least this, and so many times what the last one took."""
WAITING_LOOK_S, PATIENCE_S = 0.2, 10.0
"""Between two looks for sessions that are still to come; after so long it is a condition that they do not."""
ANNOUNCE_S, GREETING_S = 30.0, 10.0
"""Between two requests to have the next key in the log; how long a session with a new key is tried for."""
KEEPALIVE_S = 25
"""While peers take both, this makes WireGuard begin a session before any packet needs it."""
GAP_S, GAP_SHARE = 0.02, 5
"""Shortest pause between two steps, in seconds, and in times of what the last one took."""
CONDITION = "encryption"
NO_GATEWAY = bytes(4)


def device_name(tunnel: str) -> str:
    """The WireGuard device that belongs to a tunnel device."""
    return f"{tunnel[: DEVICE_NAME_LIMIT - 3]}-wg"


class Keeper:
    """Run it. ``device`` is None where WireGuard cannot be used; ``why_not`` says why."""

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        conditions: Conditions,
        tunnel: TunnelDevice,
        *,
        key: OwnKey,
        device: WireGuardDevice | None,
        why_not: str,
        ways: WayTable,
        lead: Callable[[Mapping[tuple[str, int], Exit]], Awaitable[None]],
        compare: Callable[[str], None],
    ) -> None:
        """``lead`` takes ways into WireGuard by range and epoch, ``compare`` asks for a comparison of rows."""
        self._config, self._view, self._conditions, self._tunnel = config, view, conditions, tunnel
        self._key, self._device, self.why_not, self._ways = key, device, why_not, ways
        self._lead, self._compare = lead, compare
        self._on_confirmed: Callable[[], None] = lambda: None
        self._wake = asyncio.Event()
        self._covered = 0
        self._read_at = 0.0
        self._known: dict[str, PeerSettings] = {}
        self._index = 0
        self._off_done = False
        self._read_took = 0.0
        self._waiting_since = 0.0
        self._greeted: dict[str, tuple[float, float]] = {}  # key → until when, and since when by the wall clock
        self._asked_at = float("-inf")
        self._announce: Callable[[], None] = lambda: None
        self.waits = 0
        """Peers that are to be reached encrypted soon, and with which there is no session yet."""
        self.state: DeviceState | None = None
        """The device as it was last read; None while there is none."""

    @property
    def port(self) -> int:
        """The UDP port by which peers reach this node encrypted; 0 where WireGuard cannot be used here."""
        return self._config.wireguard_port if self._device is not None else 0

    @property
    def name(self) -> str:
        """The device's name."""
        return device_name(self._config.device)

    def notify(self, on_confirmed: Callable[[], None], announce: Callable[[], None]) -> None:
        """Name whom to call after each step that changed what is confirmed, and when there is another key."""
        self._on_confirmed, self._announce = on_confirmed, announce

    def confirmed(self, sequence: int) -> int:
        """How much of the log up to ``sequence`` WireGuard follows; all of it where nothing is encrypted."""
        return sequence if self._view.encryption.off else min(sequence, self._covered)

    def line(self) -> str:
        """How it is, for people."""
        if self._device is None:
            return f"cannot be used: {self.why_not}"
        if self._view.encryption.off:
            return f"off; {self._device.kind}, key {self._key.public}"
        shaken = sum(peer.handshake_at > 0 for peer in self.state.peers.values()) if self.state else 0
        known = len(self._known)
        return f"on: {self._device.kind}, {known} peers, {shaken} with a session, key {self._key.public}"

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
                self._known.clear()
                self._conditions.set(
                    CONDITION, f"WireGuard is not as it should be, and nothing is sent in its place: {error}"
                )
                self._on_confirmed()
            await asyncio.sleep(max(GAP_S, GAP_SHARE * (time.monotonic() - started)))
            await happened(self._wake, within_s=WAITING_LOOK_S if self.waits or self._greeted else LOOK_S)
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
        if self._device is None:
            self._conditions.set(
                CONDITION,
                f"the cluster encrypts, and this node cannot: {self.why_not}. Nothing is sent in the clear "
                "instead; `isthmus doctor` says what to do",
            )
            return
        sequence = view.sequence
        peers = [peer for peer in view.peers if peer.encrypts and peer.key and peer.port]
        wanted: dict[str, PeerSettings] = {}
        hidden = _behind_nat(view, view.node)
        self._greet({peer.key for peer in peers})
        for peer in peers:
            before = wanted.get(peer.key)
            ranges = (*before.allowed, peer.cidr) if before is not None else (peer.cidr,)
            alive_s = KEEPALIVE_S if hidden or peer.stage == "accepting" or peer.key in self._greeted else 0
            where = ("", 0) if _behind_nat(view, peer.node) else (peer.underlay, peer.port)
            wanted[peer.key] = PeerSettings(where, tuple(sorted(ranges)), alive_s)
        name, settings = self.name, link.Wanted(spec.mtu, first_address(own.cidr), self._config.device)
        index, again = await asyncio.to_thread(self._bring, self._device, name, settings, wanted)
        way = Exit(NO_GATEWAY, index, address_bytes(settings.address))
        await self._lead({(peer.cidr, peer.epoch): way for peer in peers})
        if again or index != self._index:
            self._index = index
            self._compare("encryption")  # a device that was down has taken its routes with it
        self._tell_ways()
        confirmed = self._covered, self.waits
        self._count_waiting()
        self._covered = sequence
        if confirmed != (self._covered, self.waits):
            self._on_confirmed()

    def _count_waiting(self) -> None:
        """Peers that take both, and with which no session was made: where a port is closed, the cluster does
        not go on, and no packet is lost.
        """
        view, known = self._view, self.state.peers if self.state is not None else {}
        waiting = [
            peer
            for peer in (view.peers if view.encryption.scope != "off" else ())
            if peer.stage == "accepting" and (peer.key not in known or not known[peer.key].handshake_at)
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

    def _bring(
        self,
        device: WireGuardDevice,
        name: str,
        settings: link.Wanted,
        wanted: Mapping[str, PeerSettings],
    ) -> tuple[int, bool]:
        """In a worker thread: the device and its peers; its index, and whether it had to be set up."""
        fresh = not link.index_of(name)
        if fresh:
            log.info("making the WireGuard device %s (%s)", name, device.kind)
            device.create()
        now = time.time()
        pause_s = 0.0 if self.waits or self._greeted else max(READ_S, READ_SHARE * self._read_took)
        if fresh or not self._known or time.monotonic() - self._read_at > pause_s:
            began = time.monotonic()
            self.state = state = device.read()
            self._read_at = time.monotonic()
            self._read_took = self._read_at - began
            if (state.public_key, state.port) != (self._key.public, self._config.wireguard_port):
                device.configure(self._key.private, self._config.wireguard_port)
            put, drop = difference(wanted, state.peers, now)
        else:
            put = {key: one for key, one in wanted.items() if self._known.get(key) != one}
            drop = [key for key in self._known if key not in wanted]
        if put or drop:
            device.change(put, drop)
        self._known = dict(wanted)
        index, done = link.settle(name, settings)
        return index, done or fresh

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
            self._known.clear()
            log.info("the key of this node is %s from now on", self._key.public)
        elif now - self._asked_at > ANNOUNCE_S:
            self._asked_at = now
            self._announce()

    def _greet(self, keys: set[str]) -> None:
        """Begin sessions with keys that are new here, or to which this node is: before the next packet, and not
        when WireGuard tries again seconds later. A device that goes on from an earlier life has its sessions.
        """
        if self.state is None:
            return
        now, known = time.monotonic(), self.state.peers
        for key in keys - self._known.keys():
            self._greeted[key] = (now + GREETING_S, float(int(time.time())))
        self._greeted = {
            key: (until, since)
            for key, (until, since) in self._greeted.items()
            if key in keys and now < until and not (key in known and known[key].handshake_at >= since)
        }

    async def _off(self) -> None:
        """Nothing is encrypted, nor is to be: the device goes, once nothing leads into it."""
        if self._off_done or self._device is None:
            return
        await self._lead({})
        self._tell_ways()
        if link.index_of(self.name):
            await asyncio.to_thread(self._device.remove)
            log.info("the WireGuard device %s is gone: nothing is encrypted any more", self.name)
        self._known, self.state, self._index, self._off_done, self.waits = {}, None, 0, True, 0
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
