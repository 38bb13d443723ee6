"""The commands as a person runs them: up, tail, rebuild, stop, up again."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import patient

pytestmark = pytest.mark.bus

PROGRAM = str(Path(sys.executable).parent / "isthmus")


def isthmus(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


@contextmanager
def up(data: Path, *options: str) -> Iterator[dict[str, Any]]:
    """``isthmus up`` until the block ends; it must then stop cleanly."""
    command = [PROGRAM, "up", "--data", str(data), "--port", "0", "--json", *options]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        yield json.loads(child.stdout.readline())
        child.terminate()
        assert child.wait(timeout=patient(5)) == 0
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_up_defines_keeps_and_stops(tmp_path: Path) -> None:
    with up(tmp_path, "--cidr", "172.16.0.0/16", "--network", "vpc=10.0.0.0/16") as facts:
        assert facts["defined"] is True
        assert facts["sequence"] == 1
        at = ("--bus", facts["bus"], "--cluster", facts["cluster"])
        tail = isthmus("events", "tail", *at, "--json")
        line = json.loads(tail.stdout)
        assert (line["sequence"], line["type"]) == (1, "cluster.defined.v1")
        assert "cluster.defined" in isthmus("events", "tail", *at).stdout
        rebuilt = isthmus("controller", "rebuild", *at, "--data", str(tmp_path), "--json")
        assert json.loads(rebuilt.stdout)["sequence"] == 1, rebuilt.stderr
    with up(tmp_path) as facts:
        assert facts["defined"] is True
        assert facts["sequence"] == 1


def test_a_bus_that_is_not_there_is_exit_code_3_and_bad_usage_is_2(tmp_path: Path) -> None:
    nowhere = ("--bus", "nats://127.0.0.1:1")
    for command in (("events", "tail"), ("controller", "--data", str(tmp_path))):
        done = isthmus(*command, *nowhere)
        assert done.returncode == 3, done.stderr
        assert "bus_unreachable" in done.stderr
        assert "bus: " not in done.stderr, "the message says it once"
        assert "Traceback" not in done.stderr
    assert isthmus("up", "--data", str(tmp_path), "--cidr", "10.0.0.0/8", "--network", "x").returncode == 2
