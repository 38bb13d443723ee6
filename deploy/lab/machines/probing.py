"""Whoever sends and counts a pod's packets: a process that runs the prober, and what is asked of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.lab.failures import CommandFailedError

if TYPE_CHECKING:
    from collections.abc import Sequence

PROBER = Path(__file__).parents[1] / "traffic" / "prober.py"


@dataclass(slots=True, kw_only=True)
class Probing:
    """One prober. Commands to it are answered by id, so several may be under way.

    Cancelled, what was asked of the prober happens all the same, and its answer is dropped.
    """

    name: str
    process: asyncio.subprocess.Process
    address: str = ""
    _waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _next_id: int = 1
    _reader: asyncio.Task[None] | None = None

    def listen(self) -> None:
        """Take its answers from now on, until its process ends."""
        self._reader = asyncio.create_task(self._read(), name=f"pod {self.name}")

    @property
    def pid(self) -> int:
        return self.process.pid

    async def probe(
        self,
        targets: Sequence[str],
        *,
        count: int = 10,
        interval_ms: float = 1,
        timeout_ms: int = 5000,
        size: int = 0,
    ) -> list[dict[str, Any]]:
        """Sends `count` numbered packets to each target; one report per target, in order."""
        answer = await self._ask(
            op="probe",
            targets=list(targets),
            count=count,
            interval_ms=interval_ms,
            timeout_ms=timeout_ms,
            size=size,
        )
        return list(answer["results"])

    async def start_flow(self, target: str, *, interval_ms: float) -> None:
        """Starts a stream of numbered packets that goes on until `stop_flow`."""
        await self._ask(op="flow-start", target=target, interval_ms=interval_ms)

    async def stop_flow(self, *, at_least: int = 0) -> dict[str, Any]:
        """Stops once `at_least` packets were sent, waits for the last answers, and returns the counts."""
        answer = await self._ask(op="flow-stop", at_least=at_least, timeout_ms=5000)
        return dict(answer["results"][0])

    async def _ask(self, **command: Any) -> dict[str, Any]:
        if self.process.stdin is None:
            raise RuntimeError("the prober's standard input is a pipe")
        number = self._next_id
        self._next_id += 1
        future = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        self.process.stdin.write(json.dumps({"id": number, **command}).encode() + b"\n")
        try:
            async with asyncio.timeout(30):
                await self.process.stdin.drain()
                answer: dict[str, Any] = await future
        except ConnectionError as error:
            raise CommandFailedError(f"pod {self.name} ended") from error
        finally:
            self._waiting.pop(number, None)
        return answer

    async def _read(self) -> None:
        if self.process.stdout is None:
            raise RuntimeError("the prober's standard output is a pipe")
        while line := await self.process.stdout.readline():
            message = json.loads(line)
            future = self._waiting.get(message.get("id", 0))
            if future is not None and not future.done():
                future.set_result(message)
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(CommandFailedError(f"pod {self.name} ended"))

    async def kill(self) -> None:
        """SIGKILL for the process. Returns when it is gone.

        Cancelled, the signal is sent; commands under way may then miss their deadline instead of failing at
        once.
        """
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        if self._reader is not None:
            await self._reader
