"""What runs first in ``isthmus-VERSION-node.pyz``: puts Isthmus on a machine with only Python, then joins.

The archive (``deploy/packages/build.sh``) is this file, the wheels of a node, and pip's own, which is run from
its wheel: neither pip nor an index nor Debian's python3-venv is needed. Only the standard library is imported,
and nothing that Python 3.7 cannot read, so that an old one is told what it lacks. The release is as good as
there once its command runs: whatever an earlier try left half is written over.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import venv
import zipfile
from pathlib import Path

PLACE = Path("/opt/isthmus")
COMMANDS = Path("/usr/local/bin")
MINIMUM = (3, 11)
REFUSED, INTERRUPTED = 1, 130
USAGE = """Usage: python3 {name} [TOKEN] [OPTIONS]

  Make this machine, which needs nothing but Python, a node: install Isthmus
  {release} into {place}, unless it is there, and run `isthmus join` with the same
  TOKEN and OPTIONS. Repeating it is harmless.

  Example: python3 {name} --token-file idc-7.token

Options: those of `isthmus join`, once it is installed: isthmus join --help
"""


def main(archive: Path, arguments: list[str], place: Path = PLACE, commands: Path = COMMANDS) -> int:
    """Install what is in ``archive``, unless it is there, then become ``isthmus join`` with ``arguments``.

    Returns an exit code only when that was not possible, and has said why.
    """
    name, wheels = shlex.quote(archive.name), _wheels(archive)
    release = next(wheel.split("-")[1] for wheel in wheels if wheel.startswith("isthmus-"))
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE.format(name=name, release=release, place=place))
        return 0
    if sys.version_info < MINIMUM:
        found = ".".join(str(part) for part in sys.version_info[:3])
        return _refuse(f"needs Python 3.11 or newer, and {sys.executable} is {found}: run it by a newer one")
    if os.geteuid() != 0:
        again = f"sudo python3 {name} …"
        return _refuse(f"a join makes an account, a unit and files below /etc: run it as root ({again})")
    quiet, there = "--json" in arguments, _release_in(place)
    started = time.monotonic()
    if there:
        stays = "" if there == release else f", and stays: this file has {release}"
        sign, said = "=", f"Isthmus {there} is in {place}{stays}"
    elif "--dry-run" in arguments:
        _say("·", 0.0, f"Isthmus {release} into {place}; the rest of a dry run needs it there")
        return 0
    else:
        if sys.stderr.isatty():  # it takes some seconds
            sys.stderr.write(f"installing Isthmus {release} in {place} ...\n")
        why = _install(archive, wheels, place, release)
        if why:
            return _refuse(
                f"{why}. Nothing was joined; once that is mended, the same command goes on from here"
            )
        sign, said = "✓", f"Isthmus {release} in {place}"
    if not quiet:
        _say(sign, time.monotonic() - started, said)
    _link(place, commands)
    command = str(place / "bin" / "isthmus")
    return os.execv(command, [command, "join", *arguments])  # noqa: S606  no shell is wanted


def _say(sign: str, took_s: float, what: str) -> None:
    """One line, as the steps of a join have it; in plain ASCII where the terminal cannot say more."""
    line = f"{sign} {'install':<14}{took_s:6.1f} s  {what}\n"
    encoding = sys.stdout.encoding or "ascii"
    sys.stdout.write(line.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


def _wheels(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as packed:
        return sorted(name for name in packed.namelist() if name.endswith(".whl"))


def _release_in(place: Path) -> str:
    """The release whose command runs there; empty when none does."""
    try:
        done = subprocess.run(
            [str(place / "bin" / "isthmus"), "--version"],
            check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode().split()[-1] if done.returncode == 0 and done.stdout.strip() else ""


def _install(archive: Path, wheels: list[str], place: Path, release: str) -> str:
    """Why it did not work; empty when it did. Interrupted, what is there is written over the next time."""
    os.umask(0o022)  # the agent's account has to read it
    try:
        with tempfile.TemporaryDirectory(prefix="isthmus-") as scratch:
            with zipfile.ZipFile(archive) as packed:
                packed.extractall(scratch, wheels)
            venv.EnvBuilder(symlinks=True).create(str(place))
            pip = next(wheel for wheel in wheels if wheel.startswith("pip-"))
            # -I: packages of an interrupted try have no list of their files by which they could be replaced.
            done = subprocess.run(
                [str(place / "bin" / "python"), str(Path(scratch) / pip / "pip"), "--isolated", "install",
                 "-qI", "--no-index", "--find-links", scratch, f"isthmus[agent]=={release}"],
                check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
    except OSError as error:
        return f"{error.filename or place}: {error.strerror or error}"
    except subprocess.CalledProcessError as error:
        return f"no environment in {place}: {error}"
    if done.returncode < 0 or not _release_in(place):
        words = [line for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
        return f"pip ended with {done.returncode}: {' / '.join(words[-2:]) or 'it said nothing'}"
    return ""


def _link(place: Path, commands: Path) -> None:
    """Let `isthmus` be found as a command, unless another one is."""
    link = commands / "isthmus"
    try:
        if not link.exists():  # also: a link that leads nowhere
            if link.is_symlink():
                link.unlink()
            link.symlink_to(place / "bin" / "isthmus")
    except OSError as error:
        sys.stderr.write(f"isthmus: {link}: {error.strerror}; the command is {place}/bin/isthmus\n")


def _refuse(why: str) -> int:
    sys.stderr.write(f"isthmus: {why}\n")
    return REFUSED


def run() -> None:
    """As a program. An interrupt ends it without a word."""
    try:
        code = main(Path(sys.argv[0]), sys.argv[1:])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        code = INTERRUPTED
    sys.exit(code)


if __name__ == "__main__":
    run()
