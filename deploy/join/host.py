"""This machine, as a join needs it: the executable, systemd, files that are whole or not there.

Cancelled, a program that runs is ended and what it did by then stays; all of it may be repeated.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from deploy.join.files import MARK, UNITS
from events.errors import Refused
from nodeagent.local_files import write_atomically
from nodeagent.system import run

SYSTEMD_UNITS = Path("/etc/systemd/system")
SYSCTLS = Path("/etc/sysctl.d")
SYSCTL_FILE = "90-isthmus.conf"
COMMAND_LIMIT_S = 60.0
PULL_LIMIT_S = 600.0
"""For an image that comes over a slow line."""


def require_root() -> None:
    """Raises Refused(not_permitted) for anybody but root."""
    if os.geteuid() != 0:
        raise Refused(
            "not_permitted",
            "a join makes an account, a unit and files below /etc: run it as root (`sudo isthmus join …`)",
        )


@contextlib.contextmanager
def only_one(folder: Path, *, make: bool) -> Iterator[None]:
    """Keep other joins and leaves out of that folder meanwhile; one that is not there is made, if asked to.

    Raises Refused: ``join_running``, and ``not_permitted`` for anybody but root who would make it; OSError.
    A folder that was made and is empty at the end goes again.
    """
    if make:
        require_root()  # first: others cannot even read what is here
    made = make and not folder.exists()
    if made:
        folder.mkdir(parents=True, exist_ok=True, mode=0o770)
    elif not folder.exists():
        yield
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()


def _lock(handle: int, folder: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise Refused(
            "join_running",
            f"another join or leave is at work in {folder}: when it has ended, the same "
            f"command goes on from there",
            path=str(folder),
        ) from error


def systemd_runs() -> bool:
    """Whether systemd is this machine's init (sd_booted(3))."""
    return Path("/run/systemd/system").is_dir()


def executable() -> tuple[str, ...]:
    """How the unit starts this program.

    Raises Refused(prerequisite_missing) when another account than root could not: the unit runs without
    root's rights and sees no home directory.
    """
    program = Path(sys.argv[0] if Path(sys.argv[0]).name == "isthmus" else shutil.which("isthmus") or "")
    program = Path(os.path.abspath(program)) if program.name else program  # noqa: PTH100  a link stays one
    if not program.name or not os.access(program, os.X_OK):
        raise Refused(
            "prerequisite_missing", "this machine has no `isthmus` executable that a unit could start"
        )
    for path in (program, Path(sys.executable).resolve()):
        closed = _closed(path)
        if closed is not None:
            raise Refused(
                "prerequisite_missing",
                f"the agent's account cannot start {path}: {closed} is closed to others, or a home directory. "
                f"Install Isthmus where every account reads it, for example into /opt/isthmus "
                f"(`python3 -m venv /opt/isthmus`), and run /opt/isthmus/bin/isthmus join",
                path=str(path),
            )
    return (str(program),)


def _closed(path: Path) -> Path | None:
    """The first folder on the way to ``path`` that the unit's account cannot pass."""
    for folder in reversed(path.parents):
        if folder in {Path("/root"), Path("/home"), Path("/run/user")}:
            return folder
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def write(path: Path, text: str, *, mode: int = 0o644, keep_as: str = "") -> bool:
    """Write a file of ours, atomically; False when it says so already.

    A file that a join did not write and that says something else is first kept under its name with ``keep_as``
    behind it; without that: raises Refused(file_exists).
    """
    there = current(path)
    if there == text:
        return False
    if there is not None and not there.startswith(MARK) and keep_as:
        before = path.with_name(f"{path.name}{keep_as}")
        if not before.exists():
            write_atomically(before, path.read_bytes(), mode=stat.S_IMODE(path.stat().st_mode))
    elif there is not None and not there.startswith(MARK):
        raise Refused(
            "file_exists",
            f"{path} is there, was not written by a join and says something else: move it away "
            f"(`mv {shlex.quote(str(path))} {shlex.quote(f'{path}.before')}`) and repeat the same command",
            path=str(path),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
    path.chmod(mode)
    return True


def current(path: Path) -> str | None:
    """What a file says; None when it is not there. Bytes that are no text are shown as such, never dropped."""
    try:
        return path.read_bytes().decode(errors="backslashreplace")
    except FileNotFoundError:
        return None


def remove(path: Path) -> bool:
    """Remove a file that a join wrote; whether one was there."""
    there = current(path)
    if there is None or not there.startswith(MARK):
        return False
    path.unlink()
    return True


async def system(*command: str, timeout_s: float = COMMAND_LIMIT_S) -> str:
    """Run one of the system's programs and return what it printed.

    Raises Refused(command_failed) with its words, its exit code and the command.
    """
    try:
        ended = await run(*command, timeout_s=timeout_s)
    except (OSError, TimeoutError) as error:
        why = f"did not end within {timeout_s:.0f} s" if isinstance(error, TimeoutError) else f"failed: {error}"
        raise Refused(
            "command_failed", f"`{' '.join(command)}` {why}", command=list(command), exit_code=-1
        ) from error
    said = (ended.out + ended.err).strip()
    if ended.code:
        raise Refused(
            "command_failed",
            f"`{' '.join(command)}` ended with {ended.code}: {said[-500:] or 'it said nothing'}",
            command=list(command),
            exit_code=ended.code,
        )
    return said


def own(*folders: Path) -> None:
    """Make root the owner of what is in these folders, as of a container's: a unit of before had an account.

    Raises OSError.
    """
    for folder in folders:
        for path in (folder, *folder.rglob("*")) if folder.is_dir() else ():
            os.chown(path, 0, 0, follow_symlinks=False)


def forward(keep: Path) -> None:
    """Let this machine forward, now and (by the file ``keep``) after a boot: a container cannot do that itself.

    Raises OSError, Refused(file_exists).
    """
    setting = Path("/proc/sys/net/ipv4/ip_forward")
    if setting.read_text().strip() != "1":
        setting.write_text("1")
    if keep.parent.is_dir():
        write(keep, f"{MARK}\nnet.ipv4.ip_forward = 1\n")


def without_ipv6(device: str) -> None:
    """Switch IPv6 off on the tunnel, which a container cannot do itself; without it the agent only tells."""
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6").write_text("1")


async def make_account() -> None:
    """The account ``isthmus`` and its folders, by systemd's own tools; harmless to repeat."""
    await system("systemd-sysusers", str(UNITS / "isthmus-sysusers.conf"))
    await system("systemd-tmpfiles", "--create", str(UNITS / "isthmus-tmpfiles.conf"))


async def unit_is(state: str, unit: str) -> bool:
    """Whether systemd says so: ``active``, ``enabled``."""
    try:
        await system("systemctl", "--quiet", f"is-{state}", unit)
    except Refused:
        return False
    return True


async def start_afresh(unit: str) -> None:
    """Start or restart a unit, with its count of restarts at zero; it does not wait until it has started."""
    with contextlib.suppress(Refused):  # a unit that never ran has nothing to reset
        await system("systemctl", "reset-failed", unit)
    await system("systemctl", "--no-block", "restart", unit)


async def restarts(unit: str) -> int:
    """How often systemd has started the unit again since it was started by hand."""
    said = await system("systemctl", "show", "--property=NRestarts", "--value", unit)
    return int(said) if said.isdigit() else 0


async def last_words(unit: str) -> str:
    """The last lines that the unit's program wrote, in one."""
    said = await system(
        "journalctl", "--unit", unit, "--lines", "20", "--output", "cat", "--no-pager", "_TRANSPORT=stdout"
    )
    return in_one(said)


def in_one(said: str) -> str:
    """The last two lines of what a program wrote, in one."""
    return " / ".join(line.strip().rstrip(".") for line in said.splitlines()[-2:]) or "none"


def differing(found: str | None, wanted: str) -> Sequence[str]:
    """The difference as unified diff lines, for a dry run."""
    from difflib import unified_diff

    return list(
        unified_diff((found or "").splitlines(), wanted.splitlines(), "there", "wanted", lineterm="", n=1)
    )
