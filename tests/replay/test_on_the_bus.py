"""The tool on a live stream, with a real server and controller: answers, proof, disaster recovery."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from controlplane.controller.controller import Controller
from controlplane.controller.publishing.checkpointer import (
    KEY_NAME,
    CheckpointList,
    ListCheckpoints,
    SigningSchedule,
)
from controlplane.controller.publishing.checkpoints import (
    FILE_NAME,
    SigningKey,
    check_signature,
    read_checkpoints,
)
from events.bus.connection import BusOptions, connect
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.errors import IsthmusError, Refused
from events.jetstream.log import JetStreamLog
from events.protocol.commands import ChangeUnderlay, DefineCluster, JoinNode, LeaveNode, ReserveClb
from events.status import AgentStatus
from events.subjects import events_wildcard
from events.subjects import status as status_subject
from events.subjects import stream as event_stream
from replay.archive.reader import ArchiveLog
from replay.history import History
from replay.queries.lives import life
from replay.queries.who import who
from replay.stream_index import stream_history
from replay.transfer import as_published, export, import_archive
from replay.verification.outcome import Wanted
from replay.verification.verify import verify
from tests.contract.samples import everything
from tests.replay import brute
from tests.replay.histories import CLUSTER as PAST
from tests.replay.histories import Author, ListLog, history
from tests.service.onbus import CLUSTER, client, controller
from tests.waiting import until

pytestmark = pytest.mark.bus

EXECUTABLE = Path(sys.executable).with_name("isthmus")


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path / "jetstream")) as running:
        yield running


@pytest.fixture
def bus(server: EmbeddedServer) -> BusOptions:
    return BusOptions(servers=(server.url,))


@pytest.fixture
async def site(bus: BusOptions, tmp_path: Path) -> AsyncIterator[Controller]:
    """A controller with a small past: joins, a move, leaves, a reservation."""
    async with controller(bus, tmp_path / "data", leads=True) as running, client(bus) as ops:
        await ops.send(
            DefineCluster(container_cidr="10.8.0.0/24", pods_per_node=16, services=64, quarantine_s=0.0)
        )
        for number in range(6):
            await ops.send(
                JoinNode(
                    node=f"idc.rack-{number}" if number % 2 else f"gz-{number}",
                    uid=f"uid-{number}",
                    kind="external" if number % 2 else "cloud",
                    underlay=f"192.168.1.{number + 1}",
                )
            )
        await ops.send(ChangeUnderlay(node="gz-2", uid="uid-2", underlay="192.168.2.2"))
        await ops.send(LeaveNode(node="idc.rack-1", uid="uid-1"))
        await ops.send(ReserveClb(reservation="api", subnet="192.168.50.0/28"))
        yield running


async def isthmus(*arguments: str, code: int = 0) -> Any:
    """Run the command with --json and return what it printed."""
    process = await asyncio.create_subprocess_exec(
        EXECUTABLE, *arguments, "--json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == code, (out, err)
    return json.loads(out)


async def test_the_live_stream_gives_the_same_answers_as_its_raw_events(site: Controller) -> None:
    log = site.log
    messages = await everything(log)
    events = brute.parse(messages)
    past = await stream_history(log)
    assert past.end == len(messages)
    for sequence in (1, past.end):
        stored = await past.message(sequence)
        assert stored == messages[sequence - 1]
    with pytest.raises(Refused):
        await past.message(past.end + 1)
    for node in ("gz-0", "gz-2", "idc.rack-1"):
        assert [s.stamp.sequence for s in await life(past, "node", node)] == brute.speaks_of_node(events, node)
    for offset in (3, 17, 40):
        address, expected = f"10.8.0.{offset}", brute.who_pod(events, f"10.8.0.{offset}", past.end)
        answer = await who(past, address, await past.resolve(_now()))
        held = answer.holder or answer.last
        assert held is not None and expected is not None  # noqa: PT018  narrows both for what follows
        assert (held.node, held.epoch, answer.range_state) == (
            expected["node"],
            expected["epoch"],
            expected["phase"],
        )
    answer = await who(past, "192.168.2.2", await past.resolve(_now()))
    assert answer.holder is not None
    assert answer.holder.node == "gz-2"
    middle = messages[len(messages) // 2]
    point = await past.resolve(_moment(middle.recorded_ns))
    assert point.sequence == sum(m.recorded_ns // 1000 <= middle.recorded_ns // 1000 for m in messages)


def _now() -> Any:
    from replay.when import When

    return When("now")


def _moment(recorded_ns: int) -> Any:
    from replay.when import When, from_ns

    return When("then", moment=from_ns(recorded_ns))


async def test_agents_reports_show_who_has_applied_a_command(site: Controller, bus: BusOptions) -> None:
    past = await stream_history(site.log)
    nats = site.client
    for node, uid, applied in (
        ("gz-0", "uid-0", past.end),
        ("idc.rack-3", "uid-3", 3),
        ("idc.rack-1", "uid-1", 3),
    ):
        report = AgentStatus(node=node, uid=uid, applied=applied, sent_at=datetime.now(UTC))
        await nats.request(status_subject(CLUSTER, node), msgspec.json.encode(report), timeout=30)
    found = await isthmus(
        "replay", "explain", "node", "idc.rack-1", "--bus", bus.servers[0], "--cluster", CLUSTER
    )
    (explanation,) = found
    assert explanation["actor"].startswith("tester")
    assert [e["stamp"]["type"] for e in explanation["events"]] == ["node.left.v1", "range.draining.v1"]
    applied = {agent["node"]: (agent["done"], agent["applied"]) for agent in explanation["applied"]}
    assert applied["gz-0"] == (True, past.end)
    assert applied["idc.rack-3"] == (False, 3)
    assert "idc.rack-1" not in applied, "it has left: it is not behind"


async def test_the_controller_signs_and_verify_holds_the_log_and_itself_to_it(
    site: Controller, bus: BusOptions, tmp_path: Path
) -> None:
    checkpoint = await site.checkpointer.sign()
    key = SigningKey.load(tmp_path / "data" / KEY_NAME).public_hex
    check_signature(checkpoint, CLUSTER, key)
    assert read_checkpoints(tmp_path / "data" / FILE_NAME) == [checkpoint]
    async with client(bus) as ops:
        told = await ops.ask(ListCheckpoints(), CheckpointList)
        assert told == CheckpointList(key=key, checkpoints=(checkpoint,))
        await ops.send(LeaveNode(node="gz-0", uid="uid-0"))
    report = await isthmus(
        "replay", "verify", "--bus", bus.servers[0], "--cluster", CLUSTER, "--public-key", key,
        "--report", str(tmp_path / "audit.html"), "--read-model", str(tmp_path / "data" / "readmodel"),
    )  # fmt: skip
    assert report["errors"] == 0
    checks = {check["name"]: check for check in report["checks"]}
    assert checks["states"]["looked_at"] == 3, "controller, checkpoint and read model"
    assert checks["checkpoints"]["looked_at"] >= 1
    assert "SOUND" in (tmp_path / "audit.html").read_text()


async def test_the_schedule_signs_by_itself(bus: BusOptions, tmp_path: Path) -> None:
    schedule = SigningSchedule(events=3, least_s=0.02)
    async with (
        controller(bus, tmp_path / "data", leads=True, checkpoints=schedule) as running,
        client(bus) as ops,
        asyncio.timeout(60),
    ):
        await ops.send(DefineCluster(container_cidr="10.8.0.0/24", pods_per_node=16, services=64))
        for number in range(4):
            await ops.send(
                JoinNode(
                    node=f"n-{number}", uid=f"u-{number}", kind="cloud", underlay=f"192.168.1.{number + 1}"
                )
            )
        await until(lambda: running.checkpointer.last and running.checkpointer.last.sequence >= 7)
    again = await Controller.start(running.options)
    assert again.checkpointer.last is not None
    assert again.checkpointer.last.sequence >= 7
    again.stopping()
    await again.run()


async def test_a_forged_event_on_the_live_stream_is_found_and_located(bus: BusOptions) -> None:
    nats = await connect(bus, name="test")
    log = await JetStreamLog.open(nats, PAST, create=True)
    messages = history(3, 40)
    for message in messages:
        await log.append([as_published(message)], expected=message.sequence - 1)
    await nats.jetstream().publish(f"isthmus.{PAST}.events.node.evil.left", b'{"node":"evil","uid":"x"}')
    last = len(messages) + 1
    arguments = ("replay", "verify", "--bus", bus.servers[0], "--cluster", PAST)
    report = await isthmus(*arguments, code=1)
    assert ("chain_broken", last) in {(f["code"], f["sequence"]) for f in report["findings"]}
    assert {f["sequence"] for f in report["findings"] if f.get("level") != "warning"} == {last}
    # What is appended behind it, properly, does not hide it.
    await nats.jetstream().publish(f"isthmus.{PAST}.events.node.evil.left", b'{"node":"evil","uid":"x"}')
    report = await isthmus(*arguments, code=1)
    assert {last, last + 1} <= {f["sequence"] for f in report["findings"]}
    await nats.close()


async def test_a_nodes_history_on_the_live_stream_has_its_paths(bus: BusOptions) -> None:
    author = Author(3)
    author.do(DefineCluster(container_cidr="10.8.0.0/24", pods_per_node=16, services=64))
    while len(author.state.nodes) < 3:
        author.step()
    author.paths()
    nats = await connect(bus, name="test")
    log = await JetStreamLog.open(nats, PAST, create=True)
    for message in author.messages:
        await log.append([as_published(message)], expected=message.sequence - 1)
    past, plain = await stream_history(log), await History.open(ListLog(author.messages))
    for name in author.state.nodes:
        found, wanted = [[r.sequence async for r in each.about("node", name)] for each in (past, plain)]
        assert found == wanted
    await nats.close()


async def test_every_hole_in_the_live_stream_is_told_and_what_lies_behind_is_read(bus: BusOptions) -> None:
    """A stream whose owner could delete: ours deny it, a copy that somebody made need not."""
    messages = history(7, 60)
    nats = await connect(bus, name="test")
    try:
        stream = nats.jetstream()
        await stream.add_stream(name=event_stream(PAST), subjects=[events_wildcard(PAST)], allow_direct=True)
        for message in messages:
            await stream.publish(message.subject, message.body, headers=dict(message.headers))
        for sequence in (20, 21, 22, 40):
            await stream.delete_msg(event_stream(PAST), sequence)
        report = await verify(await stream_history(JetStreamLog(nats, PAST)), Wanted())
    finally:
        await nats.close()
    assert not next(check for check in report.checks if check.name == "invariants").done
    process = await asyncio.create_subprocess_exec(
        EXECUTABLE, "replay", "log", "--bus", bus.servers[0], "--cluster", PAST, "-n", "0", "--json",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    shown = [json.loads(line)["stamp"]["sequence"] for line in out.splitlines()]
    assert (process.returncode, len(shown), shown[-1]) == (0, len(messages) - 4, len(messages))
    assert b"events 20 to 22 are missing" in err
    gaps = [(f.sequence, f.message) for f in report.findings if f.check == "gap"]
    assert gaps == [(20, "events 20 to 22 are missing"), (40, "event 40 is missing")]
    assert report.events == len(messages) - 4
    assert report.last == len(messages)


async def test_an_exported_log_is_restored_into_an_empty_stream_byte_for_byte(
    site: Controller, bus: BusOptions, tmp_path: Path
) -> None:
    path = tmp_path / "backup.isthmus"
    first = await isthmus("replay", "export", str(path), "--bus", bus.servers[0], "--cluster", CLUSTER)
    assert (first["mode"], first["broken"]) == ("new", 0)
    async with client(bus) as ops:
        await ops.send(LeaveNode(node="gz-0", uid="uid-0"))
    second = await isthmus(
        "replay", "export", str(path), "--continue", "--bus", bus.servers[0], "--cluster", CLUSTER
    )
    assert (second["mode"], second["written"] > 0) == ("continued", True)
    original = (await everything(site.log))[: second["last"]]
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path / "other")) as other:
        arguments = ("replay", "import", "--archive", str(path), "--cluster", CLUSTER, "--bus", other.url)
        done = await isthmus(*arguments)
        assert (done["written"], done["verified"]) == (second["last"], second["last"])
        assert done["head"] == second["head"]
        elsewhere = BusOptions(servers=(other.url,))
        nats = await connect(elsewhere, name="test")
        restored = await everything(await JetStreamLog.open(nats, CLUSTER))
        await nats.close()
        assert [(m.sequence, m.subject, m.body) for m in restored] == [
            (m.sequence, m.subject, m.body) for m in original
        ]
        again = await isthmus(*arguments)
        assert (again["written"], again["found"]) == (0, second["last"])
        # A controller goes on from there as if nothing had happened.
        async with (
            controller(elsewhere, tmp_path / "data-2", leads=True) as restarted,
            client(elsewhere) as ops,
        ):
            assert restarted.replica.state.nodes.keys() == {"gz-2", "gz-4", "idc.rack-3", "idc.rack-5"}
            reply = await ops.send(JoinNode(node="new", uid="new", kind="cloud", underlay="192.168.1.99"))
            assert reply.sequence == second["last"] + 2 or reply.sequence > second["last"] + 2


async def test_an_import_interrupted_at_any_batch_goes_on(
    site: Controller, bus: BusOptions, tmp_path: Path
) -> None:
    path = tmp_path / "backup.isthmus"
    await export(await stream_history(site.log), path)
    archive = ArchiveLog(path)
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path / "other")) as other:
        nats = await connect(BusOptions(servers=(other.url,)), name="test")
        log = await JetStreamLog.open(nats, CLUSTER, create=True)
        await log.append([as_published(m) for m in (await everything(archive))[:3]], expected=0)
        done = await import_archive(archive, log)
        assert (done.found, done.last) == (3, archive.last)
        report = await verify(await stream_history(log), Wanted())
        assert report.sound
        await nats.close()
    archive.close()


async def test_an_import_into_a_stream_with_another_history_is_refused(
    site: Controller, tmp_path: Path
) -> None:
    path = tmp_path / "backup.isthmus"
    await export(await stream_history(site.log), path)
    archive = ArchiveLog(path)
    async with EmbeddedServer(ServerOptions(store_dir=tmp_path / "other")) as other:
        elsewhere = BusOptions(servers=(other.url,))
        async with controller(elsewhere, tmp_path / "data-2", leads=True) as foreign, client(elsewhere) as ops:
            await ops.send(DefineCluster(container_cidr="10.9.0.0/24", pods_per_node=16, services=64))
            with pytest.raises(Refused) as refused:
                await import_archive(archive, foreign.log)
            assert refused.value.code == "stream_not_empty"
            assert (await foreign.log.head()).sequence == 1
    archive.close()


async def test_a_truncated_stream_is_noticed_by_the_next_export(site: Controller, tmp_path: Path) -> None:
    path = tmp_path / "backup.isthmus"
    await export(await stream_history(site.log), path)
    shorter = await stream_history(site.log)
    shorter.head = shorter.head._replace(sequence=shorter.end - 2)
    with pytest.raises(IsthmusError) as refused:
        await export(shorter, path, resume=True)
    assert refused.value.code == "log_truncated"
