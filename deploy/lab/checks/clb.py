"""Checks of the CLB pair: external nodes and their pods reach its backends while backends and gateways fail.

An API server stand-in with TLS and a stand-in for public services, each on two machines of the VPC;
two cloud nodes are gateways. Each check measures real connections from the data centre.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from deploy.credentials.certificates import create_authority, issue_server
from deploy.lab.checks import clb_failures
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.daemons import Daemon
from deploy.lab.traffic.clb_flow import (
    API,
    FLOW_S,
    NAME,
    PORTS,
    SERVICES,
    WEB,
    ClbSetup,
    request_flow,
    show,
    sources,
)
from events.protocol.commands import AddBackend, MarkGateway, ReserveClb

if TYPE_CHECKING:
    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab

HEALTH_LIMIT_S = 30.0
PATIENCE_S = 5.0
"""For an answer where nothing is wrong: a machine that is busy with other things is no loss."""


async def pair(lab: Lab, report: Report) -> None:
    """All of it, one after another. Raises CheckFailedError.

    Cancelled, the gateway marks, the reservation and the backends that were made stay; the stand-ins run until
    the lab is left.
    """
    setup = ClbSetup()
    with report.stage("A CLB pair is reserved, two gateways hold it, stand-ins serve behind it") as check:
        await _set_up(lab, setup)
        held = (await show(lab)).holders
        check.detail = "; ".join(f"{h.purpose} {h.address} on {h.node}, epoch {h.epoch}" for h in held)
        if len({h.node for h in held}) != 2:
            raise CheckFailedError(f"not spread over both gateways: {check.detail}")
    if not check.ok:
        return
    await _reached(lab, report, setup)
    await clb_failures.backend_dies(lab, report, setup)
    await clb_failures.gateway_dies(lab, report, setup)
    await clb_failures.handed_over(lab, report, setup)
    await clb_failures.ten_in_a_row(lab, report, setup)
    await clb_failures.split(lab, report, setup)


async def _set_up(lab: Lab, setup: ClbSetup) -> None:
    vpc = lab.topology.sites[0]
    subnet = f"{vpc.subnet[64]}/28"
    gateways = [node.name for node in lab.topology.nodes if node.kind == "cloud"][:2]
    for name in gateways:
        await lab.client.send(MarkGateway(node=name))
    reply = await lab.client.send(ReserveClb(reservation=NAME, subnet=subnet, provider="gateway"))
    setup.addresses = {item["purpose"]: item["address"] for item in reply.result["addresses"]}
    create_authority(lab.directory.path)
    setup.authority, setup.certificate, setup.key = issue_server(
        lab.directory.path, "api", [*setup.addresses.values()]
    )
    for number, (name, purpose) in enumerate(
        (("api-1", API), ("api-2", API), ("services-1", SERVICES), ("services-2", SERVICES))
    ):
        address = vpc.subnet[201 + number]
        machine = await lab.fabric.add_server(name, lab.topology.controller + 200 + number, vpc, address)
        tls = [str(setup.certificate), str(setup.key)] if purpose == API else []
        line = [sys.executable, WEB, "serve", name, str(PORTS[purpose]), *tls]
        setup.servers[name] = Daemon(name, machine, line, lab.directory.log(name))
        lab.stand_ins.append(setup.servers[name])
        await setup.servers[name].start()
        await lab.client.send(
            AddBackend(
                reservation=NAME,
                purpose=purpose,
                port=PORTS[purpose],
                address=str(address),
                check="https" if purpose == API else "http",
            )
        )

    async def listening() -> bool:
        return all("ready" in server.log.read_text() for server in setup.servers.values())

    # A new backend counts as healthy until it was checked: the pair may be held before a stand-in listens.
    await lab.wait_until(listening, HEALTH_LIMIT_S, "the stand-ins to listen")

    async def held_and_healthy() -> bool:
        view = await show(lab)
        return all(h.node for h in view.holders) and all(b.healthy for b in view.backends)

    await lab.wait_until(
        held_and_healthy, HEALTH_LIMIT_S, "both addresses to be held and all backends to be healthy"
    )


async def _reached(lab: Lab, report: Report, setup: ClbSetup) -> None:
    with report.stage("External nodes and their pods reach both addresses, the API server by TLS") as check:
        rows: list[tuple[object, ...]] = []
        lost: list[str] = []
        for source, inside in sources(lab).items():
            async with AsyncExitStack() as stack:
                flows = [
                    await stack.enter_async_context(request_flow(inside, setup, purpose, patience_s=PATIENCE_S))
                    for purpose in PORTS
                ]
                await asyncio.sleep(FLOW_S)  # the length of the measurement
            for flow in flows:
                rows.append(
                    (source, flow.purpose, setup.addresses[flow.purpose], len(flow.found), flow.answered,
                     flow.by)
                )  # fmt: skip
                if flow.lost or not flow.found or flow.kept != len(flow.lasting):
                    broken = [one["broken"] for one in flow.lasting if one["broken"]]
                    lost.append(f"{source} to {flow.purpose} ({flow.lost} lost, broken in progress: {broken})")
        report.table(
            "Requests through the pair, each by a connection of its own",
            ("from", "to", "address", "asked", "answered", "by"),
            rows,
            right=("asked", "answered"),
            drop=("by",),
        )
        if lost:
            raise CheckFailedError(f"not every request was answered: {', '.join(lost)}")
        check.detail = f"{sum(int(str(row[3])) for row in rows)} requests, all answered"
