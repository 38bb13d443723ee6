"""Bridges beside the controllers: one works, another takes over, and one that was paused writes nothing."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from controlplane.kubernetes import beside as beside_module
from controlplane.kubernetes import bridge as bridge_module
from controlplane.kubernetes import lease as lease_module
from controlplane.kubernetes.api import KubernetesClient
from controlplane.kubernetes.beside import BesideBridge, BridgeOptions, beside
from controlplane.kubernetes.bridge import Bridge
from controlplane.kubernetes.lease import LEASE_S, RENEW_S, TERM_S, KubernetesLease
from controlplane.kubernetes.objects import Node
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.codec import decode
from events.errors import Unavailable
from events.jetstream.status_stream import publish
from events.protocol.commands import RemoveNode
from events.status import AgentStatus
from tests.kubernetes.apiserver import ApiServer
from tests.kubernetes.table import Table
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until


class Store:
    """One Lease, as an API server keeps it."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.version = 0
        self.away = False

    async def read(self, path: str) -> dict[str, Any] | None:
        del path
        if self.away:
            raise Unavailable("kubernetes_unreachable", "away")
        return copy.deepcopy(self.found)

    def _keep(self, thing: Mapping[str, Any]) -> dict[str, Any]:
        self.version += 1
        self.found = copy.deepcopy(dict(thing))
        self.found["metadata"]["resourceVersion"] = str(self.version)
        return copy.deepcopy(self.found)

    async def create(self, path: str, thing: Mapping[str, Any]) -> bool:
        del path
        if self.found is None:
            self._keep(thing)
            return True
        return False

    async def replace(self, path: str, thing: Mapping[str, Any]) -> dict[str, Any] | None:
        del path
        assert self.found is not None
        if thing["metadata"]["resourceVersion"] != self.found["metadata"]["resourceVersion"]:
            return None
        return self._keep(thing)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def two() -> tuple[Store, Clock, KubernetesLease, KubernetesLease]:
    store, clock = Store(), Clock()
    first, second = (
        KubernetesLease(
            store, "isthmus-system", name, clock=clock, now=lambda: datetime(2026, 1, 1, tzinfo=UTC)
        )
        for name in ("a", "b")
    )
    return store, clock, first, second


async def test_one_holds_the_lease_and_the_other_takes_it_when_it_is_not_renewed() -> None:
    assert LEASE_S + 2 * RENEW_S < 20  # what is promised of a takeover
    store, clock, first, second = two()
    await first.step()
    for _ in range(20):
        clock.now_s += RENEW_S
        await second.step()
        await first.step()
        assert (first.held, second.held, second.other) == (True, False, "a")
    # The first is paused for ever: its own term ends before another may begin.
    clock.now_s += TERM_S - 0.1
    await second.step()
    assert (first.held, second.held) == (True, False)
    clock.now_s += 0.2
    assert not first.held
    for _ in range(int((LEASE_S + RENEW_S) / RENEW_S)):
        clock.now_s += RENEW_S
        await second.step()
        assert not (first.held and second.held)
    assert second.held
    await first.step()  # it wakes up
    assert (first.held, first.other, store.found["spec"]["leaseTransitions"]) == (False, "b", 1)  # type: ignore[index]
    await second.release()
    await first.step()
    assert (first.held, second.held) == (True, False)


async def test_of_two_that_take_it_at_once_one_has_it_and_a_lost_answer_costs_nothing() -> None:
    store, clock, first, second = two()
    await asyncio.gather(first.step(), second.step())
    assert first.held != second.held
    holder, other = (first, second) if first.held else (second, first)
    stale = await store.read("")
    await holder.release()
    assert stale is not None
    assert await store.replace("", stale) is None
    await asyncio.gather(holder.step(), other.step())
    assert holder.held != other.held
    # A renewal that was stored, but whose answer was lost: the holder is the holder.
    holder = holder if holder.held else other
    store._keep(store.found or {})
    await holder.step()
    assert holder.held
    store.away = True
    with pytest.raises(Unavailable):
        await holder.step()
    assert holder.held
    clock.now_s += TERM_S
    assert not holder.held


class Pausing:
    """An API server's client that stands still in the middle of a patch, as a stopped process does."""

    def __init__(self, real: KubernetesClient) -> None:
        self._real = real
        self.at, self.go = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    async def patch_node(self, name: str, patch: Mapping[str, Any], *, status: bool = False) -> Node | None:
        self.at.set()
        await self.go.wait()
        return await self._real.patch_node(name, patch, status=status)


async def test_a_bridge_that_was_paused_within_a_patch_meets_what_its_successor_wrote(tmp_path: Path) -> None:
    server, before, now = ApiServer(), Table(), Table()
    server.add("n1")
    before.say("n1", 0)
    now.say("n1", 5)  # meanwhile it left, and joined again
    async with server.serving(tmp_path) as kubeconfig:
        real = await KubernetesClient.open(kubeconfig)
        pausing = Pausing(real)
        old, new = Bridge(pausing, before, instance="old"), Bridge(real, now, instance="new")
        tasks = [asyncio.create_task(old.run())]
        try:
            await pausing.at.wait()
            tasks.append(asyncio.create_task(new.run()))
            await until(lambda: server.network("n1") == ("False", "IsthmusIsUp"))
            right = server.nodes["n1"]["spec"]["podCIDR"]
            before.leading = False
            taken = len(server.patches)
            pausing.go.set()
            await until(lambda: not old._busy)
            assert len(server.patches) == taken
            assert server.nodes["n1"]["spec"]["podCIDR"] == right == "10.200.1.64/26"
            before.say("n1", 7)
            old.mark_all()
            server.heartbeat("n1")
            await until(
                lambda: (
                    old.nodes["n1"].metadata.resource_version
                    == server.nodes["n1"]["metadata"]["resourceVersion"]
                )
            )
            assert len(server.patches) == taken
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await real.close()


async def test_a_node_that_changes_while_it_is_written_to_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge_module, "PAUSE_FIRST_S", 0.02)
    server, table = ApiServer(), Table()
    server.add("n1")
    table.say("n1", 0)
    async with server.serving(tmp_path) as kubeconfig:
        real = await KubernetesClient.open(kubeconfig)
        pausing = Pausing(real)
        bridge = Bridge(pausing, table, instance="one")
        task = asyncio.create_task(bridge.run())
        try:
            await pausing.at.wait()
            server.heartbeat("n1")  # a heartbeat alone marks nothing: the refused patch must be tried again
            pausing.go.set()
            await until(lambda: server.network("n1") == ("False", "IsthmusIsUp"))
        finally:
            task.cancel()
            await asyncio.wait({task})
            await real.close()


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[BusOptions]:
    store = tmp_path / "jetstream"
    store.mkdir()
    async with EmbeddedServer(ServerOptions(store_dir=store)) as running:
        yield BusOptions(servers=(running.url,))


@asynccontextmanager
async def bridge_of(
    bus: BusOptions, name: str, kubeconfig: Path, **following: Any
) -> AsyncIterator[BesideBridge]:
    options = BridgeOptions(cluster=CLUSTER, name=name, bus=bus, kubeconfig=kubeconfig, following=following)
    async with beside(options) as bridge:
        task = asyncio.create_task(bridge.run())
        try:
            yield bridge
        finally:
            task.cancel()
            await asyncio.wait({task})


@pytest.mark.bus
async def test_two_beside_a_controller_keep_nodes_in_step_and_one_takes_over(
    bus: BusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("LEASE_S", 1.0), ("TERM_S", 0.6), ("RENEW_S", 0.1)):
        monkeypatch.setattr(lease_module, name, value)
    monkeypatch.setattr(beside_module, "AGAIN_S", 0.1)
    monkeypatch.setattr(beside_module, "LOOK_S", 0.1)
    api = ApiServer()
    for number in range(3):
        api.add(f"n{number}")
    async with (
        api.serving(tmp_path) as kubeconfig,
        bridge_of(bus, "early", kubeconfig) as first,  # before there is a log
        controller(bus, tmp_path / "a", leads=True) as running,
        client(bus) as operator,
    ):
        await operator.send(DEFINE)
        joined = [await operator.send(join(number)) for number in range(2)]

        async def report(number: int, sequence: int, uid: str = "") -> None:
            status = AgentStatus(node=f"n{number}", uid=uid or f"uid-{number}", applied=sequence,
                                 sent_at=datetime.now(UTC), interval_s=5)  # fmt: skip
            assert await publish(operator._nats, CLUSTER, status)

        for number, reply in enumerate(joined):
            await report(number, reply.sequence)
        await until(lambda: all(api.network(f"n{n}") == ("False", "IsthmusIsUp") for n in range(2)))
        await until(lambda: set(running.replica.state.bound) == {"n0", "n1"})
        async with bridge_of(bus, "second", kubeconfig, fence_deleted_s=0.1) as second:
            await until(lambda: second.following is not None and second.following.bridge.synced.is_set())
            assert (first.working, second.working) == (True, False)
            monkeypatch.setattr(first.lease, "step", _nothing)  # its process stands still
            await until(lambda: second.working)
            assert not first.working
            await operator.send(RemoveNode(node="n1"))
            await until(lambda: api.network("n1") == ("True", "IsthmusNoRange"))
            third = await operator.send(join(2))
            await report(2, third.sequence)
            await until(lambda: api.network("n2") == ("False", "IsthmusIsUp"))
            assert api.nodes["n2"]["spec"]["podCIDR"] == running.replica.state.owned["n2"].cidr
            assert first.following is not None
            assert "early" not in {event["reportingInstance"] for event in api.events}
        await until(lambda: not second.lease.held)
        async for batch in running.log.read(after=0, until=running.replica.head.sequence):
            actors = {decode(m).envelope.actor for m in batch.messages if m.subject.endswith(".bound")}
            assert actors <= {"kubernetes/early", "kubernetes/second"}
            assert actors


async def _nothing() -> None:
    return
