"""The bridge beside a real controller on a real bus: from a join to the Node's podCIDR, and back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.kubernetes.members import bridging
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.jetstream.status_stream import publish
from events.protocol.commands import RemoveNode
from events.status import AgentStatus
from tests.kubernetes.apiserver import ApiServer
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[BusOptions]:
    store = tmp_path / "jetstream"
    store.mkdir()
    async with EmbeddedServer(ServerOptions(store_dir=store)) as running:
        yield BusOptions(servers=(running.url,))


async def report(operator: ControllerClient, node: str, uid: str, applied: int) -> None:
    """The agent of ``node`` says that it is ready."""
    status = AgentStatus(node=node, uid=uid, applied=applied, sent_at=datetime.now(UTC), interval_s=5)
    assert await publish(operator._nats, CLUSTER, status)


async def test_a_join_becomes_a_pod_cidr_and_a_removal_keeps_pods_away(bus: BusOptions, tmp_path: Path) -> None:
    api = ApiServer()
    for number in range(2):
        api.add(f"n{number}")
    async with (
        controller(bus, tmp_path / "a") as running,
        client(bus) as operator,
        api.serving(tmp_path) as kubeconfig,
        bridging(running, kubeconfig, fence_deleted_s=0.1),
    ):
        await until(lambda: api.network("n0") == ("True", "IsthmusNoRange"))
        await operator.send(DEFINE)
        joined = [await operator.send(join(number)) for number in range(2)]
        await until(lambda: api.network("n0") == ("True", "IsthmusAgentNotReady"))
        for number, reply in enumerate(joined):
            await report(operator, f"n{number}", f"uid-{number}", reply.sequence)
        await until(lambda: all(api.network(name) == ("False", "IsthmusIsUp") for name in ("n0", "n1")))
        state = running.replica.state
        for name in ("n0", "n1"):
            assert api.nodes[name]["spec"]["podCIDR"] == state.owned[name].cidr
            await until(lambda name=name: name in running.replica.state.bound)
            assert state.bound[name].node_uid == api.nodes[name]["metadata"]["uid"]

        await operator.send(RemoveNode(node="n1"))
        await until(lambda: api.network("n1") == ("True", "IsthmusNoRange"))
        again = await operator.send(join(1, uid="uid-9"))
        await report(operator, "n1", "uid-9", again.sequence)
        await until(lambda: api.network("n1") == ("True", "IsthmusRangeConflict"))
        assert api.nodes["n1"]["spec"]["podCIDR"] == joined[1].result["cidr"]
        api.delete("n0")  # its agent reports: whatever becomes of the Node, nobody touches the member
        api.delete("n1")
        api.add("n1")
        await until(lambda: api.network("n1") is not None and api.nodes["n1"]["spec"].get("podCIDR"))
        assert api.nodes["n1"]["spec"]["podCIDR"] == again.result["cidr"]
        assert "n0" in state.nodes
