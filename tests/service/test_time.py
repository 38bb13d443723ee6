"""What time and reports bring: silence, return, drains, and snapshots for agents, on a real bus."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from controlplane.cluster.digest import state_digest
from controlplane.controller.publishing.snapshots import SnapshotSchedule, snapshot_of
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions
from events.jetstream.snapshots import SnapshotBucket
from events.jetstream.status_stream import publish
from events.protocol.commands import FenceNode, LeaveNode
from events.status import AgentStatus
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus


async def report(operator: ControllerClient, number: int, applied: int) -> None:
    status = AgentStatus(
        node=f"n{number}", uid=f"uid-{number}", applied=applied, sent_at=datetime.now(UTC), interval_s=0.2
    )
    assert await publish(operator._nats, CLUSTER, status)
    await operator._nats.flush()


async def test_a_silent_node_becomes_unreachable_and_recovers_with_its_next_report(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with controller(bus, tmp_path / "a", tick_s=0.1) as running, client(bus) as operator:
        await operator.send(msgspec.structs.replace(DEFINE, unreachable_after_s=1.0))
        await operator.send(join(1))
        await operator.send(join(2))
        await report(operator, 1, 3)
        await until(lambda: "n1" in running.replica.state.unreachable)
        assert "n2" not in running.replica.state.unreachable, "it never came, so it is not missed"
        await report(operator, 1, 3)
        await until(lambda: "n1" not in running.replica.state.unreachable)
        assert "n1" in running.replica.state.nodes


async def test_a_released_range_is_free_only_after_every_live_agent_has_applied_its_release(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with controller(bus, tmp_path / "a", tick_s=0.1) as running, client(bus) as operator:
        state = running.replica.state
        await operator.send(DEFINE)
        for number in range(3):
            joined = await operator.send(join(number))
            await report(operator, number, joined.sequence)
        left = await operator.send(LeaveNode(node="n0", uid="uid-0"))
        await report(operator, 1, left.sequence)
        await until(lambda: running.liveness.applied.get("uid-1") == left.sequence)
        assert list(state.draining) == [0], "one agent has not applied it yet"
        await report(operator, 2, left.sequence)
        await until(lambda: 0 not in state.ranges)
        # A node that has just joined holds up drains until it reports, is absent for long, or is fenced.
        await operator.send(join(7))
        left = await operator.send(LeaveNode(node="n1", uid="uid-1"))
        await report(operator, 2, left.sequence)
        await until(lambda: running.liveness.applied.get("uid-2") == left.sequence)
        assert 1 in state.draining
        fenced = await operator.send(FenceNode(node="n7", reason="dead"))
        await report(operator, 2, fenced.sequence)
        await until(lambda: not state.draining and not state.quarantined)
        assert sorted(state.ranges) == [2]


async def test_agents_find_a_snapshot_of_the_live_state(bus: BusOptions, tmp_path: Path) -> None:
    schedule = SnapshotSchedule(least_s=0.05, quiet_s=0.1)
    async with controller(bus, tmp_path / "a", snapshots=schedule) as running, client(bus) as operator:
        await operator.send(DEFINE)
        for number in range(30):
            last = await operator.send(join(number))
        await until(lambda: running.snapshots.published >= last.sequence)
        snapshot = await SnapshotBucket(operator._nats, CLUSTER).latest()
        assert snapshot is not None
        state = running.replica.state
        assert snapshot == snapshot_of(state, running.replica.head, snapshot.made_at)
        assert snapshot.state_digest == state_digest(state)
        assert len(snapshot.members) == len(snapshot.ranges) == 30


async def test_a_cluster_may_not_take_the_container_cidr_of_another_on_the_same_bus(
    bus: BusOptions, tmp_path: Path
) -> None:
    from controlplane.controller.controller import Controller, ControllerOptions
    from events.errors import IsthmusError
    from tests.service.onbus import run_controller

    async with controller(bus, tmp_path / "a"), client(bus) as operator:
        await operator.send(DEFINE)
        other = await Controller.start(
            ControllerOptions(cluster="other", data=tmp_path / "other", bus=bus, name="o")
        )
        async with run_controller(other):
            elsewhere = ControllerClient(operator._nats, "other", actor="tester")
            with pytest.raises(IsthmusError) as refusal:
                await elsewhere.send(DEFINE)
            assert refusal.value.code == "cidr_conflict_with_other_cluster"
            assert "prod" in refusal.value.message
            await elsewhere.send(msgspec.structs.replace(DEFINE, container_cidr="172.17.0.0/16"))
