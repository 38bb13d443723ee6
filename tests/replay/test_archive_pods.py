"""Pods in archives: carried, counted, named, continued, and said to be missing where they are."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from events.bus.client import ControllerClient
from events.bus.connection import BusOptions
from events.bus.server.config import ServerOptions
from events.bus.server.process import EmbeddedServer
from events.protocol.pods import KeptFact, ListPods, PodFact, PodName, PodPage, ReportPods
from replay.archive.format import Note
from replay.archive.pods import problems
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.cli import replay
from tests.service.onbus import CLUSTER, client, controller
from tests.service.rig import DEFINE, join

pytestmark = pytest.mark.bus
NOW = datetime.now(UTC)


def fact(address: str, epoch: int, name: str, since: datetime, until: datetime | None = None) -> PodFact:
    return PodFact(
        address=address, container=f"c-{name}", interface="eth0", epoch=epoch, since=since, until=until,
        pod=PodName(namespace="shop", name=name, uid="p-1"),
    )  # fmt: skip


async def isthmus(*words: str) -> tuple[int, Any, str]:
    """``isthmus replay`` with JSON: the exit code, the document, and what was said beside it."""
    done = await asyncio.to_thread(CliRunner().invoke, replay, [*words, "--json"], catch_exceptions=False)
    return done.exit_code, json.loads(done.stdout), done.stderr


async def test_an_archive_carries_pods_and_names_them_after_the_cluster_is_gone(tmp_path: Path) -> None:
    (tmp_path / "jetstream").mkdir()
    file = str(tmp_path / "prod.isthmus")
    without = str(tmp_path / "without.isthmus")
    async with (
        EmbeddedServer(ServerOptions(store_dir=tmp_path / "jetstream")) as server,
        controller(bus := BusOptions(servers=(server.url,)), tmp_path / "a", leads=True),
        client(bus) as operator,
    ):
        await operator.send(DEFINE)
        held = (await operator.send(join(0))).result
        address, epoch = str(held["cidr"]).rpartition(".")[0] + ".5", int(held["epoch"])
        node = ControllerClient(operator._nats, CLUSTER, actor="node/n0")

        async def tell(*facts: PodFact) -> None:
            reply = await node.send(ReportPods(node="n0", uid="uid-0", facts=facts))
            assert reply.result["stored"] == len(facts), reply.result

        live = ("--bus", server.url, "--cluster", CLUSTER)
        assert (await isthmus("export", file, *live))[1]["pods"] == 0  # nobody has told anything yet
        one = fact(address, epoch, "one", NOW - timedelta(hours=2))
        await tell(one)
        assert (await isthmus("export", file, "--continue", *live))[1]["pods"] == 1
        await tell(
            msgspec.structs.replace(one, until=NOW - timedelta(hours=1)),
            fact(address, epoch, "two", NOW - timedelta(minutes=30)),
        )
        assert (await isthmus("export", file, "--continue", *live))[1]["pods"] == 2
        assert (await isthmus("export", file, "--continue", *live))[1]["pods"] == 0
        assert (await isthmus("export", without, "--no-pods", *live))[1]["pods"] == 0
        page = await operator.ask(ListPods(after=1), PodPage)
        assert [kept.fact.pod.name for kept in page.facts] == ["one", "two"]

    copy = str(tmp_path / "copy.isthmus")
    assert (await isthmus("export", copy, "--archive", file))[1]["pods"] == 3
    for path in (file, copy):
        code, report, _ = await isthmus("verify", "--archive", path)
        (check,) = (each for each in report["checks"] if each["name"] == "pods")
        assert (code, check["looked_at"], check["errors"]) == (0, 3, 0)
        _, said, _ = await isthmus("who", "--archive", path, "--ip", address)
        assert (said["pod"]["state"], said["pod"]["namespace"], said["pod"]["name"]) == ("known", "shop", "two")
    later = (NOW + timedelta(days=1)).isoformat()
    _, said, _ = await isthmus("who", "--archive", file, "--ip", address, "--at", later)
    assert (said["pod"]["state"], "ends at" in said["pod"]["note"]) == ("not at hand", True)
    _, said, _ = await isthmus("who", "--archive", without, "--ip", address)
    assert (said["pod"]["state"], "no facts of pods" in said["pod"]["note"]) == ("not at hand", True)
    code, report, _ = await isthmus("verify", "--archive", without)
    assert not [each for each in report["checks"] if each["name"] == "pods"]


async def test_a_fact_that_is_none_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.isthmus"
    from events.chain import genesis

    writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="test")
    good = KeptFact(sequence=1, node="n0", uid="u", fact=fact("10.0.0.5", 3, "one", NOW))
    late = msgspec.structs.replace(good, fact=fact("10.0.0.5", 3, "two", NOW, NOW - timedelta(hours=1)))
    texts = [msgspec.json.encode(good), msgspec.json.encode(late), b'{"node":7}']
    writer.note([Note(note="pod", content=msgspec.Raw(text)) for text in texts])
    writer.finish()
    archive = ArchiveLog(path)
    count, wrong = problems(archive)
    archive.close()
    assert count == 3
    assert ["cannot be true" in wrong[0], "unreadable" in wrong[1]] == [True, True]
