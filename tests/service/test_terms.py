"""A leader that was paused, killed or cut off answers nothing that is not so: real processes, real signals."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client

from controlplane.controller.clocks import STALL_S
from controlplane.controller.replication.outcomes import BusOutcomes, Outcome, Succeeded
from events.bus.client import ControllerClient
from events.bus.connection import BusOptions, connect
from events.bus.server.process import EmbeddedServer
from events.codec import decode
from events.errors import IsthmusError, Refused, Unavailable
from events.ids import new_id
from events.jetstream.log import JetStreamLog
from events.jetstream.status_stream import publish
from events.protocol.commands import (
    COMMAND_ID,
    DRY_RUN,
    CommandReply,
    DefineCluster,
    JoinNode,
    LeaveNode,
    RemoveNode,
)
from events.protocol.queries import ClusterView, NodeView, ShowCluster, ShowNode
from events.status import AgentStatus
from tests.linearizability import Op, violation
from tests.service.onbus import CLUSTER, client
from tests.service.rig import join
from tests.waiting import until
from tests.wall_clocks import can_set, set_ahead

pytestmark = pytest.mark.bus
ANSWER_S = 60.0
TRY_S = 0.7
"""The bus goes on giving half of all requests to one that is paused: they are sent again soon."""

SMALL = DefineCluster(container_cidr="10.0.0.0/25", pods_per_node=16, services=32, quarantine_s=0.0)
"""Six ranges."""


class Process:
    """A controller in a process of its own, to be stopped and killed."""

    def __init__(self, child: subprocess.Popen[str], name: str) -> None:
        self.name = name
        self._child = child

    def set_ahead(self, seconds: int) -> None:
        assert set_ahead(self._child.pid, seconds)

    def stop(self) -> None:
        self._child.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._child.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._child.kill()
        self._child.wait()


@asynccontextmanager
async def process(bus: BusOptions, data: Path, name: str) -> AsyncIterator[Process]:
    command = [
        str(Path(sys.executable).parent / "isthmus"),
        *("controller", "--bus", bus.servers[0], "--cluster", CLUSTER, "--http", "off"),
        *("--data", str(data), "--name", name, "--json", "--log-level", "error"),
    ]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220  it returns at once
    try:
        assert child.stdout is not None
        said = await asyncio.get_running_loop().run_in_executor(None, child.stdout.readline)
        assert json.loads(said)["controller"] == name
        yield Process(child, name)
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


async def leader(nats: Client) -> str:
    """Who holds the lease now; empty when nobody does."""
    from nats.js.errors import Error as JetStreamError

    try:
        found = await nats.jetstream().get_last_msg(
            f"KV_ISTHMUS_{CLUSTER}_LEADER", f"$KV.ISTHMUS_{CLUSTER}_LEADER.leader"
        )
    except (JetStreamError, TimeoutError):
        return ""
    return str(json.loads(found.data or b"{}").get("holder", ""))


async def leads(nats: Client, name: str) -> None:
    async def holds() -> bool:
        return await leader(nats) == name

    await until(holds, f"{name} leads")


async def written(nats: Client) -> dict[str, list[str]]:
    """What each command wrote, as somebody reads it who reads the log from its beginning."""
    found: dict[str, list[str]] = {}
    async for batch in (await JetStreamLog.open(nats, CLUSTER)).read():
        for message in batch.messages:
            recorded = decode(message)
            found.setdefault(recorded.envelope.command_id, []).append(recorded.envelope.type)
    return found


async def once(nats: Client, command: Any, command_id: str, **headers: str) -> CommandReply:
    """One copy of a command, and whatever answers it."""
    message = await nats.request(
        f"isthmus.{CLUSTER}.command.{command.name}",
        msgspec.json.encode(command),
        timeout=ANSWER_S,
        headers={COMMAND_ID: command_id, **headers},
    )
    return msgspec.json.decode(message.data, type=CommandReply)


async def test_a_leader_of_before_answers_from_the_log_and_not_from_what_it_remembers(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with client(bus) as operator, process(bus, tmp_path / "c2", "c2") as second:
        nats = operator._nats
        await leads(nats, "c2")
        await operator.send(DefineCluster(container_cidr="10.0.0.0/16", pods_per_node=16, services=32))
        await operator.send(join(0), timeout_s=ANSWER_S, try_timeout_s=TRY_S)
        async with process(bus, tmp_path / "c1", "c1") as first:
            second.stop()
            await leads(nats, "c1")
            await asyncio.gather(
                *[operator.send(join(n), timeout_s=ANSWER_S, try_timeout_s=TRY_S) for n in range(1, 200)]
            )
            epoch = (await operator.send(join(300), timeout_s=ANSWER_S, try_timeout_s=TRY_S)).result["epoch"]
            await operator.send(LeaveNode(node="n0", uid="uid-0"), timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            first.kill()
            second.go_on()

            shown = asyncio.create_task(
                operator.ask(ShowNode(node="n77"), NodeView, timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            )
            gone = asyncio.create_task(
                operator.ask(ShowNode(node="n0"), NodeView, timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            )
            again = asyncio.create_task(operator.send(join(300), timeout_s=ANSWER_S, try_timeout_s=TRY_S))
            back = asyncio.create_task(operator.send(join(0), timeout_s=ANSWER_S, try_timeout_s=TRY_S))
            leaves = [
                asyncio.create_task(
                    operator.send(
                        LeaveNode(node=f"n{n}", uid=f"uid-{n}"), timeout_s=ANSWER_S, try_timeout_s=TRY_S
                    )
                )
                for n in range(1, 7)
            ]
            for reply in await asyncio.gather(*leaves):
                assert reply.events[0].type == "node.left.v1"
            assert (await again).result["epoch"] == epoch
            assert (await shown).member
            with pytest.raises(Refused) as unknown:
                await gone
            assert unknown.value.code == "node_unknown"
            events = await written(nats)
            rejoined = await back
            assert rejoined.result["epoch"] > epoch
            assert any("range.allocated.v1" in types for types in events.values())
            with pytest.raises(Refused, match="no live node"):
                await operator.send(LeaveNode(node="nobody", uid="x"), timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            dry = await once(nats, join(300), new_id(), **{DRY_RUN: "1"})
            assert dry.result["epoch"] == epoch


async def test_what_was_refused_is_not_done_by_a_leader_that_was_paused(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with client(bus) as operator, process(bus, tmp_path / "c1", "c1") as first:
        nats = operator._nats
        await leads(nats, "c1")
        await operator.send(SMALL, timeout_s=ANSWER_S, try_timeout_s=TRY_S)
        for number in range(6):
            await operator.send(join(number), timeout_s=ANSWER_S, try_timeout_s=TRY_S)
        with pytest.raises(Refused):
            await operator.send(
                join(9), timeout_s=ANSWER_S, try_timeout_s=TRY_S
            )  # recorded now: the next time writes nothing
        async with process(bus, tmp_path / "c2", "c2") as second:
            first.stop()
            command_id = new_id()
            headers, body = {COMMAND_ID: command_id}, msgspec.json.encode(join(9))
            for _ in range(5):  # they wait in the socket of the one that is paused
                await nats.publish(f"isthmus.{CLUSTER}.command.join", body, headers=headers)
            await nats.flush()
            await leads(nats, "c2")
            with pytest.raises(Refused) as refused:
                await operator.send(join(9), command_id=command_id, timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            assert refused.value.code == "no_free_range"
            await operator.send(
                RemoveNode(node="n0", reason="make room"), timeout_s=ANSWER_S, try_timeout_s=TRY_S
            )
            await operator.send(
                RemoveNode(node="n1", reason="make room"), timeout_s=ANSWER_S, try_timeout_s=TRY_S
            )
            for number in range(2, 6):
                await operator.send(
                    LeaveNode(node=f"n{number}", uid=f"uid-{number}"), timeout_s=ANSWER_S, try_timeout_s=TRY_S
                )

            async def room() -> bool:
                return "range.freed.v1" in str(await written(nats))

            await until(room, "a range comes free")
            first.go_on()
            for _ in range(3):  # one or the other gets it
                assert (await once(nats, join(9), command_id)).code in {"no_free_range", "no_controller"}
            second.kill()
            await leads(nats, "c1")
            with pytest.raises(Refused) as again:
                await operator.send(join(9), command_id=command_id, timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            assert again.value.code == "no_free_range"
            assert command_id not in await written(nats)
            assert (await operator.send(join(9), timeout_s=ANSWER_S, try_timeout_s=TRY_S)).result[
                "node"
            ] == "n9"


async def test_an_outcome_survives_a_restart_of_the_only_controller(bus: BusOptions, tmp_path: Path) -> None:
    async with client(bus) as operator:
        async with process(bus, tmp_path / "a", "a") as first:
            await operator.send(SMALL, timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            with pytest.raises(Refused):
                await operator.send(
                    LeaveNode(node="n1", uid="uid-1"), command_id="L", timeout_s=ANSWER_S, try_timeout_s=TRY_S
                )
            await operator.send(join(2), timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            held = await operator.send(join(2), command_id="J", timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            first.kill()
        async with process(bus, tmp_path / "b", "b"):
            await operator.send(join(1), timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            with pytest.raises(Refused) as refused:
                await operator.send(
                    LeaveNode(node="n1", uid="uid-1"), command_id="L", timeout_s=ANSWER_S, try_timeout_s=TRY_S
                )
            assert refused.value.code == "node_unknown"
            await operator.send(LeaveNode(node="n2", uid="uid-2"), timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            again = await operator.send(join(2), command_id="J", timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            assert again.duplicate
            assert again.result["epoch"] == held.result["epoch"]
            with pytest.raises(Refused):
                await operator.ask(ShowNode(node="n2"), NodeView, timeout_s=ANSWER_S, try_timeout_s=TRY_S)


async def test_a_history_with_pauses_and_kills_is_linearizable(bus: BusOptions, tmp_path: Path) -> None:
    """Joins, leaves and questions about three nodes while the leader is stopped, continued and killed."""
    loop = asyncio.get_running_loop()
    history: list[Op] = []

    async def live(lane: int, operator: ControllerClient, rounds: int) -> None:
        for turn in range(rounds):
            number = (lane + turn) % 3
            node, uid = f"n{number}", f"uid-{number}"
            command: JoinNode | LeaveNode = join(number) if turn % 2 else LeaveNode(node=node, uid=uid)
            op = Op(f"lane-{lane}", "join" if turn % 2 else "leave", node, uid, loop.time())
            try:
                reply = await operator.send(command, timeout_s=ANSWER_S, try_timeout_s=0.7)
                op = op._replace(end=loop.time(), epoch=reply.result.get("epoch", 0))
            except Unavailable:
                pass
            except IsthmusError as error:
                op = op._replace(end=loop.time(), told=error.code)
            history.append(op)
            look = Op(f"lane-{lane}", "show", node, "", loop.time())
            try:
                view = await operator.ask(ShowNode(node=node), NodeView, timeout_s=ANSWER_S, try_timeout_s=0.7)
                history.append(look._replace(end=loop.time(), uid=view.uid, epoch=view.epoch))
            except Unavailable:
                continue
            except IsthmusError as error:
                history.append(look._replace(end=loop.time(), told=error.code))

    async with (
        process(bus, tmp_path / "a", "a") as a,
        process(bus, tmp_path / "b", "b") as b,
        process(bus, tmp_path / "c", "c"),
        client(bus) as operator,
    ):
        nats = operator._nats
        await operator.send(DefineCluster(container_cidr="10.0.0.0/16", pods_per_node=16, services=32))
        lanes = [asyncio.create_task(live(lane, operator, 40)) for lane in range(4)]
        by_name = {"a": a, "b": b}
        stopped: list[Process] = []

        async def goes_on() -> None:
            more = len(history) + 20
            await until(lambda: len(history) > more or all(lane.done() for lane in lanes))

        for _ in range(3):
            await goes_on()
            victim = by_name.get(await leader(nats))
            if victim is not None and victim not in stopped:
                victim.stop()
                stopped.append(victim)
                await goes_on()
                victim.go_on()
        a.kill()
        await asyncio.gather(*lanes)
        assert len([op for op in history if op.end < 1e18]) > 200
        assert violation(history) == ""


async def test_a_leader_that_was_succeeded_records_nothing_and_learns_so(bus: BusOptions) -> None:
    nats = await connect(bus, name="test")
    try:
        old, new = BusOutcomes(nats, CLUSTER, "old"), BusOutcomes(nats, CLUSTER, "new")
        refusal = Refused("node_unknown", "no live node is named 'x'", node="x")
        assert await old.begin() == []
        await old.record([Outcome("one", refusal), Outcome("two", CommandReply(sequence=7, result={"a": 1}))])
        known = await new.begin()
        assert (known[0].command_id, str(known[0].told)) == ("one", str(refusal))
        assert isinstance(known[1].told, CommandReply)
        assert known[1].told.result == {"a": 1}
        with pytest.raises(Succeeded):
            await old.record([Outcome("three", refusal)])
        await new.record([Outcome("four", refusal)])
        assert [outcome.command_id for outcome in await old.begin()] == ["one", "two", "four"]
        many = [Outcome(f"many-{n}", refusal) for n in range(3000)]
        await old.record(many)
        assert [o.command_id for o in await new.begin()][-3000:] == [o.command_id for o in many]
    finally:
        await nats.close()


@pytest.mark.skipif(not can_set(), reason="sets a process's clock: root on x86-64")
async def test_an_outcome_is_not_forgotten_because_a_servers_clock_jumped(
    server: EmbeddedServer, bus: BusOptions
) -> None:
    nats = await connect(bus, name="test")
    try:
        old = BusOutcomes(nats, CLUSTER, "old")
        assert set_ahead(server.pid, -30 * 86400)
        await old.begin()
        await old.record([Outcome("refused", Refused("no_free_range", "all ranges are taken"))])
        server.signal(signal.SIGKILL)  # it comes back with a true clock: a month has passed by it
        new = BusOutcomes(nats, CLUSTER, "new")

        async def begun() -> bool:
            try:
                known[:] = await new.begin()
            except Unavailable:
                return False
            return True

        known: list[Outcome] = []
        await until(begun, "the server is back")
        assert [(outcome.command_id, str(outcome.told)) for outcome in known] == [
            ("refused", str(Refused("no_free_range", "all ranges are taken")))
        ]
    finally:
        await nats.close()


@pytest.mark.skipif(not can_set(), reason="sets a process's clock: root on x86-64")
async def test_a_leader_whose_clock_was_an_hour_ahead_leaves_no_harm_behind(
    bus: BusOptions, tmp_path: Path
) -> None:
    """Nobody who reports is fenced or unreachable, under it or its successor; a range rests as it should.

    Nor does a silence count that it did not watch, because it was stopped meanwhile.
    """
    rest_s, silent_s, removed_s = 2.0, 2.0, 0.5
    async with client(bus) as operator:
        nats, talking = operator._nats, {"n0": "uid-0", "n1": "uid-1"}

        applied = 0

        async def speak() -> None:
            while True:
                for node, uid in talking.items():
                    now = datetime.now(UTC)
                    await publish(nats, CLUSTER, AgentStatus(node=node, uid=uid, applied=applied, sent_at=now))
                await asyncio.sleep(0.1)

        async def well(what: Callable[[ClusterView], bool]) -> bool:
            nonlocal applied
            view = await operator.ask(ShowCluster(), ClusterView, timeout_s=ANSWER_S, try_timeout_s=TRY_S)
            applied = view.sequence
            assert view.fenced_uids == 0
            assert view.nodes == 2
            assert view.unreachable <= 2 - len(talking)
            return what(view)

        async with process(bus, tmp_path / "c1", "c1") as first:
            await operator.send(
                msgspec.structs.replace(
                    SMALL, quarantine_s=rest_s, unreachable_after_s=silent_s, remove_after_s=removed_s
                ),
                timeout_s=ANSWER_S,
            )
            for number in range(3):
                await operator.send(join(number), timeout_s=ANSWER_S)
            speaking = asyncio.create_task(speak())
            first.set_ahead(3600)
            began_s = time.monotonic()
            await operator.send(RemoveNode(node="n2"), timeout_s=ANSWER_S)
            await until(lambda: well(lambda view: view.pool.quarantined == 1), "the range rests")
            await until(lambda: well(lambda _: time.monotonic() > began_s + silent_s + removed_s))
            first.stop()
            speaking.cancel()
            await until(lambda: time.monotonic() > began_s + silent_s + removed_s + STALL_S + 0.5)
            first.go_on()
            await until(lambda: well(lambda _: True), "it answers again, and nobody has reported meanwhile")
            speaking = asyncio.create_task(speak())
            began_s = time.monotonic()
            await until(lambda: well(lambda _: time.monotonic() > began_s + silent_s + removed_s))
            first.kill()
            killed_s = time.monotonic()
        async with process(bus, tmp_path / "c2", "c2"):
            await leads(nats, "c2")
            await until(lambda: well(lambda view: view.pool.quarantined == 0), "its rest is over")
            assert time.monotonic() > killed_s + rest_s
            del talking["n1"]
            await until(lambda: well(lambda view: view.unreachable == 1), "its silence is noticed")
            noticed_s = time.monotonic()
            await until(lambda: well(lambda _: time.monotonic() > noticed_s + 2 * removed_s))
        speaking.cancel()
        await asyncio.gather(speaking, return_exceptions=True)
