"""Checks the backends behind the held addresses, and says which are healthy.

A verdict counts here at once; the log learns of it through the controller, which records changes
rarely, however a backend flaps. A backend that flaps needs more good answers each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections.abc import Callable, Mapping

from events.bus.retry import jittered_s
from events.protocol.clb import Backend, BackendKey

CHECKS_AT_ONCE = 64
ANSWER_LIMIT_BYTES = 4096
RISE_LONGEST = 32
"""Good answers in a row that a flapping backend needs at most."""

CALM_S = 60.0
"""A backend that was healthy for so long is no flapping one."""


class Health:
    """Runs a check per backend while told to; ``changed`` is called when a verdict changes.

    Cancelled, some checks may not have begun or ended: the next call does that.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._tasks: dict[BackendKey, tuple[Backend, asyncio.Task[None]]] = {}
        self._verdicts: dict[BackendKey, tuple[bool, str]] = {}
        self._slots = asyncio.Semaphore(CHECKS_AT_ONCE)

    def verdict(self, key: BackendKey) -> tuple[bool, str] | None:
        """Whether it is healthy by our own checks, and what the last one said; None: no verdict yet."""
        return self._verdicts.get(key)

    async def follow(self, backends: Mapping[BackendKey, Backend]) -> None:
        """Check these from now on, and no others."""
        for key in list(self._tasks):
            wanted = backends.get(key)
            if wanted is None or wanted.added != self._tasks[key][0].added:
                _, task = self._tasks.pop(key)
                self._verdicts.pop(key, None)
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        for key, backend in backends.items():
            if key not in self._tasks and backend.check != "none":
                task = asyncio.create_task(self._watch(key, backend), name=f"check {key.address}")
                self._tasks[key] = backend, task

    async def _watch(self, key: BackendKey, backend: Backend) -> None:
        loop = asyncio.get_running_loop()
        healthy, streak, rise, well_since = backend.healthy, 0, backend.rise, loop.time()
        await asyncio.sleep(jittered_s(backend.check_interval_s / 4, 1.0))
        while True:
            async with self._slots:
                problem = await check(key, backend)
            good = not problem
            streak = 0 if good == healthy else streak + 1
            if good and healthy and loop.time() - well_since > CALM_S:
                rise = backend.rise
            if streak >= (rise if good else backend.fall):
                healthy, streak = good, 0
                if good:
                    well_since = loop.time()
                else:
                    rise = min(RISE_LONGEST, rise * 2) if loop.time() - well_since < CALM_S else backend.rise
            before = self._verdicts.get(key)
            self._verdicts[key] = healthy, problem
            if before is None or before[0] != healthy:
                self._changed()
            await asyncio.sleep(jittered_s(backend.check_interval_s, 0.1))

    async def close(self) -> None:
        """End all checks."""
        await self.follow({})


async def check(key: BackendKey, backend: Backend) -> str:
    """One check; what is wrong, or empty. Cancelled, its connection is closed."""
    port = backend.check_port or key.backend_port
    try:
        async with asyncio.timeout(backend.check_timeout_s):
            tls = _lenient() if backend.check == "https" else None
            reader, writer = await asyncio.open_connection(key.address, port, ssl=tls, limit=ANSWER_LIMIT_BYTES)
            try:
                return (
                    ""
                    if backend.check == "tcp"
                    else await _http(reader, writer, key.address, backend.check_path)
                )
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"no answer from {key.address}:{port} within {backend.check_timeout_s:g} s"
    except OSError as error:
        return f"{key.address}:{port}: {error.strerror or error}"


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, path: str) -> str:
    request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: isthmus\r\nConnection: close\r\n\r\n"
    writer.write(request.encode("ascii", "replace"))
    await writer.drain()
    try:
        line = (await reader.readline()).decode("latin-1").split(maxsplit=2)
    except ValueError:  # a line beyond the reader's limit
        line = []
    if len(line) < 2 or not line[0].startswith("HTTP/") or not line[1].isdecimal():
        return f"{host} does not speak HTTP"
    return "" if 200 <= int(line[1]) < 400 else f"{host} answers {line[1]} to {path}"


@functools.cache
def _lenient() -> ssl.SSLContext:
    """A check asks whether the server answers, not who it is: clients verify that for themselves.

    Made once and without the system's certificates: reading those took 25 ms of every check.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
