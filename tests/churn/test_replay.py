"""Recorded churn through a real bus and a real controller, by the command as a user types it."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.bus

ISTHMUS = str(Path(sys.executable).with_name("isthmus"))
DATA = Path(__file__).parent.parent / "data" / "node-churn"
SMALL = DATA / "4-node_us-east-2a_v100_1.json"


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[str]:
    """A fresh `isthmus up` for one test: the URL of its bus."""
    with subprocess.Popen(
        [ISTHMUS, "up", "--data", str(tmp_path / "up"), "--port", "0", "--json"], stdout=subprocess.PIPE
    ) as up:
        assert up.stdout is not None
        try:
            ready, _, _ = select.select([up.stdout], [], [], 30)
            assert ready, "isthmus up did not start in time"
            yield json.loads(up.stdout.readline())["bus"]
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(timeout=60)


def churn(bus: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    done = subprocess.run(
        [ISTHMUS, "churn", "--bus", bus, "--json", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_a_recording_goes_through_and_the_pool_settles(bus: str) -> None:
    code, result, stderr = churn(bus, "--define", str(SMALL))
    assert code == 0, stderr
    assert (result["joins"], result["leaves"]) == (77, 75)
    assert result["pool"] == {"capacity": 1020, "allocated": 2, "draining": 0, "quarantined": 0, "free": 1018}
    assert result["proof"]["allocations"] == 77
    assert result["commands_per_second"] > 0


def test_a_second_replay_goes_on_from_the_first(bus: str) -> None:
    assert churn(bus, "--define", str(SMALL))[0] == 0
    code, result, stderr = churn(bus, "--leave", "random", "--seed", "7", str(SMALL))
    assert code == 0, f"{result} {stderr}"
    assert result["pool"]["allocated"] == 4
    assert result["proof"]["allocations"] == 154


@pytest.mark.slow
def test_all_six_recordings_go_round_the_pool_and_never_share_a_range(bus: str) -> None:
    code, result, stderr = churn(bus, "--define", "--window", "256", str(DATA))
    assert code == 0, f"{result} {stderr}"
    assert result["joins"] + result["leaves"] == 8736
    assert result["pool"]["allocated"] == 38
    assert result["pool"]["free"] == 1020 - 38
    assert result["proof"]["wraps"] >= 4


def test_without_a_cluster_it_says_how_to_get_one(bus: str) -> None:
    code, result, _ = churn(bus, str(SMALL))
    assert (code, result["error"]["code"]) == (1, "cluster_not_defined")
    assert "--define" in result["error"]["message"]


def test_without_a_bus_it_exits_3() -> None:
    code, result, stderr = churn("nats://127.0.0.1:1", str(SMALL))
    assert (code, result["error"]["code"]) == (3, "bus_unreachable")
    assert "Traceback" not in stderr


def test_ctrl_c_ends_it_with_130_and_no_traceback(bus: str) -> None:
    assert churn(bus, "--define", str(SMALL))[0] == 0
    with subprocess.Popen(
        [ISTHMUS, "churn", "--bus", bus, "--window", "1", str(DATA)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"},
    ) as process:  # fmt: skip
        deadline = time.monotonic() + 60
        before = members(bus)
        while members(bus) == before:
            assert time.monotonic() < deadline, "no node joined in time"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in stderr


def members(bus: str) -> str:
    done = subprocess.run(
        [ISTHMUS, "node", "list", "--bus", bus, "--json"], capture_output=True, text=True, check=True
    )
    return done.stdout
