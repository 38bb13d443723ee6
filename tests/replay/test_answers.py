"""Every answer about a random history equals the one that independent code computes from the raw events."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.cluster.digest import state_digest
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.cluster.state_decoder import decode_state
from events.chain import genesis
from events.codec import decode
from events.errors import Refused
from events.protocol.commands import (
    AdoptedNode,
    AdoptNodes,
    BeginAdoption,
    DefineCluster,
    EndAdoption,
    JoinNode,
    LeaveNode,
)
from replay.archive import writer as writing
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.history import History, Point
from replay.queries.bisect import bisect
from replay.queries.difference import difference, picture
from replay.queries.entries import Filter, entries
from replay.queries.explain import explain
from replay.queries.lives import blame, life
from replay.queries.other_plan import OtherPlan
from replay.queries.states import States
from replay.queries.stats import stats
from replay.queries.whatif import whatif
from replay.queries.who import who
from replay.when import When, from_ns
from tests.replay import brute
from tests.replay.histories import CLUSTER, NAMES, Author, ListLog, history

Question = Callable[[History, list[dict[str, Any]]], Awaitable[None]]
histories = st.builds(history, st.integers(0, 10**6), st.integers(5, 110))


def ask(messages: list[Any], question: Question) -> None:
    """Put the question to the log as a list and as an archive with short segments."""
    events = brute.parse(messages)

    async def both() -> None:
        await question(await History.open(ListLog(messages)), events)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "log.isthmus"
            writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="test")
            writer.add(messages)
            writer.finish()
            archive = ArchiveLog(path)
            try:
                await question(await archive_history(archive), events)
            finally:
                archive.close()

    asyncio.run(both())


@pytest.fixture(autouse=True)
def _short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many segments and several runs of index even in a short history."""
    monkeypatch.setattr(writing, "EVENTS_PER_SEGMENT", 16)
    monkeypatch.setattr(writing, "INDEX_EVERY", 3)


def at(sequence: int) -> Point:
    return Point(sequence, None, str(sequence))


fixture_ok = settings(suppress_health_check=[], max_examples=15)


@fixture_ok
@given(histories, st.data())
def test_the_state_at_any_sequence(messages, data):
    sequence = data.draw(st.integers(0, len(messages)))

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        state, origin = await States(past).at(sequence)
        assert origin.folded == sequence
        expected = brute.world(events, sequence)
        seen = picture(state)
        assert {
            name: {k: node[k] for k in ("uid", "kind", "underlay", "announced")}
            for name, node in seen["node"].items()
        } == expected["nodes"]
        assert seen["range"] == expected["ranges"]
        assert {n: v["addresses"].split(", ") for n, v in seen["clb"].items()} == expected["clb"]
        assert set(seen["network"]) == set(expected["networks"])
        assert set(state.unreachable) == expected["unreachable"]
        assert set(state.fenced) == expected["fenced"]
        assert (state.pool.capacity, state.pool.cursor) == (expected["capacity"], expected["cursor"])
        assert state.pool.free == brute.phases(expected)["free"]

    ask(messages, question)


@fixture_ok
@given(histories, st.data())
def test_who_held_a_pod_address(messages, data):
    sequence = data.draw(st.integers(1, len(messages)))
    offset = data.draw(st.integers(0, 191))
    address = str(ipaddress.ip_address("10.8.0.0") + offset)

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        answer = await who(past, address, at(sequence))
        expected = brute.who_pod(events, address, sequence)
        assert answer.kind == "pod"
        if expected is None:
            assert (answer.holder, answer.last, answer.range_state) == (None, None, "free")
            assert answer.note == "no node has ever held this range"
            return
        held = answer.holder if expected["phase"] == "allocated" else answer.last
        assert held is not None
        assert (answer.holder is None) == (expected["phase"] != "allocated")
        assert (answer.range, answer.range_state) == (expected["range"], expected["phase"])
        assert (held.node, held.uid, held.epoch) == (expected["node"], expected["uid"], expected["epoch"])
        assert (held.to.sequence if held.to else None) == expected["to"]
        assert (held.since.actor, held.since.command_id) == (expected["actor"], expected["command"])
        assert len(held.since.trace_id) == 32

    ask(messages, question)


@fixture_ok
@given(histories, st.data())
def test_who_had_an_underlay_address(messages, data):
    sequence = data.draw(st.integers(1, len(messages)))
    used = sorted(
        {
            e["b_underlay"]
            for e in brute.parse(messages)
            if e["kind"] in ("node.joined", "node.underlay-changed")
        }
    )
    address = data.draw(st.sampled_from([*used, "192.168.77.77"]))

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        answer = await who(past, address, at(sequence))
        expected = brute.who_underlay(events, address, sequence)
        if expected is None:
            assert (answer.kind, answer.holder, answer.last) == ("outside", None, None)
            return
        node, uid, still = expected
        held = answer.holder if still else answer.last
        assert held is not None
        assert (answer.kind, held.node, held.uid) == ("underlay", node, uid)
        assert (answer.holder is not None) == still

    ask(messages, question)


@fixture_ok
@given(histories, st.sampled_from(NAMES), st.data())
def test_the_life_and_the_provenance_of_a_node(messages, node, data):
    sequence = data.draw(st.integers(1, len(messages)))

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        expected = brute.speaks_of_node(events, node)
        if not expected:
            with pytest.raises(Refused) as refused:
                await life(past, "node", node)
            assert refused.value.code == "not_in_history"
            return
        steps = await life(past, "node", node)
        assert [step.stamp.sequence for step in steps] == expected
        setters = brute.last_setters(events, node, sequence)
        if not setters:
            with pytest.raises(Refused):
                await blame(past, node, at(sequence))
            return
        assert {a.name: a.stamp.sequence for a in await blame(past, node, at(sequence))} == setters

    ask(messages, question)


@fixture_ok
@given(histories, st.data())
def test_the_difference_between_two_points(messages, data):
    first, second = data.draw(st.integers(0, len(messages))), data.draw(st.integers(0, len(messages)))

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        answer = await difference(States(past), at(first), at(second))
        before, after = brute.world(events, first), brute.world(events, second)
        for kind, key in (("node", "nodes"), ("range", "ranges"), ("clb", "clb"), ("network", "networks")):
            changed = {c.name: c.what for c in answer.changes if c.kind == kind}
            a, b = before[key], after[key]
            assert {n for n, w in changed.items() if w == "appeared"} == set(b) - set(a)
            assert {n for n, w in changed.items() if w == "vanished"} == set(a) - set(b)
            if kind == "range":
                assert {n for n, w in changed.items() if w == "changed"} == {
                    n for n in a if n in b and a[n] != b[n]
                }
        for name in ("allocated", "draining", "quarantined", "free"):
            assert answer.counts[name] == (brute.phases(before)[name], brute.phases(after)[name])

    ask(messages, question)


CONDITIONS: dict[str, Callable[[dict[str, Any], int], bool]] = {
    "nodes <= 4": lambda w, s: len(w["nodes"]) <= 4,
    "free > 2": lambda w, s: brute.phases(w)["free"] > 2,
    "not member('node-3')": lambda w, s: "node-3" not in w["nodes"],
    "draining + quarantined < 3 and external == 0": lambda w, s: (
        brute.phases(w)["draining"] + brute.phases(w)["quarantined"] < 3
        and not any(n["kind"] == "external" for n in w["nodes"].values())
    ),
    "sequence < 20 or fenced < 2": lambda w, s: s < 20 or len(w["fenced"]) < 2,
    "capacity in (0, 12)": lambda w, s: w["capacity"] in (0, 12),
}


@fixture_ok
@given(histories, st.sampled_from(sorted(CONDITIONS)))
def test_the_first_failure_of_a_condition(messages, condition):
    async def question(past: History, events: list[dict[str, Any]]) -> None:
        answer = await bisect(States(past), condition)
        holds = CONDITIONS[condition]
        expected = next((s for s in range(1, len(events) + 1) if not holds(brute.world(events, s), s)), None)
        assert (answer.failed.sequence if answer.failed else None) == expected

    ask(messages, question)


@fixture_ok
@given(histories)
def test_the_numbers(messages):
    async def question(past: History, events: list[dict[str, Any]]) -> None:
        answer = await stats(past)
        kinds = [e["kind"] for e in events]
        assert (answer.joins, answer.leaves, answer.fenced) == tuple(
            kinds.count(f"node.{verb}") for verb in ("joined", "left", "fenced")
        )
        assert answer.events == {f"{k}.v1": kinds.count(k) for k in set(kinds)}
        lives, reuse = brute.lifetimes(events), brute.reuse(events)
        assert answer.lifetimes.count == len(lives)
        assert answer.reuse_distance.count == len(reuse)
        if lives:
            assert answer.lifetimes.minimum == lives[0]
            assert answer.lifetimes.maximum == lives[-1]
            assert answer.lifetimes.median == lives[-(-len(lives) // 2) - 1]
            assert answer.lifetimes.mean == pytest.approx(sum(lives) / len(lives))
        if reuse:
            assert (answer.reuse_distance.minimum, answer.reuse_distance.maximum) == (reuse[0], reuse[-1])
        final = brute.world(events, len(events))
        assert (answer.in_use, answer.capacity) == (len(final["ranges"]), final["capacity"])
        assert answer.nodes_at_end == len(final["nodes"])

    ask(messages, question)


@fixture_ok
@given(histories, st.sampled_from(NAMES), st.data())
def test_the_filtered_log(messages, node, data):
    after, until = sorted(data.draw(st.tuples(*[st.integers(0, len(messages))] * 2)))
    types = data.draw(st.sampled_from([(), ("range",), ("node.joined", "range.freed.v1")]))
    actor = data.draw(st.sampled_from(["", "ops@", "controller"]))
    address = data.draw(st.sampled_from(["", "10.8.0.20"]))

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        for wanted in (
            Filter(node=node, types=types, actor=actor),
            Filter(types=types, actor=actor, address=address),
        ):
            found = [e.stamp.sequence async for b in entries(past, wanted, after=after, until=until) for e in b]
            expected = [
                e["seq"]
                for e in events
                if after < e["seq"] <= until
                and (not wanted.node or e.get("b_node") == node)
                and (not types or f"{e['kind']}.v1".startswith(types))
                and actor in e["actor"]
                and (not wanted.address or _speaks_of(e, address))
            ]
            assert found == expected

    ask(messages, question)


def _speaks_of(event: dict[str, Any], address: str) -> bool:
    nets = [event.get("b_cidr"), event.get("b_subnet")]
    return any(n and ipaddress.ip_address(address) in ipaddress.ip_network(n) for n in nets)


@fixture_ok
@given(histories, st.data())
def test_a_moment_is_the_last_event_recorded_by_then(messages, data):
    sequence = data.draw(st.integers(1, len(messages)))
    shift = data.draw(st.integers(-2000, 2000))
    moment = from_ns(messages[sequence - 1].recorded_ns) + timedelta(microseconds=shift)

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        point = await past.resolve(When("then", moment=moment))
        assert point.sequence == sum(from_ns(e["ns"]) <= moment for e in events)

    ask(messages, question)


@fixture_ok
@given(histories, st.data())
def test_an_explanation_gathers_the_whole_command(messages, data):
    sequence = data.draw(st.integers(1, len(messages)))

    async def question(past: History, events: list[dict[str, Any]]) -> None:
        (answer,) = await explain(past, str(sequence), kind="sequence")
        command = events[sequence - 1]["command"]
        assert answer.command_id == command
        assert [e.stamp.sequence for e in answer.events] == [
            e["seq"] for e in events if e["command"] == command
        ]
        epochs = {e["seq"] for e in events if e["command"] == command and e["kind"] == "range.allocated"}
        epochs |= {e["b_epoch"] for e in events if e["command"] == command and "b_epoch" in e}
        last = answer.events[-1].stamp.sequence
        later = [e["seq"] for e in events if e["seq"] > last and e.get("b_epoch") in epochs]
        assert sorted(e.stamp.sequence for e in answer.followed_by) == later

    ask(messages, question)


@fixture_ok
@given(histories, st.data())
def test_living_the_past_again_unchanged_changes_nothing(messages, data):
    fork = data.draw(st.integers(0, len(messages)))
    while fork < len(messages) and messages[fork].headers["ce-txindex"] != "0":
        fork += 1

    async def question(past: History, _: list[dict[str, Any]]) -> None:
        answer = await whatif(States(past), at(fork), at(past.end), OtherPlan())
        assert (answer.differing, answer.refused) == (0, 0)
        assert answer.imagined == answer.recorded

    ask(messages, question)


def adopted_history() -> list[Any]:
    """A cluster that took over three nodes, one of which leaves; then a new one joins."""
    author = Author(7)
    author.do(DefineCluster(container_cidr="10.42.0.0/22", pods_per_node=64, services=64, quarantine_s=0))
    author.do(BeginAdoption(source="flannel", plan="ab" * 32))
    nodes = tuple(
        AdoptedNode(
            node=f"old{number}",
            uid=f"machine-{number}",
            kind="cloud",
            underlay=f"192.168.7.{number + 1}",
            range=f"10.42.{number}.64/26",
            vtep_mac=f"8a:00:00:00:00:{number:02x}",
        )
        for number in range(3)
    )
    author.do(AdoptNodes(nodes=nodes))
    author.do(LeaveNode(node="old1", uid="machine-1"))
    author.do(EndAdoption())
    author.do(JoinNode(node="new", uid="u", kind="cloud", underlay="192.168.8.1"))
    return author.messages


def test_an_adoption_lives_again_with_the_same_ranges_and_another_plan_gives_others() -> None:
    messages = adopted_history()

    async def question(past: History, _: list[dict[str, Any]]) -> None:
        for fork in (0, 1, 2, 8, len(messages)):
            answer = await whatif(States(past), at(fork), at(past.end), OtherPlan())
            assert (answer.differing, answer.refused) == (0, 0)
            assert answer.imagined == answer.recorded
        other = await whatif(States(past), at(0), at(past.end), OtherPlan(container_cidr="10.50.0.0/22"))
        moved = {each.node: each.recorded for each in other.moved}
        assert moved == {"old0": "10.42.0.64/26", "old2": "10.42.2.64/26", "new": "10.42.2.128/26"}
        state, _ = await States(past).at(past.end)
        assert {name: held.cidr for name, held in state.owned.items()} == moved
        who_had = await who(past, "10.42.1.70", at(8))
        assert who_had.holder is not None
        assert who_had.holder.node == "old1"

    ask(messages, question)


@fixture_ok
@given(histories, st.data())
def test_a_thawed_state_is_the_state_and_goes_on_like_it(messages, data):
    from controlplane.cluster.digest import canonical

    cut = data.draw(st.integers(0, len(messages)))
    state = ClusterState(CLUSTER)
    for message in messages[:cut]:
        recorded = decode(message)
        evolve(state, recorded.sequence, recorded.event)
    twin = decode_state(canonical(state))
    for message in messages[cut:]:
        recorded = decode(message)
        evolve(state, recorded.sequence, recorded.event)
        evolve(twin, recorded.sequence, recorded.event)
    assert state_digest(twin) == state_digest(state)
    assert twin.owned == state.owned
    assert twin.by_address == state.by_address
    assert twin.pool.free == state.pool.free


def test_spans_tell_the_moment_of_each_agents_write() -> None:
    """The first batch that reached the event counts; catching up later, and other services, do not."""
    from events.telemetry.spans import SpanRecord
    from replay.queries.explain import from_spans

    def span(service: str, node: str, last: int, end_ns: int, **more: Any) -> SpanRecord:
        return SpanRecord(
            trace_id="0" * 32,
            span_id=f"{end_ns:016x}",
            name="apply",
            service=service,
            start_ns=1,
            end_ns=end_ns,
            attributes={"isthmus.node": node, "isthmus.sequence.last": last, **more},
        )

    found = from_spans(
        [
            span("isthmus-agent", "a", 9, 1_000_000_000),
            span("isthmus-agent", "a", 10, 3_000_000_000),
            span("isthmus-agent", "a", 10, 2_000_000_000),
            span("isthmus-agent", "b", 12, 4_000_000_000, **{"isthmus.replay": True}),
            span("isthmus-controller", "c", 12, 5_000_000_000),
        ],
        last=10,
    )
    assert [(item.node, item.done, item.at.timestamp(), item.evidence) for item in found] == [
        ("a", True, 2.0, "span")
    ]
