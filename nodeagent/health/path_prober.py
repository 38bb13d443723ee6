"""Asks a few peers, sparsely, whether this node's packets pass; answers when peers ask.

Each round asks at most :data:`ASKED` peers with packets of less than 64 bytes, and fewer while the first one
answers: 10,000 nodes hear about one question a second each. Everything it holds is bounded.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address
from types import MappingProxyType
from typing import Protocol

import msgspec

from events.bus.retry import jittered_s
from nodeagent.conditions import Conditions
from nodeagent.health import packets
from nodeagent.health.path_judge import PathJudge, Round, Standing
from nodeagent.health.probe_device import PATH, ProbeDevice, device_name, packed, probe_address
from nodeagent.membership.peers import Peer
from nodeagent.membership.values import first_address
from nodeagent.membership.view import View
from nodeagent.netlink import links
from nodeagent.path_mtu.probe import PROBE_PORT
from nodeagent.ways.table import Exit

log = logging.getLogger("isthmus.agent.path")

ASKED = 3
PERIOD_S = 5.0
HURRY_S = 1.0
"""Between rounds while it is not clear that packets pass."""

UNKNOWN_PERIOD_S = 15.0
"""Between rounds with peers that never answered: there is nothing to hurry for."""

EAGER_ROUNDS = 5
"""Rounds in a hurry before peers that never answered are asked rarely."""

FIRST_WAIT_S, WAIT_S = 0.25, 0.7
REPLIES_PER_S = 200
"""Questions of peers that are answered; beyond, silence: their next round will tell."""


class Route(msgspec.Struct, frozen=True):
    """Where packets go in and out: what a round needs of the node. ``device`` is the tunnel; ``exits`` are
    peers that are reached by another device, ``encrypted`` are those by which packets to sealed peers leave."""

    view: View
    underlay: str
    device: str
    ifindex: int
    mtu: int
    exits: Mapping[Peer, Exit] = MappingProxyType({})
    encrypted: tuple[str, ...] = ()

    def leads_to(self, peer: Peer, taken: links.KernelRoute) -> bool:
        """Whether that is the device by which packets to a peer should leave."""
        peer = self.view.peers.get(peer.cidr) or peer
        if peer.sealed:
            return taken.device in self.encrypted
        way = self.exits.get(peer)
        return taken.index == (way.device if way is not None and way.device else self.ifindex)


class Sharer(Protocol):
    """Somebody else who sends by the probe device, and gets what comes back."""

    def received(self, packet: bytes) -> bool: ...
    def kernel_answered(self, token: bytes) -> bool: ...


class PathProber:
    """Run it; ``standing``, ``confirmed_at`` and the condition ``path`` say what it found."""

    def __init__(
        self,
        conditions: Conditions,
        *,
        context: Callable[[], Route | None],
        diagnose: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        """``context``: None while the rows are not in the kernel.

        ``diagnose(fault)`` names what is in the way, in words; it is asked once per failure.
        """
        self._conditions, self._context = conditions, context
        self._diagnose = diagnose
        self._changed: Callable[[], None] = lambda: None
        self.judge = PathJudge()
        self.device: ProbeDevice | None = None
        self.unable = ""
        self.mesh: Sharer | None = None
        """Who shares the device."""
        self._waiting: dict[tuple[str, bytes], str] = {}  # kind and token → range of the peer
        self._heard: dict[str, set[str]] = {}
        self._passing: set[str] = set()
        self._news = asyncio.Event()
        self._budget, self._budget_at = float(REPLIES_PER_S), time.monotonic()
        self._known: tuple[int, str] = (0, "")
        self._peers: list[Peer] = []

    @property
    def standing(self) -> Standing:
        """What is known now."""
        return self.judge.standing

    @property
    def failing(self) -> bool:
        """Whether it was seen that packets of pods do not pass."""
        return self.judge.standing == "failing"

    def confirmed_age_s(self) -> float:
        """Seconds since a packet last passed; −1 when none has yet."""
        at = self.judge.confirmed_at
        return -1.0 if at is None else time.monotonic() - at

    def notify(self, changed: Callable[[], None]) -> None:
        """Call this when what is known has changed."""
        self._changed = changed

    def confirmed_wall(self) -> float:
        """The same as a moment of the wall clock, Unix seconds; 0 when none has."""
        age_s = self.confirmed_age_s()
        return 0.0 if age_s < 0 else time.time() - age_s

    async def run(self) -> None:
        """Until cancelled; the device goes then."""
        try:
            while True:
                context = self._context()
                if context is not None:
                    await self._round(context)
                await asyncio.sleep(jittered_s(self._pause_s(), 0.2))
        finally:
            if self.device is not None:
                self.device.close()

    def _pause_s(self) -> float:
        if self.judge.standing == "confirmed" and not self.judge.suspicious:
            return PERIOD_S
        unknown = self.judge.standing == "not confirmed" and self.judge.confirmed_at is None
        return UNKNOWN_PERIOD_S if unknown and self.judge.rounds > EAGER_ROUNDS else HURRY_S

    async def _round(self, context: Route) -> None:
        own = context.view.own
        if own is None:
            return
        address = probe_address(own.cidr)
        device = self.device
        if device is not None and not (
            device.is_open and (device.address, device.mtu) == (address, context.mtu)
        ):
            device.close()  # here, on the loop that reads from it
            self.device = None
        await asyncio.to_thread(self._prepare, context, address)
        if self.device is not None and self.device.is_open and not self._listening:
            self.device.listen()
            self._listening = True
        peers = self._choose(context.view)
        before = (self.judge.standing, self.judge.fault)
        self.judge.take(await self._ask(context, peers, address), time.monotonic())
        if (self.judge.standing, self.judge.fault) != before or self.failing:
            await self._tell()
        if (self.judge.standing, self.judge.fault) != before:
            log.info("path: %s", self.judge.standing)
            self._changed()

    async def _tell(self) -> None:
        text = self.judge.text()
        if text and self._diagnose is not None:
            found = await self._diagnose(self.judge.fault)
            text += f". {found}" if found else ""
        elif self.judge.standing == "not confirmed":
            why = (
                f" ({self.judge.detail})" if self.judge.detail else ": no peer that was asked has answered yet"
            )
            text = f"not confirmed that packets pass{why}"
        self._conditions.set("path", text)

    _listening = False

    def _prepare(self, context: Route, address: str) -> None:
        """In a worker thread: the device with that address, its route in place."""
        device = self.device
        try:
            if device is None:
                self._listening = False
                made = ProbeDevice(device_name(context.device), address, context.mtu, self._received)
                made.open()
                self.device = made
            else:
                device.mend()
            self.unable = ""
        except OSError as error:
            words = os.strerror(error.errno) if error.errno else str(error)
            self.unable = (
                f"{PATH} cannot be used: {words}"
                if self.device is None
                else f"{device_name(context.device)}: {words}"
            )

    def _choose(self, view: View) -> list[Peer]:
        """The peer that answered last, and others by chance."""
        if self._known != (view.sequence, view.node):
            self._known = (view.sequence, view.node)
            self._peers = list(view.peers)
            self.judge.forget_except({peer.cidr for peer in self._peers})
        chosen = random.sample(self._peers, min(ASKED, len(self._peers)))
        last = view.peers.get(self.judge.by) if self.judge.by else None
        if last is not None:
            chosen = [last, *(peer for peer in chosen if peer != last)][:ASKED]
        return chosen

    async def _ask(self, context: Route, peers: list[Peer], address: str) -> Round:
        asked = frozenset(peer.cidr for peer in peers)
        if not peers:
            return Round()
        self._heard = {"echo": set(), "port": set(), "heard": set(), "call": set()}
        self._passing = set()
        misrouted = ""
        unable = self.unable
        if not unable and self.device is not None:
            misrouted = await asyncio.to_thread(self._misrouted, context, peers[0], address)
            first = await self._forwarded(peers[:1], address, FIRST_WAIT_S)
            if not first:
                await self._forwarded(peers, address, WAIT_S)
        forwarded = frozenset(
            self._heard["echo"] | self._heard["port"] | self._heard["heard"] | self._heard["call"]
        )
        direct: frozenset[str] = frozenset()
        outside: frozenset[str] = frozenset()
        if not forwarded:
            own = first_address(context.view.own.cidr) if context.view.own is not None else ""
            answers = await asyncio.gather(*(answers_at(own, first_address(peer.cidr)) for peer in peers))
            direct = frozenset(peer.cidr for peer, answer in zip(peers, answers, strict=True) if answer)
            if not direct:
                answers = await asyncio.gather(*(answers_at(context.underlay, peer.underlay) for peer in peers))
                outside = frozenset(peer.cidr for peer, answer in zip(peers, answers, strict=True) if answer)
        self._waiting.clear()
        return Round(
            asked=asked,
            forwarded=forwarded,
            passing=frozenset(self._passing),
            called=frozenset(self._heard["call"]),
            direct=direct,
            outside=outside,
            misrouted=misrouted,
            unable=unable,
        )

    def _misrouted(self, context: Route, peer: Peer, address: str) -> str:
        """Ask the kernel where it would forward a pod's packet. Empty when that is the tunnel."""
        device = self.device
        if device is None:
            return ""
        try:
            way = links.route_to(first_address(peer.cidr), source=address, incoming=device.index)
        except OSError as error:
            if error.errno in {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EACCES, errno.EINVAL, errno.EXDEV}:
                return f"the kernel has no way for them ({os.strerror(error.errno)})"
            return ""
        if context.leads_to(peer, way):
            return ""
        return f"to {peer.node} they would leave by {way.device or 'no device'}" + (
            f" (table {way.table})" if way.table not in {0, 254} else ""
        )

    async def _forwarded(self, peers: list[Peer], address: str, wait_s: float) -> bool:
        """Whether all of these answered to an echo and, where they can, called, within the time."""
        for peer in peers:
            vtep, there = first_address(peer.cidr), probe_address(peer.cidr)
            token = os.urandom(packets.TOKEN_BYTES)
            for kind in ("echo", "heard", "call"):
                self._waiting[kind, token] = peer.cidr
            self._waiting["port", packets.port_of(token).to_bytes(2, "big")] = peer.cidr
            for packet in (
                packets.echo_request(address, vtep, token),
                packets.closed_port(address, vtep, token),
                packets.call(address, there, token),
            ):
                self._send(packet)
        wanted = {peer.cidr for peer in peers}
        try:
            async with asyncio.timeout(wait_s):
                while not (wanted & self._heard["call"]):
                    self._news.clear()
                    await self._news.wait()
        except TimeoutError:
            pass
        answered = wanted & (self._heard["echo"] | self._heard["port"])
        return bool(wanted & self._heard["call"]) or bool(answered and not self._passing)

    def _send(self, packet: bytes) -> None:
        try:
            if self.device is not None:
                self.device.send(packet)
        except OSError as error:
            log.debug("probe not sent: %s", error)

    def _received(self, packet: bytes) -> None:
        device = self.device
        if device is None or (self.mesh is not None and self.mesh.received(packet)):
            return
        found = packets.parse(packet, packed(device.address))
        if isinstance(found, packets.ProbeRequest):
            self._reply(found)
        elif found is not None:
            peer = self._waiting.get((found.kind, found.token))
            if peer is not None:
                self._heard[found.kind].add(peer)
                if found.passes:
                    self._passing.add(peer)
                self._news.set()
            elif found.kind == "echo" and self.mesh is not None:
                self.mesh.kernel_answered(found.token)

    def _reply(self, question: packets.ProbeRequest) -> None:
        now = time.monotonic()
        self._budget = min(REPLIES_PER_S, self._budget + (now - self._budget_at) * REPLIES_PER_S)
        self._budget_at = now
        if self._budget < 1:
            return
        self._budget -= 1
        for packet in question.passing if self.judge.standing == "confirmed" else question.otherwise:
            self._send(packet)


async def answers_at(source: str, target: str) -> bool:
    """Whether a host answers a datagram to a closed port, from one of our own addresses.

    Cancelled, it leaves nothing behind.
    """
    if not source or IPv4Address(source).is_unspecified:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        try:
            sock.bind((source, 0))
            sock.connect((target, PROBE_PORT))
            for _ in range(2):
                sock.send(packets.MARK)
                try:
                    async with asyncio.timeout(WAIT_S):
                        await asyncio.get_running_loop().sock_recv(sock, 1)
                except TimeoutError:
                    continue
        except ConnectionRefusedError:
            return True
        except OSError as error:
            log.debug("%s cannot be asked from %s: %s", target, source, error)
    return False
