"""Long-running processes of the lab: the controller and the agents, each with its log file.

Each runs on its machine in a session of its own, so that a Ctrl-C at the terminal reaches the lab first
and the lab ends them in order. Only processes started here are ever signalled.
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploy.lab.machines.shell import SEARCH_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploy.lab.machines.machine import Machine

STOP_LIMIT_S = 10.0


@dataclass(slots=True)
class Daemon:
    """One process that can be killed and started again with the same command line.

    Cancelled, only the waiting ends: a signal is sent once, and no process runs that is not in ``process``.
    """

    name: str
    machine: Machine
    arguments: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    descriptors: Sequence[int] = ()  # handed down to the process
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    started_at_s: float = 0.0  # the event loop's clock

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def start(self) -> None:
        """Starts the process; its output is appended to the log."""
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            self.process = await asyncio.create_subprocess_exec(
                *self.machine.inside(*self.arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env={**os.environ, "PATH": SEARCH_PATH, **self.environment},
                start_new_session=True,
                pass_fds=self.descriptors,
            )
        finally:
            os.close(descriptor)
        self.starts += 1
        self.started_at_s = asyncio.get_running_loop().time()

    async def kill(self) -> None:
        """SIGKILL: no chance to clean up. Returns when the process is gone."""
        await self._signal(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal that does not end the process, if it runs (SIGSTOP, SIGCONT, SIGHUP)."""
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def stop(self) -> float:
        """SIGTERM; returns the seconds it took. SIGKILL after STOP_LIMIT_S."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self._signal(signal.SIGTERM)
        except TimeoutError:
            await self.kill()
        return loop.time() - started

    async def _signal(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self.send(number)
        await self.process.wait()

    def log_tail(self, lines: int = 12) -> str:
        """The end of the log, for a report of what went wrong."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return "(no output)"
