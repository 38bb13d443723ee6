"""Books of nodes behind routers, in virtual time; every packet is sealed, translated and opened again."""

from __future__ import annotations

import socket
from collections.abc import Callable

from nodeagent.membership.peers import Peer
from nodeagent.nat import packets
from nodeagent.nat.book import NatBook
from nodeagent.nat.packets import HEADERS, Endpoint, Message

PORT = 8472
STEP_S = 0.1


def peer(number: int, address: str = "") -> Peer:
    return Peer(
        f"n{number}", f"u{number}", number + 1, f"10.{number >> 8}.{number & 255}.0/26",
        f"66:00:00:00:{number >> 8:02x}:{number & 255:02x}", address or f"203.0.{number >> 8}.{number & 255}",
    )  # fmt: skip


def place(address: str, port: int = PORT) -> Endpoint:
    return Endpoint(socket.inet_aton(address), port)


class Router:
    """Masquerades what leaves; forgets what is idle for 30 s. ``symmetric``: another port for each target."""

    def __init__(self, address: str, *, symmetric: bool = False) -> None:
        self.address, self.symmetric = address, symmetric
        self._ports = 20000
        self._flows: dict[
            tuple[Endpoint, Endpoint], tuple[Endpoint, float]
        ] = {}  # inside, remote → outside, when
        self._back: dict[tuple[Endpoint, Endpoint], Endpoint] = {}

    def forget(self) -> None:
        self._flows.clear()
        self._back.clear()

    def out(self, inside: Endpoint, remote: Endpoint, now: float) -> Endpoint:
        known = self._flows.get((inside, remote))
        if known is None or now - known[1] > 30 or known[0].address != socket.inet_aton(self.address):
            self._ports += 1
            known = place(self.address, self._ports), now
            if known[0].port == 20001 and not self.symmetric:
                known = place(self.address), now  # the first one keeps its port
        self._flows[inside, remote] = known[0], now
        self._back[known[0], remote] = inside
        return known[0]

    def into(self, outside: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        inside = self._back.get((outside, remote))
        known = self._flows.get((inside, remote)) if inside is not None else None
        if inside is None or known is None or known[0] != outside or now - known[1] > 30:
            return None
        self._flows[inside, remote] = outside, now
        return inside


class World:
    """Books that talk through routers; every message is sealed, carried as a packet, and opened again."""

    def __init__(self) -> None:
        self.now = 100.0
        self.peers: list[Peer] = []
        self.books: dict[str, NatBook] = {}
        self.router: dict[str, Router | None] = {}
        self.relays: list[Peer] = []
        self.behind_nat: Callable[[Peer], bool | None] = lambda _: None
        self.cut: set[str] = set()
        """Nodes from and to which nothing passes."""
        self.apart: set[str] = set()
        """Two nodes between which nothing passes."""
        self.bytes: dict[str, int] = {}
        self._at: dict[Endpoint, Peer] = {}
        self.wire: list[tuple[Endpoint, Endpoint, bytes]] = []

    def add(self, one: Peer, router: Router | None = None) -> NatBook:
        self.peers.append(one)
        self.router[one.node] = router
        book = self.books[one.node] = NatBook(number=len(self.peers) * 1000, seed=len(self.peers))
        self.bytes[one.node] = 0
        return book

    def key(self, one: Peer, other: Peer) -> bytes:
        return packets.pair_key(b"".join(sorted([one.node.encode(), other.node.encode()])), one, other)

    def step(self) -> None:
        for own in self.peers:
            book = self.books[own.node]
            book.be(own, PORT, self.now)
            others = {one.epoch: one for one in self.peers if one != own}
            asked = others.values() if book.behind else list(others.values())[:4]
            book.follow(others, asked, self.now, relays=self.relays, behind_nat=self.behind_nat)
            for target in book.look(self.now):
                said = book.hello(target, self.now)
                assert said is not None
                self.send(own, target, *said)
            for end in book.keeps(self.now):
                self.carry(own, end, b"")
        self.now += STEP_S

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.step()

    def send(self, own: Peer, to: Peer, message: Message, end: Endpoint) -> None:
        self.carry(own, end, packets.seal(message, self.key(own, to)))

    def carry(self, own: Peer, end: Endpoint, content: bytes) -> None:
        """A packet from ``own`` to that place, through the routers of both."""
        self.bytes[own.node] += HEADERS + len(content)
        source, router = place(own.underlay), self.router[own.node]
        receiver = self.near(router, end)
        if receiver is None:
            source = router.out(source, end, self.now) if router is not None else source
            receiver = self.near(None, end)
        if receiver is None:
            receiver = self.behind(source, end)
        self.wire.append((source, end, content))
        ends = {own.node, receiver.node} if receiver is not None else set()
        if receiver is not None and content and not ends & self.cut and ends != self.apart:
            self.arrive(receiver, source, content)

    def near(self, router: Router | None, end: Endpoint) -> Peer | None:
        """Who has that address, of those behind a router, or of those that are behind none."""
        if len(self._at) != len(self.peers):
            self._at = {place(one.underlay): one for one in self.peers}
        found = self._at.get(end)
        return found if found is not None and self.router[found.node] is router else None

    def forget_places(self) -> None:
        self._at = {}

    def behind(self, source: Endpoint, end: Endpoint) -> Peer | None:
        for router in {id(one): one for one in self.router.values() if one is not None}.values():
            inside = router.into(end, source, self.now)
            if inside is not None:
                return self.near(router, inside)
        return None

    def arrive(self, receiver: Peer, source: Endpoint, content: bytes) -> bool:
        """Whether it was answered."""
        message = packets.read(content)
        sender = next((one for one in self.peers if message and one.epoch == message.sender), None)
        if message is None or sender is None or not packets.is_sealed(content, self.key(sender, receiver)):
            return False
        reply = self.books[receiver.node].received(message, sender, source, self.now)
        if reply is not None:
            self.send(receiver, sender, reply, source)
        return reply is not None

    def place(self, at: Peer, of: Peer) -> str:
        way = self.books[at.node].ways().get(of)
        return "tunnel" if way is None else f"by {way.relay.node}" if way.relay else str(way.place)


def branch(*, symmetric: bool = False) -> tuple[World, list[Peer], Router]:
    """A is public; B and C share a router."""
    world, router = World(), Router("198.51.100.1", symmetric=symmetric)
    found = [peer(1, "203.0.113.1"), peer(2, "192.168.9.2"), peer(3, "192.168.9.3")]
    world.add(found[0])
    for one in found[1:]:
        world.add(one, router)
    return world, found, router
