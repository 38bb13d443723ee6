"""The commands as a person runs them: up, tail, rebuild, stop, up again."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.service.up import PROGRAM, up

pytestmark = pytest.mark.bus


def isthmus(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_up_defines_keeps_and_stops(tmp_path: Path) -> None:
    with up(tmp_path, "--cidr", "172.16.0.0/16", "--pods", "64", "--network", "vpc=10.0.0.0/16") as facts:
        assert facts["defined"] is True
        assert facts["sequence"] == 1
        at = ("--bus", facts["bus"], "--cluster", facts["cluster"])
        tail = isthmus("events", "tail", *at, "--json")
        line = json.loads(tail.stdout)
        assert (line["sequence"], line["type"]) == (1, "cluster.defined.v1")
        assert "cluster.defined" in isthmus("events", "tail", *at).stdout
        rebuilt = isthmus("controller", "rebuild", *at, "--data", str(tmp_path), "--json")
        assert json.loads(rebuilt.stdout)["sequence"] == 1, rebuilt.stderr
    # A cluster that was made with other ranges than today's default starts by the same short command line.
    with up(tmp_path, "--cidr", "172.16.0.0/16", "--network", "vpc=10.0.0.0/16") as facts:
        assert facts["defined"] is True
        assert facts["sequence"] == 1


def test_a_bus_that_is_not_there_is_exit_code_3_and_bad_usage_is_2(tmp_path: Path) -> None:
    nowhere = ("--bus", "nats://127.0.0.1:1")
    for command in (("events", "tail"), ("controller", "--data", str(tmp_path))):
        done = isthmus(*command, *nowhere)
        assert done.returncode == 3, done.stderr
        assert "bus_unreachable" in done.stderr
        assert "bus: " not in done.stderr, "the message says it once"
        assert done.stderr.count("ISTHMUS_BUS") == 1, "and what to do, too"
        assert "connection refused" in done.stderr
        assert "Errno" not in done.stderr
        assert "Traceback" not in done.stderr
    assert isthmus("up", "--data", str(tmp_path), "--cidr", "10.0.0.0/8", "--network", "x").returncode == 2
