"""Nodes behind routers that translate addresses, in virtual time: who is seen where, what is healed."""

from __future__ import annotations

import socket
from collections.abc import Callable

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.membership.peers import Peer
from nodeagent.nat import packets
from nodeagent.nat.book import ASKED_PER_S, KEEP_S, NatBook
from nodeagent.nat.packets import BYTES, HEADERS, HELLO, LASTS_MAX_MS, NUMBER_MAX, Endpoint, Message

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
        if receiver is not None and content and not {own.node, receiver.node} & self.cut:
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


def test_two_nodes_behind_one_router_are_seen_at_different_ports_and_one_another_plainly() -> None:
    world, (a, b, c), _ = branch()
    world.run(5)
    seen = {world.place(a, b), world.place(a, c)}
    assert len(seen) == 2
    assert all(text.startswith("198.51.100.1:") for text in seen)
    assert [world.place(one, a) for one in (b, c)] == ["203.0.113.1:8472"] * 2
    assert [world.place(b, c), world.place(c, b)] == ["tunnel"] * 2
    reports = {one.node: world.books[one.node].seen(world.now) for one in (a, b, c)}
    assert (reports["n1"].behind, reports["n2"].behind) == (False, True)
    assert (reports["n2"].address, reports["n2"].by) == ("198.51.100.1", ("n1",))
    assert reports["n1"].by == ("n2", "n3"), "who sees that it is not behind NAT is named, too"


def test_changes_of_a_router_are_healed_within_seconds() -> None:
    for symmetric in (False, True):
        world, (a, b, c), router = branch(symmetric=symmetric)
        world.run(5)
        before = {world.place(a, one) for one in (b, c)}
        router.forget()
        world.run(4.5)
        after = {world.place(a, one) for one in (b, c)}
        assert before != after, "the router knows neither flow any more, and gives others"
        router.address = "198.51.100.77"
        world.run(4.5)
        assert all(world.place(a, one).startswith("198.51.100.77:") for one in (b, c))
        settled = {world.place(a, one) for one in (b, c)}
        world.run(120)
        assert {world.place(a, one) for one in (b, c)} == settled, "kept alive, no mapping ends"


def test_nodes_behind_different_routers_are_relayed_by_the_same_gateway() -> None:
    world, (a, b, _), _ = branch()
    d = peer(4, "192.168.8.2")
    world.add(d, Router("198.51.100.2"))
    world.relays = [a]
    world.run(30)
    assert [world.place(b, d), world.place(d, b)] == ["by n1", "by n1"]
    assert world.place(a, d).startswith("198.51.100.2:")
    world.relays = []
    world.step()
    assert world.place(b, d) == "tunnel"


def two_gateways() -> tuple[World, Peer, Peer, Peer, Peer]:
    """B and D behind different routers, the gateway that relays between them, and the other one."""
    world, (a, b, _), _ = branch()
    other, d = peer(5, "203.0.113.5"), peer(4, "192.168.8.2")
    world.add(other)
    world.add(d, Router("198.51.100.2"))
    world.relays = [a, other]
    world.behind_nat = lambda one: world.router[one.node] is not None
    world.run(30)
    first, second = (a, other) if world.place(b, d) == "by n1" else (other, a)
    assert world.place(d, b) == world.place(b, d) == f"by {first.node}"
    return world, b, d, first, second


def apart_s(world: World, b: Peer, d: Peer, seconds: float) -> float:
    """For how long of that time the two are relayed by different gateways."""
    end, apart = world.now + seconds, 0
    while world.now < end:
        world.step()
        apart += world.place(b, d) != world.place(d, b)
    return apart * STEP_S


def start_again(world: World, one: Peer, *, asked: bool) -> None:
    """Its agent; ``asked``: as one that knows of the life before, of which the kernel has gone on."""
    before = world.books[one.node]
    fresh = world.books[one.node] = NatBook(number=before.number + 1000, seed=7)
    fresh.remember(before.floors())
    if asked and before.asked.last is not None:
        fresh.asked.go_on(before.asked.last)


def test_both_ends_go_back_to_a_gateway_at_one_moment() -> None:
    world, b, d, first, second = two_gateways()
    for gone_s, reboot in ((10.0, False), (17.3, True), (61.7, False)):
        world.cut = {first.node}
        world.run(gone_s)
        assert world.place(b, d) == world.place(d, b) == f"by {second.node}"
        if reboot:
            start_again(world, first, asked=False)
        world.cut = set()
        assert apart_s(world, b, d, 25) <= STEP_S
        assert world.place(b, d) == f"by {first.node}"


def test_whoever_starts_again_goes_by_the_gateway_that_the_other_end_goes_by() -> None:
    world, b, d, first, _ = two_gateways()
    start_again(world, first, asked=True)
    assert apart_s(world, b, d, 15) == 0, "its agent was away for a moment: nobody goes elsewhere"
    assert world.place(b, d) == f"by {first.node}"
    world.cut = {first.node}
    world.run(20)
    world.cut = set()
    world.run(2)
    start_again(world, b, asked=True)  # while the gateway comes back
    world.run(5)  # it has found by then that D does not answer
    assert apart_s(world, b, d, 20) <= STEP_S
    assert world.place(b, d) == world.place(d, b) == f"by {first.node}"
    start_again(world, d, asked=True)
    world.run(5)
    assert world.place(b, d) == world.place(d, b) == f"by {first.node}"


def test_gateways_that_all_came_back_relay_at_once_and_so_does_the_only_one() -> None:
    world, b, d, first, second = two_gateways()
    world.cut = {first.node, second.node}
    world.run(20)
    world.cut = set()
    world.run(4)
    assert world.place(b, d) == world.place(d, b) == f"by {first.node}"
    world.cut = {second.node}
    world.run(10)
    world.cut.add(first.node)
    world.run(20)
    world.cut.remove(first.node)
    world.run(4)
    assert world.place(b, d) == world.place(d, b) == f"by {first.node}"


def test_a_gateway_and_a_fact_that_come_later_are_news() -> None:
    """Whoever was silent before is looked at again when somebody relays, or the log says more of it."""
    world, (a, b, _), _ = branch()
    d = peer(4, "192.168.8.2")
    world.add(d, Router("198.51.100.2"))
    world.run(30)
    book = world.books[b.node]
    others = {one.epoch: one for one in world.peers if one != b}

    def told(relays: list[Peer], *, behind: bool) -> bool:
        """Whether it is news."""
        before = book.version
        book.follow(others, others.values(), world.now, relays=relays, behind_nat=lambda _: behind)
        return book.version > before

    told([], behind=False)
    assert told([a], behind=False)
    assert world.place(b, d) == "tunnel", "it is not behind NAT"
    assert told([a], behind=True)
    assert world.place(b, d) == "by n1"
    assert not told([a], behind=True)
    others[d.epoch] = d = msgspec.structs.replace(d, key="another", stage="accepting")
    assert told([a], behind=True)
    assert world.place(b, d) == "by n1", "it is where it was"
    assert told([], behind=True)
    assert world.place(b, d) == "tunnel"


def test_a_fact_that_comes_while_nobody_looks_is_news_and_so_is_a_gateway_that_answers_again() -> None:
    """The peer was found silent between two looks at the members, before the log said that it is behind NAT."""
    world = World()
    gateway, own, other = (peer(n, a) for n, a in ((1, "10.0.0.1"), (2, "192.168.7.2"), (3, "192.168.8.3")))
    world.add(gateway)
    book = world.add(own, Router("198.51.100.1"))
    others = {one.epoch: one for one in (gateway, other)}

    def told(*, behind: bool) -> None:
        book.follow(
            others, others.values(), world.now, relays=[gateway], behind_nat=lambda one: one is other and behind
        )

    def asks(seconds: float) -> None:
        end = world.now + seconds
        while world.now < end:
            for target in book.look(world.now):
                said = book.hello(target, world.now)
                assert said is not None
                world.send(own, target, *said)
            world.now += STEP_S

    def relayed() -> bool:
        way = book.ways().get(other)
        return way is not None and way.relay == gateway

    book.be(own, PORT, world.now)
    world.books[gateway.node].be(gateway, PORT, world.now)
    told(behind=False)
    asks(6)
    assert not relayed()
    before = book.version
    told(behind=True)
    assert (book.version > before, relayed()) == (True, True)

    world.peers.remove(gateway)  # its link is down, and the router keeps the mapping
    keep, world.books = world.books, {own.node: book}
    asks(8)
    assert relayed(), "there is no other one, and its kernel may forward without its agent"
    before, world.books = book.version, keep
    world.peers.append(gateway)
    asks(6)
    assert (book.version > before, relayed()) == (True, True)


def test_a_node_that_is_behind_nat_no_more_is_reached_by_the_tunnel_again() -> None:
    world, (a, b, c), _ = branch()
    world.run(5)
    moved = msgspec.structs.replace(b, underlay="203.0.113.9")
    world.peers[1], world.router["n2"] = moved, None
    world.forget_places()
    world.run(10)
    assert [world.place(a, moved), world.place(moved, a)] == ["tunnel"] * 2
    assert world.place(a, c) != "tunnel"


def test_a_restart_goes_on_with_what_the_kernel_had() -> None:
    world, (a, b, c), _ = branch()
    world.run(5)
    for one, other in ((a, b), (b, a)):
        way = world.books[one.node].ways()[other]
        fresh = NatBook(number=world.books[one.node].number + 1000)
        fresh.remember(world.books[one.node].floors())
        fresh.be(one, PORT, world.now)
        fresh.adopt(other, way.place)
        world.books[one.node] = fresh
        assert fresh.ways()[other].place == way.place, "from the first moment on"
    before = world.place(a, b), world.place(b, a)
    world.run(5)
    assert (world.place(a, b), world.place(b, a)) == before
    assert world.place(a, c) != "tunnel"


def test_what_is_recorded_forged_or_of_another_member_moves_nothing_and_is_not_answered() -> None:
    world, (a, b, c), _ = branch()
    world.run(10)
    before = world.place(a, b)
    recorded = [content for _, end, content in world.wire if end == place(a.underlay) and content]
    assert recorded
    stranger = place("198.51.100.66", 4711)
    for content in recorded:
        assert not world.arrive(a, stranger, content), "recorded"
    message = packets.read(recorded[-1])
    assert message is not None
    fresh = message._replace(kind=HELLO, sender=b.epoch, number=packets.NUMBER_MAX)
    assert not world.arrive(a, stranger, packets.seal(fresh, world.key(c, a))), "a member in another's name"
    assert not world.arrive(a, stranger, packets.seal(fresh, b"guess"))
    assert not world.arrive(a, stranger, packets.seal(fresh._replace(receiver=c.epoch), world.key(b, a)))
    assert world.place(a, b) == before
    honest = packets.seal(fresh._replace(number=world.books["n2"].number + 1), world.key(b, a))
    assert world.arrive(a, stranger, honest), "one that b itself has sealed just now is asked back"
    assert world.place(a, b) == before, "and moves nothing before it is confirmed from there"


def test_with_a_thousand_peers_little_is_sent_and_all_are_found_again() -> None:
    world, router = World(), Router("198.51.100.1")
    own = peer(0, "192.168.9.2")
    world.add(own, router)
    for number in range(1, 1001):
        world.add(peer(number))
    book = world.books[own.node]
    others = {one.epoch: one for one in world.peers[1:]}

    def run(seconds: float) -> None:
        end = world.now + seconds
        while world.now < end:
            for target in book.look(world.now):
                said = book.hello(target, world.now)
                assert said is not None
                world.send(own, target, *said)
            for kept in book.keeps(world.now):
                world.carry(own, kept, b"")
            world.now += 0.25

    for one in world.peers:
        world.books[one.node].be(one, PORT, world.now)
    book.follow(others, others.values(), world.now)
    run(1000 / ASKED_PER_S + 10)
    assert len(book.ways()) == 1000
    world.wire.clear()
    start, at = world.bytes[own.node], world.now
    run(60)
    sent, answered = world.bytes[own.node] - start, sum(
        HEADERS + len(content) for source, _, content in world.wire if source.address != router_address(router)
    )  # fmt: skip
    assert (sent + answered) * 8 / (world.now - at) < 20_000, "bit/s, answers included"
    router.address = "198.51.100.2"
    moved = world.now
    run(5)
    there = sum(str(way.seen_as).startswith("198.51.100.2:") for way in book.ways().values())
    assert there == 1000, f"{there} of 1,000 after {world.now - moved} s"
    world.wire.clear()
    run(KEEP_S[1])
    reached = {end for _, end, _ in world.wire}
    assert len(reached) >= 1000, "every mapping is kept"


def router_address(router: Router) -> bytes:
    return socket.inet_aton(router.address)


words = st.integers(0, 2**64 - 1)
four = st.binary(min_size=4, max_size=4)
endpoints = st.builds(Endpoint, four, st.integers(0, 65535))
sealed = st.builds(
    Message, st.integers(1, 4), words, words, four, st.integers(0, 32), st.integers(0, NUMBER_MAX), endpoints,
    st.booleans(), st.binary(min_size=16, max_size=16), st.integers(0, LASTS_MAX_MS),
)  # fmt: skip


@given(sealed, st.binary(min_size=32, max_size=32), st.integers(0, BYTES * 8 - 1))
def test_a_message_reads_as_it_was_sealed_and_not_with_any_bit_changed(
    message: Message, key: bytes, bit: int
) -> None:
    content = packets.seal(message, key)
    assert len(content) == BYTES
    assert packets.read(content) == message
    assert packets.is_sealed(content, key)
    changed = (int.from_bytes(content, "big") ^ 1 << bit).to_bytes(BYTES, "big")
    assert not packets.is_sealed(changed, key)


@given(st.binary(max_size=200))
def test_no_bytes_from_outside_do_harm(content: bytes) -> None:
    packets.read(content)
    packets.opened(content)
    packets.opened(packets.datagram(content, b"\x0a\0\0\1", place("10.0.0.2", 99), PORT))


@given(st.binary(max_size=90), st.integers(1, 65535))
def test_a_datagram_opens_as_it_was_sent(content: bytes, port: int) -> None:
    packet = packets.datagram(content, socket.inet_aton("10.0.0.1"), place("10.0.0.2", port), PORT)
    assert packets.opened(packet) == (socket.inet_aton("10.0.0.2"), place("10.0.0.1"), content)
    addresses = socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2")
    udp = addresses + bytes([0, 17]) + packet[24:26] + packet[20:]
    padded = udp + bytes(len(udp) % 2)
    total = sum(int.from_bytes(padded[at : at + 2], "big") for at in range(0, len(padded), 2))
    assert total % 0xFFFF == 0, "a checksum that routers may adjust"
