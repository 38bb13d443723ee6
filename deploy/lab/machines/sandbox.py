"""Runs a function inside private namespaces that the kernel removes when the caller ends.

    caller ── fork ──▶ init (PID 1 of the new PID namespace) ── fork ──▶ the function

The caller moves itself into new network, mount and PID namespaces (and a user namespace when it is not
root). The death of the caller, even by SIGKILL, kills init, and with PID 1 the kernel ends every process
and removes every interface and mount of the sandbox. It must never unshare while threads run, and must
never leave a mount that reaches the host.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from events.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Callable

# linux/sched.h, linux/mount.h, linux/prctl.h
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_NOSUID_NODEV = 0x2 | 0x4
MS_REC_PRIVATE = 0x4000 | 0x40000
PR_SET_PDEATHSIG = 1
CAP_SYS_ADMIN = 21

OUTPUT_REFUSED = os.EX_IOERR
"""Exit code inside of the sandbox: standard output took no more. The caller says why."""

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interruption:
    """The stop signal that has come to the work, once one has; for its event loop, which owns it."""

    def __init__(self) -> None:
        self.came = asyncio.Event()
        self.exit_code = 0
        """128 and the number of the first signal, as a shell says it."""
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._take, number)

    def _take(self, number: int) -> None:
        self.exit_code = self.exit_code or 128 + number
        self.came.set()


class _Interrupted(KeyboardInterrupt):
    """A stop signal before the work minds them itself."""


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise _Interrupted(number)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshare(flags: int) -> None:
    if _libc().unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    result = _libc().mount(
        source.encode(), target.encode(), kind.encode() if kind else None,
        ctypes.c_ulong(flags), data.encode() if data else None,
    )  # fmt: skip
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind or ''} on {target}: {os.strerror(number)}")


def _may_administer() -> bool:
    """Whether CAP_SYS_ADMIN is effective: root in a container often lacks it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_ADMIN & 1)
    return False


def _enter_namespaces() -> bool:
    """Returns whether a user namespace was needed.

    Raises Refused(not_permitted) with the way out when the kernel says no.
    """
    if threading.active_count() > 1:
        raise RuntimeError("namespaces must be entered before any thread starts")
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET
    needs_user_namespace = not _may_administer()
    uid, gid = os.getuid(), os.getgid()
    try:
        _unshare(flags | (CLONE_NEWUSER if needs_user_namespace else 0))
        if needs_user_namespace:
            # user_namespaces(7): without privilege, setgroups has to be denied before the group is mapped.
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
            Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    except OSError as error:
        raise Refused("not_permitted", _refusal(error), uid=uid) from error
    return needs_user_namespace


def _refusal(error: OSError) -> str:
    reason = error.strerror or str(error)
    restricted = Path("/proc/sys/kernel/apparmor_restrict_unprivileged_userns")
    disabled = Path("/proc/sys/kernel/unprivileged_userns_clone")
    if error.errno == errno.ENOSPC:
        hint = "raise the limit: sudo sysctl -w user.max_user_namespaces=10000"
    elif restricted.exists() and restricted.read_text().strip() != "0":
        hint = "run it with sudo, or allow it: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    elif disabled.exists() and disabled.read_text().strip() == "0":
        hint = "run it with sudo, or allow it: sudo sysctl -w kernel.unprivileged_userns_clone=1"
    else:
        hint = "run it with sudo; inside a container, start that container with --privileged"
    return f"this system refuses private namespaces to uid {os.getuid()} ({reason}); {hint}"


def _private_mounts() -> None:
    _mount("none", "/", None, MS_REC_PRIVATE)
    _mount("proc", "/proc", "proc", MS_NOSUID_NODEV)
    # `ip netns`, nft and the CNI plugins keep files in /run; these are ours alone.
    _mount("isthmus", "/run", "tmpfs", MS_NOSUID_NODEV, "mode=0755")
    Path("/run/netns").mkdir()


def _exit_code(status: int) -> int:
    return os.waitstatus_to_exitcode(status) if not os.WIFSIGNALED(status) else 128 + os.WTERMSIG(status)


def output_refused(probe: str = "\n") -> bool:
    """Whether standard output takes no more (a full disk, a reader that has gone): ``probe`` is written."""
    try:
        sys.stdout.write(probe)
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _leave(code: int) -> NoReturn:
    code = OUTPUT_REFUSED if output_refused("") and not code else code
    with suppress(OSError):
        sys.stderr.flush()
    os._exit(code)


def _init(work: Callable[[], int], caller: int) -> NoReturn:
    """PID 1: starts the work, reaps orphans, passes stop signals on, leaves with the work's exit code.

    Stop signals are blocked when this begins; each process unblocks them when it is ready for them, so
    that none is lost in between.
    """
    _libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.read(caller, 1) != b"g":
        _leave(1)  # the caller died or gave up before it said go
    os.close(caller)
    _private_mounts()
    worker = os.fork()
    if worker == 0:
        for number in STOP_SIGNALS:
            signal.signal(number, _interrupt)
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            _leave(work())
        except _Interrupted as error:
            _leave(128 + int(error.args[0]))
        except KeyboardInterrupt:
            _leave(128 + signal.SIGINT)
        except BaseException as error:
            if isinstance(error, OSError) and output_refused():
                _leave(OUTPUT_REFUSED)
            sys.excepthook(*sys.exc_info())
            _leave(70)

    def forward(number: int, _frame: object) -> None:
        os.kill(worker, number)

    for number in STOP_SIGNALS:
        signal.signal(number, forward)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    while True:
        pid, status = os.wait()
        if pid == worker:
            _leave(_exit_code(status))


def run(work: Callable[[], int], started: Callable[[int, bool], None]) -> int:
    """Runs `work` in the sandbox and returns its exit code.

    `started(init PID as the host sees it, whether a user namespace is in use)` runs in the caller when the
    sandbox exists and before the work begins. A stop signal is passed on once; a second one ends the
    sandbox at once, which is as clean, because the kernel does the cleaning.

    Raises Refused(not_permitted) when the kernel refuses the namespaces, and OSError when standard output took
    no more.
    """
    user_namespace = _enter_namespaces()
    caller, go = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    init = os.fork()
    if init == 0:
        os.close(go)
        _init(work, caller)
    os.close(caller)
    process = os.pidfd_open(init)  # a number may be another process's once this one has ended
    stops = 0

    def stop(number: int, _frame: object) -> None:
        nonlocal stops
        stops += 1
        # A terminal's Ctrl-C reaches the worker directly; init passes on what comes from elsewhere.
        with suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(process, number if stops == 1 else signal.SIGKILL)

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        started(init, user_namespace)
        os.write(go, b"g")
        _, status = os.waitpid(init, 0)
        if _exit_code(status) == OUTPUT_REFUSED:
            sys.stdout.write("\n")  # meets what the worker met, here where somebody tells it
            sys.stdout.flush()
        return _exit_code(status)
    finally:
        os.close(go)
        for number, handler in previous.items():
            signal.signal(number, handler)
        os.close(process)
