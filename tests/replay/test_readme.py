"""The outputs in the README are what the commands print. ``ISTHMUS_WRITE_DOCS=1`` writes them anew."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.replay.churned import write

README = Path(__file__).resolve().parents[2] / "replay" / "README.md"
EXECUTABLE = Path(sys.executable).with_name("isthmus")
BLOCK = re.compile(r"```console\n\$ (isthmus replay [^\n]*)\n(.*?)```", re.DOTALL)


def printed(command: str, folder: Path) -> str:
    arguments = re.findall(r"'[^']*'|\S+", command.removeprefix("isthmus "))
    done = subprocess.run(
        [EXECUTABLE, *[a.strip("'") for a in arguments]],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "150"},
    )
    assert done.returncode in (0, 1), done.stderr
    lines = [line.rstrip() for line in done.stdout.splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines).strip("\n")) + "\n"


def test_the_documented_outputs_are_the_outputs(tmp_path: Path) -> None:
    write(tmp_path / "churn.isthmus")
    text = README.read_text()
    blocks = BLOCK.findall(text)
    assert len(blocks) >= 5
    if os.environ.get("ISTHMUS_WRITE_DOCS"):
        README.write_text(BLOCK.sub(lambda m: f"```console\n$ {m[1]}\n{printed(m[1], tmp_path)}```", text))
        return
    for command, expected in blocks:
        assert printed(command, tmp_path) == expected, command
