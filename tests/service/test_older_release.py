"""Events that earlier releases cannot follow wait until nobody of such a release takes part any more."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane.cluster.decide import decide
from controlplane.cluster.decision import EMPTY_CONTEXT, DecisionContext, MarkPaths, Participant
from controlplane.cluster.evolve import evolve
from controlplane.cluster.mesh.verdict import Finding
from controlplane.controller.controller import Controller
from events import subjects
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import IsthmusError, Refused
from events.jetstream import read
from events.jetstream.log import JetStreamLog
from events.jetstream.readers import readers
from events.jetstream.status_stream import publish
from events.protocol.commands import (
    AddEntry,
    BeginAdoption,
    BindNodes,
    ChangeKey,
    Command,
    FenceNode,
    RemoveEntry,
    ReserveClb,
)
from events.status import AgentStatus
from events.telemetry.role import Telemetry
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.membership import node_key
from nodeagent.membership.cache import Cache
from nodeagent.membership.log_follower import LogFollower
from nodeagent.membership.view import View
from tests.controlplane import every_kind
from tests.controlplane.world import START, World
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until

OLD = DecisionContext(older=(Participant("the agent of idc-1", "0.2.0"),))
RESERVE = ReserveClb(reservation="gw", subnet="10.21.0.0/28", provider="gateway")
KEYS = [b64encode(bytes([number]) * 32).decode() for number in (1, 2)]
ENTRY = AddEntry(entry="api", sources=("203.0.113.0/28",))


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[BusOptions]:
    store = tmp_path / "jetstream"
    store.mkdir()
    async with EmbeddedServer(ServerOptions(store_dir=store)) as running:
        yield BusOptions(servers=(running.url,))


def test_no_command_and_no_tick_writes_a_new_event_while_an_older_release_takes_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a history with every command and every event: what older releases know is decided as ever."""
    refused: set[str] = set()
    written: set[str] = set()

    def with_an_old_one(state: Any, command: Any, now: Any, context: Any = EMPTY_CONTEXT) -> Any:
        held = decide(state, command, now, msgspec.structs.replace(context, older=OLD.older))
        if isinstance(held.refusal, Refused) and held.refusal.code == "older_release":
            assert not held.events
            refused.add(command.name)
        written.update(event.type_name() for event in held.events)
        return decide(state, command, now, context)

    monkeypatch.setattr(every_kind, "decide", with_an_old_one)
    every_kind.play()
    assert refused >= {"add-entry", "begin-adoption", "adopt-nodes", "bind-nodes"}
    assert {name for name in written if name.startswith(("entry", "path", "node.bound", "range.ad"))} <= {
        "entry.removed.v1", "path.restored.v1"
    }  # fmt: skip
    assert "node.joined.v1" in written


def test_what_time_brings_waits_event_by_event_and_an_end_is_written() -> None:
    world = World()
    world.ok(DEFINE)
    for number in range(2):
        world.ok(join(number))
    found = MarkPaths(found=(Finding(scope="node", a="n0", since=1.0),), at_s=2.0)
    held = decide(world.state, found, START, OLD)
    assert (held.events, held.refusal) == ((), None)
    (lost,) = decide(world.state, found, START).events
    evolve(world.state, world.state.sequence + 1, lost)
    over = MarkPaths(over=frozenset(world.state.lost_paths), at_s=3.0)
    assert [event.type_name() for event in decide(world.state, over, START, OLD).events] == ["path.restored.v1"]


async def _refusal(operator: Any, command: Command) -> str:
    """What the command is refused with."""
    with pytest.raises(Refused) as refused:
        await operator.send(command)
    assert refused.value.code == "older_release"
    return refused.value.message


async def _report(operator: Any, running: Controller, version: str, *, state: str = "ready") -> None:
    uid = "uid-0"
    status = AgentStatus(node="n0", uid=uid, applied=1, sent_at=datetime.now(UTC), interval_s=30.0,
                         agent_version=version, state=state)  # type: ignore[arg-type]  # fmt: skip
    assert await publish(operator._nats, CLUSTER, status)
    await until(
        lambda: (
            (said := running.liveness.statuses.get(uid)) is not None
            and (said.agent_version, said.state) == (version, state)
        )
    )


@pytest.mark.bus
async def test_the_way_back_to_a_release_stays_open_for_as_long_as_the_controllers_are_told_so(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with (
        controller(bus, tmp_path / "a", leads=True, compatible_with="0.2.0") as running,
        client(bus) as one,
    ):
        await one.send(DEFINE)
        await one.send(join(0))
        await one.send(RESERVE)
        await _report(one, running, "0.3.0")
        said = await _refusal(one, ENTRY)
        assert "--compatible-with" in said
        assert "0.2.0" in said
        await _refusal(one, ChangeKey(node="n0", uid="uid-0", key=KEYS[0]))
        await one.send(msgspec.structs.replace(join(1), node_key=KEYS[1]))
        await one.send(msgspec.structs.replace(join(0), node_key=KEYS[0]))  # as agents do at each start
        assert (set(running.replica.state.nodes), dict(running.replica.state.keys)) == ({"n0", "n1"}, {})
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as one:
        await one.send(ENTRY)
        await one.send(ChangeKey(node="n0", uid="uid-0", key=KEYS[0]))
        assert list(running.replica.state.keys) == ["n0"]
        assert running.replica.state.entries


@pytest.mark.bus
async def test_a_key_that_was_held_back_is_in_the_log_soon_after_the_last_upgrade(
    bus: BusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And who waits for longer asks more rarely, not all at one time."""
    monkeypatch.setattr(node_key, "AGAIN_FIRST_S", 0.2)
    config = AgentConfig(cluster=CLUSTER, node="n1", kind="cloud", bus=bus, state_dir=tmp_path / "agent")
    config.state_dir.mkdir()
    cache, told = Cache(config.state_dir), node_key.Told(KEYS[1], 51820)

    async def apply(*_: object) -> None:
        pass

    follower = LogFollower(
        config, View(CLUSTER, "n1", "uid-1"), cache, Conditions(), Telemetry.off(),
        apply=apply, underlay=lambda: "192.168.7.1", key=lambda: told,
    )  # fmt: skip
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as operator:
        await operator.send(DEFINE)
        await operator.send(join(0))
        await _report(operator, running, "0.2.0")
        following = asyncio.create_task(follower.run())
        try:
            await until(lambda: follower.view.own is not None)
            assert not running.replica.state.keys
            await _report(operator, running, "0.3.0")
            await until(lambda: "n1" in running.replica.state.keys, within_s=30)
        finally:
            following.cancel()
            await asyncio.wait({following})
            cache.close()
    monkeypatch.undo()
    assert [node_key.again_s(0) < 20, node_key.again_s(3) < 160, node_key.again_s(4000) < 400] == [True] * 3
    assert node_key.again_s(4000) > 200
    assert len({node_key.again_s(2) for _ in range(20)}) == 20


@pytest.mark.bus
async def test_an_entry_waits_for_the_upgrade_of_agents_and_controllers_that_are_heard(
    bus: BusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as operator:
        await operator.send(DEFINE)
        for number in range(2):
            await operator.send(join(number))
        await operator.send(RESERVE)
        await _report(operator, running, "0.2.0")
        said = await _refusal(operator, ENTRY)
        assert "the agent of n0 (0.2.0)" in said
        assert "0.3.0" in said
        assert await _refusal(operator, BeginAdoption(source="flannel"))
        await operator.send(FenceNode(node="n1"))  # known to all
        await _report(operator, running, "0.2.0", state="stopping")
        before = running.replica.state.sequence
        await operator.send(ENTRY)
        assert running.replica.state.sequence == before + 1
        await _report(operator, running, "0.2.0")
        await operator.send(RemoveEntry(entry="api"))  # it is in the log: to end it must stay possible
        assert await _refusal(operator, ENTRY)
        await _report(operator, running, "0.3.0")

        # A controller of 0.2.0 that follows: its consumer does not say of which release it is.
        log = await JetStreamLog.open(operator._nats, CLUSTER)
        monkeypatch.setattr(read, "VERSION_KEY", "other")

        async def follow() -> None:
            async for _ in log.read(after=0, follow=True):
                pass

        following = asyncio.create_task(follow())
        try:

            async def seen() -> bool:
                return any(not each.version for each in await readers(operator._nats, CLUSTER))

            await until(seen)
            monkeypatch.undo()
            said = await _refusal(operator, ENTRY)
            assert "r-" in said
            assert "0.2.0 or earlier" in said
        finally:
            following.cancel()
            await asyncio.wait({following})

        async def gone() -> bool:
            return not [each for each in await readers(operator._nats, CLUSTER) if not each.version]

        await until(gone)
        await operator.send(ENTRY)


@pytest.mark.bus
async def test_the_bridges_subjects_carry_its_commands_and_no_others(bus: BusOptions, tmp_path: Path) -> None:
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as operator:
        await operator.send(DEFINE)
        await operator.send(join(0))
        bind = BindNodes(nodes=(("n0", "uid-0", "node-uid"), ("n0", "another", "x"), ("gone", "y", "z")))
        with pytest.raises(Refused) as refused:
            await operator.send(bind)
        assert refused.value.code == "forbidden"
        body = json.dumps({"node": "n0", "uid": "uid-0", "kind": "cloud", "underlay": "192.0.2.1"}).encode()
        answer = await operator._nats.request(subjects.bridge_command(CLUSTER, "join"), body, timeout=30)
        assert b"forbidden" in answer.data

        bridge = type(operator)(operator._nats, CLUSTER, actor="kubernetes/one")
        bridge.bridge = True
        reply = await bridge.send(bind, command_id="mine")
        assert reply.result == {"bound": ["n0"]}
        assert running.replica.state.bound["n0"].node_uid == "node-uid"
        with pytest.raises(Refused) as refused:
            await bridge.send(FenceNode(node="n0", uid="an-earlier-one", reason="late"))
        assert refused.value.code == "node_unknown"
        assert "n0" in running.replica.state.nodes
        with pytest.raises(IsthmusError) as taken:
            await operator.send(RemoveEntry(entry="x"), command_id="kubernetes-mine")
        assert taken.value.code == "bad_request"
