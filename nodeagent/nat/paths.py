"""Keeps the way to each peer behind NAT: asks, answers, and makes rows, routes and the firewall follow.

What was found out is in :mod:`nodeagent.nat.book`; this carries its messages (:mod:`nodeagent.nat.wire`) and
has the kernel follow. The firewall lets a new place in before rows lead there, and the old one as long as they
do. What an earlier life of the agent found out stands in the kernel, and is gone on with.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import socket
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from events.bus.retry import happened
from events.status import NatReport, WayKind
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.dataplane.second_device import SecondDevice, second_vni
from nodeagent.dataplane.underlay import Underlay
from nodeagent.fastpath.reconciler import FastPath
from nodeagent.firewall.elements import Second
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.view import View
from nodeagent.nat import packets
from nodeagent.nat.book import STEP_S, NatBook
from nodeagent.nat.elsewhere import Elsewhere
from nodeagent.nat.kept import SAVE_S, Kept
from nodeagent.nat.packets import Endpoint
from nodeagent.nat.pair import Way as Found
from nodeagent.nat.places import destination_of, element_of, exit_of, place_of
from nodeagent.nat.wire import Wire
from nodeagent.netlink import links
from nodeagent.netlink.rows import Rows, address_bytes, preferred_key, split_cidr
from nodeagent.netlink.socket import Engine, NetlinkChannel
from nodeagent.ways.table import TUNNEL, Exit, Way, WayTable

log = logging.getLogger("isthmus.agent.nat")

FOLLOW_S, FOLLOW_MAX_S = 1.0, 30.0
"""Shortest and longest time between two looks at who is a member."""
WITNESSES = 4
"""Peers that are asked how they see this node while nobody sees it elsewhere; some more where sites are
several."""
SITES = 4
SETTLE_S = 5.0
"""Longest time that rows wait for the firewall."""
AGAIN_S = 2.0
"""Between two attempts to have the second device."""
CONDITION = "nat"


class Secrets(Protocol):
    """This node's key, as far as it is needed here. It may be replaced by another one at any time."""

    @property
    def public(self) -> str:
        """The public key, as base64."""
        ...

    def shared_secret(self, peer_public: str) -> bytes:
        """What only this node and the one with that public key can compute. Raises ValueError for no key."""
        ...


class NatPaths:
    """Run it. ``admitted`` is from where the firewall lets packets for the second device in."""

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        conditions: Conditions,
        *,
        reconciler: Reconciler,
        fastpath: FastPath,
        ways: WayTable,
        secrets: Secrets,
        wire: Wire | None,
        why_not: str = "",
    ) -> None:
        """``wire``: None where there is none, and ``why_not`` then says why."""
        self._config, self._view, self._conditions = config, view, conditions
        self._reconciler, self._fastpath, self._ways = reconciler, fastpath, ways
        self._secrets, self._wire, self._why_not = secrets, wire, why_not
        self._kept = Kept(config.state_dir)
        self.book = NatBook(number=self._kept.number)
        self.book.remember(self._kept.floors)
        if (ago_s := self._kept.asked_ago_s()) is not None:
            self.book.asked.go_on(time.monotonic() - ago_s)
        self._keys: dict[int, tuple[tuple[str, str], bytes]] = {}  # epoch → both public keys, key of the pair
        self._admitted: dict[str, str] = {}  # place → range of whom is there
        self._shown: dict[Peer, Way] = {}
        self._applied: tuple[int, int] = (-1, 0)  # version of the book, index of the device
        self._followed: tuple[int, bool] = (-1, False)
        self._followed_at = self._follow_after = -1e9
        self._saved_at = 0.0
        self._again_at = -1e9
        self._led: frozenset[Peer] = frozenset()  # those to whom routes of ours should lead
        self._elsewhere = Elsewhere()
        self._wake = asyncio.Event()
        self._changed: Callable[[], None] = lambda: None
        self._lost: Callable[[], None] = lambda: None
        self._alarms = 0
        self.firewall_settled = asyncio.Event()
        self.firewall_settled.set()
        self.relays: Callable[[], Iterable[Peer]] = self._gateways
        """Peers that forward between two nodes behind different NATs."""
        self.carries: Callable[[Peer, Peer], bool] = lambda *_: True
        self.carried: Callable[[], Mapping[str, str]] = dict

    def notify(self, changed: Callable[[], None], lost: Callable[[], None] = lambda: None) -> None:
        """Call ``changed`` when the firewall has to let in others, or there is something to report; ``lost``
        when a router on the way seems to have lost its mappings.
        """
        self._changed, self._lost = changed, lost

    def admitted(self) -> set[str]:
        """Where packets for the second device may come from, ``ADDRESS . PORT``: no peer that is to encrypt."""
        peers = ((place, self._view.peers.get(cidr)) for place, cidr in self._admitted.items())
        return {place for place, peer in peers if peer is None or peer.stage != "required"}

    def relayed(self) -> dict[int, Peer]:
        """Who forwards to the peers that are reached so, by the epoch of their ranges. O(pairs)."""
        found = self.book.ways().items()
        return {peer.epoch: way.relay for peer, way in found if way.relay is not None}

    def shown(self, peer: Peer) -> Way | None:
        """The way to a peer as it was last written to the kernel; None while it is the tunnel."""
        return self._shown.get(peer)

    def elsewhere(self) -> frozenset[str]:
        """Nodes from whose own addresses nothing comes any more."""
        return self._elsewhere.nodes(time.monotonic())

    def hidden(self) -> set[str]:
        """The ranges between which this node relays: none, unless it is a gateway."""
        serves = self._view.node in self._view.traffic.gateways
        return {peer.cidr for peer in self._view.peers if self._behind_nat(peer)} if serves else set()

    def second(self) -> Second | None:
        """The second device, for the firewall; None while there is none."""
        device, plan = self._device, self._view.plan
        if not device.ifindex or plan is None:
            return None
        return Second(device.name, device.ifindex, second_vni(plan.vni))

    def report(self) -> NatReport:
        """What others see of this node. Who sees that it is not behind NAT is told while the log has it so."""
        found, own = self.book.seen(time.monotonic()), self._view.members.get(self._view.node)
        told = found.by if found.behind or (own is not None and own.behind_nat) else ()
        return NatReport(mode=self._config.nat, behind=found.behind, seen_as=found.address, seen_by=told)

    @property
    def _device(self) -> SecondDevice:
        return self._reconciler.tunnel.second

    # --- beginning and end -----------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Before anything is written for the first time: what led to peers behind NAT goes on.

        Cancelled, nothing is known yet.
        """
        if self._config.nat == "off" or self._wire is None or self._view.own is None or self._view.plan is None:
            return
        with contextlib.suppress(OSError):  # what cannot be taken over is found anew
            await asyncio.to_thread(self._adopt, self._view.own, self._view.plan.port, list(self._view.peers))
        self._follow(time.monotonic())

    def _adopt(self, own: Peer, port: int, peers: list[Peer]) -> None:
        self.book.be(own, port, time.monotonic())
        by_key, carried = {key: peer for peer in peers for _, key in peer.keys if key}, self.carried()
        for peer in peers:
            relay = by_key.get(carried.get(peer.cidr, ""))
            if relay is not None and relay != peer:
                self.book.adopt(peer, None, relay.epoch)
        link, tunnel = links.find(self._device.name), links.find(self._config.device)
        if link is None or link.kind != "vxlan" or tunnel is None:
            return
        with Engine(NetlinkChannel()) as engine:
            rows = engine.read(link.index, routes=False)
            routes = engine.read(tunnel.index).routes
        self._device.wanted, self._device.ifindex = True, link.index  # so the firewall goes on, too
        kept = Rows.empty()
        ways: dict[WayKind, dict[Peer, Exit]] = {"nat": {}, "relayed": {}}
        by_vtep = {peer.packed()[0]: peer for peer in peers}
        for peer in peers:
            first, mac, _, _ = peer.packed()
            value = routes.get(preferred_key(*split_cidr(peer.cidr)), b"")
            way = exit_of(value)
            if way is None or way.device not in {0, link.index}:
                continue
            place = rows.fdb.get(mac, b"")
            if way.gateway == first and way.device and len(place) in {4, 6}:
                kept.neighbours[first], kept.fdb[mac] = mac, place
                ways["nat"][peer] = way
                self.book.adopt(peer, place_of(place, port))
            elif (relay := by_vtep.get(way.gateway)) is not None and relay != peer:
                ways["relayed"][peer] = way
                self.book.adopt(peer, None, relay.epoch)
        self._device.rows = kept
        self._admitted = {
            element_of(place_of(kept.fdb[peer.packed()[1]], port)): peer.cidr for peer in ways["nat"]
        }
        self._elsewhere.adopt(peer for exits in ways.values() for peer in exits)
        for kind, exits in ways.items():
            self._reconciler.found.prefer(exits, None, None, by=kind)

    async def run(self) -> None:
        """Until cancelled; rows, routes and rules stay as they are."""
        if self._config.nat == "off":
            return
        if self._wire is None:
            needed = self._config.nat == "on"
            self._conditions.set(
                CONDITION, f"peers behind NAT are not reached: {self._why_not}" if needed else ""
            )
            log.log(logging.WARNING if needed else logging.INFO, "no way through NAT: %s", self._why_not)
            return
        try:
            while True:
                await self._step(self._wire, time.monotonic())
                await happened(self._wake, within_s=self.book.pause_s(time.monotonic()))
                self._wake.clear()
        finally:
            self._wire.close()
            self._save(ended=True)

    # --- asking and answering --------------------------------------------------------------------------------

    def _underlay(self) -> Underlay | None:
        underlay, view = self._reconciler.tunnel.underlay, self._view
        able = underlay is not None and underlay.present and view.own is not None and view.plan is not None
        lost = view.fenced or view.deleted or view.left
        return underlay if able and not lost and underlay is not None and ":" not in underlay.address else None

    async def _step(self, wire: Wire, now: float) -> None:
        underlay, own, plan = self._underlay(), self._view.own, self._view.plan
        if underlay is None or own is None or plan is None or not self._reconciler.counters.resyncs:
            wire.silence()
            return
        try:
            wire.listen(underlay.device, plan.port, self._received, receiver=own.epoch)
            self._conditions.clear(CONDITION)
        except OSError as error:
            self._conditions.set(
                CONDITION, f"packets through NAT cannot be heard on {underlay.device}: {error}"
            )
            return
        self.book.be(own, plan.port, now)
        self._follow(now)
        source = address_bytes(underlay.address)
        for peer in self.book.look(now):
            key = self._key_of(peer)
            said = self.book.hello(peer, now)
            if said is not None and key:
                wire.send(packets.seal(said[0], key), source, said[1], plan.port)
        for place in self.book.keeps(now):
            wire.send(b"", source, place, plan.port)
        if self.book.alarms != self._alarms:
            self._alarms = self.book.alarms
            self._lost()
        if not self._led <= self._reconciler.found.exits.keys():
            self._applied = (-1, 0)  # the kernel did not take a route: its device was down
        if (self.book.version, self._device.ifindex) != self._applied and now >= self._again_at:
            await self._apply(now)
        if now >= self._elsewhere.due:
            self._elsewhere.look(now)
            self._changed()
        if now - self._saved_at > SAVE_S:
            self._saved_at = now
            self._save()

    def _follow(self, now: float) -> None:
        """Who is there, and whom to ask. At most once a second, and more rarely where it takes long."""
        state = self._view.sequence, self.book.behind
        if now < self._follow_after or (state == self._followed and now - self._followed_at < FOLLOW_MAX_S):
            return
        started = time.perf_counter()
        self._followed, self._followed_at = state, now
        peers = {peer.epoch: peer for peer in self._view.peers if ":" not in peer.underlay}
        everybody = self.book.behind or self._config.nat == "on"
        asked: Iterable[Peer] = peers.values() if everybody else self._witnesses(peers.values())
        able = [peer for peer in asked if self._public(peer)]
        self.book.follow(
            peers, able, now, relays=self.relays(), behind_nat=self._behind_nat, carries=self.carries
        )
        self._keys = {epoch: known for epoch, known in self._keys.items() if epoch in peers}
        self._ways.keep(self._view.peers.get)
        self._follow_after = now + max(FOLLOW_S, 100 * (time.perf_counter() - started))

    def _behind_nat(self, peer: Peer) -> bool:
        """Whether the peer is behind NAT, as the log has it."""
        member = self._view.members.get(peer.node)
        return member is not None and member.behind_nat

    def _site(self, peer: Peer) -> str:
        member = self._view.members.get(peer.node)
        return member.site if member is not None else ""

    def _witnesses(self, peers: Iterable[Peer]) -> list[Peer]:
        """Who is asked how it sees this node: gateways, nodes of other sites, others; not the same for all."""
        own = self._view.own
        home = self._site(own) if own is not None else ""
        salt = self._view.node.encode()
        gateways = self._view.traffic.gateways
        order = heapq.nsmallest(
            64,
            peers,
            key=lambda peer: (
                self._behind_nat(peer), peer.node not in gateways, self._site(peer) == home,
                zlib.crc32(salt + peer.node.encode()),
            ),
        )  # fmt: skip
        chosen: dict[int, Peer] = {peer.epoch: peer for peer in order[:WITNESSES]}
        sites: dict[str, Peer] = {}
        for peer in peers:
            sites.setdefault(self._site(peer), peer)
        sites.pop(home, None)
        chosen |= {peer.epoch: peer for peer in list(sites.values())[:SITES]}
        return list(chosen.values())

    def _gateways(self) -> list[Peer]:
        found = (self._view.peers.of_node(name) for name in self._view.traffic.gateways)
        return [peer for peer in found if peer is not None]

    def _public(self, peer: Peer) -> str:
        member = self._view.members.get(peer.node)
        return member.key if member is not None and member.uid == peer.uid else ""

    def _key_of(self, peer: Peer) -> bytes:
        """The key of the pair; empty while the peer's public one is not known."""
        public, own = self._public(peer), self._view.own
        known, both = self._keys.get(peer.epoch), (public, self._secrets.public)
        if known is not None and known[0] == both:
            return known[1]
        if not public or own is None:
            return b""
        try:
            key = packets.pair_key(self._secrets.shared_secret(public), own, peer)
        except ValueError:
            key = b""
        self._keys[peer.epoch] = both, key
        return key

    def _received(self, target: bytes, source: Endpoint, content: bytes) -> None:
        """A datagram with the mark of ours came in. What is not of a member, sealed and fresh, ends here."""
        own, underlay, plan, wire = self._view.own, self._underlay(), self._view.plan, self._wire
        message = packets.read(content)
        if message is None or own is None or underlay is None or plan is None or wire is None:
            return
        if message.receiver != own.epoch or target != address_bytes(underlay.address):
            return
        peer = self._view.peers.get(f"{socket.inet_ntoa(message.network)}/{message.length}")
        key = self._key_of(peer) if peer is not None and peer.epoch == message.sender else b""
        if peer is None or not key or not packets.is_sealed(content, key):
            return
        before = self.book.version
        reply = self.book.received(message, peer, source, time.monotonic())
        if reply is not None:
            wire.send(packets.seal(reply, key), target, source, plan.port)
        if self.book.version != before or self.book.alarmed:
            self._wake.set()

    # --- what follows ----------------------------------------------------------------------------------------

    async def _apply(self, now: float) -> None:
        """Have firewall, rows and routes follow the book, in this order, and the report."""
        version, self._again_at = self.book.version, now + STEP_S / 2
        found = self.book.ways()
        if any(way.place is not None for way in found.values()) and not self._device.ifindex:
            self._device.wanted = True
            await self._reconciler.resync({"behind NAT"})
            if not self._device.ifindex:
                self._again_at = now + AGAIN_S
                return
        index, own, plan = self._device.ifindex, self._view.own, self._view.plan
        if own is None or plan is None:
            return
        rows, places = Rows.empty(), dict[str, str]()
        source = own.packed()[0]
        through: dict[Peer, Exit] = {}
        relayed: dict[Peer, Exit] = {}
        for peer, way in sorted(found.items(), key=lambda item: item[0].epoch):
            first, mac, _, _ = peer.packed()
            if way.place is not None:
                rows.neighbours[first], rows.fdb[mac] = mac, destination_of(way.place, plan.port)
                places[element_of(way.place)] = peer.cidr
                through[peer] = Exit(first, index, source)
        for peer, way in found.items():
            if way.relay is not None:
                leads = index if way.relay in through else 0
                relayed[peer] = Exit(way.relay.packed()[0], leads, source if leads else b"")
        if places.keys() - self._admitted.keys() or self._applied[1] != index:
            self._admitted = {**self._admitted, **places}
            self._changed()
            await happened(self.firewall_settled, within_s=SETTLE_S)
        changed = [
            peer for peer in {*self._shown, *found} if self._shown.get(peer, TUNNEL) != self._way(peer, found)
        ]
        self._fastpath.before([PeerChange(peer, None) for peer in changed])
        await self._reconciler.beside(rows, through, relayed)
        self._led = frozenset((*through, *relayed))
        self._show(changed, found, now)
        self._fastpath.after([PeerChange(None, peer) for peer in changed])
        self._admitted = places
        self._elsewhere.follow(found, now)
        self._applied = version, index
        self._changed()

    def _way(self, peer: Peer, found: Mapping[Peer, Found]) -> Way:
        way = found.get(peer)
        if way is None:
            return TUNNEL
        if way.relay is not None:
            return Way("relayed", way.relay.node)
        port = self._view.plan.port if self._view.plan is not None else 0
        announced = way.place == Endpoint(address_bytes(peer.underlay), port)
        here = announced and way.seen_as is not None
        return Way("nat", f"this node seen as {way.seen_as}" if here else str(way.place))

    def _show(self, changed: Iterable[Peer], found: Mapping[Peer, Found], now: float) -> None:
        reached = {peer.cidr for peer in found}
        for peer in changed:
            if peer not in found and peer.cidr in reached:
                continue  # its key or stage is another one by now: that one is told of
            way, before = self._way(peer, found), self._ways.of(peer)
            if before.encrypted and way.kind == before.kind == "nat":
                continue  # its encrypted packets have a mapping of their own
            if way != TUNNEL or before.kind in {"nat", "relayed"}:
                why = "" if way != TUNNEL else "nobody sees the other elsewhere any more"
                self._ways.set(peer, msgspec.structs.replace(way, encrypted=before.encrypted), now, why)
                log.info("%s is reached: %s %s", peer.node, way.kind, way.via)
        self._shown = {peer: self._way(peer, found) for peer in found}

    def _save(self, *, ended: bool = False) -> None:
        last, asked = self.book.asked.last, bool(self.book.counted["asked"])
        ago_s = time.monotonic() - last if last is not None else None
        self._kept.save(self.book.number, self.book.floors(), asked=asked, asked_ago_s=ago_s, ended=ended)
