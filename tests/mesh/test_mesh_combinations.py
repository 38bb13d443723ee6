"""Several things broken at once, or half of one: the smallest true explanation is recorded, and no other."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from controlplane.controller.mesh.collector import Collector
from events.mesh import ANSWERED
from nodeagent.mesh.book import Ask, Book
from tests.mesh.world import Agent, World

Passes = Callable[[Agent, Agent, bool], bool]
Key = tuple[str, str, str]


def between(a: Agent, b: Agent, site: str) -> bool:
    return (a.site == site) != (b.site == site)


def of(a: Agent, b: Agent, *names: str) -> bool:
    return bool({a.name, b.name} & set(names))


def world(passes: Passes | None = None, dead: tuple[str, ...] = (), **sites: int) -> World:
    made = World(sites or {"a": 4, "b": 4, "c": 4})
    made.acquaint()
    made.run(3)
    if passes is not None:
        made.passes = passes
    for name in dead:
        made.agents[name].up = False
    return made


class Watched:
    """What the controller would have recorded, in order, and what is open of it."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.lost: list[tuple[Key, str]] = []
        self.open: dict[Key, str] = {}
        self.restored: list[Key] = []

    def run(self, seconds: float, each: Callable[[], None] = lambda: None) -> Watched:
        def look() -> None:
            each()
            if self.world.slot % 4:
                return
            told, over = self.world.collector.settled(set(self.open))
            for one in told:
                if self.open.get(one.key) != one.fault:
                    self.lost.append((one.key, one.fault))
                self.open[one.key] = one.fault
            for key in over:
                del self.open[key]
                self.restored.append(key)

        self.world.run(seconds, look)
        return self


HALF = {"b-0", "b-2", "c-1", "c-3"}
CASES: dict[str, tuple[Callable[[], World], set[tuple[Key, str]]]] = {
    "two dead nodes at one site": (
        lambda: world(dead=("b-1", "b-2")),
        {(("node", "b-1", ""), "silent"), (("node", "b-2", ""), "silent")},
    ),
    "two dead nodes at two sites": (
        lambda: world(dead=("a-1", "b-2")),
        {(("node", "a-1", ""), "silent"), (("node", "b-2", ""), "silent")},
    ),
    "a site of two nodes without power": (
        lambda: world(dead=("b-0", "b-1"), a=4, b=2, c=4),
        {(("site", "b", ""), "silent")},
    ),
    "nothing leaves a site": (
        lambda: world(lambda a, b, _: not (between(a, b, "c") and a.site == "c")),
        {(("site", "c", ""), "direction")},
    ),
    "nothing enters a site": (
        lambda: world(lambda a, b, _: not (between(a, b, "c") and b.site == "c")),
        {(("site", "c", ""), "direction")},
    ),
    "a cut site with a dead node in it": (
        lambda: world(lambda a, b, _: not between(a, b, "c"), dead=("c-1",)),
        {(("site", "c", ""), "silent")},
    ),
    "two halves": (
        lambda: world(lambda a, b, _: (a.site in "ab") == (b.site in "ab"), a=3, b=3, c=3, d=3),
        {(("sites", *pair), "silent") for pair in (("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"))},
    ),
    "nothing passes at all": (
        lambda: world(lambda _a, _b, _: False),
        {(("cluster", "", ""), "silent")},
    ),
    "no large packets at all": (
        lambda: world(lambda _a, _b, large: not large),
        {(("cluster", "", ""), "large")},
    ),
    "no large packets to or from a site": (
        lambda: world(lambda a, b, large: not (large and between(a, b, "c"))),
        {(("site", "c", ""), "large")},
    ),
    "no large packets out of a site": (
        lambda: world(lambda a, b, large: not (large and between(a, b, "c") and a.site == "c")),
        {(("site", "c", ""), "large")},
    ),
    "no large packets of two nodes at two sites": (
        lambda: world(lambda a, b, large: not (large and of(a, b, "a-1", "b-2"))),
        {(("node", "a-1", ""), "large"), (("node", "b-2", ""), "large")},
    ),
    "no large packets of two nodes at one site": (
        lambda: world(lambda a, b, large: not (large and of(a, b, "b-1", "b-2"))),
        {(("node", "b-1", ""), "large"), (("node", "b-2", ""), "large")},
    ),
    "a node that reaches half of the others": (
        lambda: world(lambda a, b, _: not (of(a, b, "a-1") and HALF & {a.name, b.name})),
        {(("node", "a-1", ""), "part")},
    ),
    "a site of one node that does not reach one of two others": (
        lambda: world(lambda a, b, _: {a.site, b.site} != {"a", "b"}, a=1, b=4, c=4),
        {(("sites", "a", "b"), "silent")},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_smallest_true_explanation_is_recorded_and_no_other(case: str) -> None:
    make, wanted = CASES[case]
    made = make()
    seen = Watched(made).run(26)
    assert set(seen.lost) == wanted
    assert seen.restored == []
    made.passes = lambda _a, _b, _large: True
    for agent in made.agents.values():
        agent.up = True
    seen.run(30)
    assert seen.open == {}
    assert set(seen.lost) == wanted  # and on the way back nothing else is said


def test_pods_that_two_hosts_do_not_forward_and_a_dead_node() -> None:
    made = world(lambda a, b, _: not of(a, b, "a-1", "c-2"), dead=("b-2",))
    made.kernels_pass = True
    seen = Watched(made).run(25)
    assert set(seen.lost) == {
        (("node", "a-1", ""), "pods"), (("node", "c-2", ""), "pods"), (("node", "b-2", ""), "silent"),
    }  # fmt: skip


@pytest.mark.parametrize("ends", ["pair", "node", "site"])
def test_loss_of_three_packets_in_ten_one_way_is_loss_and_no_lost_path(ends: str) -> None:
    chance = random.Random(5)
    hit: dict[str, Passes] = {
        "pair": lambda a, b, _: (a.name, b.name) == ("a-1", "b-1"),
        "node": lambda a, _b, _l: a.name == "a-1",
        "site": lambda a, b, _: a.site == "a" and b.site != "a",
    }
    made = world(lambda a, b, large: not (hit[ends](a, b, large) and chance.random() < 0.3))
    assert Watched(made).run(120).lost == []
    rows = made.collector.rows
    assert rows["a-1"][made.agents["b-1"].epoch].loss > 50
    assert rows["b-0"][made.agents["c-1"].epoch].loss == 0


def test_what_only_one_agent_sees_is_its_view_from_the_beginning() -> None:
    made = world()
    made.agents["a-1"].book.answered = lambda *_a, **_k: False  # type: ignore[method-assign]
    seen = Watched(made).run(40)
    assert seen.lost == []
    assert [one.key for one in made.collector.findings()] == [("view", "a-1", "")]


def test_an_agent_that_was_stopped_and_whose_clock_jumped_accuses_nobody() -> None:
    made = world()
    made.agents["a-1"].alive = False
    seen = Watched(made).run(60)
    made.agents["a-1"].alive = True  # the process goes on with the book that it had
    assert seen.run(30).lost == []


@pytest.mark.parametrize("fault", ["silent", "large"])
def test_agents_and_controllers_that_begin_anew_in_an_outage_restore_nothing(fault: str) -> None:
    made = (
        world(dead=("b-1",))
        if fault == "silent"
        else world(lambda a, b, large: not (large and of(a, b, "b-1")))
    )
    key = ("node", "b-1", "")
    seen = Watched(made).run(14)
    assert seen.lost == [(key, fault)]
    made.collector.restart()  # another controller leads
    seen.run(20)
    for agent in made.agents.values():  # as an upgrade does
        if agent.up:
            made.restart(agent)
    seen.run(60)
    fresh = Collector(lambda: made.state, clock=lambda: made.now)
    made.collector = fresh  # every controller, too, and what agents of dead nodes said last is not kept
    seen.run(60)
    assert seen.restored == []
    assert set(seen.lost) == {(key, fault)}
    made.agents["b-1"].up, made.passes = True, lambda _a, _b, _large: True
    seen.run(40)
    assert seen.restored == [key]
    assert seen.open == {}


def test_what_comes_and_goes_is_recorded_less_and_less() -> None:
    made = world()
    made.passes = lambda a, b, _: not ("b-1" in {a.name, b.name} and int(made.now / 8) % 2)
    seen = Watched(made).run(200)
    assert {key for key, _ in seen.lost} == {("node", "b-1", "")}
    assert 1 <= len(seen.restored) <= 4  # of twelve times


@pytest.mark.parametrize("on_bus", [True, False])
def test_what_breaks_again_soon_is_named_as_soon_as_before(on_bus: bool) -> None:
    made = world(a=3, b=3, c=3, d=3)
    for _ in range(3):
        made.passes = lambda a, b, _: not between(a, b, "d")
        for agent in made.agents.values():
            agent.on_bus = on_bus or agent.site != "d"
        seconds, (found,) = made.until_told(20)
        assert found.key == ("site", "d", "")
        assert seconds <= 4
        made.run(6)
        made.passes = lambda _a, _b, _large: True
        for agent in made.agents.values():
            agent.on_bus = True
        made.run(8)
        assert made.collector.findings() == []


def states(book: Book) -> Iterator[int]:
    yield from (peer.state for peer in book._peers.values())


def test_a_peer_whose_large_packets_pass_again_is_in_trouble_no_more() -> None:
    made = world(lambda a, b, large: not (large and of(a, b, "b-1")))
    made.run(20)
    book, epoch = made.agents["a-0"].book, made.agents["b-1"].epoch
    assert book.in_trouble() == [epoch]
    made.passes = lambda _a, _b, _large: True
    made.run(20)
    assert book.in_trouble() == []
    assert set(states(book)) == {ANSWERED}
    asked = book.counted["again"]
    made.run(20)
    assert book.counted["again"] == asked  # nor is it asked more than the others
    assert Ask(epoch, "kernel") not in book.due()


def test_the_usual_round_trip_is_the_mean_of_what_was_and_follows_slowly() -> None:
    made = world(a=2, b=2)
    made.run(60)
    made.rtt_s = 0.1
    made.run(60)
    seen = made.collector.rows["a-0"][made.agents["b-0"].epoch]
    assert 95_000 < seen.rtt_us < 105_000
    assert 19_000 < seen.usual_us < 65_000
