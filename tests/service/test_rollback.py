"""The way back to 0.2.0 is opened under a controller that leads, while commands come in."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from controlplane.cluster.digest import state_digest
from controlplane.controller.replication.rollback import prepare_rollback
from controlplane.readmodel.asof import load_state
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.log import JetStreamLog
from events.parking import parked_in
from events.protocol.queries import ClusterView, ShowCluster
from events.types.releases import FIRST
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus
KEYS = [b64encode(bytes([number]) * 32).decode() for number in range(1, 4)]


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[BusOptions]:
    store = tmp_path / "jetstream"
    store.mkdir()
    async with EmbeddedServer(ServerOptions(store_dir=store)) as running:
        yield BusOptions(servers=(running.url,))


async def test_controllers_that_lead_or_follow_go_on_and_a_command_keeps_its_one_outcome(
    bus: BusOptions, tmp_path: Path
) -> None:
    keyed = [msgspec.structs.replace(join(number), node_key=key) for number, key in enumerate(KEYS)]
    async with controller(bus, tmp_path / "a", leads=True), client(bus) as one:
        await one.send(DEFINE)
        first = [await one.send(command, command_id=f"c{number}") for number, command in enumerate(keyed)]
    kept = {"compatible_with": FIRST}
    async with (
        controller(bus, tmp_path / "a", leads=True, **kept) as a,
        controller(bus, tmp_path / "b", "b", **kept) as b,
        client(bus) as one,
    ):
        assert len(a.replica.state.keys) == len(KEYS)
        assert (await one.ask(ShowCluster(), ClusterView)).compatible_with == FIRST
        log = JetStreamLog(one._nats, CLUSTER)
        more = [one.send(join(number), timeout_s=60) for number in range(3, 9)]
        done, *joined = await asyncio.gather(prepare_rollback(log, FIRST, actor="tester"), *more)
        assert done.left_out == {"node.key-changed.v1": len(KEYS)}
        assert len({reply.result["cidr"] for reply in (*first, *joined)}) == 9

        again = await one.send(keyed[1], command_id="c1", timeout_s=60)
        assert (again.duplicate, again.result["cidr"]) == (True, first[1].result["cidr"])
        last = await one.send(join(9), timeout_s=60)
        assert await parked_in(log) == a.replica.state.parked
        assert not a.replica.state.keys
        await until(lambda: b.replica.head.sequence == last.sequence, within_s=60)
        digest = state_digest(a.replica.state)
        for running in (a, b):
            assert state_digest(running.replica.state) == digest
            await running.projector.reached(last.sequence, timeout_s=60)
            store = await running.projector.open()
            assert state_digest(await store.run(load_state)) == digest
    async with controller(bus, tmp_path / "a", leads=True) as forward, client(bus) as one:
        assert state_digest(forward.replica.state) == digest
        await one.send(keyed[0], timeout_s=60)
        assert [key.key for key in forward.replica.state.keys.values()] == [KEYS[0]]
