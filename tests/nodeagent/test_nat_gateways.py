"""Which gateway relays between nodes behind different routers, in virtual time: the same for both ends."""

from __future__ import annotations

import msgspec

from nodeagent.membership.peers import Peer
from nodeagent.nat.book import NatBook
from tests.nodeagent.nat_world import PORT, STEP_S, Router, World, branch, peer


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


def test_who_is_reached_through_a_forwarded_port_is_relayed_once_packets_are_encrypted() -> None:
    """Its router forwards VXLAN's port to it, and of WireGuard's nobody knows what routers make."""
    world, (a, b, _), _ = branch()
    forwarded = peer(4, "198.51.100.2")
    world.add(forwarded)
    world.relays = [a]
    world.behind_nat = lambda one: one in (b, forwarded)
    world.run(15)
    assert world.place(b, forwarded) == "198.51.100.2:8472"
    assert world.place(forwarded, b).startswith("198.51.100.1:")
    encrypting = msgspec.structs.replace(forwarded, key="key", port=51820, stage="accepting")
    world.peers[world.peers.index(forwarded)] = encrypting
    world.behind_nat = lambda one: one in (b, encrypting)
    world.run(2)
    assert world.place(b, encrypting) == "by n1"
    other = world.books[forwarded.node]
    pair = msgspec.structs.replace(other._pairs[b.epoch], peer=msgspec.structs.replace(b, stage="accepting"))
    other.follow({one.epoch: one for one in (a, b)}, (a, b), world.now, relays=[a], behind_nat=lambda _: True)
    assert other.relaying.of(encrypting, pair, behind=True, translated=True) == a, "and the other way round"
    world.peers[world.peers.index(encrypting)] = forwarded
    world.behind_nat = lambda one: one in (b, forwarded)
    world.run(2)
    assert world.place(b, forwarded) == "198.51.100.2:8472", "in the clear it is reached as before"


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


def test_both_ends_go_by_the_gateway_that_both_reach() -> None:
    """The one that they prefer is out of the reach of one of them alone, and later in it again."""
    for end in (0, 1):
        world, b, d, first, second = two_gateways()
        world.apart = {(b, d)[end].node, first.node}
        assert 0 < apart_s(world, b, d, 30) < 12
        assert world.place(b, d) == world.place(d, b) == f"by {second.node}"
        assert apart_s(world, b, d, 30) == 0
        world.apart = set()
        assert apart_s(world, b, d, 30) < 3
        assert world.place(b, d) == world.place(d, b) == f"by {first.node}"


def test_nobody_goes_elsewhere_while_a_peers_agent_is_away() -> None:
    """All gateways miss it, one a moment before the other: its kernel goes on by the one that it had."""
    world, b, d, first, _ = two_gateways()
    hidden = [peer(number, f"192.168.{number}.2") for number in range(10, 14)]
    for number, one in enumerate(hidden):
        world.add(one, Router(f"198.51.100.{number + 10}"))
    world.forget_places()
    world.run(30)
    for others in ([], hidden[1:], hidden):  # as many as an answer has room for, and more
        for cut in ({one.node for one in (d, *others)}, set()):
            world.cut, end = cut, world.now + 20.3
            while world.now < end:
                world.step()
                assert world.place(b, d) == f"by {first.node}", cut


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
