"""A Debian 12 with a real systemd, booted by systemd-nspawn in a network namespace that the test made.

The system is made by mmdebstrap from Debian's archive (some minutes, so these tests are asked for:
ISTHMUS_SYSTEMD=1). Isthmus is installed as on a user's machine, in /opt/isthmus with Debian's own Python; its
files are this checkout's and this environment's, mounted read-only.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tests.nodeagent.site import until

ROOT = Path(__file__).parents[2]
PACKAGES = "systemd,systemd-sysv,iproute2,nftables,procps,python3,containernetworking-plugins"
ENTRY = """#!/opt/isthmus/bin/python3
import sys
from controlplane.cli.main import main
sys.exit(main())
"""


def make_system(folder: Path) -> None:
    """A Debian 12 with /opt/isthmus in ``folder``. Raises CalledProcessError with the words of mmdebstrap."""
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(folder)],
        check=True, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    place = folder / "opt" / "isthmus"
    for name in ("isthmus/bin", "isthmus/lib/python3.11/site-packages", "site", "source", "programs"):
        (folder / "opt" / name).mkdir(parents=True)
    (place / "bin" / "python3").symlink_to("/usr/bin/python3")
    (place / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    (place / "lib/python3.11/site-packages/isthmus.pth").write_text("/opt/source\n/opt/site\n")
    (place / "bin" / "isthmus").write_text(ENTRY)
    (place / "bin" / "isthmus").chmod(0o755)
    (place / "bin" / "nats-server").symlink_to("/opt/programs/nats-server")


class Machine:
    """One booted system."""

    def __init__(self, folder: Path, namespace: str) -> None:
        self.folder, self.namespace = folder, namespace
        self._console = folder.parent / f"{folder.name}.console"
        self._process: subprocess.Popen[bytes] | None = None

    def boot(self) -> Machine:
        """Start it and wait until systemd says that it is up."""
        site = sysconfig.get_paths()["purelib"]
        binds = {site: "/opt/site", str(ROOT): "/opt/source", str(Path(sys.executable).parent): "/opt/programs"}
        with self._console.open("ab") as console:
            self._process = subprocess.Popen(
                ["systemd-nspawn", "-q", "-b", "-D", str(self.folder), "--register=no", "--keep-unit",
                 f"--network-namespace-path=/run/netns/{self.namespace}", "--capability=all",
                 *(f"--bind-ro={there}:{here}" for there, here in binds.items())],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console,
            )  # fmt: skip
        until(lambda: "running" in self.run("systemctl is-system-running").stdout, "systemd is up", 60)
        return self

    def leader(self) -> int:
        """The system's init, as this namespace sees it."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        return int(children[0])

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A shell line inside, as root."""
        return subprocess.run(
            ["nsenter", "-t", str(self.leader()), "-a", "env", "-i", "HOME=/root", "LANG=C.UTF-8",
             "PATH=/opt/isthmus/bin:/usr/sbin:/usr/bin:/sbin:/bin", "sh", "-c", f"cd /root && {command}"],
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip

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
            self._process.wait(timeout=10)


@contextlib.contextmanager
def booted(folder: Path, namespace: str) -> Iterator[Machine]:
    """The system in ``folder``, up for as long as the block lasts."""
    machine = Machine(folder, namespace)
    try:
        yield machine.boot()
    finally:
        machine.off()
