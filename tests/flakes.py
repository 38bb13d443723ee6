"""The tests that failed, to a file, one a line: ``pytest --failures=FILE`` (tests/conftest.py brings it in).

For .ci/run, which runs them once more and says at the end which ones passed only then.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The option."""
    parser.addoption("--failures", metavar="FILE", default="", help="Write the tests that failed to this file.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Each once, also if its set-up or its end failed; with xdist this runs where all reports come together."""
    target = config.getoption("--failures")
    if not target or hasattr(config, "workerinput"):
        return
    reports = [*terminalreporter.stats.get("failed", []), *terminalreporter.stats.get("error", [])]
    names = dict.fromkeys(report.nodeid for report in reports)
    Path(target).write_text("".join(f"{name}\n" for name in names))
