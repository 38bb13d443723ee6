"""The lab with a CLB pair, as a user runs it: every proof holds, with the numbers that the promise names."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.e2e.test_lab import isthmus, proven

DEADLINE_S = 240


@pytest.mark.netns
@pytest.mark.bus
@pytest.mark.slow
def test_external_nodes_reach_the_api_server_whatever_dies(tmp_path: Path) -> None:
    env = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "150"}
    done = isthmus("lab", "--once", "--json", "--clb", env=env, timeout_s=DEADLINE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    checks = proven(json.loads(done.stdout))

    def silence_s(beginning: str) -> float:
        (found,) = [check["measured"] for name, check in checks.items() if name.startswith(beginning)]
        return float(found["longest_silence_s"])

    assert silence_s("The gateway ") < 5
    assert silence_s("A gateway is taken out on purpose") < 1
    assert silence_s("A backend dies") < 5
    assert any(name.startswith("External nodes and their pods reach both addresses") for name in checks)
