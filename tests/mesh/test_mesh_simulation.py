"""Real schedules, books and verdicts in virtual time: what is wrong is named in time, and nothing else
ever is."""

from __future__ import annotations

from datetime import UTC, datetime

from controlplane.controller.mesh.collector import Collector
from events.mesh import SILENT, MeshReport, PeerSeen
from events.status import AgentStatus
from nodeagent.mesh import schedule
from tests.mesh.world import World


def sites(*names: str):
    return lambda a, b, _large: {a.site, b.site} != set(names)


def told(world: World, limit_s: float) -> tuple[float, object]:
    seconds, found = world.until_told(limit_s)
    assert len(found) == 1, [one.key for one in found]
    return seconds, found[0]


def test_nothing_is_said_of_a_healthy_cluster_that_loses_packets() -> None:
    world = World({"a": 6, "b": 6}, loss=0.02)
    world.run(120, lambda: (_ for _ in ()).throw(AssertionError) if world.collector.settled(set())[0] else None)


def test_a_dead_node_is_named_within_5_s_and_comes_back() -> None:
    world = World({"a": 8, "b": 4})
    world.run(20)
    dead = world.agents["b-2"]
    dead.up = False
    seconds, found = told(world, 10)
    assert found.key == ("node", "b-2", ""), found
    assert seconds <= 5
    dead.up = True
    key = found.key
    over: set = set()

    def look() -> None:
        over.update(world.collector.settled({key})[1])

    world.run(20, look)
    assert over == {key}
    assert not world.collector.findings()


def test_a_cut_site_is_one_finding_within_5_s_on_and_off_the_bus() -> None:
    for on_bus in (True, False):
        world = World({"a": 6, "b": 5, "c": 5})
        world.run(20)
        for agent in world.agents.values():
            agent.on_bus = on_bus or agent.site != "c"
        world.passes = lambda a, b, _large: ("c" in {a.site, b.site}) <= (a.site == b.site)
        seconds, found = told(world, 10)
        assert found.key == ("site", "c", ""), (on_bus, found)
        assert seconds <= 5


def test_two_sites_that_do_not_reach_each_other() -> None:
    world = World({"a": 5, "b": 5, "c": 5})
    world.run(20)
    world.passes = sites("a", "b")
    _, found = told(world, 10)
    assert found.key == ("sites", "a", "b")


def test_a_dead_pair_within_its_bound() -> None:
    world = World({"a": 20, "b": 20})
    world.run(20)
    world.passes = lambda a, b, _large: {a.name, b.name} != {"a-3", "b-7"}
    seconds, found = told(world, 20)
    assert found.key == ("pair", "a-3", "b-7")
    assert seconds <= 39 / 8 + 8  # the schedule's bound, three tries, and the time that few witnesses must hold


def test_one_direction_is_told_from_both() -> None:
    world = World({"a": 5, "b": 5})
    world.run(20)
    world.passes = lambda a, b, _large: (a.name, b.name) != ("a-1", "b-1")
    world.run(12)
    _, found = told(world, 10)
    assert (found.key, found.fault, found.broken) == (("pair", "a-1", "b-1"), "direction", ("a-1", "b-1"))


def test_all_that_leaves_one_node_is_lost() -> None:
    world = World({"a": 5, "b": 5})
    world.run(20)
    world.passes = lambda a, _b, _large: a.name != "a-1"
    world.run(12)
    _, found = told(world, 10)
    assert (found.key, found.fault, found.broken) == (("node", "a-1", ""), "direction", ("a-1", ""))


def test_large_packets_only() -> None:
    for key, passes in {
        ("node", "a-1", ""): lambda a, b, large: not (large and "a-1" in {a.name, b.name}),
        ("sites", "a", "b"): lambda a, b, large: not (large and a.site != b.site),
        ("pair", "a-1", "b-1"): lambda a, b, large: not (large and {a.name, b.name} == {"a-1", "b-1"}),
    }.items():
        world = World({"a": 4, "b": 4})
        world.run(20)
        world.passes = passes
        world.run(40)
        _, found = told(world, 10)
        assert (found.key, found.fault) == (key, "large"), found


def test_a_dead_node_hides_nothing_of_what_its_witnesses_have() -> None:
    world = World({"a": 6, "b": 2})
    world.run(20)
    world.agents["a-5"].up = False
    world.passes = lambda a, b, large: not (large and "a-1" in {a.name, b.name})
    world.run(40)
    found = {(one.key, one.fault) for one in world.collector.findings()}
    assert found == {(("node", "a-5", ""), "silent"), (("node", "a-1", ""), "large")}


def test_a_killed_agent_is_no_lost_path() -> None:
    world = World({"a": 4, "b": 4}, loss=0.01)
    world.run(20)
    for name in ("a-1", "b-2"):
        world.agents[name].alive = False
    alarms: list = []
    world.run(60, lambda: alarms.extend(world.collector.settled(set())[0]))
    for name in ("a-1", "b-2"):
        world.restart(world.agents[name])
    world.run(60, lambda: alarms.extend(world.collector.settled(set())[0]))
    assert alarms == []


def test_agents_of_0_2_0_are_not_measured_and_never_lost() -> None:
    world = World({"a": 3, "b": 3})
    world.agents["b-0"].probes = world.agents["b-1"].probes = False
    alarms: list = []
    world.run(90, lambda: alarms.extend(world.collector.settled(set())[0]))
    world.agents["b-1"].up = False
    world.run(60, lambda: alarms.extend(world.collector.settled(set())[0]))
    assert alarms == []
    assert world.collector.capable == {"a-0", "a-1", "a-2", "b-2"}


def test_only_this_agents_view() -> None:
    """Its device takes no answers, while the others get its."""
    world = World({"a": 4, "b": 4})
    world.run(20)
    deaf = world.agents["a-1"]
    answered = deaf.book.answered
    deaf.book.answered = lambda *_a, **_k: False  # type: ignore[method-assign]
    world.run(15)
    found = world.collector.findings()
    assert [(one.key, one.fault) for one in found] == [(("view", "a-1", ""), "view")]
    assert world.collector.settled(set())[0] == []
    deaf.book.answered = answered  # type: ignore[method-assign]


def test_a_thousand_agents() -> None:
    """The budget holds; of a dead node and a cut site at once each is named within 5 s, and nothing else is."""
    world = World({f"s{number}": 100 for number in range(10)})
    world.acquaint()
    world.run(0.5)
    for agent in world.agents.values():
        agent.packets = 0
    world.run(1)
    most = max(agent.packets for agent in world.agents.values())
    # Asked and answered: 8 by the ring, 4 for the sites, and a large one.
    assert most <= 2 * (schedule.SLOTS_PER_S + schedule.SITES_PER_S + 1), most
    world.agents["s3-33"].up = False
    world.passes = lambda a, b, _large: ("s7" in {a.site, b.site}) <= (a.site == b.site)
    begun, named = world.now, set()
    while len(named) < 2 and world.now - begun < 6:
        named |= {one.key for one in world.until_told(0.5)[1]}
    assert named == {("node", "s3-33", ""), ("site", "s7", "")}
    assert world.now - begun <= 5


def test_a_dead_pair_among_a_thousand_agents_within_the_bound_of_the_schedule() -> None:
    world = World({f"s{number}": 100 for number in range(10)})
    world.only({f"s{site}-{number}" for site in range(10) for number in (1, 2)})
    world.acquaint()
    world.run(6)
    world.passes = lambda a, b, _large: {a.name, b.name} != {"s1-1", "s2-2"}
    seconds, found = told(world, 90)
    assert found.key == ("pair", "s1-1", "s2-2")
    assert seconds <= 999 / 16 + 10


def test_a_host_that_does_not_forward_is_named_and_a_restarted_agent_is_not() -> None:
    world = World({"a": 4, "b": 4})
    world.run(20)
    world.passes = lambda a, b, large: "b-1" not in {a.name, b.name}
    world.kernels_pass = True
    world.run(6)
    assert world.collector.settled(set())[0] == []  # it may be an agent that restarts
    _, found = told(world, 20)
    assert (found.key, found.fault) == (("node", "b-1", ""), "pods")
    world.passes = lambda _a, _b, _large: True
    over: set = set()
    world.run(20, lambda: over.update(world.collector.settled({found.key})[1]))
    assert over == {found.key}


def test_what_an_agent_said_long_ago_is_no_news() -> None:
    """A controller that starts reads the last report of each agent, also of one that stopped long ago."""
    world = World({"a": 3, "b": 3})
    world.run(20)
    world.agents["a-0"].on_bus = False
    stale = MeshReport(peers=tuple(PeerSeen(one.epoch, SILENT, 3.0) for one in world.agents.values()))
    report = AgentStatus(
        node="a-0", uid=world.state.nodes["a-0"].uid, applied=1, interval_s=5.0,
        sent_at=datetime(2026, 1, 1, tzinfo=UTC), mesh=stale,
    )  # fmt: skip
    world.collector = Collector(lambda: world.state, clock=lambda: world.now)
    world.collector.take(report, 3600.0)
    alarms: list = []
    world.run(40, lambda: alarms.extend(world.collector.settled(set())[0]))
    assert alarms == []
