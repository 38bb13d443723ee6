"""A process that has read modules once, so that commands and sandboxes, and what runs in them, need not.

Reading them takes longer than most commands compute: half a second for each agent, twice that for bus and
controller. One process per worker of pytest reads them; each command of :func:`typed` and each sandbox is a
fork of it, and each ``isthmus`` that a site in a sandbox starts is a fork of the sandbox. All of them are
processes of their own with their own namespaces, descriptors, signals and warnings, and run the same ``main``
as the installed command does. (What is true of that one itself is tested in tests/e2e.)
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

_SITE = (
    "controlplane.cli.main",
    "controlplane.cli.node",
    "controlplane.cli.up",
    "controlplane.cli.serving",
    "controlplane.cli.controller_process",
    "controlplane.console.server",
    "nodeagent.cli",
    "nodeagent.composition",
    "nodeagent.gateway.conntrack",
    "hypothesis",
    "tests.nodeagent.site",
)
"""What a site in a sandbox reads."""
_NEWNS, _NEWPID, _NEWNET = 0x00020000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE, _MS_SLAVE = (
    2,
    4,
    8,
    4096,
    16384,
    1 << 18,
    1 << 19,
)
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15

_libc = ctypes.CDLL(None, use_errno=True)
_is_fork = False
"""Whether this process is a fork of the one that has read the modules."""


def _call(name: str, *arguments: Any) -> None:
    if getattr(_libc, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _mount(source: str, target: str, kind: str, flags: int) -> None:
    _call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), None)


# ------------------------------------------------------------------ the worker's side


class _Server:
    """The process with the modules of this worker; started when the first one is asked for."""

    def __init__(self) -> None:
        # A library for arithmetic would start threads of its own, which a fork does not have.
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        # Without a buffer: what a line is read from must not hold the next one, for which select waits.
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env
        )

    def run(self, request: Mapping[str, Any], limit_s: float) -> int:
        """Run what is asked for in a fork. Its exit code.

        Raises subprocess.TimeoutExpired, and nothing of it runs any more.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        pid = int(self._process.stdout.readline())
        late = not select.select([self._process.stdout], [], [], limit_s)[0]
        if late:
            with contextlib.suppress(ProcessLookupError):  # it has ended since
                os.kill(pid, signal.SIGKILL)
        code = int(self._process.stdout.readline())
        if late:
            raise subprocess.TimeoutExpired(str(request["arguments"]), limit_s)
        return code

    def close(self) -> None:
        """End it, and what runs in forks of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


_server: _Server | None = None


def _run(
    kind: str, modules: Sequence[str], arguments: Sequence[str], env: Mapping[str, str], limit_s: float
) -> subprocess.CompletedProcess[str]:
    global _server  # noqa: PLW0603  one for each worker
    if _server is None:
        _server = _Server()
        atexit.register(_server.close)
    with tempfile.TemporaryDirectory() as name:
        request = {
            "kind": kind, "modules": modules, "arguments": arguments, "folder": name, "env": dict(env),
            "cwd": str(Path.cwd()),
        }  # fmt: skip
        try:
            code = _server.run(request, limit_s)
        except subprocess.TimeoutExpired:
            raise
        except BaseException:  # it and this process no longer agree on whose answer comes next
            atexit.unregister(_server.close)
            _server.close()
            _server = None
            raise
        out, err = ((Path(name) / each).read_text(errors="replace") for each in ("out", "err"))
    return subprocess.CompletedProcess([*arguments], code, out, err)


def sandbox(module: str, name: str, env: Mapping[str, str], limit_s: float) -> subprocess.CompletedProcess[str]:
    """Run that function in a sandbox of its own, as root; ordinary users need a user namespace, too.

    Raises subprocess.TimeoutExpired, and nothing of it runs any more.
    """
    return _run("sandbox", _SITE, [module, name], env, limit_s)


def typed(
    arguments: Sequence[str], *, modules: Sequence[str], env: Mapping[str, str], timeout_s: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run ``isthmus`` with these arguments; ``modules`` are those that it reads, as far as that is worth it.

    Raises subprocess.TimeoutExpired, and it runs no more.
    """
    return _run("command", ("controlplane.cli.main", *modules), arguments, env, timeout_s)


# ------------------------------------------------------------------ the process that has read the modules


def _serve() -> None:
    for line in sys.stdin.buffer:
        request = json.loads(line)
        for module in request["modules"]:
            importlib.import_module(module)
        assert threading.active_count() == 1, "a fork has only one thread"
        pid = os.fork()
        if not pid:
            leave(partial(_asked, request))
        _say(pid)
        _say(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _say(number: int) -> None:
    sys.stdout.buffer.write(b"%d\n" % number)
    sys.stdout.buffer.flush()


def _asked(request: dict[str, Any]) -> int:
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()  # a signal to its own group is none to the run of all tests
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    folder = Path(request["folder"])
    out, err = (os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND) for name in ("out", "err"))
    if request["kind"] == "command":
        return _command(request["arguments"], out, err, "", {}, {})
    _streams(out, err)
    return _sandbox(*request["arguments"])


def _sandbox(module: str, name: str) -> int:
    """As ``unshare -nmpf --kill-child --mount-proc`` does it."""
    global _is_fork  # noqa: PLW0603
    _call("unshare", _NEWNS | _NEWPID | _NEWNET)
    pid = os.fork()
    if pid:
        return abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    _call("prctl", _PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()  # a group reaches beyond the namespace: that of who waits here, too
    _mount("none", "/", "none", _MS_REC | _MS_PRIVATE)
    _mount("none", "/proc", "none", _MS_REC | _MS_PRIVATE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NOEXEC | _MS_NODEV)
    _is_fork = True
    warnings.resetwarnings()
    warnings.simplefilter("error")
    from tests.nodeagent.sandbox import run_inner

    run_inner(module, name)
    return 0


def _streams(out: int, err: int) -> None:
    """Standard streams of a process that was started with these descriptors; all others are closed."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115


def leave(work: Callable[[], int]) -> NoReturn:
    """Run this as all that is left of the process. What the parent registered for its own end is not run."""
    code = 1
    try:
        atexit._clear()
        code = work()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code)


# ------------------------------------------------------------------ in a sandbox


def may_fork() -> bool:
    """Whether `isthmus` can be a fork of this process: it has read the modules, and has one thread."""
    if not _is_fork or threading.active_count() > 1:
        return False
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


class Fork:
    """A running fork, with the part of subprocess.Popen's face that sites use."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, if it has ended."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(["isthmus"], timeout or 0.0)
            time.sleep(0.005)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


def isthmus(
    arguments: Sequence[str],
    out: IO[Any],
    err: IO[Any],
    *,
    namespace: str = "",
    env: Mapping[str, str] = {},
    over: Mapping[str, str] = {},
) -> Fork:
    """Run the command in a fork, in that network namespace (as ``ip netns exec`` does it).

    It finds other folders at the places in ``over``.
    """
    sys.stdout.flush()  # what a test has printed is not the command's output
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        leave(lambda: _command(arguments, out.fileno(), err.fileno(), namespace, env, over))
    return Fork(pid)


def _command(
    arguments: Sequence[str],
    out: int,
    err: int,
    namespace: str,
    env: Mapping[str, str],
    over: Mapping[str, str],
) -> int:
    global _is_fork  # noqa: PLW0603
    _is_fork = False
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.update(env)
    _streams(out, err)
    _call("prctl", _PR_SET_NAME, b"isthmus")
    if namespace:
        descriptor = os.open(f"/run/netns/{namespace}", os.O_RDONLY)
        _call("setns", descriptor, _NEWNET)
        os.close(descriptor)
        _call("unshare", _NEWNS)
        _mount("none", "/", "none", _MS_REC | _MS_SLAVE)
        _call("umount2", b"/sys", _MNT_DETACH)
        _mount(namespace, "/sys", "sysfs", 0)
        for place, folder in over.items():
            Path(place).mkdir(exist_ok=True)
            _mount(folder, place, "", _MS_BIND)
    sys.warnoptions.clear()
    warnings.resetwarnings()
    for category in (ResourceWarning, ImportWarning, PendingDeprecationWarning, DeprecationWarning):
        warnings.simplefilter("ignore", category)
    from controlplane.cli.main import main

    sys.argv = [str(Path(sys.executable).with_name("isthmus")), *arguments]
    main()
    return 0


if __name__ == "__main__":
    # Pickles and `python -m` aside, this file is one module: the sandbox and sites import it by its name.
    importlib.import_module("tests.prepared")._serve()
