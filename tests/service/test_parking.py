"""A poison event is parked: everybody leaves it out, because the log says so, and comes to the same state."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from controlplane.cluster.digest import state_digest
from controlplane.controller.controller import Controller
from controlplane.readmodel.asof import load_state
from controlplane.readmodel.rebuild import rebuild
from events.bus.connection import BusOptions, connect
from events.jetstream.live import LiveReader
from events.jetstream.log import JetStreamLog
from events.parking import parked_in
from events.protocol.queries import ClusterView, ShowCluster
from events.telemetry.role import Telemetry
from events.types import NodeJoined, RangeAllocated
from nodeagent.conditions import Conditions
from nodeagent.config import AgentConfig
from nodeagent.membership.cache import Cache
from nodeagent.membership.log_follower import LogFollower
from nodeagent.membership.peers import PeerChange
from nodeagent.membership.view import View
from tests.service.onbus import CLUSTER, client, controller
from tests.service.poison import damaged, newer, sealed, write
from tests.service.rig import DEFINE, join
from tests.waiting import until

pytestmark = pytest.mark.bus


def usurping(head: object) -> list:  # type: ignore[type-arg]  # messages
    """A node joins properly and is given a range that another one holds: half of it can be followed."""
    joined = NodeJoined(
        node="evil", uid="evil", kind="cloud", underlay="192.168.66.6", announced="192.168.66.6",
        vtep_mac="66:66:66:66:66:66", site="",
    )  # fmt: skip
    taken = RangeAllocated(cidr="172.16.0.0/26", index=0, node="evil", uid="evil", cursor_after=1)
    return sealed(head, joined, taken)


class Agent:
    """A node's following half on the real bus; ``kernel`` is what the changes handed on amount to."""

    def __init__(self, bus: BusOptions, directory: Path) -> None:
        self.config = AgentConfig(cluster=CLUSTER, node="watcher", kind="cloud", bus=bus, state_dir=directory)
        directory.mkdir()
        self.cache = Cache(directory)
        fresh = View(CLUSTER, "watcher", "uid-watcher")
        self.follower = LogFollower(
            self.config,
            fresh,
            self.cache,
            Conditions(),
            Telemetry.off(),
            apply=self._apply,
            underlay=lambda: "",
        )
        self.kernel: dict[str, str] = {}

    async def _apply(self, _view: View, changes: object) -> None:
        for change in changes:  # type: ignore[attr-defined]  # changes
            assert isinstance(change, PeerChange)
            if change.after is not None:
                self.kernel[change.after.cidr] = change.after.node
            elif change.before is not None:
                del self.kernel[change.before.cidr]

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[LogFollower]:
        nats = await connect(self.config.bus, name="watcher")
        task = asyncio.create_task(self.follower._read_for_ever(nats))
        try:
            yield self.follower
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await nats.close()
            self.cache.close()


def owners(running: Controller) -> dict[str, str]:
    return {held.cidr: held.node for held in running.replica.state.owned.values()}


@pytest.mark.parametrize("make", [usurping, damaged])
async def test_what_the_log_parks_is_left_out_by_controllers_read_models_agents_and_replay(
    bus: BusOptions, tmp_path: Path, make: object
) -> None:
    agent = Agent(bus, tmp_path / "agent")
    async with (
        controller(bus, tmp_path / "a", "a", leads=True, on_poison="park") as a,
        controller(bus, tmp_path / "b", "b") as b,
        client(bus) as operator,
        agent.reading() as follower,
    ):
        await operator.send(DEFINE)
        for number in (1, 2):
            sound = (await operator.send(join(number))).sequence
        await until(lambda: follower.view.sequence == sound, within_s=30)
        poison = await write(bus, make)
        parked = set(range(sound + 1, sound + len(make(await a.log.head())) + 1))  # type: ignore[operator]
        # The leader parks it by itself; the next command is decided as if it had never been.
        await until(lambda: a.replica.state.parked == parked and a.replica.halted is None, within_s=60)
        joined = await operator.send(join(3), timeout_s=30)
        assert joined.result["cidr"] == "172.16.0.128/26"
        assert (joined.sequence, await parked_in(a.log)) == (max(parked) + 3, parked)
        view = await operator.ask(ShowCluster(), ClusterView)
        assert (view.nodes, view.sequence) == (3, joined.sequence)
        # The follower, which would not have parked it, and both read models.
        await until(lambda: b.replica.head.sequence == joined.sequence, within_s=60)
        for running in (a, b):
            assert state_digest(running.replica.state) == view.digest
            await running.projector.reached(joined.sequence, timeout_s=60)
            store = await running.projector.open()
            assert state_digest(await store.run(load_state)) == view.digest
            assert (await rebuild(running.log, running.options.data / "readmodel")).digest == view.digest
        # An agent that had followed it (or stood before it) has the rows of the others, and no other.
        await until(lambda: follower.view.sequence == joined.sequence, within_s=60)
        assert agent.kernel == owners(a)
        assert {peer.cidr: peer.node for peer in follower.view.peers} == owners(a)
        fresh = Agent(bus, tmp_path / "fresh")
        async with fresh.reading() as late:
            await until(lambda: late.view.sequence == joined.sequence, within_s=60)
            assert fresh.kernel == owners(a)
        assert await LiveReader(operator._nats, CLUSTER).parkings()
        remembered = Cache(tmp_path / "agent")
        assert remembered.load(CLUSTER, "watcher", "uid-watcher").sequence <= joined.sequence
        remembered.close()
        await replayed(bus, tmp_path, view.digest, poison.id)
    # A controller of its own read model, and one that folds everything anew.
    for trust in (False, True):
        async with controller(bus, tmp_path / "a", "a", verify_log=trust) as restarted:
            await restarted.replica.caught_up(timeout_s=30)
            assert restarted.replica.halted is None
            assert restarted.replica.state.parked == parked
            assert set(restarted.replica.state.nodes) == {"n1", "n2", "n3"}


async def replayed(bus: BusOptions, tmp_path: Path, digest: str, poison_id: str) -> None:
    """The replay tool, on the bus and on an archive."""
    program = str(Path(sys.executable).parent / "isthmus")
    loop = asyncio.get_running_loop()

    def replay(*words: str) -> subprocess.CompletedProcess[str]:
        command = [program, "replay", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)

    live = ("--bus", bus.servers[0], "--cluster", CLUSTER)
    archive = str(tmp_path / "log.isthmus")
    exported = await loop.run_in_executor(None, replay, "export", *live, archive)
    assert exported.returncode == 0, exported.stderr
    for source in (live, ("--archive", archive)):
        state = await loop.run_in_executor(None, replay, "state", *source, "--json")
        assert state.returncode == 0, state.stderr
        assert json.loads(state.stdout)["state"]["digest"] == digest
        verified = await loop.run_in_executor(None, replay, "verify", *source)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert "left out, as the log says" in verified.stdout
        shown = await loop.run_in_executor(None, replay, "log", *source, "--json", "-n", "0")
        assert poison_id in shown.stdout  # by its parking, and what is parked can still be looked at:
        assert '"sequence":6' in shown.stdout
        assert "event.parked.v1" in shown.stdout


async def test_without_the_policy_nothing_is_parked(bus: BusOptions, tmp_path: Path) -> None:
    async with controller(bus, tmp_path / "a", leads=True) as running, client(bus) as operator:
        await operator.send(DEFINE)
        sound = (await operator.send(join(1))).sequence
        await write(bus, damaged)
        await until(lambda: running.replica.halted is not None, within_s=30)
        await running.leadership.lease.renew()
        assert await parked_in(running.log) == frozenset()
        assert (await running.log.head()).sequence == sound + 1


async def test_a_newer_release_s_event_is_never_parked(bus: BusOptions, tmp_path: Path) -> None:

    async with (
        controller(bus, tmp_path / "a", leads=True, on_poison="park") as running,
        client(bus) as operator,
    ):
        await operator.send(DEFINE)
        await write(bus, newer)
        await until(lambda: running.replica.halted is not None, within_s=30)
        assert running.replica.halted is not None
        assert await running._parker.park(running.replica.halted) is None
        nats = await connect(bus, name="witness")
        assert (await JetStreamLog(nats, CLUSTER).head()).sequence == 2
        await nats.close()
