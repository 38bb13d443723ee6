"""Lines that go to systemd's journal carry their priority; others do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAY = """
import logging
from events.telemetry.logs import configure_logging
configure_logging("agent")
for level in ("info", "warning", "error"):
    getattr(logging.getLogger("isthmus.bus"), level)("the connection\\nis lost")
"""


@pytest.mark.parametrize("form", ["json", "text"])
@pytest.mark.parametrize("journal", [True, False])
def test_each_line_has_the_priority_of_its_level_in_the_journal_only(
    tmp_path: Path, form: str, journal: bool
) -> None:
    with (tmp_path / "err").open("wb") as stream:
        about = os.fstat(stream.fileno())
        other = 0 if journal else 1
        subprocess.run(
            [sys.executable, "-c", SAY],
            stderr=stream,
            check=True,
            env={**os.environ, "ISTHMUS_LOG": form, "JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino + other}"},
        )
    lines = (tmp_path / "err").read_text().splitlines()
    count = 1 if form == "json" else 2
    if journal:
        assert [line[:3] for line in lines] == ["<6>"] * count + ["<4>"] * count + ["<3>"] * count
    else:
        assert not any(line.startswith("<") for line in lines)
