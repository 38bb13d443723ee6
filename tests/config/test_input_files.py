"""Files and numbers that are none, given to any command: a word within seconds, never an internal error."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path

import pytest

from controlplane.cli import main
from events import input_files
from events.input_files import read_up_to, read_whole

READERS = (
    ("node", "import", "FILE"),
    ("node", "list", "--creds", "FILE"),
    ("node", "list", "--ca", "FILE"),
    ("node", "list", "--tls-cert", "FILE"),
    ("node", "list", "--ca", "CA", "--tls-cert", "CA", "--tls-key", "FILE"),
    ("join", "--token-file", "FILE"),
    ("token", "create", "--open", "--bus", "nats://10.0.0.1", "--to", "tokens", "--file", "FILE"),
    ("config", "check", "agent", "FILE"),
    ("config", "show", "controller", "--file", "FILE"),
    ("up", "--config", "FILE"),
    ("up", "--server-config", "FILE", "--data", "data"),
    ("credentials", "show", "FILE"),
    ("credentials", "prune", "FILE"),
    ("credentials", "redeem", "--token-file", "FILE"),
    ("replay", "verify", "--archive", "none", "--public-key", "FILE"),
    ("replay", "verify", "--archive", "none", "--checkpoints", "FILE"),
    ("churn", "FILE"),
)
NUMBERS = (
    ("credentials", "node", "n1", "--days"),
    ("credentials", "rotate", "node", "n1", "--days"),
    ("credentials", "serve", "--days"),
    ("credentials", "list", "--expiring"),
    ("credentials", "tls", "n1", "--host", "n1", "--days"),
    ("credentials", "token", "n1", "--bus", "nats://10.0.0.1", "--minutes"),
    ("token", "create", "n1", "--bus", "nats://10.0.0.1", "--minutes"),
    ("agent", "capture", "--seconds"),
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(input_files, "WRITER_S", 0.02)
    monkeypatch.chdir(tmp_path)
    Path("CA").write_text("")


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main._run([*arguments]) in {1, 2}
    said = capsys.readouterr().err
    assert said.strip()
    assert "internal" not in said
    return said


@pytest.mark.parametrize("command", READERS, ids=" ".join)
def test_a_fifo_without_a_writer_is_named(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("FILE")
    assert "FIFO" in call(capsys, *command)


@pytest.mark.parametrize("command", READERS, ids=" ".join)
@pytest.mark.parametrize("source", ["/dev/zero", "."])
def test_what_has_no_end_and_a_folder_are_refused(
    command: tuple[str, ...], source: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_files, "WHOLE_LIMIT_BYTES", 1 << 16)
    monkeypatch.setattr("controlplane.controller.publishing.checkpoints.FILE_LIMIT_BYTES", 1 << 16)
    monkeypatch.setattr("controlplane.cli.node_import.command.SIZE_MAX_BYTES", 1 << 16)
    call(capsys, *(source if part == "FILE" else part for part in command))


@pytest.mark.parametrize("command", NUMBERS, ids=" ".join)
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "1e400", "9" * 30])
def test_numbers_out_of_range_are_wrong_usage(
    command: tuple[str, ...], number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command[-1] in call(capsys, *command, number)


@pytest.mark.parametrize(
    ("error", "says"), [("marshal data too short", "-name '*.pyc' -delete"), ("", "standard input ended")]
)
def test_an_end_that_comes_too_soon_is_told(
    error: str, says: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(*_: object) -> None:
        raise EOFError(error)

    monkeypatch.setattr(main.Commands, "get_command", ends)  # where byte code is read, and questions are asked
    assert says in call(capsys, "node", "list")


def test_a_full_disk_under_a_database_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(main.Commands, "get_command", full)
    assert "disk is full" in call(capsys, "controller", "rebuild")


def test_a_fifo_with_a_slow_writer_is_read_to_its_end(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with (tmp_path / "fifo").open("wb", buffering=0) as fifo:
            begun.set()
            go_on.wait(30)
            fifo.write(b"a" * 100_000)
            fifo.write(b"b")

    def release() -> None:
        begun.wait(30)
        threading.Timer(0.1, go_on.set).start()  # longer than a FIFO may be without a writer

    threads = [threading.Thread(target=write), threading.Thread(target=release)]
    input_files.WRITER_S = 30
    for thread in threads:
        thread.start()
    assert read_whole(tmp_path / "fifo") == b"a" * 100_000 + b"b"
    for thread in threads:
        thread.join()


def test_a_file_is_read_within_its_bound(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert read_up_to(tmp_path / "file", 10) == b"x" * 10
    assert read_whole(tmp_path / "file", 100) == b"x" * 100
    with pytest.raises(OSError, match="larger than 99 bytes"):
        read_whole(tmp_path / "file", 99)
