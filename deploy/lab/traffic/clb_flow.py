"""The backends of the lab's CLB pair, and requests through it while something happens to it."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.lab.failures import CheckFailedError
from events.protocol.queries import ClbAnswer, ShowClb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from deploy.lab.machines.daemons import Daemon
    from deploy.lab.reports.report import Check, Report
    from deploy.lab.runtime import Lab

WEB = str(Path(__file__).with_name("web.py"))
NAME = "main"
API, SERVICES = "apiserver", "public-services"
PORTS = {API: 6443, SERVICES: 8080}
FLOW_S = 1.0
START_LIMIT_S = END_LIMIT_S = 30.0
OUTAGE_S = 0.5
"""A new connection that takes longer counts as lost where an outage is measured. TCP repeats after 1 s."""


@dataclass(slots=True)
class ClbSetup:
    """The pair as set up: addresses by purpose, the stand-ins by machine, and the certificate."""

    addresses: dict[str, str] = field(default_factory=dict)
    servers: dict[str, Daemon] = field(default_factory=dict)
    authority: Path = Path()
    certificate: Path = Path()
    key: Path = Path()


@dataclass(slots=True)
class RequestFlow:
    """New connections to one purpose while a block runs, and connections that stayed open meanwhile."""

    purpose: str
    found: list[tuple[float, str]] = field(default_factory=list)
    lasting: list[dict[str, Any]] = field(default_factory=list)

    @property
    def answered(self) -> int:
        return sum(bool(name) for _, name in self.found)

    @property
    def lost(self) -> int:
        return len(self.found) - self.answered

    @property
    def by(self) -> str:
        return ", ".join(sorted({name for _, name in self.found if name})) or "nobody"

    @property
    def kept(self) -> int:
        """Connections in progress that went on."""
        return sum(not one["broken"] and one["answered"] > 0 for one in self.lasting)

    @property
    def silence_s(self) -> float:
        """The longest time between two answers to new connections. Raises CheckFailedError."""
        good = sorted(moment for moment, name in self.found if name)
        if len(good) < 2:
            raise CheckFailedError(f"{self.purpose} was never reached")
        return max(after - before for before, after in pairwise(good))


@asynccontextmanager
async def request_flow(
    inside: Sequence[str], setup: ClbSetup, purpose: str, *, patience_s: float = OUTAGE_S
) -> AsyncIterator[RequestFlow]:
    """Ask while the block runs, from its beginning on; its results are there afterwards.

    Raises CheckFailedError when nobody asks after START_LIMIT_S. Cancelled in the block, the results stay
    empty; the process that asks is ended, by SIGKILL if END_LIMIT_S was not enough.
    """
    authority = [str(setup.authority)] if purpose == API else []
    address, port = setup.addresses[purpose], str(PORTS[purpose])
    process = await asyncio.create_subprocess_exec(
        *inside, sys.executable, WEB, "ask", address, port, str(patience_s), *authority,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    asked = RequestFlow(purpose)
    try:
        await _asks(process)
        yield asked
    finally:
        try:
            async with asyncio.timeout(END_LIMIT_S):
                out, _ = await process.communicate(b"")  # the end of its input is its sign to stop
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    for line in map(json.loads, out.splitlines()):
        if isinstance(line, dict):
            asked.lasting.append(line)
        else:
            asked.found.append((line[0], line[1]))


async def _asks(process: asyncio.subprocess.Process) -> None:
    """Wait until it does: a busy machine may take seconds to start a program. Raises CheckFailedError.

    Cancelled, it leaves the process as it is.
    """
    try:
        async with asyncio.timeout(START_LIMIT_S):
            began = await process.stdout.readline() if process.stdout is not None else b""
    except TimeoutError:
        began = b""
    if not began:
        raise CheckFailedError(f"the program that asks has not begun after {START_LIMIT_S:g} s")


@asynccontextmanager
async def under_flow(
    lab: Lab, setup: ClbSetup, report: Report, check: Check, limit_s: float
) -> AsyncIterator[list[RequestFlow]]:
    """Ask from an external node for both purposes while something happens; a table says what was lost.

    Raises CheckFailedError. Cancelled inside of the block, both flows are ended and there is no table.
    """
    inside = next(iter(sources(lab).values()))
    async with AsyncExitStack() as stack:
        flows = [await stack.enter_async_context(request_flow(inside, setup, purpose)) for purpose in PORTS]
        await asyncio.sleep(FLOW_S)
        yield flows
        await asyncio.sleep(FLOW_S)
    report.table(
        check.name,
        ("to", "asked", "lost", "longest silence", "answered by", "in progress", "kept"),
        [
            (f.purpose, len(f.found), f.lost, f"{f.silence_s:.2f} s", f.by, len(f.lasting), f.kept)
            for f in flows
        ],
        right=("asked", "lost", "longest silence", "in progress", "kept"),
        drop=("answered by",),
    )
    worst = max(flow.silence_s for flow in flows)
    check.measured |= {
        "longest_silence_s": worst,
        "lost": sum(flow.lost for flow in flows),
        "in_progress": sum(len(flow.lasting) for flow in flows),
        "kept": sum(flow.kept for flow in flows),
    }
    check.detail = f"longest silence of new connections {worst:.2f} s (limit {limit_s:g} s)"
    if worst > limit_s:
        raise CheckFailedError(check.detail)


def sources(lab: Lab) -> dict[str, list[str]]:
    """External nodes and one pod of each: name → what runs a command there."""
    found: dict[str, list[str]] = {}
    for node in lab.nodes.values():
        if node.node.kind == "external":
            found[node.name] = node.machine.inside()
            found |= {pod.name: ["nsenter", "-t", str(pod.pid), "-n", "--"] for pod in node.pods[:1]}
    return found


async def show(lab: Lab) -> ClbAnswer:
    """The pair as the controller knows it. Cancelled, the question may still be answered; it has no effect."""
    return await lab.client.ask(ShowClb(reservation=NAME), ClbAnswer)


async def holders(lab: Lab) -> dict[str, str]:
    """Purpose → the gateway that holds its address.

    Cancelled, the question may still be answered; it has no effect.
    """
    return {holder.purpose: holder.node for holder in (await show(lab)).holders}
