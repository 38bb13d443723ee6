"""What the past says of entries: of a source at a moment, of an entry's life, of another plan."""

from __future__ import annotations

from pathlib import Path

from events.chain import genesis
from events.protocol.commands import AddEntry, DefineCluster, RemoveEntry, ReserveClb
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.history import History, Point
from replay.queries.difference import compare, picture
from replay.queries.lives import life
from replay.queries.other_plan import OtherPlan
from replay.queries.states import States
from replay.queries.whatif import whatif
from replay.queries.who import who
from tests.replay.histories import CLUSTER, Author, ListLog

SOURCE, OTHER = "10.9.0.5", "10.9.1.5"


def at(sequence: int) -> Point:
    return Point(sequence, None, str(sequence))


def written() -> Author:
    author = Author(1)
    for command in (
        DefineCluster(container_cidr="10.42.0.0/20", pods_per_node=64, services=64),
        ReserveClb(reservation="gw", subnet="198.51.100.0/28", provider="gateway"),
        AddEntry(entry="api", sources=("10.9.0.0/28", "10.9.1.0/24")),  # event 3
        AddEntry(entry="probe", sources=("10.9.0.5/32",)),
        AddEntry(entry="api", sources=("10.9.0.0/28",)),
        RemoveEntry(entry="api"),
        RemoveEntry(entry="probe"),
    ):
        assert author.do(command)
    return author


async def test_who_was_listed_when_in_the_log_and_in_an_archive(tmp_path: Path) -> None:
    messages = written().messages
    path = tmp_path / "all"
    log = ListLog(messages)
    writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="test")
    writer.add(messages)
    writer.finish()
    for past in (await History.open(log), await archive_history(ArchiveLog(path))):
        for address, listed in (
            (SOURCE, ["", "api", "api, probe", "api, probe", "probe", ""]),
            (OTHER, ["", "api", "api", "", "", ""]),
        ):
            for sequence, names in enumerate(listed, 2):
                note = (await who(past, address, at(sequence))).note
                assert (f"listed then by entry {names}:" in note) == bool(names), (sequence, note)
                assert ("listed" in note) == bool(names)
        steps = await life(past, "entry", "api")
        assert [step.stamp.type for step in steps] == ["entry.added.v1"] * 2 + ["entry.removed.v1"]


async def test_the_past_has_the_entries_of_then_and_another_plan_keeps_them() -> None:
    states = States(await History.open(ListLog(written().messages)))
    two, five = [picture((await states.at(number))[0]) for number in (2, 5)]
    assert {(c.kind, c.name, c.what) for c in compare(two, five)} == {
        ("entry", "api", "appeared"),
        ("entry", "probe", "appeared"),
    }
    imagined = await whatif(states, at(0), at(5), OtherPlan(pods_per_node=32))
    assert imagined.imagined["entries"] == imagined.recorded["entries"] == 2
    assert not imagined.unserved
