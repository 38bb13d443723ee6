"""Finds out which peers pods' packets reach without the tunnel, and leads them there.

Who is on the link is the kernel's answer: its route to the peer's underlay address has no gateway. By
which MAC is
the kernel's, too; only what comes from that MAC with an address of that peer's range passes the firewall.
Then both
sides ask each other by datagrams that take the direct way (:mod:`nodeagent.direct.packets`), and each uses
the way for as long as its own questions are answered (:mod:`nodeagent.direct.book`).

Everything that it holds is bounded by the number of peers; it sends at most 8 first questions a second, 32 when
several peers are lost at once, and :data:`REPLIES_PER_S` answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping

from events.errors import IsthmusError
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.dataplane import host_settings
from nodeagent.dataplane.reconciler import Reconciler
from nodeagent.dataplane.underlay import Underlay
from nodeagent.direct import packets
from nodeagent.direct.book import Change, DirectBook
from nodeagent.direct.packets import Probe
from nodeagent.fastpath.reconciler import FastPath
from nodeagent.firewall import ruleset
from nodeagent.membership.peers import Peer, PeerChange
from nodeagent.membership.values import first_address
from nodeagent.membership.view import View
from nodeagent.netlink import neighbourhood
from nodeagent.netlink.rows import address_bytes, mac_bytes, mac_text
from nodeagent.ways.table import TUNNEL, Exit, Way, WayTable

log = logging.getLogger("isthmus.agent.direct")

STEP_S, CALM_S = 0.1, 0.25
"""Between two steps: while something is in doubt, and otherwise."""
LOOK_S = 1.0
"""Between two looks at who is on the link, and by which MAC."""
NEIGHBOURS_PER_S = 500
"""So many neighbours make it a second longer."""
ROUTES_S = 300.0
"""How long the kernel's answer about the way to a peer counts, unless links or addresses change."""
LOOKED_UP = 200
"""Peers whose way is asked of the kernel in one look."""
REPLIES_PER_S = 200.0
PATIENCE_S = 60.0
"""After so long a peer on the link that is not reached directly is a condition, with `--direct on`."""
GRACE_S = 5.0
"""Switched off, what was let in before still is for so long, and longer in large links: peers notice
meanwhile."""
CONDITION = "direct"
READS_LIMIT = 256

_PKTINFO = struct.Struct("=i4s4s")
_IP_PKTINFO, _IP_FREEBIND = 8, 15


class DirectPaths:
    """Run it. ``device`` and ``admitted`` are what the firewall lets in plain."""

    def __init__(
        self,
        config: AgentConfig,
        view: View,
        conditions: Conditions,
        *,
        reconciler: Reconciler,
        fastpath: FastPath,
        ways: WayTable,
    ) -> None:
        self._mode, self._view, self._conditions = config.direct, view, conditions
        self._reconciler, self._fastpath, self._ways = reconciler, fastpath, ways
        self._filtered = config.firewall
        self.book = DirectBook()
        self.device = 0
        """Index of the device by which plain packets of peers may come in; 0: none may."""
        self._admitted: dict[str, str] = {}  # range → MAC
        self._near: dict[str, Peer] = {}  # range → peer on the link, with a known MAC
        self._by_vtep: dict[str, Peer] = {}
        self._routed: dict[
            str, tuple[float, bool]
        ] = {}  # underlay address → when asked, whether it is on the link
        self._asked = (-1, 0.0)  # sequence of the peers whose way was asked; when to ask again
        self._on_link: set[str] = set()  # underlay addresses
        self._link: tuple[str, int] = ("", 0)
        self._seen: tuple[object, ...] = ()  # what the last look has found, and the last check of routes
        self._checked: tuple[object, ...] = ()
        self._socket: socket.socket | None = None
        self._bound = ""
        self._looked = 0.0
        self._replies, self._replied_at = REPLIES_PER_S, 0.0
        self._since: dict[str, float] = {}  # range → since when it is near
        self._changed: Callable[[], None] = lambda: None

    def notify(self, changed: Callable[[], None]) -> None:
        """Call this when the firewall has to let in others."""
        self._changed = changed

    def admitted(self) -> Mapping[str, str]:
        """Whose plain packets may come in: range → MAC, of peers that the log has now."""
        return {
            cidr: mac
            for cidr, mac in self._admitted.items()
            if (peer := self._view.peers.get(cidr)) is not None
            and self._near.get(cidr, peer) == peer
            and peer.stage != "required"
        }

    def neighbour(self, peer: Peer, way: Exit) -> bytes:
        """The MAC of a peer on the link to which a way leads; empty where it leads elsewhere."""
        near = way.device and way.device == self.device and peer.cidr in self._admitted
        return mac_bytes(self._admitted[peer.cidr]) if near else b""

    async def begin(self) -> None:
        """Before the firewall is written for the first time: who is let in now is let in then.

        Cancelled, nothing is known yet.
        """
        if self._mode != "off":
            await self._look(time.monotonic())
            return
        if not self._filtered:
            return
        with contextlib.suppress(IsthmusError, OSError, TimeoutError):
            self._admitted = await ruleset.neighbours()
        underlay = self._reconciler.tunnel.underlay
        self.device = underlay.ifindex if self._admitted and underlay is not None else 0

    async def run(self) -> None:
        """Until cancelled; pods' routes and rules stay as they are, those of probes go."""
        try:
            if self._mode == "off":
                await self._withdraw()
                return
            while True:
                now = time.monotonic()
                await self._step(now)
                await asyncio.sleep(STEP_S if self.book.hurried(now) else CALM_S)
        finally:
            self._close()
            with contextlib.suppress(OSError):  # in a thread: pyroute2 does not work beside a running loop
                await asyncio.to_thread(neighbourhood.follow_probe_routes, {}, 0)

    async def _withdraw(self) -> None:
        """Switched off: whoever sends plain packets here notices that nobody answers, and stops."""
        if self._admitted:
            await asyncio.sleep(GRACE_S + len(self._admitted) / 8)
            self._admitted, self.device = {}, 0
            self._changed()

    # --- who is near ----------------------------------------------------------------------------------------

    def _underlay(self) -> Underlay | None:
        underlay, view = self._reconciler.tunnel.underlay, self._view
        able = underlay is not None and underlay.present and view.own is not None and view.plan is not None
        lost = view.fenced or view.deleted or view.left
        return underlay if able and not lost else None

    async def _look(self, now: float) -> None:
        self._looked = now
        underlay = self._underlay()
        link = (underlay.address, underlay.ifindex) if underlay is not None else ("", 0)
        if link != self._link:
            self._link = link
            self._routed.clear()
            self._asked = (-1, 0.0)
        macs: dict[str, bytes] = {}
        sequence = self._view.sequence
        if underlay is not None:
            again = sequence != self._asked[0] or now >= self._asked[1]
            asked = [peer.underlay for peer in self._view.peers if not peer.sealed] if again else None
            try:
                macs = await asyncio.to_thread(self._ask_kernel, asked, underlay, now)
            except OSError as error:
                log.debug("the link cannot be looked at: %s", error)
                return
            if asked is not None:
                self._asked = sequence, self._asked[1]
        seen = (link, sequence, macs, self._on_link)
        if seen != self._seen:  # almost always a thousand neighbours are as they were
            self._seen = seen
            await self._follow(underlay, macs, now)

    async def _follow(self, underlay: Underlay | None, macs: Mapping[str, bytes], now: float) -> None:
        """Who is near is to be asked, and let in; nobody else."""
        near: dict[str, Peer] = {}
        found: dict[str, str] = {}
        if underlay is not None:
            for peer in self._view.peers:
                if peer.sealed or peer.underlay not in self._on_link:
                    continue
                mac = macs.get(peer.underlay)
                known = mac_text(mac) if mac is not None else self._admitted.get(peer.cidr, "")
                if known and (mac is not None or self._near.get(peer.cidr) == peer):
                    near[peer.cidr], found[peer.cidr] = peer, known
        self._since = {cidr: self._since.get(cidr, now) for cidr in near}
        if near != self._near:
            self._near = near
            self._by_vtep = {first_address(cidr): peer for cidr, peer in near.items()}
            await self._lead_probes(underlay)
        self.book.follow(near.values(), now)
        self._ways.keep(self._view.peers.get)
        device = underlay.ifindex if underlay is not None and near else 0
        if (found, device) != (self._admitted, self.device):
            self._admitted, self.device = found, device
            self._changed()
            self._fastpath.compare()

    def _ask_kernel(self, addresses: list[str] | None, underlay: Underlay, now: float) -> dict[str, bytes]:
        """The neighbours' MACs; and, given the peers' addresses, which of them are on the link, as far as it
        is time to ask. In a worker thread. Raises OSError."""
        if addresses is not None:
            present = set(addresses)
            for gone in self._routed.keys() - present:
                del self._routed[gone]
            old = now - ROUTES_S
            wanted = [address for address in present if self._routed.get(address, (-1e9, False))[0] <= old]
            some = wanted[:LOOKED_UP]
            found = neighbourhood.on_link(some, underlay.ifindex, underlay.address) if some else set()
            self._routed.update((address, (now, address in found)) for address in some)
            self._on_link = {address for address, (_, near) in self._routed.items() if near}
            oldest = min((at for at, _ in self._routed.values()), default=now)
            self._asked = self._asked[0], 0.0 if len(wanted) > len(some) else oldest + ROUTES_S
        return neighbourhood.macs(underlay.ifindex)

    async def _lead_probes(self, underlay: Underlay | None) -> None:
        routes = {first_address(cidr): peer.underlay for cidr, peer in self._near.items()}
        device = underlay.ifindex if underlay is not None else 0
        try:
            if underlay is not None and routes:
                await asyncio.to_thread(host_settings.loosen_reverse_path, underlay.device)
            await asyncio.to_thread(neighbourhood.follow_probe_routes, routes, device)
        except OSError as error:
            log.debug("probes cannot be led: %s", error)

    # --- asking ---------------------------------------------------------------------------------------------

    async def _step(self, now: float) -> None:
        if now - self._looked >= LOOK_S + len(self._near) / NEIGHBOURS_PER_S:
            await self._look(now)
            self._check_routes(now)
            self._complain(now)
        own = self._view.own
        if own is not None and self._near:
            self._open(first_address(own.cidr))
            for peer in self.book.look(now):
                self._ask(peer, own.epoch, now)
        changes = self.book.changes()
        if changes:
            await self._apply(changes, now)

    def _check_routes(self, now: float) -> None:
        exits = self._reconciler.found.exits
        state = (self.book.version, self.device, exits)
        if state == self._checked:
            return
        self._checked = (self.book.version, self.device, dict(exits))
        for peer in self.book.used():
            if peer not in exits:
                self.book.give_up(peer, "the kernel did not take its route", now)
        for peer, way in exits.items():
            if way.device and way.device == self.device and way.gateway == address_bytes(peer.underlay):
                self.book.adopt(peer, now)

    async def _apply(self, changes: list[Change], now: float) -> None:
        own = self._view.own
        used = self.book.used() if own is not None else []
        source = address_bytes(first_address(own.cidr)) if own is not None else b""
        exits = {peer: Exit(address_bytes(peer.underlay), self.device, source) for peer in used}
        for change in changes:
            way = Way("direct", change.peer.underlay) if change.direct else TUNNEL
            self._ways.set(change.peer, way, now, change.why)
            log.info(
                "%s is reached %s",
                change.peer.node,
                "directly" if change.direct else f"by the tunnel: {change.why}",
            )
        self._fastpath.before([PeerChange(change.peer, None) for change in changes])
        await self._reconciler.prefer(exits, by="direct")
        self._fastpath.after([PeerChange(None, change.peer) for change in changes])
        self._changed()

    def _ask(self, peer: Peer, own: int, now: float) -> None:
        token = os.urandom(packets.TOKEN_BYTES)
        self._send(Probe(packets.QUESTION, own, peer.epoch, token), first_address(peer.cidr))
        self.book.asking(peer, token, now)  # also what could not be sent: it is as good as lost

    def _send(self, probe: Probe, target: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto(packets.encode(probe), (target, packets.PROBE_PORT))
        except OSError as error:
            log.debug("not sent to %s: %s", target, error)

    def _open(self, vtep: str) -> None:
        if self._bound == vtep and self._socket is not None:
            return
        self._close()
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        except OSError as error:
            log.debug("no socket: %s", error)
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
            sock.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, neighbourhood.PROBE_TOS)
            sock.bind((vtep, packets.PROBE_PORT))
        except OSError as error:
            sock.close()
            self._conditions.set(CONDITION, f"UDP port {packets.PROBE_PORT} cannot be used: {error.strerror}")
            return
        self._socket, self._bound = sock, vtep
        asyncio.get_running_loop().add_reader(sock.fileno(), self._ready)

    def _close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()
            self._socket, self._bound = None, ""

    def _ready(self) -> None:
        for _ in range(READS_LIMIT):
            sock = self._socket
            if sock is None:
                return
            try:
                content, ancillary, _, (source, port) = sock.recvmsg(
                    packets.BYTES + 1, socket.CMSG_SPACE(_PKTINFO.size)
                )
            except OSError:  # nothing left, or an ICMP error for an earlier one
                return
            by = next(
                (
                    _PKTINFO.unpack(data)[0]
                    for level, kind, data in ancillary
                    if (level, kind, len(data)) == (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO.size)
                ),
                0,
            )
            if by and by == self.device and port == packets.PROBE_PORT:
                self.received(content, source, time.monotonic())

    def received(self, content: bytes, source: str, now: float) -> None:
        """A datagram came in by the link. What is of no peer there, or not to us, changes nothing."""
        probe, peer, own = packets.decode(content), self._by_vtep.get(source), self._view.own
        if probe is None or peer is None or own is None:
            return
        if (probe.sender, probe.receiver) != (peer.epoch, own.epoch) or self._view.peers.get(peer.cidr) != peer:
            return
        if probe.kind == packets.ANSWER:
            self.book.answered(probe.token, peer, now)
            return
        self._replies = min(REPLIES_PER_S, self._replies + (now - self._replied_at) * REPLIES_PER_S)
        self._replied_at = now
        if self._replies >= 1:
            self._replies -= 1
            self._send(Probe(packets.ANSWER, own.epoch, peer.epoch, probe.token), source)

    def _complain(self, now: float) -> None:
        if self._mode != "on":
            return
        used = {peer.cidr for peer in self.book.used()}
        left = [
            self._near[cidr].node
            for cidr, since in self._since.items()
            if cidr not in used and now - since > PATIENCE_S
        ]
        text = ""
        if left:
            text = (
                f"not reached directly, though on this link: {left[0]} and {len(left) - 1} others. Packets "
                f"there take the tunnel. Either their agents run without --direct, or the network checks "
                f"addresses: switch the source/destination check of these machines off"
            )
        self._conditions.set(CONDITION, text)
