"""Nothing acknowledged is lost, nothing is doubled, everybody converges: whatever is killed, paused or cut.

``ISTHMUS_SOAK_S=600 pytest tests/faults`` (``make soak``) runs long and on fresh seeds;
``ISTHMUS_FAULT_SEED=n`` repeats one.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from events.server import process as server_module
from tests.faults.schedule import schedule
from tests.faults.world import report, run, world

pytestmark = [pytest.mark.bus, pytest.mark.slow]

SOAK_S = float(os.environ.get("ISTHMUS_SOAK_S", "0"))
DURATION_S = SOAK_S or 8.0
FIXED = os.environ.get("ISTHMUS_FAULT_SEED")


def seeds(default: int) -> list[int]:
    if FIXED is not None:
        return [int(FIXED)]
    return [random.SystemRandom().randrange(10**6)] if SOAK_S else [default]


@pytest.fixture(autouse=True)
def _restarts_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RESTARTS_MAX", 10**6)


@pytest.mark.parametrize("seed", seeds(11))
async def test_one_server_and_two_controllers(tmp_path: Path, seed: int) -> None:
    faults = schedule(seed, DURATION_S, servers=1, controllers=2, links=1)
    async with world(tmp_path, servers=1, controllers=2) as made:
        verdict = await run(made, faults, duration_s=DURATION_S, seed=seed)
        assert not verdict.wrong, report(made, verdict, seed)
        assert not made.answers.unknown, report(made, verdict, seed)
        assert len(made.answers.acknowledged) > 50, report(made, verdict, seed)


@pytest.mark.parametrize("seed", seeds(23))
async def test_three_servers_and_two_controllers(tmp_path: Path, seed: int) -> None:
    faults = schedule(seed, DURATION_S, servers=3, controllers=2, links=3)
    async with world(tmp_path, servers=3, controllers=2) as made:
        verdict = await run(made, faults, duration_s=DURATION_S, seed=seed)
        assert not verdict.wrong, report(made, verdict, seed)
        assert not made.answers.unknown, report(made, verdict, seed)
        assert len(made.answers.acknowledged) > 50, report(made, verdict, seed)


def test_a_seed_is_a_schedule() -> None:
    made = [schedule(5, 60, servers=3, controllers=2, links=3) for _ in range(2)]
    assert made[0] == made[1] != schedule(6, 60, servers=3, controllers=2, links=3)
    assert {fault.kind for fault in made[0]} == {
        "kill server",
        "pause server",
        "kill controller",
        "pause controller",
        "cut link",
    }
    assert all(earlier.at_s <= later.at_s for earlier, later in zip(made[0], made[0][1:], strict=False))
