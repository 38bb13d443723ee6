"""What the nodes' kernels do meanwhile and hold at the end, seen by `ip` and `bridge`, not by the agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

from controlplane.cluster.state import ClusterState
from controlplane.controller.agents.attestation import Attestor
from deploy.lab.capsule_replay import expected_rows
from deploy.lab.machines.daemons import Daemon
from deploy.lab.machines.kernel import overlay_rows
from deploy.lab.machines.machine import Machine
from events.status import AgentStatus

MONITORS = (("ip", "-o", "monitor", "route", "neigh"), ("bridge", "-o", "monitor", "fdb"))
SHOWN = 3


class Recorder:
    """Every change of a kernel's tables, written down while the faults happen."""

    def __init__(self, machines: Mapping[str, Machine], directory: Path) -> None:
        self._files = {name: directory / f"kernel-{name}.log" for name in machines}
        self._daemons = [
            Daemon(f"monitor {name}", machine, command, self._files[name])
            for name, machine in machines.items()
            for command in MONITORS
        ]

    async def start(self) -> None:
        await asyncio.gather(*(daemon.start() for daemon in self._daemons))

    async def stop(self) -> None:
        await asyncio.gather(*(daemon.kill() for daemon in self._daemons))

    def taken_away(self, state: ClusterState) -> list[str]:
        """Rows of the real nodes, who were members all the time, that a kernel lost even for a moment."""
        wrong = []
        for name, file in self._files.items():
            marks = set().union(*(_marks(state, other) for other in self._files if other != name))
            lost = [
                line
                for line in file.read_text(errors="replace").splitlines()
                if "Deleted" in line and marks & set(line.split())
            ]
            wrong += [f"the kernel of {name} lost a row of a node that stayed: {line}" for line in lost[:SHOWN]]
        return wrong


def _marks(state: ClusterState, name: str) -> set[str]:
    """The words by which a line about a table tells that it means this node: range, VTEP address, VTEP MAC."""
    cidr = state.owned[name].cidr
    return {cidr, cidr.split("/")[0], state.nodes[name].vtep_mac}


async def differing(machines: Mapping[str, Machine], state: ClusterState) -> list[str]:
    """How the kernels differ from what the log demands, row by row."""
    found = await asyncio.gather(*(overlay_rows(machine) for machine in machines.values()))
    return [
        f"the kernel of {name}: {line}"
        for name, rows in zip(machines, found, strict=True)
        for line in rows.differences(expected_rows(state, name))[:SHOWN]
    ]


def unattested(
    attestor: Attestor, state: ClusterState, statuses: Mapping[str, AgentStatus], names: list[str]
) -> list[str]:
    """The agents that have not published the digest that the log demands at its end."""
    wrong = []
    for name in names:
        status = statuses.get(name)
        if status is None or status.uid != state.nodes[name].uid:
            wrong.append(f"{name} has not reported")
        elif status.applied != state.sequence:
            wrong.append(f"{name} has applied event {status.applied} of {state.sequence}")
        elif not attestor.judge(state, status):
            digest, drift = status.kernel_digest[:16] or "nothing", ", ".join(status.drift[:SHOWN])
            wrong.append(f"{name} attests {digest}…, not what is expected; {drift}")
    return wrong
