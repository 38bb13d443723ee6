"""Keeps WireGuard in step with the log: device, own key, peers with their ranges, and the routes into it.

Desired − device, as for rows: what the log says of members with keys against what the device has, at every
change of the view, and wholly now and again. What the log says counts as applied only when it is here, too:
the cluster's next step towards encryption rests on it. Nothing of this is in a packet's way out: a sealed peer
has a blackhole under its route, so that a device that is gone, or a peer without a key, costs packets and lets
none out in the clear.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

from events.bus.retry import happened
from events.protocol.encryption import WIREGUARD_PORTS
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.tunnel_device import TunnelDevice
from nodeagent.membership.key_age import KeyAge
from nodeagent.membership.node_key import OwnKey, PrivateKey, Told
from nodeagent.membership.peers import Peer
from nodeagent.membership.session import BusSession
from nodeagent.membership.values import first_address
from nodeagent.membership.view import View
from nodeagent.netlink.rows import address_bytes
from nodeagent.ways.table import Exit, Way, WayTable
from nodeagent.wireguard import link, ports, telling
from nodeagent.wireguard.device import KEEPALIVE_S, PeerSettings, WireGuardDevice
from nodeagent.wireguard.managed import ManagedDevice
from nodeagent.wireguard.pairs import PAIRS, SLOTS, Pair
from nodeagent.wireguard.relays import (
    Settled,
    carries,
    in_words,
    kept_s,
    place_of,
    ranges_of,
    waiting_for,
)
from nodeagent.wireguard.rotation import PATIENCE_S, SILENT_S, Rotation

log = logging.getLogger("isthmus.agent.wireguard")

LOOK_S = 1.0
"""Longest time until a device that somebody took away is there again."""
WAITING_LOOK_S, SESSION_PATIENCE_S = 0.2, 10.0
"""Between two looks for sessions that are still to come; after so long it is a condition that they do not."""
ANNOUNCE_S = 30.0
"""Between two requests to have the next key in the log."""
GAP_S, GAP_SHARE = 0.02, 5
"""Shortest pause between two steps, in seconds, and in times of what the last one took."""
CONDITION, KEY_CONDITION = "encryption", "key"
NO_GATEWAY = bytes(4)


class Paths(Protocol):
    """Ways through NAT, as far as they are needed here."""

    carries: Callable[[Peer, Peer], bool]
    """Whether a relay forwards to a peer as this node sends: encrypted, or in the clear."""
    carried: Callable[[], Mapping[str, str]]
    """With which key WireGuard reaches each range, as an earlier life left it; from a worker thread."""

    def relayed(self) -> Mapping[int, Peer]:
        """Who forwards to the peers that are reached so, by the epoch of their ranges."""
        ...

    def shown(self, peer: Peer) -> Way | None:
        """The way to a peer as it is without encryption; None while nothing is known of it."""
        ...


class Keeper:
    """Run it. ``kind`` is None where WireGuard cannot be used; ``why_not`` says why."""

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        conditions: Conditions,
        tunnel: TunnelDevice,
        session: BusSession,
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
        self._bus = session
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
        self._waiting_since: float | None = None
        self._asked = Told("", 0), 0.0
        self._age = KeyAge(config.state_dir)
        self._rotation = Rotation()
        self._change = False
        """Whether any pair of nodes has more than one pair of keys now."""
        self._ways_now: dict[tuple[str, int], Pair] = {}  # range and epoch → the device that packets leave by
        self._announce: Callable[[], None] = lambda: None
        self._relays: Callable[[], Mapping[int, Peer]] = dict
        self._unencrypted: Callable[[Peer], Way | None] = lambda _: None
        self._relayed: dict[int, Peer] = {}  # epoch → who forwards to that peer
        self._settled = Settled()
        self.waits = 0
        """Peers that are to be reached encrypted soon, and with which there is no session yet, or by a gateway
        that may still be another one for them."""

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

    def relay_by(self, paths: Paths) -> None:
        """Who forwards to peers behind other NATs is found out there, by what the devices can and have."""
        self._relays, self._unencrypted = paths.relayed, paths.shown
        paths.carries, paths.carried = (lambda relay, peer: carries(self._view, relay, peer)), self.carried

    def carried(self) -> dict[str, str]:
        """With which key each range is reached, as the devices have it. Blocks; raises OSError."""
        states = [one.device.read() for one in self.devices.values() if link.index_of(one.device.name)]
        return {
            cidr: key for state in states for key, peer in state.peers.items() for cidr in peer.settings.allowed
        }

    def renew(self) -> None:
        """A router on the way lost its mappings: have it see where sessions from behind it come from now."""
        for device in self.devices.values():
            device.renew = True
        self._wake.set()

    def confirmed(self, sequence: int) -> int:
        """How much of the log up to ``sequence`` WireGuard follows; all of it where nothing is encrypted."""
        return sequence if self._view.encryption.off else min(sequence, self._covered)

    def line(self) -> str:
        """How it is, for people."""
        if not self.devices:
            return f"cannot be used: {self.why_not}"
        kind = next(iter(self.devices.values())).device.kind
        key = f"key {self._key.public}"
        if self._key.next is not None and self._key.old is None:
            key = f"{self._key.next.public} is to be in the log in its place, {key}"
        if self._view.encryption.off:
            return f"off; {kind}, {key}"
        known = [peer for peer in self._peers() if peer.epoch not in self._relayed]
        sessions = f"{sum(map(self._session, known))} with a session"
        if self._relayed:
            sessions += f", {len(self._relayed)} relayed"
        if self._rotation.on and self._key.old is not None:
            missing, old = self._rotation.missing, self._key.old.public
            sessions += f", {missing} still without one by the new key, so {old} is valid, too"
        return f"on: {kind}, {len(known)} peers, {sessions}, {key}"

    def told(self) -> Told:
        """What a join is to say of the own key."""
        encrypts = bool(self.devices) and not self._view.encryption.off
        return self._key.told(self.port, both=encrypts, over=self._rotation.over or not encrypts)

    def _peers(self) -> list[Peer]:
        """Those that WireGuard has to know."""
        return [peer for peer in self._view.peers if peer.encrypts and peer.key and peer.port]

    def _session(self, peer: Peer) -> bool:
        return any(
            device.session(key)
            for (_, slot), device in self.devices.items()
            for peer_slot, key in peer.keys
            if peer_slot == slot
        )

    def follow(self) -> None:
        """The view or the kernel side changed."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled; the device stays, and packets go on."""
        while True:
            started = time.monotonic()
            try:
                await self._step()
            except OSError as error:
                self._covered = min(self._covered, self._view.encryption.since - 1)
                for device in self.devices.values():
                    device.forget()
                self._conditions.set(
                    CONDITION, f"WireGuard is not as it should be, and nothing is sent in its place: {error}"
                )
                self._on_confirmed()
            await asyncio.sleep(max(GAP_S, GAP_SHARE * (time.monotonic() - started)))
            hurry = self._eager or any(device.greeting for device in self.devices.values())
            await happened(self._wake, within_s=WAITING_LOOK_S if hurry else LOOK_S)
            self._wake.clear()

    async def _step(self) -> None:
        view, own, spec = self._view, self._view.own, self._tunnel.spec
        try:
            self._follow_key()
        except OSError as error:  # packets go by the keys that are held
            self._key.problem = f"the node's key is not replaced, and the one before goes on: {error}"
        if view.encryption.off or self._bus.held:  # a copy of a machine that reports draws no packets from it
            self._conditions.set(KEY_CONDITION, self._key.problem)
            await self._off()
            return
        if own is None or spec is None or self._may_be_a_copy():
            return
        self._off_done = False
        if not self.devices:
            self._conditions.set(
                CONDITION,
                f"the cluster encrypts, and this node cannot: {self.why_not}. Nothing is sent in the clear "
                "instead; `isthmus doctor` says what to do",
            )
            return
        member = view.members.get(view.node)
        keys = self._key.by_slot(member.key, member.beside, member.slot) if member is not None else {}
        if not keys:
            self._conditions.set(
                CONDITION, "the log does not have this node's key yet: WireGuard stays as it is until then"
            )
            return
        sequence, peers, self._relayed = view.sequence, self._peers(), dict(self._relays())
        underlay = self._tunnel.underlay.address if self._tunnel.underlay is not None else ""
        settings = link.Wanted(spec.mtu, first_address(own.cidr), self._config.device, underlay)
        wanted = self._wanted(peers, tuple(keys))
        again, failed = await asyncio.to_thread(self._bring, settings, keys, wanted)
        source = address_bytes(settings.address)
        exits = {pair: Exit(NO_GATEWAY, device.index, source) for pair, device in self.devices.items()}
        ways = {(peer.cidr, peer.epoch): self._way(peer, tuple(keys)) for peer in peers}
        if failed is not None and not all(exits[pair].device for pair in ways.values()):
            raise failed
        await self._lead({place: exits[pair] for place, pair in ways.items() if exits[pair].device})
        self._ways_now = ways
        if failed is not None:
            raise failed
        await asyncio.to_thread(self._trim, wanted)
        if again:
            self._compare("encryption")  # a device that was down has taken its routes with it
        self._tell_ways()
        confirmed = self._covered, self.waits
        self._count_waiting()
        self._judge_rotation(peers)
        self._covered = sequence
        if confirmed != (self._covered, self.waits):
            self._on_confirmed()

    def _may_be_a_copy(self) -> bool:
        """Whether this node begins at another address than it joined with, and nobody could be asked yet.

        Peers send to where the last packet with a key came from: a copy of a machine would draw its packets to
        itself. What is in the kernel already goes on.
        """
        member, here = self._view.members.get(self._view.node), self._tunnel.underlay_address()
        if self._bus.joined or member is None or member.underlay == here:
            return False
        if any(link.index_of(one.device.name) for one in self.devices.values()):
            return False
        self._conditions.set(
            CONDITION,
            f"the log has this node at {member.underlay}, and it is at {here}: it moved, or is a copy of that "
            "machine. WireGuard waits until the controllers have let it in; nothing is sent in the clear",
        )
        return True

    @property
    def _eager(self) -> bool:
        """Whether sessions are awaited that should be there any moment."""
        return bool(self.waits) or 0 < self._rotation.lasts_s(time.monotonic()) < PATIENCE_S

    def _way(self, peer: Peer, slots: Sequence[int]) -> Pair:
        """The device that packets to a peer leave by: of the newest keys with which there is a session. Where
        there is none at all, the oldest ones: their devices are there on both ends, unless one has lost them.
        A relayed peer's is that of whom relays to it.
        """
        peer = self._relayed.get(peer.epoch, peer)
        pairs = [(Pair(own, slot), key) for own in slots for slot, key in peer.keys]
        return next((pair for pair, key in pairs if self.devices[pair].session(key)), pairs[-1][0])

    def _wanted(self, peers: Sequence[Peer], slots: Sequence[int]) -> dict[Pair, dict[str, PeerSettings]]:
        """The peers of each device, by key."""
        view = self._view
        wanted: dict[Pair, dict[str, PeerSettings]] = {}
        self._change, ranges = False, ranges_of(peers, self._relayed)
        for peer in peers:
            keys, leads = peer.keys, self._ways_now.get((peer.cidr, peer.epoch))
            often_s = kept_s(view, peer, len(peers), self._relayed)
            changes = len(keys) * len(slots) > 1 and peer.epoch not in self._relayed
            self._change = self._change or changes
            for pair, key in ((Pair(own, slot), key) for own in slots for slot, key in keys):
                there = wanted.setdefault(pair, {})
                before = there.get(key)
                allowed = (*before.allowed, *ranges[peer.epoch]) if before is not None else ranges[peer.epoch]
                where = place_of(view, peer, pair.turned.port(peer.port), self._relayed)
                alive_s = often_s
                if changes and not self.devices[pair].session(key):
                    alive_s = often_s or KEEPALIVE_S
                elif changes and pair != leads:
                    alive_s = 0  # packets go by a newer key, or are to
                there[key] = PeerSettings(where, tuple(sorted(allowed)), alive_s)
        return wanted

    def _judge_rotation(self, peers: Sequence[Peer]) -> None:
        """Whether the own key before may go: every peer has a session with the new one, or is away."""
        member, key, now = self._view.members.get(self._view.node), self._key, time.monotonic()
        if key.old is None or member is None or member.beside != key.old.public:
            self._rotation.reset()
            self._conditions.set(KEY_CONDITION, key.problem)
            return
        slot = member.slot
        missing = [
            peer
            for peer in peers
            if peer.epoch not in self._relayed
            and not any(self.devices[Pair(slot, one)].session(public) for one, public in peer.keys)
        ]
        received = sum(self.devices[Pair(1 - slot, one)].received for one in SLOTS)
        self._rotation.look(len(missing), received, now)
        words = key.problem
        if missing and self._rotation.lasts_s(now) > PATIENCE_S:
            words = (
                f"{len(missing)} peers have no session with this node's new key, the first: {missing[0].node}. "
                f"The key before it, {key.old.public}, is valid until they have, or until nothing came by it "
                f"for {SILENT_S / 60:g} minutes, and for a day at most. Are UDP ports {self.port} to "
                f"{self.port + WIREGUARD_PORTS - 1} open between the nodes, and does that agent run?"
            )
        self._conditions.set(KEY_CONDITION, words)

    def _count_waiting(self) -> None:
        """Peers that take both, and that cannot be reached encrypted: where a port is closed or nobody relays,
        the cluster does not go on, and no packet is lost.
        """
        view, now = self._view, time.monotonic()
        closed, unrelayed = waiting_for(view, self._relayed, self._session)
        self._settled.follow(self._relayed, now)
        if not closed and not unrelayed:
            self._waiting_since = None
            self._conditions.clear(CONDITION)
        elif self._waiting_since is None:
            self._waiting_since = now
        elif now - self._waiting_since > SESSION_PATIENCE_S:
            self._conditions.set(CONDITION, in_words(view, closed, unrelayed))
        fresh = self._settled.fresh(view.peers, self._relayed, now)
        self.waits = len(closed) + len(unrelayed) + fresh

    def _bring(
        self,
        settings: link.Wanted,
        keys: Mapping[int, PrivateKey],
        wanted: Mapping[Pair, Mapping[str, PeerSettings]],
    ) -> tuple[bool, OSError | None]:
        """In a worker thread: all devices and their peers; whether one had to be set up, and what went wrong
        first. One that cannot be made does not keep the others from it.
        """
        again: bool = False
        failed: OSError | None = None
        eager = self._change or bool(self.waits)
        for pair, peers in wanted.items():
            try:
                again |= self.devices[pair].bring(keys[pair.own], settings, peers, eager=eager)
            except OSError as error:
                self.devices[pair].lost()
                failed = failed or self._explained(error)
        return again, failed

    def _explained(self, error: OSError) -> OSError:
        """With the program that holds a port of ours, where it is that."""
        held = ports.strangers(self.port, self._config.device) if error.errno == errno.EADDRINUSE else ()
        return OSError(error.errno, f"{ports.in_words(held)}: {ports.way_out()}") if held else error

    def _trim(self, wanted: Mapping[Pair, Mapping[str, PeerSettings]]) -> None:
        """In a worker thread: what nothing leads to any more goes, peers and devices. Raises OSError."""
        for pair, device in self.devices.items():
            if pair in wanted:
                device.trim()
            elif device.state is not None or link.index_of(device.device.name):
                device.leave()

    def _follow_key(self) -> None:
        """Another key takes its place beside this node's once the log has it. Raises OSError."""
        view, now, key = self._view, time.monotonic(), self._key
        key.look()
        days = self._config.rotate_key_days
        if days and self._age.of(key.public) > days * 86_400:
            key.grown_old()
        own = view.members.get(view.node)
        if own is None or own.uid != view.uid:
            return
        while key.follow(own.key, own.beside):
            beside = f", {key.old.public} is valid beside it" if key.old is not None else " alone"
            log.info("the key of this node is %s from now on%s", key.public, beside)
        told = self.told()
        asked, at = self._asked
        if told != (own.key, own.port, own.beside) and (told != asked or now - at > ANNOUNCE_S):
            self._asked = told, now
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
        def place(peer: Peer) -> str:
            pair = self._ways_now.get((peer.cidr, peer.epoch))
            return telling.place_of(self._view, peer, self.devices, pair)

        now = time.monotonic()
        telling.tell(self._ways, self._view, now, unencrypted=self._unencrypted, place=place)
