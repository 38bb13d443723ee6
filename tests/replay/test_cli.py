"""The commands as they are typed: output for people and programs, exit codes, Ctrl-C."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import signal
import subprocess
import time
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

import replay.cli
from events.chain import genesis
from events.cli.options import default_actor
from events.codes.extras import our_version
from replay.archive.directory import ArchiveFile
from replay.archive.writer import ArchiveWriter
from tests import prepared
from tests.replay import brute
from tests.replay.commands import EVENTS, EXECUTABLE, MESSAGES, NODE
from tests.replay.histories import CLUSTER
from tests.waiting import wait_for

MODULES = (
    *(f"replay.cli.{module.name}" for module in iter_modules(replay.cli.__path__)),
    "replay.plots",
    "matplotlib.backends.backend_agg",
    "matplotlib.backends.backend_svg",
)


def run(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = prepared.typed(
        ["replay", *arguments],
        modules=MODULES,
        env={**os.environ, "COLUMNS": "220"},
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done


def answer(*arguments: str, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", code=code).stdout)


SOURCE_COMMANDS: list[list[str]] = [
    ["log", "--node", NODE, "-n", "0"],
    ["state", "--at", "40", "--nodes", "--ranges"],
    ["who", "--ip", "10.8.0.20", "--at", "60"],
    ["history", "node", NODE],
    ["history", "cluster"],
    ["blame", "node", NODE],
    ["explain", "node", NODE, "--all"],
    ["diff", "20", "60"],
    ["bisect", "sequence < 5000"],
    ["bisect", "invariants"],
    ["stats"],
    ["whatif", "--cidr", "10.8.0.0/25", "--services", "32"],
    ["verify"],
]


@pytest.mark.parametrize("command", SOURCE_COMMANDS, ids=" ".join)
def test_each_command_speaks_to_people_and_to_programs(command: list[str], archive: str) -> None:
    text = run(*command, "--archive", archive, "--tz", "+08:00").stdout
    assert text.strip()
    printed = run(*command, "--archive", archive, "--json").stdout
    for line in printed.splitlines() if command[0] == "log" else [printed]:
        json.loads(line)
    if command[0] not in ("whatif", "bisect"):
        assert "+08:00" in text, "every time names its zone"


def test_the_answers_on_the_command_line_are_the_answers(archive: str) -> None:
    expected = brute.who_pod(EVENTS, "10.8.0.20", 60)
    found = answer("who", "--ip", "10.8.0.20", "--at", "60", "--archive", archive)
    assert expected is not None
    held = found["holder"] or found["last"]
    assert (held["node"], held["epoch"], found["range_state"]) == (
        expected["node"],
        expected["epoch"],
        expected["phase"],
    )
    state = answer("state", "--at", "40", "--nodes", "--archive", archive)
    assert {node["node"] for node in state["nodes"]} == set(brute.world(EVENTS, 40)["nodes"])
    # Of an archive's members nothing is known: neither that their kernels had it nor that not.
    (explained,) = answer("explain", "sequence", "40", "--archive", archive)
    last = explained["events"][-1]["stamp"]["sequence"]
    assert set(explained["unheard"]) == set(brute.world(EVENTS, last)["nodes"])
    words = run("explain", "sequence", "40", "--archive", archive).stdout
    assert "they are on the live bus, or in a capsule" in words
    assert f"not known {len(explained['unheard'])}" in words
    log = run("log", "--type", "range.freed", "-n", "0", "--archive", archive, "--json").stdout
    assert [json.loads(line)["stamp"]["sequence"] for line in log.splitlines()] == [
        e["seq"] for e in EVENTS if e["kind"] == "range.freed"
    ]


def test_exit_codes_tell_what_happened(archive: str, tmp_path: Path) -> None:
    assert answer("bisect", "nodes < 2", "--archive", archive, code=1)["failed"]["type"] == "node.joined.v1"
    assert answer("who", "--ip", "10.8.0.1", "--at", "99999", "--archive", archive, code=1)["error"][
        "code"
    ] == ("not_in_history")
    run("who", "--ip", "not-an-ip", "--archive", archive, code=2)
    run("state", "--at", "the day before", "--archive", archive, code=2)
    run("state", "--tz", "Mars/Olympus", "--archive", archive, code=2)
    run("bisect", "__import__('os')", "--archive", archive, code=2)
    run("stats", "--bus", "nats://127.0.0.1:9", code=3)
    (tmp_path / "text").write_text("no archive")
    run("stats", "--archive", str(tmp_path / "text"), code=1)
    whole = bytearray(Path(archive).read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "damaged").write_bytes(whole)
    report = answer("verify", "--archive", str(tmp_path / "damaged"), code=1)
    assert report["errors"] > 0


def test_the_auditors_report_says_of_what_by_whom_and_with_which_version(archive: str, tmp_path: Path) -> None:
    page = tmp_path / "audit.html"
    run("verify", "--archive", archive, "--report", str(page), "--tz", "UTC")
    text = page.read_text()
    assert hashlib.sha256(Path(archive).read_bytes()).hexdigest() in text
    assert f"SHA-256 of {archive}" in text
    assert f"{default_actor()}</td>" in text
    assert our_version() in text


def test_a_capsule_and_an_increment_work_like_any_archive(archive: str, tmp_path: Path) -> None:
    capsule = str(tmp_path / "incident")
    about = answer("capsule", capsule, "--from", "50", "--to", "90", "--archive", archive, "--reason", "test")
    begin, end = about["begin"]["sequence"], about["end"]["sequence"]
    assert begin <= 50 < 90 <= end
    whole = answer("state", "--at", "70", "--archive", archive)["state"]
    assert answer("state", "--at", "70", "--archive", capsule)["state"]["digest"] == whole["digest"]
    assert answer("verify", "--archive", capsule)["errors"] == 0
    assert answer("state", "--at", "10", "--archive", capsule, code=1)["error"]["code"] == "not_in_history"
    base, more = str(tmp_path / "base"), str(tmp_path / "more")
    writer = ArchiveWriter.create(base, CLUSTER, genesis(CLUSTER), source="test")
    writer.add(MESSAGES[:100])
    writer.finish()
    done = answer("export", more, "--since", base, "--archive", archive)
    assert (done["mode"], done["first"]) == ("increment", 101)
    both = answer("state", "--archive", more, "--archive", base)["state"]["digest"]
    assert both == answer("state", "--archive", archive)["state"]["digest"]
    assert answer("state", "--archive", more, code=1)["error"]["code"] == "not_in_history"
    assert answer("export", base, "--continue", "--archive", archive)["written"] == len(MESSAGES) - 100
    assert answer("export", base, "--archive", archive, code=1)["error"]["code"] == "archive_exists"


@pytest.mark.parametrize("kind", ["pool", "churn", "ring"])
@pytest.mark.parametrize("ending", ["svg", "png"])
def test_plots_are_images(kind: str, ending: str, archive: str, tmp_path: Path) -> None:
    file = tmp_path / f"picture.{ending}"
    answer("plot", kind, "--archive", archive, "-o", str(file), "--tz", "UTC")
    data = file.read_bytes()
    if ending == "png":
        assert data.startswith(b"\x89PNG")
        return
    text = data.decode()
    assert text.count("<svg") == 1
    assert CLUSTER in text
    assert "UTC" in text
    again = tmp_path / "again.svg"
    answer("plot", kind, "--archive", archive, "-o", str(again), "--tz", "UTC")
    assert again.read_bytes() == data, "the same question draws the same picture"


def test_whatif_takes_extra_commands(archive: str, tmp_path: Path) -> None:
    file = tmp_path / "commands.jsonl"
    file.write_text(
        '{"command": "append-cidr", "cidr": "10.12.0.0/24"}\n{"command": "remove-node", "node": "ghost"}\n'
    )
    found = answer("whatif", "--at", "30", "--commands", str(file), "--archive", archive)
    assert found["imagined"]["capacity"] == found["recorded"]["capacity"] + 16
    assert found["extra"][0]["refused"] == ""
    assert "ghost" in found["extra"][1]["refused"]
    file.write_text('{"command": "rm -rf"}\n')
    run("whatif", "--commands", str(file), "--archive", archive, code=2)


def test_the_practice_log_is_sound_and_reproducible(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_sample = [EXECUTABLE, "replay", "sample", str(tmp_path / name), "--events", "3000", "--nodes", "60"]
        subprocess.run(run_sample, check=True, capture_output=True)
    with ArchiveFile(tmp_path / "a") as a, ArchiveFile(tmp_path / "b") as b:
        assert a.head == b.head
    report = answer("verify", "--archive", str(tmp_path / "a"))
    assert report["errors"] == 0
    assert report["warnings"] == 0


@pytest.mark.slow
def test_ctrl_c_at_any_moment_leaves_a_file_that_goes_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    subprocess.run(
        [EXECUTABLE, "replay", "sample", str(source), "--events", "12000", "--nodes", "300"],
        check=True,
        capture_output=True,
    )
    target = tmp_path / "copy"
    arguments = ["export", str(target), "--archive", str(source)]
    for interrupted in range(4):
        process = subprocess.Popen(
            [EXECUTABLE, "replay", *arguments, *(["--continue"] if target.exists() else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 20
        size = target.stat().st_size if target.exists() else 0
        while process.poll() is None and time.monotonic() < deadline:
            if target.exists() and target.stat().st_size != size:
                process.send_signal(signal.SIGINT)
                break
        _, errors = process.communicate(timeout=30)
        assert process.returncode in (0, 130), (interrupted, errors)
        assert b"Traceback" not in errors
    done = answer(*arguments, *(["--continue"] if target.exists() else []))
    assert done["last"] >= 12000
    with ArchiveFile(source) as a, ArchiveFile(target) as b:
        assert (a.last, a.head) == (b.last, b.head)
    assert answer("verify", "--archive", str(target))["errors"] == 0


@pytest.mark.slow
def test_long_work_shows_its_progress_to_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [EXECUTABLE, "replay", "sample", str(tmp_path / "big"), "--events", "60000", "--nodes", "300"],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    assert process.wait(timeout=60) == 0
    os.close(leader)
    assert b"writing" in seen
    assert b"events/s" in seen


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Long enough for worker processes."""
    path = tmp_path_factory.mktemp("long") / "log"
    make = [EXECUTABLE, "replay", "sample", str(path), "--events", "61000", "--nodes", "300"]
    subprocess.run(make, check=True, capture_output=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("command", [["stats"], ["verify", "--jobs", "2"], ["diff", "1"]], ids=" ".join)
def test_ctrl_c_ends_long_work_at_once_and_leaves_nothing_behind(command: list[str], long_log: Path) -> None:
    arguments = ["--archive", str(long_log)]
    process = subprocess.Popen(
        [EXECUTABLE, "replay", *command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    # The work begins when the archive is open.
    wait_for(lambda: process.poll() is not None or _has_open(process.pid, str(long_log)), within_s=60)
    assert process.poll() is None, process.communicate()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130), errors
    assert b"Traceback" not in errors
    wait_for(lambda: not _group(process.pid), "no worker is left")


def _has_open(pid: int, file: str) -> bool:
    try:
        return any(str(fd.readlink()) == file for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def _group(leader: int) -> list[str]:
    return subprocess.run(
        ["pgrep", "-g", str(leader)], capture_output=True, text=True, check=False
    ).stdout.split()
