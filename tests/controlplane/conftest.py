"""The operator's commands as the installed script runs them, against ``isthmus up`` in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.cli.main import main
from tests.controlplane.ran import Isthmus, Ran


@pytest.fixture(scope="module")
def bus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``isthmus up`` in a process of its own; it says when it is ready."""
    data = tmp_path_factory.mktemp("up")
    script = str(Path(sys.executable).with_name("isthmus"))
    with subprocess.Popen(
        [script, "up", "--data", str(data), "--port", "0", "--http", "off", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["bus"]
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0


@pytest.fixture
def isthmus(bus: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Isthmus:
    """Run a command in this process, as the installed script would."""
    monkeypatch.setenv("ISTHMUS_BUS", bus)
    monkeypatch.setenv("ISTHMUS_ACTOR", "tester")

    def run(*arguments: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["isthmus", *arguments])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capfd.readouterr()
        return Ran(int(ended.value.code or 0), out, err)

    return run
