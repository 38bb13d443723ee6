"""One controller on a real bus: requests, answers, errors, restarts."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from controlplane.cluster.digest import state_digest
from controlplane.controller.commands.replies import SERVICE_ERROR, SERVICE_ERROR_CODE
from controlplane.controller.replication.restore import last_sequence_seen
from events import subjects
from events.bus.connection import BusOptions, connect
from events.bus.server.process import EmbeddedServer
from events.errors import Refused, Unavailable
from events.jetstream.stream import ensure_stream, event_stream_settings
from events.protocol.commands import PAYLOAD_LIMIT_BYTES, LeaveNode
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join
from tests.waiting import patient, until

pytestmark = pytest.mark.bus


async def ask(nats: Client, subject: str, body: bytes, **headers: str) -> tuple[dict[str, Any], Msg]:
    message = await nats.request(subject, body, timeout=30, headers=headers or None)
    return json.loads(message.data), message


async def test_a_join_is_answered_with_the_stored_range_and_repeating_its_id_has_no_second_effect(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with controller(bus, tmp_path / "a") as running, client(bus) as operator:
        await operator.send(DEFINE)
        first = await operator.send(join(1), command_id="one")
        again = await operator.send(join(1), command_id="one")
        assert first.result["cidr"] == "172.16.0.0/26"
        assert again.duplicate
        assert again.result == first.result
        assert [e.sequence for e in again.events] == [e.sequence for e in first.events]
        assert (await running.log.head()).sequence == first.sequence == 3


@pytest.mark.parametrize(
    ("tail", "body", "headers", "code"),
    [
        ("command.join", b"{not json", {}, "bad_request"),
        ("command.join", b"\xff\xfe", {}, "bad_request"),
        ("command.join", b'{"node": 7}', {}, "bad_request"),
        ("command.join", b"[" * 100_000, {}, "bad_request"),
        ("command.define-cluster", b'{"container_cidr": "10.0.0.0/8", "cidr": "x"}', {}, "bad_request"),
        ("command.define-cluster", b'{"container_cidr": "10.0.0.0/33"}', {}, "cidr_invalid"),
        ("command.join", b"x" * (PAYLOAD_LIMIT_BYTES + 1), {}, "payload_too_large"),
        ("command.make-coffee", b"{}", {}, "unknown_command"),
        ("command.a.b.c", b"{}", {}, "unknown_command"),
        ("command.join", b"{}", {"isthmus-schema": "99"}, "unsupported_schema"),
        ("command.join", b"{}", {"isthmus-command-id": "two words"}, "bad_request"),
        ("command.node.n1.remove-node", b'{"node": "n1"}', {}, "forbidden"),
        (
            "command.node.n1.leave",
            b'{"node": "n2", "uid": "u"}',
            {},
            "forbidden",
        ),
        ("query.nodes", b"{", {}, "bad_request"),
        ("query.everything", b"{}", {}, "unknown_command"),
        ("query.node", b'{"node": "n9"}', {}, "node_unknown"),
    ],
)
async def test_bad_input_gets_a_stable_code_and_a_service_error_and_writes_nothing(
    bus: BusOptions, tmp_path: Path, tail: str, body: bytes, headers: dict[str, str], code: str
) -> None:
    async with controller(bus, tmp_path / "a") as running, client(bus) as operator:
        await until(lambda: running.leadership.serving)
        reply, message = await ask(operator._nats, f"isthmus.{CLUSTER}.{tail}", body, **headers)
        assert reply["code"] == code, reply
        assert reply["message"]
        assert message.headers is not None
        assert message.headers[SERVICE_ERROR].startswith(f"{code}: ")
        assert message.headers[SERVICE_ERROR_CODE] in {"400", "409"}
        assert (await running.log.head()).sequence == 0


async def test_an_answer_is_never_published_as_an_event(bus: BusOptions, tmp_path: Path) -> None:
    async with controller(bus, tmp_path / "a") as running, client(bus) as operator:
        await operator.send(DEFINE)
        forged = subjects.event(CLUSTER, "node", "n1", "joined")
        await operator._nats.publish(f"isthmus.{CLUSTER}.command.define-cluster", b"{}", reply=forged)
        await operator._nats.publish(f"isthmus.{CLUSTER}.query.cluster", b"", reply=forged)
        await operator.send(join(1))
        assert (await running.log.head()).sequence == 3


async def test_queries_see_what_was_acknowledged_before(bus: BusOptions, tmp_path: Path) -> None:
    async with controller(bus, tmp_path / "a"), client(bus) as operator:
        await operator.send(DEFINE)
        for number in range(5):
            reply = await operator.send(join(number))
            page, _ = await ask(operator._nats, f"isthmus.{CLUSTER}.query.nodes", b"")
            assert page["sequence"] == reply.sequence
            assert page["total"] == number + 1


async def test_services_are_discoverable_as_nats_services(bus: BusOptions, tmp_path: Path) -> None:
    async with controller(bus, tmp_path / "a") as running, client(bus) as operator:
        await operator.send(DEFINE)
        for verb, kind in (("PING", "ping"), ("INFO", "info"), ("STATS", "stats")):
            body, _ = await ask(operator._nats, f"$SRV.{verb}.isthmus-controller", b"")
            assert body["type"] == f"io.nats.micro.v1.{kind}_response"
            assert body["id"] == running.name
        stats, _ = await ask(operator._nats, "$SRV.STATS", b"")
        assert {e["name"]: e["num_requests"] for e in stats["endpoints"]}["command"] == 1


async def test_after_a_restart_the_state_is_the_same_and_old_command_ids_are_known(
    bus: BusOptions, tmp_path: Path
) -> None:
    async with client(bus) as operator:
        async with controller(bus, tmp_path / "a") as running:
            await operator.send(DEFINE)
            first = await operator.send(join(1), command_id="the-first")
            for number in range(2, 40):
                await operator.send(join(number))
            await operator.send(LeaveNode(node="n3", uid="uid-3"))
            await running.projector.reached(running.replica.head.sequence)
            digest = state_digest(running.replica.state)
        for verify in (False, True):
            async with controller(bus, tmp_path / "a", verify_log=verify) as running:
                assert state_digest(running.replica.state) == digest
                again = await operator.send(join(1), command_id="the-first")
                assert again.duplicate
                assert again.result == first.result
                assert [e.sequence for e in again.events] == [2, 3]


async def test_every_acknowledged_join_survives_sigkill_of_the_bus_under_load(
    bus: BusOptions, server: EmbeddedServer, tmp_path: Path
) -> None:
    async with controller(bus, tmp_path / "a") as running, client(bus) as operator:
        await operator.send(DEFINE)
        acknowledged: dict[str, str] = {}

        async def joins(lane: int) -> None:
            for step in range(25):
                number = lane * 25 + step
                reply = await operator.send(join(number), timeout_s=30)
                acknowledged[f"n{number}"] = reply.result["cidr"]

        lanes = [asyncio.create_task(joins(lane)) for lane in range(8)]
        for _ in range(2):
            seen = len(acknowledged)
            await until(lambda seen=seen: len(acknowledged) > seen + 20, within_s=30)
            server.signal(signal.SIGKILL)
            await server.wait_ready()
        await asyncio.gather(*lanes)
        assert len(acknowledged) == 200
        assert len(set(acknowledged.values())) == 200
        state = running.replica.state
        assert {name: owned.cidr for name, owned in state.owned.items()} == acknowledged
        assert (await running.log.head()).sequence == 401


async def test_two_processes_cannot_share_a_data_directory(bus: BusOptions, tmp_path: Path) -> None:
    async with controller(bus, tmp_path / "a"):
        with pytest.raises(Refused) as refusal:
            async with controller(bus, tmp_path / "a", name="b"):
                pass
        assert refusal.value.code == "data_in_use"


async def test_a_full_queue_answers_overloaded_and_the_repeated_command_succeeds(
    bus: BusOptions, tmp_path: Path
) -> None:
    from controlplane.controller.commands.batch import CommitLimits

    limits = CommitLimits(queue=4, group_messages=4)
    async with controller(bus, tmp_path / "a", limits=limits) as running, client(bus) as operator:
        await operator.send(DEFINE)
        codes: list[str] = []

        async def one(number: int) -> None:
            # One try only: the client itself would repeat it until it is taken.
            subject, body = f"isthmus.{CLUSTER}.command.join", msgspec.json.encode(join(number))
            message = await operator._nats.request(subject, body, timeout=patient(5))
            codes.append(json.loads(message.data)["code"])
            if codes[-1]:
                await operator.send(join(number), timeout_s=60, try_timeout_s=30)

        await asyncio.gather(*[one(number) for number in range(60)])
        assert "overloaded" in codes
        assert len(running.replica.state.nodes) == 60


async def test_a_log_that_is_remembered_is_never_made_anew_when_servers_say_they_have_none(
    bus: BusOptions, tmp_path: Path
) -> None:
    """Servers that all start again may say so for a moment; an empty stream would take the log's place."""
    data = tmp_path / "a"
    assert await last_sequence_seen(data / "readmodel", CLUSTER) == 0
    async with controller(bus, data) as running, client(bus) as operator:
        await operator.send(DEFINE)
        sequence = (await operator.send(join(1))).sequence
        await until(lambda: running.projector.sequence >= sequence)
    assert await last_sequence_seen(data / "readmodel", CLUSTER) == sequence

    nats = await connect(bus, name="test")
    try:
        await nats.jetstream().delete_stream(subjects.stream(CLUSTER))
        settings = event_stream_settings(CLUSTER)
        with pytest.raises(Unavailable, match=rf"up to {sequence}.*isthmus replay import") as lost:
            await ensure_stream(nats, settings, remembered=sequence, timeout_s=0.5)
        assert lost.value.code == "log_missing"
        with pytest.raises(Unavailable):  # one that is not remembered: they have to keep saying so
            await ensure_stream(nats, settings, certain_s=5.0, timeout_s=0.5)
        with pytest.raises(NotFoundError):
            await nats.jetstream().stream_info(subjects.stream(CLUSTER))
        made = await ensure_stream(nats, settings, certain_s=0.3, timeout_s=30.0)
        assert made["state"]["messages"] == 0
    finally:
        await nats.close()
