"""Asks the peers by the schedule, answers theirs, and keeps the book of it.

It shares the probe device with :class:`nodeagent.health.path_prober.PathProber`: its packets are forwarded
by this host like a pod's, and by the peer's host like one to a pod there. The budget is constant: at most
``SLOTS_PER_S + SITES_PER_S`` first questions a second, one of them with a large packet, 32 further ones, and
:data:`REPLIES_PER_S` answers.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from events.mesh import MeshReport, Trace
from events.protocol.mesh import TraceWanted
from nodeagent.health import packets as kernel_packets
from nodeagent.health.path_prober import PathProber, Route
from nodeagent.health.probe_device import packed, probe_address
from nodeagent.membership.peers import Peer
from nodeagent.membership.values import first_address
from nodeagent.membership.view import View
from nodeagent.mesh import packets, schedule
from nodeagent.mesh.book import Ask, Book

log = logging.getLogger("isthmus.agent.mesh")
_wanted = msgspec.json.Decoder(TraceWanted).decode

STEP_S = 1 / schedule.SLOTS_PER_S
BEHIND_SLOTS = 4
"""Slots that are made up for after a short delay; what is older is left out."""
REPLIES_PER_S = 100.0
FOLLOW_PAUSE, FOLLOW_PAUSE_MAX_S = 40, 10.0
"""Pause between two looks at all members, in times of what the last one took, and at most: churn in a large
cluster costs a fortieth of a core."""
TELL_S = 0.5
"""Shortest time between two reports that this asks for."""


class Tracer(Protocol):
    """Follows the way to peers in trouble."""

    def want(self, peers: list[Peer], route: Route) -> None: ...
    def asked(self, now: float) -> list[int]: ...
    def ask(self, epoch: int, now: float) -> None: ...
    def traces(self, now: float) -> tuple[Trace, ...]: ...


class MeshProber:
    """Run it beside the path prober. ``narrow``: the MTU of each peer whose path is narrower than the
    device."""

    def __init__(
        self,
        path: PathProber,
        *,
        context: Callable[[], Route | None],
        narrow: Callable[[], Mapping[Peer, int]],
    ) -> None:
        self._path, self._context, self._narrow = path, context, narrow
        self.tracer: Tracer | None = None
        self.book = Book()
        self._secret = os.urandom(32)
        self._words: dict[int, bytes] = {}
        self._by_address: dict[bytes, Peer] = {}
        self._by_epoch: dict[int, Peer] = {}
        self._ring: schedule.Ring | None = None
        self._known: tuple[int, int, int] = (0, 0, 0)
        self._follow_from = 0.0
        self._replies = REPLIES_PER_S
        self._replied_at = 0.0
        self._due: Callable[[], None] = lambda: None
        self._told_at = 0.0
        path.mesh = self

    def notify(self, due: Callable[[], None]) -> None:
        """Call this when a report should not wait."""
        self._due = due

    async def run(self) -> None:
        """Until cancelled; nothing is left behind."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        base = int(time.time() * schedule.SLOTS_PER_S)  # all begin at about the same place of the round
        done = base
        while True:
            slot = base + int((loop.time() - begun) / STEP_S)
            context = self._context()
            if context is not None and context.view.own is not None:
                self._step(context, range(max(done + 1, slot - BEHIND_SLOTS), slot + 1))
            done = slot
            await asyncio.sleep(max(0.01, begun + (slot + 1 - base) * STEP_S - loop.time()))

    def _step(self, context: Route, slots: range) -> None:
        now = time.monotonic()
        self._follow(context.view)
        self.book.look(now)
        if not self._able or self._ring is None:
            return
        for slot in slots:
            epoch = schedule.asked(self._ring, slot)
            if epoch is not None:
                self._ask(context, Ask(epoch, "small"), now)
                if schedule.asked_large(self._ring, slot):
                    self._ask(context, Ask(epoch, "large"), now)
            if slot % schedule.SLOTS_PER_S == 0:
                for further in schedule.asked_of_sites(self._ring, slot // schedule.SLOTS_PER_S):
                    self._ask(context, Ask(further, "small"), now)
        for ask in self.book.due():
            self._ask(context, ask, now)
        if self.tracer is not None:
            wanted = dict.fromkeys(self.book.in_trouble())
            for epoch in self.tracer.asked(now):
                wanted.pop(epoch, None)
                wanted[epoch] = None
            self.tracer.want([self._by_epoch[epoch] for epoch in wanted if epoch in self._by_epoch], context)
        if self.book.changed and now - self._told_at >= TELL_S:
            self._told_at = now
            self._due()

    @property
    def _able(self) -> bool:
        device = self._path.device
        return device is not None and device.is_open and not self._path.unable

    def _follow(self, view: View) -> None:
        own = view.own
        known = view.sequence, own.epoch if own else 0, len(view.peers)
        begun = time.monotonic()
        if own is None or known == self._known or begun < self._follow_from:
            return
        self._known = known
        peers = list(view.peers)
        self._by_address = {packed(probe_address(peer.cidr)): peer for peer in peers}
        self._by_epoch = {peer.epoch: peer for peer in peers}
        self._words = {epoch: word for epoch, word in self._words.items() if epoch in self._by_epoch}
        self.book.follow(self._by_epoch)
        members = view.members

        def site(node: str) -> str:
            member = members.get(node)
            return member.site if member is not None else ""

        places = [(peer.epoch, site(peer.node)) for peer in peers]
        self._ring = schedule.ring([*places, (own.epoch, site(own.node))], own.epoch)
        took = time.monotonic() - begun
        self._follow_from = begun + took + min(FOLLOW_PAUSE_MAX_S, FOLLOW_PAUSE * took)

    def _ask(self, context: Route, ask: Ask, now: float) -> None:
        peer, device = self._by_epoch.get(ask.epoch), self._path.device
        if peer is None or device is None:
            return
        token = os.urandom(packets.TOKEN_BYTES)
        if ask.kind == "kernel":
            packet = kernel_packets.echo_request(device.address, first_address(peer.cidr), token)
        else:
            large = ask.kind == "large"
            packet = packets.message(
                packed(device.address), packed(probe_address(peer.cidr)), packets.QUESTION, token,
                self._words.get(ask.epoch, packets.NO_WORD),
                large=large, size=min(context.mtu, self._narrow().get(peer, context.mtu)) if large else 0,
            )  # fmt: skip
        try:
            device.send(packet)
        except OSError as error:
            log.debug("not asked: %s", error)
            return
        self.book.asking(ask, token, now)

    def received(self, packet: bytes) -> bool:
        """Take a packet that came out of the probe device; False when it is none of the mesh."""
        device = self._path.device
        if device is None:
            return False
        found = packets.understand(packet, packed(device.address))
        if found is None:
            return False
        peer = self._by_address.get(found.sender)
        if peer is None:
            return True  # of no member: nothing changes, and nobody gets an answer
        now = time.monotonic()
        if found.kind == packets.ANSWER:
            kind = "large" if found.large else "small"
            if self.book.answered(kind, found.token, now, peer.epoch):  # type: ignore[arg-type]  # two of three
                self._words[peer.epoch] = found.word
            return True
        word = packets.word_for(self._secret, found.sender, peer.epoch)
        if found.word == word:
            self.book.heard(peer.epoch, now)
        self._replies = min(REPLIES_PER_S, self._replies + (now - self._replied_at) * REPLIES_PER_S)
        self._replied_at = now
        if self._replies >= 1:
            self._replies -= 1
            answer = packets.message(
                packed(device.address), found.sender, packets.ANSWER, found.token, word,
                large=found.large, size=found.size,
            )  # fmt: skip
            try:
                device.send(answer)
            except OSError as error:
                log.debug("not answered: %s", error)
        return True

    def told(self, epoch: int) -> tuple[int, int]:
        """Whether small and large packets pass to a peer: 1 they do, 0 they do not, -1 it is not known."""
        return self.book.passes(epoch)

    def trace(self, body: bytes) -> None:
        """A request to trace the way to a peer came, as bytes; what is none, or of no peer, changes nothing."""
        try:
            epoch = _wanted(body).epoch
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.debug("no request to trace: %s", error)
            return
        if self.tracer is not None and epoch in self._by_epoch:
            self.tracer.ask(epoch, time.monotonic())

    def kernel_answered(self, token: bytes) -> bool:
        """An echo came back that the path prober did not wait for; whether it was one of ours."""
        return self.book.answered("kernel", token, time.monotonic())

    def report(self) -> MeshReport:
        """What to tell the controllers."""
        tracer = self.tracer
        return self.book.report(
            time.monotonic(),
            unable=self._path.unable or ("" if self._able else "its probe device is not there yet"),
            traces=tracer.traces if tracer is not None else lambda _now: (),
        )
