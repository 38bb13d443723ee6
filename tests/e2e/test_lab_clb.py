"""The lab with a CLB pair on a secured bus, as a user runs it: every check, with the numbers of the promise."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.e2e.labs import isthmus, proven
from tests.waiting import patient

DEADLINE_S = 240


@pytest.mark.netns
@pytest.mark.bus
@pytest.mark.slow
def test_external_nodes_reach_the_api_server_whatever_dies(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "150"}
    done = isthmus("lab", "--once", "--json", "--clb", "--secure", env=env, timeout_s=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = proven(json.loads(done.stdout))

    def measured(part: str) -> dict[str, float]:
        (found,) = [check["measured"] for name, check in checks.items() if part in name]
        return dict(found)

    assert any(name.startswith("External nodes and their pods reach both addresses") for name in checks)
    assert measured("A backend dies")["longest_silence_s"] < patient(5)
    assert measured("dies: the other one takes")["longest_silence_s"] < patient(5)
    planned = measured("taken out on purpose")
    assert planned["longest_silence_s"] < patient(1)
    assert planned["kept"] == planned["in_progress"] > 0
    assert measured("failovers in a row")["longest_silence_s"] < patient(1)
    split = measured("yields to the new holder")
    assert split["both_answered_s"] <= 3
    assert split["longest_silence_s"] < patient(5)
