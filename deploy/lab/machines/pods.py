"""Pods: a network namespace each, attached by the node's real CNI plugins, running the prober.

The configuration is the file that the node's agent wrote; this module does what a container runtime does
with it (CNI specification 1.0, section 3: ADD through the list in order, DEL in reverse).
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploy.lab.failures import CommandFailedError
from deploy.lab.machines.probing import PROBER, Probing
from deploy.lab.machines.shell import SEARCH_PATH, run

if TYPE_CHECKING:
    from deploy.lab.machines.machine import Machine


@dataclass(slots=True, kw_only=True)
class Pod(Probing):
    """One running pod: the prober is its process."""

    node: Machine
    plugins: str
    conflist: dict[str, Any]

    async def delete(self) -> None:
        """Detaches the pod by the plugins' DEL and ends its process.

        Cancelled, the process may run on, attached by some of the plugins; what ADD had answered is no longer
        known to a second call.
        """
        previous = self.conflist.pop("_result", None)
        for plugin in reversed(self.conflist["plugins"]):
            await self._plugin("DEL", plugin, previous)
        await self.kill()

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
    pod = Pod(name=name, node=node, plugins=plugins, conflist=json.loads(conflist), process=process)
    try:
        await pod.attach()
    except BaseException:
        await pod.kill()
        raise
    pod.listen()
    return pod
