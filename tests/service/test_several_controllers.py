"""Several controllers of one cluster: one leads, the others take over; two leaders cannot both write."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from nats.errors import ConnectionClosedError
from nats.errors import TimeoutError as NatsTimeoutError

from controlplane.cluster.digest import state_digest
from controlplane.cluster.state import ClusterState
from controlplane.controller.commands.batch import CommitLimits
from controlplane.controller.controller import Controller, ControllerOptions
from controlplane.controller.leadership.leader import Leadership
from controlplane.controller.leadership.lease import BusLease
from controlplane.controller.leadership.term import Term
from events.bus.connection import BusOptions, connect
from events.bus.server.process import EmbeddedServer
from events.chain import genesis, verify_link
from events.codec import decode
from events.jetstream.log import JetStreamLog
from tests.service.onbus import CLUSTER, client, controller, run_controller
from tests.service.rig import DEFINE, Rig, join, running
from tests.simulation.in_memory import MemoryLease
from tests.waiting import patient, until
from tests.wall_clocks import can_set, set_ahead

pytestmark = pytest.mark.bus


async def folded(bus: BusOptions) -> tuple[ClusterState, Counter[str]]:
    """The log read from its beginning by somebody else: chain verified, folded, events per command."""
    from controlplane.cluster.evolve import evolve

    nats = await connect(bus, name="witness")
    try:
        log = await JetStreamLog.open(nats, CLUSTER)
        state, head, commands = ClusterState(CLUSTER), genesis(CLUSTER), Counter[str]()
        async for batch in log.read():
            for message in batch.messages:
                head = verify_link(head, message.sequence, message.subject, message.headers, message.body)
                recorded = decode(message)
                evolve(state, recorded.sequence, recorded.event)
                commands[recorded.envelope.command_id] += 1
        return state, commands
    finally:
        await nats.close()


async def test_one_leads_and_the_others_fold_along(bus: BusOptions, tmp_path: Path) -> None:
    async with (
        controller(bus, tmp_path / "a", "a", leads=True) as a,
        controller(bus, tmp_path / "b", "b") as b,
        client(bus) as operator,
    ):
        await operator.send(DEFINE)
        for number in range(20):
            last = await operator.send(join(number))
        await b.replica.reached(last.sequence, timeout_s=30)
        assert [a.leadership.leading, b.leadership.leading] == [True, False]
        assert state_digest(a.replica.state) == state_digest(b.replica.state)
        await b.projector.reached(last.sequence)


async def test_a_leader_whose_subscriptions_are_not_taken_at_once_serves_all_the_same(
    bus: BusOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ControllerOptions(cluster=CLUSTER, data=tmp_path, bus=bus, name="a")
    running_one = await Controller.start(options)
    flush, failures = running_one.client.flush, [NatsTimeoutError(), ConnectionClosedError()]

    async def fails_at_first(timeout: int = 10) -> None:  # noqa: ASYNC109  nats-py's own signature
        if failures:
            raise failures.pop()
        await flush(timeout)

    monkeypatch.setattr(running_one.client, "flush", fails_at_first)
    async with run_controller(running_one, leads=True), client(bus) as operator:
        assert not failures
        await operator.send(DEFINE, timeout_s=20)


async def test_a_defect_in_the_beginning_of_a_term_gives_up_the_lease() -> None:
    class Broken:
        async def prepare(self) -> None: ...
        async def end(self) -> None: ...
        async def begin(self, term: Term) -> None:
            raise ZeroDivisionError

    slot = MemoryLease.Slot()
    lease = MemoryLease(slot, "a", ttl_s=0.05)
    async with asyncio.timeout(patient(20)):
        with pytest.raises(ZeroDivisionError):
            await Leadership(lease, Broken(), name="a", ready=lambda: True).run()
    assert slot.holder == ""


async def test_a_planned_handover_fails_no_command_even_without_retries(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with (
        controller(bus, tmp_path / "a", "a", leads=True) as a,
        controller(bus, tmp_path / "b", "b") as b,
        client(bus) as operator,
    ):
        await operator.send(DEFINE)
        answered: list[int] = []
        stop = asyncio.Event()

        async def load(lane: int) -> None:
            number = lane * 250
            while not stop.is_set() and number < (lane + 1) * 250:
                # One try only: a command that finds nobody, or gets no answer, fails the test.
                subject = f"isthmus.{CLUSTER}.command.join"
                body = msgspec.json.encode(join(number))
                message = await operator._nats.request(subject, body, timeout=30)
                assert json.loads(message.data)["code"] == ""
                answered.append(number)
                number += 1

        lanes = [asyncio.create_task(load(lane)) for lane in range(4)]
        await until(lambda: len(answered) > 40)
        await a._transfer.leave()
        await until(lambda: b.leadership.serving)
        seen = len(answered)
        await until(lambda: len(answered) > seen + 40)
        stop.set()
        await asyncio.gather(*lanes)
        await b.replica.caught_up(timeout_s=30)
        assert len(b.replica.state.nodes) == len(answered)


@contextmanager
def process(bus: BusOptions, data: Path, name: str) -> Iterator[subprocess.Popen[str]]:
    """A controller in a process of its own."""
    command = [
        str(Path(sys.executable).parent / "isthmus"),
        *("controller", "--bus", bus.servers[0], "--cluster", CLUSTER),
        *("--data", str(data), "--name", name, "--json", "--log-level", "error"),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["controller"] == name
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


async def test_after_sigkill_of_the_leader_another_answers_within_five_seconds(
    bus: BusOptions, tmp_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    async with client(bus) as operator:
        starting = await loop.run_in_executor(None, lambda: process(bus, tmp_path / "a", "a"))
        with starting as leader:
            await operator.send(DEFINE, timeout_s=20)
            async with controller(bus, tmp_path / "b", "b") as follower:
                for number in range(10):
                    await operator.send(join(number), command_id=f"join-{number}")
                assert not follower.leadership.leading
                leader.kill()
                reply = await operator.send(join(10), timeout_s=patient(5), try_timeout_s=1)
                assert reply.result["index"] == 10
                assert follower.leadership.leading
                # A command that the dead leader acknowledged has no second effect here.
                again = await operator.send(join(3), command_id="join-3")
                assert again.duplicate
                assert again.result["index"] == 3


async def test_sigterm_ends_a_leading_process_cleanly(bus: BusOptions, tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with client(bus) as operator:
        starting = await loop.run_in_executor(None, lambda: process(bus, tmp_path / "a", "a"))
        with starting as leader:
            await operator.send(DEFINE, timeout_s=20)
            leader.terminate()
            assert await loop.run_in_executor(None, lambda: leader.wait(timeout=patient(5))) == 0


async def test_two_that_both_lead_by_force_write_one_gapless_log_without_a_double_effect(
    bus: BusOptions, tmp_path: Path
) -> None:
    """Neither asks for a lease: both decide and append at once, on the same commands and on their own.

    They wait long for each answer of the log: one that gives up repeats what may be stored, and then tells the
    command's own sender that it was known, too.
    """
    limits = CommitLimits(append_timeout_s=60.0, commit_deadline_s=120.0, catch_up_s=60.0)
    nats = [await connect(bus, name=name) for name in ("a", "b")]
    try:
        logs = [await JetStreamLog.open(one, CLUSTER, create=True) for one in nats]
        async with running(Rig(logs[0], limits=limits)) as a, running(Rig(logs[1], limits=limits)) as b:
            await a.send(DEFINE)
            both = [
                asyncio.create_task(rig.send(join(number), command_id=f"both-{number}"))
                for number in range(60)
                for rig in (a, b)
            ]
            own = [
                asyncio.create_task(rig.send(join(1000 + base + number), command_id=f"own-{base + number}"))
                for base, rig in ((0, a), (100, b))
                for number in range(60)
            ]
            replies = await asyncio.gather(*both)
            await asyncio.gather(*own)
            await a.replica.caught_up(timeout_s=30)
            await b.replica.caught_up(timeout_s=30)
            state, commands = await folded(bus)
            assert state_digest(a.replica.state) == state_digest(b.replica.state) == state_digest(state)
            assert len(state.nodes) == 180
            assert set(commands.values()) == {1, 2}  # the definition; each join once
            for first, second in zip(replies[::2], replies[1::2], strict=True):
                assert first.result["epoch"] == second.result["epoch"]
                assert first.duplicate != second.duplicate
    finally:
        for one in nats:
            await one.close()


async def test_the_lease_is_one_holders_expires_by_itself_and_is_free_after_release(bus: BusOptions) -> None:
    nats = await connect(bus, name="test")
    try:
        a = BusLease(nats, CLUSTER, "a", ttl_s=1.0)
        b = BusLease(nats, CLUSTER, "b", ttl_s=1.0)
        assert await a.acquire()
        assert not await b.acquire()
        assert await a.renew()
        await a.release()
        assert await b.acquire()
        assert not await a.acquire()
        await until(a.acquire, "the lease expires by itself")
        assert not await b.renew()
        assert await a.renew()
    finally:
        await nats.close()


@pytest.mark.skipif(not can_set(), reason="sets a process's clock: root on x86-64")
@pytest.mark.parametrize("ahead_s", [3600, -3600])
async def test_a_bus_whose_clock_was_wrong_for_a_moment_locks_nobody_out(
    server: EmbeddedServer, bus: BusOptions, ahead_s: int
) -> None:
    nats = await connect(bus, name="test")
    try:
        a = BusLease(nats, CLUSTER, "a", ttl_s=1.0)
        b = BusLease(nats, CLUSTER, "b", ttl_s=1.0)
        assert await a.acquire()
        assert set_ahead(server.pid, ahead_s)
        if ahead_s > 0:  # the last renewal lies in the future when the clock is right again
            await until(a.renew, "the lease is renewed")
            assert set_ahead(server.pid, 0)
        await until(b.acquire, "the lease of one who is gone is taken")
        assert not await a.renew()
        until_s = time.monotonic() + 3.0
        while time.monotonic() < until_s:  # one who renews it keeps it, however long others look at it
            assert await b.renew()
            assert not await a.acquire()
    finally:
        await nats.close()
