"""A Ctrl-C at any moment of a program's start or end: exit code 130, not a word.

The programs run as their console scripts do, in processes of their own that send themselves the signal when
they load a certain module, or when the interpreter ends.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

SCRIPTS = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
AT_EXIT = "the interpreter's end"
FIRST, LOADED, COMMAND = "controlplane.cli.main", "events.codes", "controlplane.cli.version"
PROGRAM = """
import atexit, os, signal, sys
at = sys.argv.pop(1)

class Interrupt:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == at:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupt)
if at == {AT_EXIT!r}:
    atexit.register(os.kill, os.getpid(), signal.SIGINT)
from {module} import {function}
sys.exit({function}())
"""


def run(target: str, at: str, before: str = "") -> subprocess.CompletedProcess[str]:
    module, function = target.split(":")
    program = before + PROGRAM.format(module=module, function=function, AT_EXIT=AT_EXIT)
    return subprocess.run(
        [sys.executable, "-c", program, at, "version"], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("target", sorted(set(SCRIPTS.values())))
@pytest.mark.parametrize("at", [FIRST, "click", LOADED, COMMAND, AT_EXIT])
def test_an_interrupt_ends_a_program_quietly_whatever_it_loads(target: str, at: str) -> None:
    ended = run(target, at)
    assert (ended.returncode, ended.stderr.strip()) == (130, "")  # click ends the line of the terminal's ^C
    assert bool(ended.stdout) == (at == AT_EXIT)


def test_who_starts_a_program_with_interrupts_ignored_keeps_it_so() -> None:
    ended = run(SCRIPTS["isthmus"], LOADED, "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout
