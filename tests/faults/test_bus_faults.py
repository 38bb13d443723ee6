"""Nothing acknowledged is lost, nothing is doubled, every kernel converges: whatever is killed, paused, cut
off, left without a disk, or has its clock set.

``ISTHMUS_SOAK_S=3600 pytest tests/faults`` (``make soak``) runs long and on fresh seeds;
``ISTHMUS_FAULT_SEED=n`` repeats one, and so does ``python -m tests.faults --seed n``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.__main__ import told
from tests.faults.schedule import deck, schedule

SOAK_S = float(os.environ.get("ISTHMUS_SOAK_S", "0"))
FIXED = os.environ.get("ISTHMUS_FAULT_SEED")
AROUND_S = 240.0
"""Start, the longest wait for agents and elections behind the last fault, the verdict."""


def seed_of(default: int) -> int:
    if FIXED is not None:
        return int(FIXED)
    return random.SystemRandom().randrange(10**6) if SOAK_S else default


def lived(directory: Path, *, seed: int, seconds: float, servers: int) -> dict[str, Any]:
    """A run that kept every promise; what it found."""
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.faults", "--json", "--seed", str(seed), "--seconds", str(seconds),
            "--servers", str(servers), "--directory", str(directory),
            *(["--every", "2", "--pause", "0.2"] if SOAK_S else []),
        ],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        timeout=1.2 * seconds + AROUND_S,
    )  # fmt: skip
    assert done.stdout, f"seed {seed}: exit code {done.returncode}\n{done.stderr[-4000:]}"
    found: dict[str, Any] = json.loads(done.stdout)
    assert not found["wrong"], told(found)
    assert found["acknowledged"] > 10, told(found)
    assert not found["unknown"], told(found)
    assert len(found["happened"]) == len(found["schedule"])
    return found


@pytest.mark.bus
@pytest.mark.netns
@pytest.mark.slow
@pytest.mark.parametrize(("servers", "seed", "seconds"), [(3, 23, 9.0), (1, 11, 7.0)], ids=["three", "one"])
def test_real_agents_under_real_churn(tmp_path: Path, servers: int, seed: int, seconds: float) -> None:
    lived(tmp_path / "run", seed=seed_of(seed), seconds=SOAK_S or seconds, servers=servers)


def test_a_seed_is_a_schedule_and_every_schedule_has_everything() -> None:
    for servers in (1, 3):
        made = [schedule(5, 60, servers=servers) for _ in range(2)]
        assert made[0] == made[1] != schedule(6, 60, servers=servers)
        for seed in range(20):
            short = schedule(seed, 9, servers=servers)
            assert {(fault.kind, fault.role) for fault in short} == set(deck(servers))
            assert [fault.at_s for fault in short] == sorted(fault.at_s for fault in short)
            assert all(0 <= fault.at_s < 9 for fault in short)
    three = set(deck(3))
    for kind in ("kill", "pause", "cut off", "set the clock of"):
        assert {role for happens, role in three if happens == kind} == {
            "an agent",
            "the leading controller",
            "a following controller",
            "the leading server",
            "a following server",
        }
    assert ("fill the disk of", "a following server") in three
