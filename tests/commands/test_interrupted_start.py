"""A Ctrl-C at any moment of a program's start or end: exit code 130, not a word; other signals while it writes.

The programs run as their console scripts do, in processes of their own that send themselves the signal when
they load a certain module, or when the interpreter ends.
"""

from __future__ import annotations

import signal
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


WRITING = """
import os, signal, sys
at, number = sys.argv.pop(1), int(sys.argv.pop(1))
call, calls = getattr(os, at), []

def signalled(*given):
    done = call(*given)
    if at == "fsync" or "t-2.token" in str(given[0]):
        calls.append(given)
        if len(calls) == 1 + (at == "fsync"):
            os.kill(os.getpid(), number)
    return done

setattr(os, at, signalled)
from controlplane.start import main
main()
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)],
)
@pytest.mark.parametrize("at", ["open", "fsync"])
def test_a_signal_while_a_secret_is_written_leaves_no_part_of_it(
    tmp_path: Path, at: str, number: int, code: int
) -> None:
    tokens = ["token", "create", "--open", "--count", "3", "t", "--bus", "nats://b:4222", "--to", str(tmp_path)]
    program = [sys.executable, "-c", WRITING, at, str(int(number)), *tokens]
    ended = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120)
    assert (ended.returncode, ended.stderr.strip(), ended.stdout) == (code, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["t-1.token"]
