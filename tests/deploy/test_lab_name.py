"""Two labs of one name never meet: the name is held by a lock, also while its file comes and goes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.reports import run_directory
from deploy.lab.reports.run_directory import RunDirectory
from events.errors import Usage


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return run_directory.for_lab("one")


def test_a_lock_file_that_its_holder_took_away_meanwhile_is_nobodys(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, real = directory.lock(), fcntl.flock
    assert first is not None
    others: list[int | None] = []

    def flock(descriptor: int, how: int) -> None:
        """Between opening and locking the first lab ends, and another one begins."""
        monkeypatch.setattr(fcntl, "flock", real)
        directory.free(first)
        others.append(directory.lock())
        real(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    assert directory.lock() is None
    assert others[0] is not None
    directory.prepare()
    assert directory.wait_until_free(0.1) is None
    directory.free(others[0])
    last = directory.lock()
    assert last is not None
    directory.free(last)
    assert not list(directory.path.parent.iterdir()), "a file is left"


def test_whoever_has_a_dead_labs_number_gets_no_signal(directory: RunDirectory) -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        lock = directory.lock()
        assert lock is not None
        for pid in (0, -1, other.pid):
            directory.signal(pid, signal.SIGKILL)
        other.terminate()
        assert other.wait(timeout=60) == -signal.SIGTERM, "nobody killed it before"
        directory.free(lock)
        lock = directory.lock()
        assert lock is not None
        with subprocess.Popen(["sleep", "60"], pass_fds=[lock]) as ours:
            directory.signal(ours.pid, signal.SIGTERM)
            assert ours.wait(timeout=60) == -signal.SIGTERM
        directory.free(lock)


def test_who_asks_whether_a_lab_runs_leaves_the_next_ones_lock_alone(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    began: list[int | None] = []
    close: Any = os.close

    def begin(descriptor: int) -> None:
        close(descriptor)
        monkeypatch.setattr(os, "close", close)
        began.append(directory.lock())

    monkeypatch.setattr(os, "close", begin)
    with pytest.raises(Usage):
        run_directory.running("one")
    assert began[0] is not None
    assert directory.lock() is None, "two have the lock"
    close(began[0])
