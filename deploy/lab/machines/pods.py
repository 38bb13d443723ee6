"""Pods: a network namespace each, attached by the node's real CNI plugins, running the prober.

The configuration is the file that the node's agent wrote; this module does what a container runtime does
with it (CNI specification 1.0, section 3: ADD through the list in order, DEL in reverse).
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.lab.failures import CommandFailedError
from deploy.lab.machines.shell import SEARCH_PATH, run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.lab.machines.machine import Machine

PROBER = Path(__file__).parents[1] / "traffic" / "prober.py"


@dataclass(slots=True)
class Pod:
    """One running pod. Commands to its prober are answered by id, so several may be under way.

    Cancelled, what was asked of the prober happens all the same, and its answer is dropped.
    """

    name: str
    node: Machine
    plugins: str
    conflist: dict[str, Any]
    process: asyncio.subprocess.Process
    address: str = ""
    _waiting: dict[int, asyncio.Future[dict[str, Any]]] = field(default_factory=dict)
    _next_id: int = 1
    _reader: asyncio.Task[None] | None = None

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

    async def delete(self) -> None:
        """Detaches the pod by the plugins' DEL and ends its process.

        Cancelled, the process may run on, attached by some of the plugins; what ADD had answered is no longer
        known to a second call.
        """
        previous = self.conflist.pop("_result", None)
        for plugin in reversed(self.conflist["plugins"]):
            await self._plugin("DEL", plugin, previous)
        await self.kill()

    async def kill(self) -> None:
        """SIGKILL for the pod's process, without the plugins' DEL. Returns when it is gone.

        Cancelled, the signal is sent; commands under way may then miss their deadline instead of failing at
        once.
        """
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.kill()
        await self.process.wait()
        if self._reader is not None:
            await self._reader

    async def _plugin(
        self, command: str, plugin: dict[str, Any], previous: dict[str, Any] | None
    ) -> dict[str, Any]:
        configuration = {
            "cniVersion": self.conflist["cniVersion"],
            "name": self.conflist["name"],
            **plugin,
            **({"prevResult": previous} if previous else {}),
        }
        output = await run(
            self.node.inside(f"{self.plugins}/{plugin['type']}"),
            stdin=json.dumps(configuration),
            env={
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": self.name,
                "CNI_NETNS": f"/proc/{self.pid}/ns/net",
                "CNI_IFNAME": "eth0",
                "CNI_PATH": self.plugins,
                "PATH": SEARCH_PATH,
            },
        )
        return dict(json.loads(output)) if output.strip() else {}

    async def attach(self) -> None:
        """Attach it by the CNI plugins. Raises CommandFailedError.

        Cancelled, the plugin under way is killed; what the plugins set up by then stays, and the pod's process
        runs on.
        """
        if self.process.stdout is None or not await self.process.stdout.readline():
            raise CommandFailedError(f"the process of pod {self.name} did not start")
        result: dict[str, Any] | None = None
        for plugin in self.conflist["plugins"]:
            result = await self._plugin("ADD", plugin, result)
        if not result or not result.get("ips"):
            raise CommandFailedError(f"the CNI plugins gave pod {self.name} no address: {result}")
        self.conflist["_result"] = result
        self.address = result["ips"][0]["address"].split("/")[0]


async def start_pod(name: str, node: Machine, conflist: str, plugins: str) -> Pod:
    """Starts the pod's process in a fresh network namespace on `node` and attaches it.

    `conflist` is the content of the file that the node's agent wrote.

    Raises CommandFailedError with what the plugin said when it cannot be attached. Cancelled, the process is
    killed without the plugins' DEL: its address may stay reserved on the node.
    """
    process = await asyncio.create_subprocess_exec(
        "nsenter", "-t", str(node.pid), "-m", "-u", "--",
        "unshare", "--net", "--",
        sys.executable, "-I", "-S", str(PROBER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": SEARCH_PATH},
        start_new_session=True,
    )  # fmt: skip
    pod = Pod(name, node, plugins, json.loads(conflist), process)
    try:
        await pod.attach()
    except BaseException:
        await pod.kill()
        raise
    pod._reader = asyncio.create_task(pod._read(), name=f"pod {name}")  # noqa: SLF001 - the module's own class
    return pod
