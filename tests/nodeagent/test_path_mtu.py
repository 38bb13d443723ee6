"""Ways that are narrower than the link: when they are measured, what is believed, and what packets meet."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodeagent.membership.peers import Peer
from nodeagent.path_mtu.probe import Path, measure
from nodeagent.path_mtu.tracker import (
    AT_ONCE,
    CONFIRM_S,
    FIRST_PER_S,
    NARROW_PERIOD_S,
    PERIOD_S,
    SETTLE_S,
    PathMtuTracker,
)
from tests.nodeagent.pods import Pod, ask
from tests.nodeagent.sandbox import inside
from tests.nodeagent.site import Node, site
from tests.waiting import wait_for as until

WANTED = 1500


def peer(number: int, underlay: str = "") -> Peer:
    return Peer(
        f"n{number}",
        f"u{number}",
        number,
        f"172.16.{number // 4}.{number % 4 * 64}/26",
        f"66:00:00:00:{number >> 8:02x}:{number & 255:02x}",
        underlay or f"10.0.{number >> 8}.{number & 255}",
    )


def test_a_narrow_way_is_believed_the_second_time_and_a_wide_one_at_once() -> None:
    ways, one = PathMtuTracker(), peer(1)
    ways.follow([one], WANTED, {}, 0.0)
    assert ways.take(0.0) == []
    now = SETTLE_S + 1.0
    assert ways.take(now) == [one]
    ways.found(one, 1400, now)
    assert ways.narrow() == {}
    assert ways.take(now + CONFIRM_S) == [one]
    ways.found(one, 1390, now + CONFIRM_S)
    assert ways.narrow() == {one: 1340}
    later = now + CONFIRM_S + NARROW_PERIOD_S
    assert ways.take(later) == [one]
    ways.found(one, WANTED, later)
    assert ways.narrow() == {}
    assert ways.take(later + PERIOD_S - 1) == []
    assert ways.take(later + PERIOD_S) == [one]


def test_a_lost_packet_and_silence_change_nothing() -> None:
    ways, one = PathMtuTracker(), peer(1)
    ways.follow([one], WANTED, {one: 1350}, 0.0)
    assert ways.narrow() == {one: 1350}, "what the route says already"
    for passes in (0, 1400, 1200, 0, 1400):
        ways.found(one, passes, 10.0)
        assert ways.narrow() == {one: 1350}, passes


def test_another_link_mtu_asks_again_and_keeps_what_is_still_narrower() -> None:
    ways, one, two = PathMtuTracker(), peer(1), peer(2)
    ways.follow([one, two], WANTED, {one: 1350}, 0.0)
    ways.found(two, WANTED, 5.0)
    ways.follow([one, two], 9000, {}, 10.0)
    assert ways.narrow() == {one: 1350}
    assert set(ways.take(10.0 + SETTLE_S)) == {one, two}
    ways.follow([one, two], 1300, {}, 20.0)
    assert ways.narrow() == {}


def test_a_peer_at_another_address_is_another_way() -> None:
    ways, one, moved = PathMtuTracker(), peer(1), peer(1, "10.9.9.9")
    ways.follow([one], WANTED, {one: 1350}, 0.0)
    ways.follow([moved], WANTED, {one: 1350}, 1.0)
    ways.found(one, 1200, 2.0)
    assert ways.narrow() == {}
    ways.follow([], WANTED, {}, 3.0)
    assert ways.take(1000.0) == []


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_a_newcomer_is_not_asked_by_everybody_at_once(chance: float) -> None:
    """All nodes see a join together: each waits for its own moment within a time that grows with them."""
    ways, there = PathMtuTracker(lambda: chance), [peer(number) for number in range(1, 1000)]
    ways.follow(there, WANTED, dict.fromkeys(there, 1350), -1000.0)
    while due := ways.take(0.0):
        for one in due:
            ways.found(one, WANTED, 0.0)
    newcomer = peer(1000)
    ways.follow([*there, newcomer], WANTED, {}, 0.0)
    moment = SETTLE_S + chance * 1000 / FIRST_PER_S
    assert ways.take(moment - 0.1) == []
    assert ways.take(moment + 0.1) == [newcomer]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([0, 900, 1400, WANTED])), max_size=60))
def test_each_peer_has_one_turn_whatever_happens(steps: list[tuple[int, int]]) -> None:
    ways, now = PathMtuTracker(), 0.0
    peers = {number: peer(number) for number in range(10)}
    for number, passes in steps:
        now += 1.0
        peers[number] = (
            peer(number, f"10.1.{int(now) >> 8}.{int(now) & 255}") if passes == 900 else peers[number]
        )
        ways.follow(peers.values(), WANTED, {}, now)
        for due in ways.take(now):
            ways.found(due, passes, now)
    ways.follow(peers.values(), WANTED, {}, now)
    due = [one for _ in range(5) for one in ways.take(now + 2 * PERIOD_S, limit=AT_ONCE)]
    assert sorted(one.node for one in due) == sorted(one.node for one in peers.values())


def mtu_of(node: Node, other: Node) -> int:
    """The MTU that the other's route has; 0 without."""
    (line,) = node.run(f"ip route show proto 84 via {other.vtep}").splitlines()
    return int(line.partition(" mtu ")[2].split()[0]) if " mtu " in line else 0


@pytest.mark.slow
@inside
def test_packets_to_a_peer_behind_a_narrow_way_are_told_their_size() -> None:
    with site("a", "b", "c", start=False) as place:
        a, b, c = place.nodes.values()
        a.run(f"ip route add {b.underlay}/32 dev eth0 mtu 1200")
        for node in (a, b, c):
            node.start()
        for node in (a, b, c):
            node.ready(2)
        until(lambda: mtu_of(a, b) == 1150, "the route to b says what passes")
        assert mtu_of(a, c) == 0, "the others are as they were"
        one, two = Pod(a, "pod-a"), Pod(b, "pod-b")
        with pytest.raises(AssertionError, match="mtu = 1150"):
            one.run(f"ping -c1 -W5 -M do -s 1300 {two.address}")
        one.run(f"ping -c1 -W5 -M do -s {1150 - 28} {two.address}")
        one.run(f"ping -c1 -W5 -M do -s {1450 - 28} {c.vtep}")
        assert ask(one.name, "tcp", two.address).startswith(f"{one.address} ")
        status = a.status()
        assert any("b (10.0.0.2): 1150" in text for text in status["conditions"])
        assert (status["state"], status["kernel_digest"]) == ("ready", status["expected_digest"])
        # By hand another MTU: a drift like any other. And a restart finds it all in place.
        a.run(f"ip route change {b.status()['range']} via {b.vtep} dev isthmus onlink proto 84 "
              f"metric {int.from_bytes(bytes(map(int, b.vtep.split('.'))), 'big')} mtu 600")  # fmt: skip
        until(lambda: mtu_of(a, b) == 1150, "it heals")
        a.stop()
        a.start().ready(2)
        assert mtu_of(a, b) == 1150
        assert a.status()["counters"]["written"] == 0
        a.run(f"ip route del {b.underlay}/32 dev eth0 mtu 1200")
        a.run("ip link set eth0 mtu 1490")  # asks for all ways anew; the minute's turn would do, too
        until(lambda: mtu_of(a, b) == 0, "the way is wide again")
        until(lambda: not any("narrower" in text for text in a.status()["conditions"]), "and nothing is said")


async def test_no_probe_is_sent_any_more_once_the_peer_is_encrypted_to() -> None:
    """A probe is a tunnel packet in the clear, and a measurement takes seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as heard:
        heard.bind(("127.0.0.1", 0))
        heard.setblocking(False)
        mac = "66:00:00:00:00:01"
        path = Path(
            vni=100, port=heard.getsockname()[1], underlay="127.0.0.1", vtep="127.0.0.1", mac=mac,
            peer_underlay="127.0.0.1", peer_vtep="127.0.0.1", peer_mac=mac,
        )  # fmt: skip
        asked: list[bool] = []

        def going() -> bool:
            asked.append(len(asked) < 2)
            return asked[-1]

        assert await measure(path, 1500, wait_s=0.01, going=going) == 0
        received = [heard.recv(2048) for _ in range(sum(asked))]
        assert len(received) == 2
        with pytest.raises(BlockingIOError):
            heard.recv(2048)
