"""The lab's directory on disk: who is running, where its processes are, their logs.

The directory is `isthmus-lab-<uid>/<name>` below the temporary directory, readable by its owner alone.
A lock is held for as long as the lab's processes live, so a state file without a lock holder is what a
crashed lab left behind: the kernel has removed its namespaces already, the files are removed here.
It must never follow a directory that somebody else made.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from events.errors import Refused, Usage
from events.subjects import check_label

LOCK_TRIES = 100
"""So often a lock file that was unlinked meanwhile is opened anew; each time another lab has ended."""


class LabState(msgspec.Struct, frozen=True, kw_only=True):
    """What another terminal needs to find its way into a running lab.

    `main` and `init` are PIDs as the host sees them; `machines` are PIDs inside the lab's PID namespace,
    one per node, pod and the controller.
    """

    name: str
    main: int
    init: int = 0
    user_namespace: bool = False
    machines: dict[str, int] = msgspec.field(
        default_factory=dict, name="places"
    )  # the name that `status --json` prints
    environment: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """Paths of one lab."""

    path: Path

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def lock_file(self) -> Path:
        return self.path.with_suffix(".lock")

    def log(self, process: str) -> Path:
        return self.path / "logs" / f"{process}.log"

    def node(self, name: str) -> Path:
        return self.path / "nodes" / name

    def read(self) -> LabState | None:
        """The last state written, or None when there is none (or half of one after a crash)."""
        try:
            return msgspec.json.decode(self.state_file.read_bytes(), type=LabState)
        except (FileNotFoundError, msgspec.DecodeError):
            return None

    def write(self, state: LabState) -> None:
        staged = self.state_file.with_suffix(".new")
        staged.write_bytes(msgspec.json.encode(state))
        staged.replace(self.state_file)

    def lock(self) -> int | None:
        """Takes the lab's lock and returns its descriptor, or None when a lab holds it.

        The descriptor is inherited by forked children, so the lock outlives the process that took it
        for exactly as long as any of them lives. A file that its last holder unlinked meanwhile is nobody's
        lock: the next lab of this name would have one of its own, and both would run.
        """
        for _ in range(LOCK_TRIES):
            descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_lock(descriptor):
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                return None
            os.close(descriptor)
        return None

    def _is_lock(self, descriptor: int | Path) -> bool:
        try:
            found = descriptor.stat() if isinstance(descriptor, Path) else os.fstat(descriptor)
            return os.path.samestat(found, self.lock_file.stat())
        except FileNotFoundError:
            return False

    def free(self, descriptor: int) -> None:
        """Removes everything, the lock file too, then gives up the lock: nobody can come between."""
        self.remove()
        os.close(descriptor)

    def wait_until_free(self, seconds: float) -> int | None:
        """Waits until no process of the lab is left: the lock; None when the time is over first."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            descriptor = self.lock()
            if descriptor is not None:
                return descriptor
            time.sleep(0.02)
        return None

    def signal(self, pid: int, number: int) -> None:
        """Sends the lab's process a signal; nothing to another one that has its number since it ended."""
        try:
            process = os.pidfd_open(pid)
        except OSError:  # it has ended, or a state that somebody wrote names no process
            return
        try:
            if self._has_lock(pid):
                with suppress(ProcessLookupError):  # it has ended since
                    signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)

    def _has_lock(self, pid: int) -> bool:
        """Whether that process has the lock file open, as the lab's has for its whole life."""
        with suppress(OSError):  # it ends, or is not ours to look at
            return any(self._is_lock(each) for each in Path(f"/proc/{pid}/fd").iterdir())
        return False

    def prepare(self) -> bool:
        """Makes the directory anew; True when a crashed lab's remains were removed."""
        remains = self.path.exists()
        shutil.rmtree(self.path, ignore_errors=True)
        for part in ("logs", "nodes", "controller"):
            (self.path / part).mkdir(parents=True, mode=0o700)
        return remains

    def remove(self) -> None:
        """Removes everything. Only who holds the lock may; the lock file goes too."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.lock_file.unlink(missing_ok=True)


def for_lab(name: str) -> RunDirectory:
    """The directory of the lab called `name`.

    Raises BadRequest(bad_request) for a name that is no DNS label and Refused(not_permitted) when the
    parent directory belongs to somebody else.
    """
    check_label(name, "lab name")
    base = Path(tempfile.gettempdir()) / f"isthmus-lab-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Refused(
            "not_permitted",
            f"{base} belongs to uid {found.st_uid} with mode {stat.filemode(found.st_mode)}; the lab needs "
            f"it to be a directory of uid {os.getuid()} that nobody else can use: remove it, or set TMPDIR",
        )
    return RunDirectory(base / name)


def running(name: str) -> LabState:
    """The state of the running lab. Raises Usage(usage) when there is none."""
    directory = for_lab(name)
    descriptor = directory.lock()
    if descriptor is not None:
        directory.lock_file.unlink(missing_ok=True)  # before it is given up: then it is another lab's
        os.close(descriptor)
        raise Usage("usage", f"no lab called {name!r} is running; start one: isthmus lab --keep", lab=name)
    state = directory.read()
    if state is None or not state.init:
        raise Usage("usage", f"the lab {name!r} is still starting; try again in a moment", lab=name)
    return state
