"""Which gateways have closed an entry, by what their agents report."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from controlplane.cli.entry.closing import closing
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.cli.options import BusContext
from events.jetstream.status_stream import publish
from events.protocol.commands import AddEntry, MarkGateway, RemoveEntry, ReserveClb
from events.status import AgentStatus
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus


async def test_a_gateway_has_closed_an_entry_once_its_firewall_has_the_event(tmp_path: Path) -> None:
    (tmp_path / "jetstream").mkdir()
    async with (
        EmbeddedServer(ServerOptions(store_dir=tmp_path / "jetstream")) as server,
        controller(bus := BusOptions(servers=(server.url,)), tmp_path / "a", leads=True) as running,
        client(bus) as operator,
    ):
        await operator.send(DEFINE)
        for number in range(3):
            await operator.send(join(number))
        await operator.send(ReserveClb(reservation="gw", subnet="10.21.0.0/28", provider="gateway"))
        for number in range(2):
            await operator.send(MarkGateway(node=f"n{number}"))
        await operator.send(AddEntry(entry="api", sources=("203.0.113.0/28",)))

        async def report(number: int, applied: int) -> None:
            status = AgentStatus(node=f"n{number}", uid=f"uid-{number}", applied=applied,
                                 sent_at=datetime.now(UTC), interval_s=30.0)  # fmt: skip
            assert await publish(operator._nats, CLUSTER, status)
            await until(lambda: running.liveness.applied.get(f"uid-{number}") == applied)

        gone = await operator.send(RemoveEntry(entry="api"))
        assert gone.result["gateways"] == ["n0", "n1"]
        await report(0, gone.sequence)
        await report(1, gone.sequence - 1)
        context = BusContext(cluster=CLUSTER, bus=bus, actor="tester")
        names = ["n0", "n1", "n2", "nobody"]
        found = {one.node: one for one in await closing(context, names, gone.sequence, 0.0)}
        assert {name: one.closed for name, one in found.items()} == {
            "n0": True, "n1": False, "n2": False, "nobody": False
        }  # fmt: skip
        assert f"event {gone.sequence - 1} of {gone.sequence}" in found["n1"].why
        assert "never reported" in found["n2"].why
        assert found["nobody"].why
        await report(1, gone.sequence)
        assert all(one.closed for one in await closing(context, ["n0", "n1"], gone.sequence, 60.0))
