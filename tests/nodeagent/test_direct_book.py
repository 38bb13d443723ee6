"""When a peer on the link is reached directly, and when not any more; the budget of questions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodeagent.direct import packets
from nodeagent.direct.book import ALARM_PER_S, ASKED_PER_S, DirectBook
from nodeagent.direct.packets import Probe
from nodeagent.membership.peers import Peer

STEP_S = 0.1


def peer(number: int) -> Peer:
    return Peer(
        f"n{number}", f"u{number}", number + 1, f"10.{number >> 8}.{number & 255}.0/26",
        "66:00:00:00:00:01", f"192.168.{number >> 8}.{number & 255}",
    )  # fmt: skip


class World:
    """A link with peers, of which some answer, in virtual time."""

    def __init__(self, count: int) -> None:
        self.now, self.asked, self.deaf = 100.0, 0, set[str]()
        self.peers = [peer(number) for number in range(count)]
        self.book = DirectBook()
        self.book.follow(self.peers, self.now)
        self.direct: set[str] = set()
        self.why: dict[str, str] = {}

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            for one in self.book.look(self.now):
                self.asked += 1
                token = self.asked.to_bytes(8, "big")
                self.book.asking(one, token, self.now)
                if one.node not in self.deaf:
                    assert self.book.answered(token, one, self.now)
            for change in self.book.changes():
                (self.direct.add if change.direct else self.direct.discard)(change.peer.node)
                self.why[change.peer.node] = change.why
            self.now += STEP_S


def test_a_peer_that_answers_is_used_and_one_that_stops_is_left_within_seconds() -> None:
    world = World(20)
    world.run(10)
    assert len(world.direct) == 20
    world.deaf = {"n3"}
    world.run(world.book.period_s() + 3 * 0.5 + 0.2)
    assert world.direct == {f"n{number}" for number in range(20)} - {"n3"}
    assert "not answered" in world.why["n3"]
    world.deaf = set()
    world.run(10)
    assert "n3" in world.direct


def test_one_that_never_answers_is_asked_ever_more_rarely() -> None:
    world = World(1)
    world.deaf = {"n0"}
    world.run(60)
    first, world.asked = world.asked, 0
    world.run(600)
    assert world.direct == set()
    assert first <= 25
    assert world.asked <= 10 * 6


def test_when_all_ways_end_at_once_all_are_left_soon() -> None:
    world = World(400)
    world.run(120)
    assert len(world.direct) == 400
    world.deaf = {one.node for one in world.peers}
    world.run(4)
    assert not world.direct
    world.deaf = set()
    world.run(180)
    assert len(world.direct) == 400
    world.deaf = {one.node for one in world.peers[::2]}
    world.run(400 * 2 / ALARM_PER_S + 10)
    assert len(world.direct) == 200


def test_a_thousand_peers_cost_a_constant_budget() -> None:
    world = World(1000)
    world.run(400)
    assert len(world.direct) == 1000
    world.asked = 0
    world.run(100)
    assert world.asked <= ASKED_PER_S * 101
    sent = 2 * (world.asked / 100) * (packets.BYTES + 28 + 14) * 8  # with as many answers to others
    assert sent < 20_000, "bits a second"


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_a_peer_that_has_not_answered_three_times_in_a_row_is_never_used(steps: list[tuple[int, bool]]) -> None:
    book, now, row = DirectBook(), 0.0, dict.fromkeys(range(4), 0)
    peers = [peer(number) for number in range(4)]
    book.follow(peers, now)
    used: set[int] = set()
    for count, (number, answers) in enumerate(steps):
        token = count.to_bytes(8, "big")
        book.asking(peers[number], token, now)
        if answers:
            assert not book.answered(token, peers[(number + 1) % 4], now), "not that one's answer"
            assert book.answered(token, peers[number], now)
            assert not book.answered(token, peers[number], now), "each counts once"
            row[number] += 1
        else:
            now += 0.5
            book.look(now)
            row[number] = 0
        for change in book.changes():
            who = int(change.peer.node[1:])
            if change.direct:
                assert row[who] >= 3
                used.add(who)
            else:
                used.discard(who)
        assert {int(one.node[1:]) for one in book.used()} == used


def test_what_was_missed_while_this_process_was_stopped_is_held_against_nobody() -> None:
    world = World(3)
    world.run(5)
    assert len(world.direct) == 3
    for one in world.peers:
        world.book.asking(one, one.node.encode().ljust(8), world.now)
    world.now += 300
    world.run(2)
    assert len(world.direct) == 3


def test_another_peer_on_the_range_is_not_taken_for_the_one_that_was_used() -> None:
    world = World(2)
    world.run(5)
    moved = Peer("n0", "u0", 1, world.peers[0].cidr, "66:00:00:00:00:01", "192.168.9.9")
    world.book.follow([moved, world.peers[1]], world.now)
    assert [(change.peer, change.direct) for change in world.book.changes()] == [(world.peers[0], False)]
    assert world.book.used() == [world.peers[1]]


@given(st.binary(max_size=80))
def test_what_is_no_probe_is_none(content: bytes) -> None:
    found = packets.decode(content)
    assert found is None or packets.encode(found) == content


def test_a_probe_says_what_it_was_given() -> None:
    probe = Probe(packets.QUESTION, 2**60, 7, b"12345678")
    assert packets.decode(packets.encode(probe)) == probe
