"""What the lab proves about the CLB pair: external nodes and their pods reach what is behind it, whatever dies.

An API server stand-in with TLS and a stand-in for public services, each on two machines of the VPC;
two cloud nodes are gateways. Each proof measures real connections from the data centre.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.lab.certificate import self_signed
from deploy.lab.daemons import Daemon
from deploy.lab.report import ProofFailedError
from deploy.lab.shell import run
from events.commands import AddBackend, MarkGateway, ReserveClb
from events.queries import ClbView, ShowClb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from deploy.lab.report import Check, Report
    from deploy.lab.runtime import Lab

WEB = str(Path(__file__).with_name("web.py"))
NAME = "main"
API, SERVICES = "apiserver", "public-services"
PORTS = {API: 6443, SERVICES: 8080}
SILENCE_LIMIT_S = {"died": 5.0, "planned": 1.0}
FLOW_S = 1.0


@dataclass(slots=True)
class Standing:
    """What stands: addresses by purpose, the stand-ins by machine, and the certificate."""

    addresses: dict[str, str] = field(default_factory=dict)
    servers: dict[str, Daemon] = field(default_factory=dict)
    certificate: Path = Path()
    key: Path = Path()


class Asking:
    """Requests from one place to one purpose while the block runs."""

    def __init__(self, purpose: str) -> None:
        self.purpose = purpose
        self.found: list[tuple[float, str]] = []

    @property
    def answered(self) -> int:
        return sum(bool(name) for _, name in self.found)

    @property
    def by(self) -> str:
        return ", ".join(sorted({name for _, name in self.found if name})) or "nobody"

    @property
    def silence_s(self) -> float:
        """The longest time between two answers."""
        good = sorted(moment for moment, name in self.found if name)
        if len(good) < 2:
            raise ProofFailedError(f"{self.purpose} was never reached")
        return max(after - before for before, after in pairwise(good))


@asynccontextmanager
async def asking(inside: Sequence[str], standing: Standing, purpose: str) -> AsyncIterator[Asking]:
    """Ask while the block runs; its results are there afterwards."""
    certificate = [str(standing.certificate)] if purpose == API else []
    address, port = standing.addresses[purpose], str(PORTS[purpose])
    process = await asyncio.create_subprocess_exec(
        *inside, sys.executable, WEB, "ask", address, port, *certificate,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    found = Asking(purpose)
    try:
        yield found
    finally:
        try:
            async with asyncio.timeout(10):
                out, _ = await process.communicate(b"")  # the end of its input is its sign to stop
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        found.found = [(moment, name) for moment, name in map(json.loads, out.splitlines())]


async def pair(lab: Lab, report: Report) -> None:
    """All of it, one after another."""
    standing = Standing()
    with report.stage("A CLB pair is reserved, two gateways hold it, stand-ins serve behind it") as check:
        await _set_up(lab, standing)
        held = (await _show(lab)).holders
        check.detail = "; ".join(f"{h.purpose} {h.address} on {h.node}, epoch {h.epoch}" for h in held)
        if len({h.node for h in held}) != 2:
            raise ProofFailedError(f"not spread over both gateways: {check.detail}")
    if not check.ok:
        return
    await _reached(lab, report, standing)
    await _backend_dies(lab, report, standing)
    await _gateway_dies(lab, report, standing)
    await _handed_over(lab, report, standing)


async def _set_up(lab: Lab, standing: Standing) -> None:
    vpc = lab.topology.sites[0]
    subnet = f"{vpc.subnet[64]}/28"
    gateways = [node.name for node in lab.topology.nodes if node.kind == "cloud"][:2]
    for name in gateways:
        await lab.client.send(MarkGateway(node=name))
    reply = await lab.client.send(ReserveClb(reservation=NAME, subnet=subnet, provider="gateway"))
    standing.addresses = {item["purpose"]: item["address"] for item in reply.result["addresses"]}
    standing.certificate, standing.key = self_signed(lab.directory.path, list(standing.addresses.values()))
    for number, (name, purpose) in enumerate(
        (("api-1", API), ("api-2", API), ("services-1", SERVICES), ("services-2", SERVICES))
    ):
        address = vpc.subnet[201 + number]
        place = await lab.fabric.add_server(name, lab.topology.controller + 200 + number, vpc, address)
        tls = [str(standing.certificate), str(standing.key)] if purpose == API else []
        line = [sys.executable, WEB, "serve", name, str(PORTS[purpose]), *tls]
        standing.servers[name] = Daemon(name, place, line, lab.directory.log(name))
        lab.stand_ins.append(standing.servers[name])
        await standing.servers[name].start()
        await lab.client.send(
            AddBackend(
                reservation=NAME,
                purpose=purpose,
                port=PORTS[purpose],
                address=str(address),
                check="https" if purpose == API else "http",
            )
        )

    async def held_and_healthy() -> bool:
        view = await _show(lab)
        return all(h.node for h in view.holders) and all(b.healthy for b in view.backends)

    await lab.wait_until(held_and_healthy, 15, "both addresses to be held and all backends to be healthy")


async def _show(lab: Lab) -> ClbView:
    return await lab.client.ask(ShowClb(reservation=NAME), ClbView)


def _sources(lab: Lab) -> dict[str, list[str]]:
    """External nodes and one pod of each: name → what runs a command there."""
    found: dict[str, list[str]] = {}
    for node in lab.nodes.values():
        if node.node.kind == "external":
            found[node.name] = node.place.inside()
            found |= {pod.name: ["nsenter", "-t", str(pod.pid), "-n", "--"] for pod in node.pods[:1]}
    return found


async def _reached(lab: Lab, report: Report, standing: Standing) -> None:
    with report.stage("External nodes and their pods reach both addresses, the API server by TLS") as check:
        rows: list[tuple[object, ...]] = []
        for source, inside in _sources(lab).items():
            for purpose in PORTS:
                async with asking(inside, standing, purpose) as found:
                    await asyncio.sleep(FLOW_S)  # the length of the measurement
                rows.append((source, purpose, standing.addresses[purpose], len(found.found), found.answered,
                             found.by))  # fmt: skip
        report.table(
            "Requests through the pair, each by a connection of its own",
            ("from", "to", "address", "asked", "answered", "by"),
            rows,
            right=("asked", "answered"),
        )
        lost = [f"{row[0]} to {row[1]}" for row in rows if row[3] != row[4]]
        if lost:
            raise ProofFailedError(f"not every request was answered: {', '.join(lost)}")
        check.detail = f"{sum(int(str(row[3])) for row in rows)} requests, all answered"


@asynccontextmanager
async def _under_flow(
    lab: Lab, standing: Standing, report: Report, check: Check, limit_s: float
) -> AsyncIterator[None]:
    """Ask from an external node for both purposes while something happens; a table says what was lost."""
    inside = next(iter(_sources(lab).values()))
    async with asking(inside, standing, API) as api, asking(inside, standing, SERVICES) as services:
        await asyncio.sleep(FLOW_S)
        yield
        await asyncio.sleep(FLOW_S)
    report.table(
        check.name,
        ("to", "asked", "lost", "longest silence", "answered by"),
        [
            (f.purpose, len(f.found), len(f.found) - f.answered, f"{f.silence_s:.2f} s", f.by)
            for f in (api, services)
        ],
        right=("asked", "lost", "longest silence"),
    )
    worst = max(api.silence_s, services.silence_s)
    check.measured = {
        "longest_silence_s": worst,
        "lost": sum(len(f.found) - f.answered for f in (api, services)),
    }
    check.detail = f"longest silence {worst:.2f} s (limit {limit_s:g} s)"
    if worst > limit_s:
        raise ProofFailedError(check.detail)


async def _backend_dies(lab: Lab, report: Report, standing: Standing) -> None:
    with report.stage("A backend dies: the other one answers") as check:
        async with _under_flow(lab, standing, report, check, SILENCE_LIMIT_S["died"]):
            await standing.servers["api-1"].kill()

            async def found_out() -> bool:
                return sum(not b.healthy for b in (await _show(lab)).backends) == 1

            await lab.wait_until(found_out, 15, "the dead backend to be noticed")
        await standing.servers["api-1"].start()

        async def all_well() -> bool:
            return all(b.healthy for b in (await _show(lab)).backends)

        await lab.wait_until(all_well, 30, "the backend to be healthy again")


async def _holders(lab: Lab) -> dict[str, str]:
    return {h.purpose: h.node for h in (await _show(lab)).holders}


async def _gateway_dies(lab: Lab, report: Report, standing: Standing) -> None:
    victim = lab.nodes[(await _holders(lab))[API]]
    with report.stage(f"The gateway {victim.name} dies: the other one takes its address") as check:
        async with _under_flow(lab, standing, report, check, SILENCE_LIMIT_S["died"]):
            await run(["ip", "link", "set", f"u-{victim.name}", "down"])
            await victim.agent.kill()

            async def replaced() -> bool:
                return victim.name not in (await _holders(lab)).values()

            await lab.wait_until(replaced, 10, f"{victim.name} to be replaced")
        await run(["ip", "link", "set", f"u-{victim.name}", "up"])
        await victim.agent.start()
        await lab.wait_until(lambda: lab.reports_since_start(victim), 20, f"the agent of {victim.name}")

        async def gave_up() -> bool:
            return standing.addresses[API] not in await victim.place.run("ip", "addr", "show", "dev", "eth0")

        await lab.wait_until(gave_up, 10, f"{victim.name}, back again, to give the address up")


async def _handed_over(lab: Lab, report: Report, standing: Standing) -> None:
    with report.stage("A gateway is taken out on purpose: handover first") as check:
        leaving = (await _holders(lab))[API]
        async with _under_flow(lab, standing, report, check, SILENCE_LIMIT_S["planned"]):
            await lab.client.send(MarkGateway(node=leaving, on=False))
        if leaving in (await _holders(lab)).values():
            raise ProofFailedError(f"{leaving} still holds an address")
