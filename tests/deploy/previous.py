"""The previous release of this program, from the history of the clone that the tests run in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VERSION = "0.2.0"
COMMIT = "2c9b91563fb99f8664d9fd7a5a269da2fa60331a"
"""The last commit of release 0.2.0. Its dependencies are those of today."""


def _git(*words: str) -> subprocess.CompletedProcess[bytes]:
    # A checkout may belong to another user than the one who tests it.
    return subprocess.run(
        ["git", "-c", "safe.directory=*", "-C", str(ROOT), *words], capture_output=True, check=False, timeout=60
    )


def skip_without_history() -> None:
    """Skip the test, with the reason, in a tarball or a clone that does not reach back so far."""
    try:
        found = _git("cat-file", "-e", f"{COMMIT}^{{commit}}").returncode == 0
    except FileNotFoundError:
        pytest.skip("git is not installed: no previous release to be had")
    if not found:
        pytest.skip(f"this checkout has no history back to release {VERSION} ({COMMIT[:7]}): a shallow clone?")


def install(folder: Path) -> str:
    """Install the previous release into ``folder``, beside nothing of this one. Returns its command."""
    source, place = folder / "source", folder / "site"
    source.mkdir(parents=True)
    archive = _git("archive", COMMIT)
    assert archive.returncode == 0, archive.stderr
    subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True, timeout=60)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--target", str(place), str(source)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    command = folder / "isthmus"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={place} exec {place}/bin/isthmus "$@"\n')
    command.chmod(0o755)
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert VERSION in said.stdout
    return str(command)
