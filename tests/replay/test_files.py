"""Files as machines hand them over: on full disks, half-made, FIFOs, and what is no archive at all."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import msgspec
import pytest

from events.chain import genesis
from events.errors import Refused, VerificationFailed
from events.status import AgentStatus
from replay.archive.directory import ArchiveFile
from replay.archive.format import Note
from replay.archive.reader import ArchiveLog
from replay.archive.writer import ArchiveWriter
from replay.archive_index import archive_history
from replay.capsule import Capsule
from replay.history import History
from replay.output_files import whole_file
from replay.transfer import export
from replay.verification.outcome import Wanted
from replay.verification.verify import verify
from tests.replay.histories import CLUSTER, ListLog, history

EXECUTABLE = Path(sys.executable).with_name("isthmus")
MESSAGES = history(5, steps=80)


def write(path: Path, messages=MESSAGES, cluster: str = CLUSTER) -> Path:
    writer = ArchiveWriter.create(path, cluster, genesis(cluster), source="test")
    writer.add(messages)
    writer.finish()
    return path


def isthmus(*arguments: object, bytes_max: int | None = None, **more) -> subprocess.CompletedProcess:
    """Run a replay command; no file that it writes may become longer than ``bytes_max``, as on a full disk."""
    limit = (
        partial(resource.setrlimit, resource.RLIMIT_FSIZE, (bytes_max, bytes_max))
        if bytes_max is not None
        else None
    )
    # Python writes a module's byte code short, too, and notices nothing: the next command would not start.
    environment = {**os.environ, **more.pop("env", {}), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [EXECUTABLE, "replay", *map(str, arguments)],
        preexec_fn=limit,
        env=environment,
        capture_output="stdout" not in more,
        timeout=60,
        check=False,
        **more,
    )


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("source") / "log.isthmus")


# --- full disks and half-made files -----------------------------------------------------------------


@pytest.mark.parametrize("bytes_max", [0, 200, 3000])
def test_a_backup_that_met_a_full_disk_is_in_the_way_of_no_later_one(source, tmp_path, bytes_max) -> None:
    target = tmp_path / "backup.isthmus"
    failed = isthmus("export", target, "--archive", source, "--continue", bytes_max=bytes_max)
    assert failed.returncode == 1, failed.stderr
    assert b"cannot write" in failed.stderr
    assert b"internal" not in failed.stderr
    assert not target.exists() or ArchiveFile(target).events
    done = isthmus("export", target, "--archive", source, "--continue")
    assert done.returncode == 0, done.stderr
    assert ArchiveLog(target).last == ArchiveLog(source).last


def begun(source: Path, length: int) -> bytes:
    return source.read_bytes()[:length]


async def test_whatever_a_dying_export_leaves_is_finished_or_replaced(tmp_path) -> None:
    whole = write(tmp_path / "whole").read_bytes()
    with ArchiveFile(tmp_path / "whole") as archive:
        joints = [segment.data + segment.length for segment in archive.segments]
    past = ListLog(MESSAGES)
    for cut in sorted(
        {0, 1, 3, 8, 60, *joints, *(joint - 1 for joint in joints), *(joint + 9 for joint in joints)}
    ):
        for zeros in (0, 5000):  # a machine that lost its power leaves a length without content
            target = tmp_path / "half"
            target.write_bytes(whole[:cut] + bytes(zeros if cut > 4 else 0))
            await export(await History.open(past), target, resume=True)
            archive = ArchiveLog(target)
            report = await verify(await archive_history(archive), Wanted())
            archive.close()
            assert report.sound, (cut, zeros, report.findings[:3])
            assert report.last == len(MESSAGES)


async def test_a_fresh_export_replaces_what_holds_no_event_and_nothing_else(tmp_path) -> None:
    past = await History.open(ListLog(MESSAGES))
    target = tmp_path / "log"
    for left in (b"", write(tmp_path / "other").read_bytes()[:30]):
        target.write_bytes(left)
        assert (await export(past, target)).mode == "new"
    for kept in (b"precious", target.read_bytes(), b"{}"):
        target.write_bytes(kept)
        with pytest.raises(Refused) as refused:
            await export(past, target)
        assert refused.value.code == "archive_exists"
        assert target.read_bytes() == kept


@pytest.mark.parametrize("verb", ["capsule", "sample", "plot", "verify"])
def test_what_a_full_disk_cut_short_is_not_left_behind(source, tmp_path, verb) -> None:
    target = tmp_path / "out.svg"
    arguments = {
        "capsule": ("capsule", target, "--from", 3, "--to", 40, "--archive", source),
        "sample": ("sample", target, "--events", 3000),
        "plot": ("plot", "pool", "-o", target, "--archive", source),
        "verify": ("verify", "--report", target, "--archive", source),
    }[verb]
    failed = isthmus(*arguments, bytes_max=500, env={**os.environ, "MPLCONFIGDIR": str(tmp_path / "mpl")})
    assert failed.returncode == 1, failed.stderr
    assert b"cannot write" in failed.stderr, failed.stderr
    assert [path.name for path in tmp_path.iterdir() if path.name != "mpl"] == []


def test_a_file_appears_whole_or_not_at_all(tmp_path) -> None:
    target = tmp_path / "report.html"
    target.write_text("old")

    def half() -> None:
        with whole_file(target) as beside:
            beside.write_text("new, but half")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        half()
    assert target.read_text() == "old"
    with whole_file(target) as beside:
        beside.write_text("new")
    assert target.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(Refused, match="cannot write"), whole_file(tmp_path / "no" / "such") as beside:
        beside.write_text("x")
    with whole_file("/dev/null") as device:
        device.write_text("x")
    assert not Path("/dev/null").is_file()


# --- what is no archive -----------------------------------------------------------------------------


def _foreign(folder: Path) -> dict[str, tuple[Path, str]]:
    def content(name: str, data: bytes) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    os.mkfifo(folder / "fifo")
    (folder / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
    (folder / "loop").symlink_to(folder / "loop")
    whole = write(folder / "whole").read_bytes()
    return {
        "fifo": (folder / "fifo", "is a FIFO"),
        "directory": (folder / "directory", "is a directory"),
        "socket": (folder / "socket", "is a socket"),
        "device": (Path("/dev/zero"), "is a device"),
        "empty": (content("empty", b""), "it is empty"),
        "bom": (content("bom", b"\xef\xbb\xbf" + whole), "byte order mark"),
        "utf-16": (content("utf16", '{"a": 1}'.encode("utf-16")), "UTF-16"),
        "json": (content("json", b'{"type": "header"}'), "JSON"),
        "gzip": (content("gzip", b"\x1f\x8b" + bytes(20)), "gzip"),
        "cut": (content("cut", whole[:40]), "cut inside its header"),
        "text": (content("text", b"hello"), "does not begin with an archive header"),
        "missing": (folder / "missing", "No such file"),
        "loop": (folder / "loop", "symbolic links"),
    }


def test_what_is_no_archive_is_refused_by_what_it_is_and_at_once(tmp_path) -> None:
    for path, what in _foreign(tmp_path).values():
        with pytest.raises(Refused) as refused:
            ArchiveLog(path)
        assert refused.value.code == "archive_foreign"
        assert what in refused.value.message
        assert str(path) in refused.value.message
    with pytest.raises(Refused):
        ArchiveLog("a\0b")


def test_a_command_on_a_fifo_does_not_wait_for_a_writer(tmp_path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for verb in (("stats",), ("verify",), ("import", "--bus", "nats://127.0.0.1:1")):
        done = isthmus(*verb, "--archive", tmp_path / "fifo")
        assert done.returncode == 1
        assert b"is a FIFO" in done.stderr
    done = isthmus(
        "export", tmp_path / "new", "--since", tmp_path / "fifo", "--archive", write(tmp_path / "log")
    )
    assert b"is a FIFO" in done.stderr


def test_a_capsule_whose_notes_are_of_another_shape_is_damaged_by_name(tmp_path) -> None:
    for kind in ("capsule", "status", "state"):
        path = tmp_path / kind
        writer = ArchiveWriter.create(path, CLUSTER, genesis(CLUSTER), source="test")
        writer.note([Note(note=kind, content=msgspec.Raw(b'{"made": 7}'))])
        writer.add(MESSAGES)
        writer.finish()
        archive = ArchiveLog(path)
        ask = {
            "capsule": lambda path=path: Capsule(path),
            "status": lambda archive=archive: archive.decoded_notes("status", AgentStatus),
            "state": archive.base_state,
        }[kind]
        with pytest.raises(VerificationFailed, match=f"note of kind '{kind}'") as damage:
            ask()
        assert damage.value.code == "archive_damaged"
        archive.close()
