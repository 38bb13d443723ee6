"""A Debian with a real systemd, booted by systemd-nspawn in a network namespace that the test made.

The system is made by mmdebstrap from Debian's archive (some minutes, so these tests are asked for:
ISTHMUS_SYSTEMD=1). Isthmus is installed as on a user's machine: by apt, from our Debian package, with what
that depends on and recommends, on Debian's Python.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.nodeagent.site import until

ROOT = Path(__file__).parents[2]
PACKAGES = "systemd,systemd-sysv"
UP = {"running", "degraded"}


def make_system(folder: Path, suite: str = "bookworm", *more: str) -> None:
    """A bare Debian that boots, with ``more`` packages. Fails with mmdebstrap's words."""
    included = ",".join((PACKAGES, *more))
    _done(["mmdebstrap", "--variant=minbase", f"--include={included}", suite, str(folder)])
    # It loads nothing in a container, and fails at boot where Debian 13 comes without libkmod.
    (folder / "etc" / "systemd" / "system" / "systemd-modules-load.service").symlink_to("/dev/null")
    shutil.copy("/etc/resolv.conf", folder / "etc" / "resolv.conf")
    _done(["chroot", str(folder), "apt-get", "update", "-q"])


def install(folder: Path, what: str | Path) -> None:
    """``apt install`` a Debian package, by its name or from a file, before the system is booted."""
    if isinstance(what, Path):
        shutil.copy(what, folder / "root" / what.name)
        what = f"/root/{what.name}"
    _done(["chroot", str(folder), "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qy", what])


def _done(command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def make_package(folder: Path, debian: int = 12) -> Path:
    """The Debian package of this checkout, built as ``make dist`` does."""
    done = subprocess.run(
        [str(ROOT / "deploy/packages/build.sh"), "--to", str(folder), "--debian", str(debian)],
        check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.deb"))


class Machine:
    """One booted system."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.folder, self.namespace = folder, namespace
        self._console = folder.parent / f"{folder.name}.console"
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> Machine:
        """Start it and wait until systemd says that it is up."""
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                ["systemd-nspawn", "-q", "-b", "-D", str(self.folder), "--register=no", "--keep-unit",
                 f"--network-namespace-path=/run/netns/{self.namespace}", "--capability=all",
                 "--system-call-filter=bpf"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"},
            )  # fmt: skip
        # Debian's own units for hardware fail in a container: a system with them is as up as it gets.
        until(lambda: self.run("systemctl is-system-running").stdout.strip() in UP, "systemd is up", 240)
        return self

    def leader(self) -> int:
        """The system's init, as this namespace sees it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A shell line inside, as root."""
        return subprocess.run(self._inside(command), capture_output=True, text=True, check=False, timeout=120)

    def _inside(self, command: str) -> list[str]:
        return [
            *("nsenter", "-t", str(self.leader()), "-a", "env", "-i", "HOME=/root", "LANG=C.UTF-8"),
            *("PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", f"cd /root && {command}"),
        ]

    @contextlib.contextmanager
    def open(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """A terminal with a command of root's, which runs for the block at most; its words can be read."""
        with subprocess.Popen(
            self._inside(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as running:
            try:
                yield running
            finally:
                # A system that goes down stops its processes before it kills them; nsenter stops with its
                # child, and nobody else would ever wake it.
                running.send_signal(signal.SIGCONT)
                running.terminate()

    def ok(self, command: str) -> str:
        """A shell line that must succeed; what it printed."""
        done = self.run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def reboot(self) -> None:
        """Off and on again, in order."""
        self.off()
        self.boot()

    def off(self) -> None:
        """An orderly shutdown (SIGRTMIN+3 to init is halt.target)."""
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, IndexError, FileNotFoundError):
            os.kill(self.leader(), signal.SIGRTMIN + 3)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(timeout=60)


@contextlib.contextmanager
def booted(folder: Path, namespace: str) -> Iterator[Machine]:
    """The system in ``folder``, up for as long as the block lasts."""
    machine = Machine(folder, namespace)
    try:
        yield machine.boot()
    finally:
        machine.off()
