"""The lab's scenario: bring the two sites up, run every check, and stay or go.

Runs as the sandbox's worker. It must leave the sandbox the way it found the world: in order when it can,
by its death when it cannot.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec

from controlplane.cluster.addressing.plan import addresses_and_pods
from deploy.lab.checks import bus, leaf, overlay
from deploy.lab.checks import clb as clb_checks
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines import sandbox
from deploy.lab.machines.bare import Bare
from deploy.lab.machines.buses import Buses
from deploy.lab.reports.report import Report
from deploy.lab.runtime import Lab
from events.errors import IsthmusError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploy.lab.reports.run_directory import LabState, RunDirectory
    from deploy.lab.topology.layout import Topology


@dataclass(frozen=True, slots=True)
class LabOptions:
    """What to do, from the command line."""

    keep: bool
    as_json: bool
    churn: Sequence[Path] = ()
    seed: int = 1
    kills: int = 0
    secure: bool = False
    bus_servers: int = 1
    leaf: bool = False
    clb: bool = False
    direct: bool = False
    encrypt: Literal["off", "sites", "all"] = "off"
    nat: bool = False
    bare: Path | None = None
    """What makes a node of a machine with only Python (`make node`)."""
    breaks: Sequence[str] = ()
    """Paths to break instead of the other checks, by kind."""
    console: int = -1  # descriptor of a listening socket of the host, for the console
    console_url: str = ""
    quarantine_s: float = 1.0


def work(
    options: LabOptions, topology: Topology, directory: RunDirectory, plugins: str, state: LabState
) -> int:
    """The sandbox's worker: exit code 0 when all checks passed, 1 when one failed, or the interruption's."""
    try:
        return asyncio.run(_main(options, topology, directory, plugins, state))
    except Exception as error:
        # This process has no caller who could show the error: it is a fork in another PID namespace.
        if os.environ.get("ISTHMUS_DEBUG"):
            raise
        if isinstance(error, OSError) and sandbox.output_refused():
            return sandbox.OUTPUT_REFUSED
        known = error if isinstance(error, IsthmusError) else None
        text = (
            known.message
            if known
            else f"unexpected {type(error).__name__}: {error} (ISTHMUS_DEBUG=1 shows where)"
        )
        sys.stderr.write(f"isthmus: the lab ended: {text} [{known.code if known else 'internal'}]\n")
        return known.exit_code if known else 1


async def _main(
    options: LabOptions, topology: Topology, directory: RunDirectory, plugins: str, state: LabState
) -> int:
    from events.cli.tables import console

    # What the bus client has to say about outages that the lab makes belongs in a file.
    logging.basicConfig(filename=directory.log("lab"), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    report = Report(None if options.as_json else console())
    stop = sandbox.Interruption()
    buses = None
    if options.bus_servers > 1 or options.leaf:
        buses = Buses(options.bus_servers, leaf=options.leaf, idc=topology.sites[1], directory=directory)
    async with Lab(
        topology, directory, plugins, quarantine_s=options.quarantine_s, secure=options.secure, buses=buses
    ) as lab:
        lab.gateways, lab.direct = options.clb or options.nat, options.direct
        lab.bare = Bare(options.bare) if options.bare is not None else None
        checking = asyncio.create_task(_run_checks(lab, report, options, directory, state), name="lab: checks")
        stopping = asyncio.create_task(stop.came.wait(), name="lab: wait for a stop")
        done, _ = await asyncio.wait({checking, stopping}, return_when=asyncio.FIRST_COMPLETED)
        interrupted = checking not in done
        if interrupted:
            checking.cancel()
        await asyncio.gather(checking, return_exceptions=interrupted)
        report.summary(interrupted=interrupted)
        if options.as_json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(report.document())).decode() + "\n")
            sys.stdout.flush()
        if not report.ok and not interrupted:
            _show_logs(lab, report)
        if options.keep and not interrupted:
            report.note(_invitation(directory, options.console_url))
            await stop.came.wait()
            report.note("taking the lab down")
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)
    return stop.exit_code if interrupted else (0 if report.ok else 1)


async def _run_checks(
    lab: Lab, report: Report, options: LabOptions, directory: RunDirectory, state: LabState
) -> None:
    def publish() -> None:
        directory.write(msgspec.structs.replace(state, machines=lab.machines, environment=lab.environment))

    if not await _bring_up(lab, report):
        return
    if options.console >= 0:
        await lab.open_console(options.console)
        report.note(f"The console is at {options.console_url}")
    publish()
    if options.breaks:
        from deploy.lab.checks.mesh import breaks

        await breaks(lab, report, options.breaks, keep=options.keep)
        return
    if options.nat:
        from deploy.lab.checks.nat import behind_nat

        await behind_nat(lab, report, options.encrypt)
        await overlay.log_holds(lab, report)
        return
    await overlay.cyclic_ranges(lab, report)
    await overlay.every_pair(lab, report, name="Every pod reaches every pod on every other node")
    if options.direct:
        from deploy.lab.checks.direct import on_one_link

        await on_one_link(lab, report)
    if options.encrypt != "off":
        from deploy.lab.checks.encryption import there_and_back

        await there_and_back(lab, report, options.encrypt)
    if options.secure or options.leaf:
        from deploy.lab.checks.mesh import traced

        await traced(lab, report)
    await overlay.full_size(lab, report)
    if options.clb:
        await clb_checks.pair(lab, report)
        publish()
    leaver = lab.topology.nodes[-1].name
    freed = lab.members.live[leaver].range
    await overlay.leave(lab, report, leaver)
    await overlay.newcomer(lab, report, freed)
    publish()
    await overlay.agent_killed(lab, report, lab.topology.nodes[0].name)
    if lab.buses is not None and options.bus_servers > 1:
        await bus.server_killed(lab, report, lab.buses)
        await bus.majority_gone(lab, report, lab.buses)
    if lab.buses is not None and options.leaf:
        await leaf.link_cut(lab, report, lab.buses)
    await overlay.bus_stopped(lab, report)
    publish()
    if options.churn:
        from deploy.lab.traffic.churn import churn

        await churn(lab, report, options.churn, seed=options.seed, kills=options.kills)
    await overlay.log_holds(lab, report)
    overlay.which_way(lab, report)


async def _bring_up(lab: Lab, report: Report) -> bool:
    sites = lab.topology.sites
    with report.stage("The sites, a router and a management network are set up") as check:
        await lab.fabric.build()
        check.detail = ", ".join(f"{site.name} {site.subnet}" for site in sites)
    if not check.ok:
        return False
    with report.stage("Bus and controller are up, the cluster is defined") as check:
        await lab.start_controller()
        defined = await lab.define_cluster()
        await lab.members.wait_for(lambda: lab.members.plan is not None, 10, "the cluster's definition")
        check.measured = defined
        plan = lab.members.plan
        if plan is None:
            raise CheckFailedError("the log holds no definition")
        check.detail = (
            f"container CIDR {plan.container_cidr}, {plan.capacity} ranges "
            f"of {addresses_and_pods(plan.range_size)}, Services {plan.service_cidr}"
        )
    if not check.ok:
        return False
    if lab.buses is not None and lab.buses.leaf is not None:
        await leaf.bring_up(lab, report, lab.buses)
        if not report.ok:
            return False
    with report.stage("Agents join, VXLAN devices and CNI configuration are there") as check:
        # One after another, so that the order of the ranges is the order of the nodes.
        started = [await lab.start_node(node) for node in lab.topology.nodes]
        seconds = await lab.wait_converged()
        check.detail = (
            f"{len(started)} nodes, kernels agree with the log {seconds * 1e3:.0f} ms after the last join"
        )
    if not check.ok:
        return False
    with report.stage("Pods are attached by the CNI plugins") as check:
        await asyncio.gather(*(lab.start_pods(node) for node in lab.nodes.values()))
        check.detail = f"{len(lab.pods)} pods, addresses by host-local from each node's range"
    return check.ok


def _show_logs(lab: Lab, report: Report) -> None:
    """The ends of the processes' logs: what a person needs who has to find out why."""
    daemons = [node.agent for node in lab.nodes.values()] + (lab.buses.daemons if lab.buses else [])
    try:
        daemons.insert(0, lab.controller)
    except RuntimeError:
        return
    for daemon in daemons:
        report.note(f"\n--- {daemon.name} ({daemon.log})\n{daemon.log_tail(8)}")


def _invitation(directory: RunDirectory, console_url: str) -> str:
    name = directory.path.name
    option = "" if name == "lab" else f" --name {name}"
    return (
        f"\nThe lab stays up. The console: {console_url}\nFrom another terminal:\n"
        f"  isthmus lab exec{option} controller isthmus node list\n"
        f"  isthmus lab exec{option} cloud-1 ip route\n"
        f"  isthmus lab exec{option} cloud-1 bridge fdb\n"
        f"  isthmus lab exec{option} idc-1-a ping -c 3 10.200.0.2\n"
        f"  isthmus lab down{option}          (or Ctrl-C here)\n"
        f"Logs: {directory.path / 'logs'}"
    )
