"""Incident capsules: the state before, the events, the reports; and the same incident in real kernels."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from controlplane.cluster.digest import state_digest
from events.chain import genesis
from events.errors import Refused, Usage
from events.status import AgentStatus
from replay.archive.format import Note
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.capsule import Capsule, make_capsule
from replay.history import History, Point
from replay.queries.states import States
from replay.queries.who import who
from tests.replay.churned import churn_history
from tests.replay.churned import write as write_churn
from tests.replay.histories import CLUSTER, ListLog, history

MESSAGES = history(11, 160)


def at(sequence: int) -> Point:
    return Point(sequence, None, str(sequence))


async def make(path: Path, begin: int, end: int) -> None:
    past = await History.open(ListLog(MESSAGES))
    await make_capsule(States(past), at(begin), at(end), path)


async def test_a_capsule_carries_the_state_before_and_every_command_whole(tmp_path: Path) -> None:
    past = await History.open(ListLog(MESSAGES))
    for begin, end in ((0, 5), (33, 34), (50, 120)):
        path = tmp_path / f"{begin}-{end}"
        await make(path, begin, end)
        capsule = Capsule(path)
        first, last = capsule.about.begin.sequence, capsule.about.end.sequence
        assert first <= begin < end <= last
        assert state_digest(await capsule.begin()) == state_digest((await States(past).at(first))[0])
        seen = []
        async for step in capsule.steps():
            commands = {r.envelope.command_id for r in step.events}
            assert len(commands) == 1
            assert len(step.events) == step.events[0].envelope.tx_count
            seen += [r.sequence for r in step.events]
            expected, _ = await States(past).at(seen[-1])
            assert state_digest(step.state) == state_digest(expected)
        assert seen == list(range(first + 1, last + 1))
        capsule.close()


async def test_a_capsule_knows_who_had_an_address_before_it_began(tmp_path: Path) -> None:
    past = await History.open(ListLog(MESSAGES))
    await make(tmp_path / "cut", 50, 120)
    log = ArchiveLog(tmp_path / "cut")
    cut = await archive_history(log)
    known = 0
    for sequence in (cut.start + 1, 80, cut.end):
        for offset in range(0, 256, 8):
            address = f"10.8.0.{offset}"
            told, expected = await who(cut, address, at(sequence)), await who(past, address, at(sequence))
            assert (told.kind, told.range, told.range_state) == (
                expected.kind,
                expected.range,
                expected.range_state,
            )
            assert (told.holder is None) == (expected.holder is None)
            if told.holder is None or expected.holder is None:
                continue
            known += 1
            held, whole = told.holder, expected.holder
            assert (held.node, held.uid, held.epoch) == (whole.node, whole.uid, whole.epoch)
            assert whole.since is not None
            assert (held.since is None) == (whole.since.sequence <= cut.start)
    assert known > 10
    log.close()


async def test_an_empty_stretch_and_a_plain_archive_are_refused(tmp_path: Path) -> None:
    with pytest.raises(Usage):
        await make(tmp_path / "none", 40, 40)
    assert not (tmp_path / "none").exists()
    writer = ArchiveWriter.create(tmp_path / "plain", CLUSTER, genesis(CLUSTER), source="test")
    writer.add(MESSAGES[:5])
    writer.finish()
    with pytest.raises(Refused) as refused:
        Capsule(tmp_path / "plain")
    assert refused.value.code == "archive_foreign"


async def test_agents_reports_travel_in_it(tmp_path: Path) -> None:
    from datetime import UTC, datetime

    report = AgentStatus(node="n", uid="u", applied=4, sent_at=datetime(2026, 3, 2, tzinfo=UTC))
    writer = ArchiveWriter.create(tmp_path / "c", CLUSTER, genesis(CLUSTER), source="test")
    writer.note([Note(note="status", content=msgspec.Raw(msgspec.json.encode(report)))])
    writer.add(MESSAGES[:5])
    writer.finish()
    log = ArchiveLog(tmp_path / "c")
    assert await (await archive_history(log)).reports() == [report]
    log.close()


@pytest.mark.netns
@pytest.mark.slow
def test_the_lab_lives_a_capsule_again_in_real_kernels(tmp_path: Path) -> None:
    """Leaves and joins of the recorded churn; the kernels are read by ip and bridge after each step."""
    messages = churn_history()
    start = next(m.sequence for m in messages[6000:] if m.subject.endswith(".left")) - 1
    write_churn(tmp_path / "churn", messages)
    archive = ArchiveLog(tmp_path / "churn")

    async def pack() -> None:
        states = States(await archive_history(archive))
        await make_capsule(states, at(start), at(start + 130), tmp_path / "incident")

    asyncio.run(pack())
    archive.close()
    executable = Path(sys.executable).with_name("isthmus")
    done = subprocess.run(
        [executable, "lab", "--capsule", tmp_path / "incident", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"]
    told = [check["detail"] for check in document["checks"]]
    assert any("- route" in text and "- FDB row" in text and "- neighbour" in text for text in told), "a leave"
    assert any("+ route" in text and "+ FDB row" in text and "+ neighbour" in text for text in told), "a join"
