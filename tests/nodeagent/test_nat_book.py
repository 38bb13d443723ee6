"""Nodes behind routers that translate addresses, in virtual time: who is seen where, what is healed."""

from __future__ import annotations

import socket

import msgspec

from nodeagent.nat import packets
from nodeagent.nat.book import ALARM_EARNED_S, ALARM_QUESTIONS, ALARM_TIMES, ASKED_PER_S, KEEP_S, NatBook
from nodeagent.nat.packets import ANSWER, HEADERS, HELLO, Message
from tests.nodeagent.nat_world import PORT, Router, World, branch, peer, place


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


def test_each_of_many_changes_of_a_router_is_healed_within_seconds() -> None:
    world, router = World(), Router("198.51.100.1")
    inside = [peer(number, f"192.168.9.{number}") for number in (1, 2, 3)]
    outside = [peer(number) for number in range(10, 22)]
    for one in (*inside, *outside):
        world.add(one, router if one in inside else None)
    world.run(15)
    for change, pause_s in enumerate((0.1, 0.4, 0.9, 1.3, 2.0, 2.6, 3.1, 4.5, 0.1, 0.7)):
        router.forget()
        world.run(pause_s)
        router.address = f"198.51.100.{change + 10}"
        world.run(4.5)
        seen = {world.place(there, one).partition(":")[0] for there in outside for one in inside}
        assert seen == {router.address}, f"{pause_s} s after it had forgotten all"


def test_a_router_that_changes_without_end_is_not_followed_without_end() -> None:
    for peers in (12, 1000):
        book = NatBook(seed=1)
        others = {one.epoch: one for one in map(peer, range(1, peers + 1))}
        book.be(peer(0), PORT, 0.0)
        book.follow(others, others.values(), 0.0)
        for tenth in range(10 * 600):
            now = tenth / 10
            for target in book.look(now):
                said = book.hello(target, now)
                assert said is not None
                answer = Message(ANSWER, target.epoch, 1, b"\0\0\0\0", 0, said[0].number)
                book.received(answer._replace(seen=place("9.9.9.9", tenth), known=True), target, said[1], now)
        in_a_row = max(ALARM_QUESTIONS, ALARM_TIMES * peers)
        assert book.counted["asked"] < in_a_row + 600 * (ASKED_PER_S + in_a_row / ALARM_EARNED_S)
        assert book.alarms > 3, "it was followed for a while"


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
