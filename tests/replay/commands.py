"""What the tests of the typed commands share: a history and the names in it."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.replay import brute
from tests.replay.histories import history

EXECUTABLE = Path(sys.executable).with_name("isthmus")
MESSAGES = history(11, 160)
EVENTS = brute.parse(MESSAGES)
NODE = next(e["b_node"] for e in EVENTS if e["kind"] == "node.joined")
