"""`isthmus lab --capsule FILE`: an incident replayed step by step in the kernels of a few nodes.

A capsule (:mod:`replay.capsule`) holds the state before an incident and its events. Some of its nodes get
a network namespace each, with the node's underlay address and a real VXLAN device; the agent's own view,
desired rows and netlink engine bring them to the state before the first event and then take each command
as it was recorded. After every step the rows are read back with `ip` and `bridge` and held against what
the controller's fold says, so that a person sees what every kernel did.

Nothing is connected: no packet leaves a namespace, no bus runs, and nothing outside the sandbox is touched.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.kernel import OverlayRows, overlay_rows
from deploy.lab.machines.machine import Machine, start_machine
from deploy.lab.machines.sandbox import CLONE_NEWNET
from deploy.lab.reports.report import Report
from events.types import NodeJoined
from nodeagent.dataplane.desired import Desired
from nodeagent.dataplane.reconcile import apply_directly, reconcile
from nodeagent.membership.peers import PeerChange
from nodeagent.membership.values import Member, OverlayPlan, Saved, first_address
from nodeagent.membership.view import View
from nodeagent.netlink.links import DeviceSpec, ensure_device
from nodeagent.netlink.socket import Engine, NetlinkChannel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from controlplane.cluster.state import ClusterState
    from replay.capsule import Capsule, CapsuleStep

NODES_MAX = 6
"""Nodes that are shown: those that the events name, then the oldest members."""

ROWS_SHOWN = 12
DEVICE = "isthmus0"


@contextmanager
def inside(machine: Machine) -> Iterator[None]:
    """This thread in the node's network namespace. Sockets opened meanwhile stay there. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{machine.pid}/ns/net", os.O_RDONLY)
    try:
        if libc.setns(there, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace of {machine.name}")
        yield
    finally:
        libc.setns(here, CLONE_NEWNET)
        os.close(here)
        os.close(there)


@dataclass(slots=True)
class ReplayedNode:
    """One node of the capsule with a kernel of its own."""

    machine: Machine
    view: View
    desired: Desired = field(default_factory=Desired)
    engine: Engine | None = None
    index: int = 0
    rows: OverlayRows = field(default_factory=lambda: OverlayRows(frozenset(), frozenset(), frozenset()))

    def follow(self, sequence: int, event: Any) -> None:
        """One event, the way the agent takes it: its few messages at once. Raises OSError."""
        if isinstance(event, NodeJoined) and event.node == self.view.node:
            self.view.uid = event.uid  # it comes for the first time, or was installed anew
        for change in self.view.apply(sequence, event):
            operations = self.desired.apply(change)
            if operations and self.engine is not None:
                refusals = apply_directly(self.engine, self.index, operations)
                if refusals:
                    raise CheckFailedError(f"{self.machine.name}: the kernel refused: {refusals[0]}")


def expected_rows(state: ClusterState, node: str) -> OverlayRows:
    """The rows that the controller's state wants on a node: three for every other owner of a range."""
    others = [(state.nodes[name], held) for name, held in state.owned.items() if name != node]
    return OverlayRows(
        frozenset((first_address(held.cidr), peer.vtep_mac) for peer, held in others),
        frozenset((peer.vtep_mac, peer.announced) for peer, held in others),
        frozenset((held.cidr, first_address(held.cidr)) for peer, held in others),
    )


def view_of(state: ClusterState, node: str) -> View:
    """What the node's agent knows at the state: restored as from its cache."""
    member = state.nodes.get(node)
    definition = state.definition
    plan = None
    if definition is not None:
        cidrs = tuple(cidr.cidr for cidr in state.cidrs)
        plan = OverlayPlan(definition.vni, definition.vxlan_port, definition.service_cidr, cidrs)
    saved = Saved(
        state.name,
        node,
        member.uid if member else "",
        state.sequence,
        "00" * 32,
        plan,
        [Member(n.name, n.uid, n.vtep_mac, n.announced, n.underlay) for n in state.nodes.values()],
        [(held.cidr, held.epoch, held.node) for held in state.owned.values()],
        {},
        False,
    )
    return View.restore(saved)


async def prepare_node(state: ClusterState, node: str, underlay: str, mac: str) -> ReplayedNode:
    """A namespace for the node, its kernel brought to the state. Raises CommandFailedError, OSError.

    Cancelled, the process that keeps its namespaces stays until the sandbox ends, and a netlink socket may stay
    open.
    """
    machine = await start_machine(node)
    replayed = ReplayedNode(machine, view_of(state, node))
    await machine.run("ip", "link", "add", "eth0", "type", "bridge")
    await machine.run("ip", "addr", "add", f"{underlay}/32", "dev", "eth0")
    await machine.run("ip", "link", "set", "eth0", "up")
    definition, owned = state.definition, state.owned.get(node)

    def prepare() -> tuple[int, Engine]:
        spec = DeviceSpec(
            name=DEVICE,
            vni=definition.vni if definition else 100,
            port=definition.vxlan_port if definition else 8472,
            mac=mac,
            local=underlay,
            address=first_address(owned.cidr) if owned else "169.254.84.1",
            mtu=1450,
        )
        with inside(machine):
            return ensure_device(spec).index, Engine(NetlinkChannel())

    # In a thread of its own: only that thread changes namespaces, and pyroute2 wants no running loop.
    replayed.index, engine = await asyncio.to_thread(prepare)
    replayed.engine = engine
    for peer in replayed.view.peers:
        replayed.desired.apply(PeerChange(None, peer))
    outcome = reconcile(engine, replayed.index, replayed.desired.rows)
    if not outcome.clean:
        raise CheckFailedError(f"{node}: {len(outcome.remaining)} rows could not be written")
    replayed.rows = await overlay_rows(machine)
    return replayed


async def nodes_to_show(capsule: Capsule) -> dict[str, tuple[str, str]]:
    """The nodes to show, with underlay address and VTEP MAC.

    Cancelled, it leaves nothing behind; the capsule stays open for its owner.
    """
    state = await capsule.begin()
    named: dict[str, tuple[str, str]] = {}
    async for step in capsule.steps():
        for recorded in step.events:
            event = recorded.event
            node = getattr(event, "node", "")
            member = state.nodes.get(node)
            if isinstance(event, NodeJoined):
                named.setdefault(node, (event.underlay, event.vtep_mac))
            elif member is not None:
                named.setdefault(node, (member.underlay, member.vtep_mac))
    oldest = sorted(state.nodes.values(), key=lambda node: node.joined)
    # At least one node that the incident did not name: the bystander's kernel is the interesting one.
    shown = dict(list(named.items())[: NODES_MAX - 1])
    for node in oldest:
        if len(shown) >= NODES_MAX:
            break
        shown.setdefault(node.name, (node.underlay, node.vtep_mac))
    return shown


async def replay(path: Path, report: Report, *, pause: bool) -> None:
    """Live the capsule again. With ``pause`` each step waits for a line on standard input.

    Cancelled, it closes the capsule and the nodes that were ready; the namespace of one that was being prepared
    stays until the sandbox ends, and with ``pause`` a thread goes on waiting for its line.
    """
    from replay.capsule import Capsule

    capsule = Capsule(path)
    nodes: dict[str, ReplayedNode] = {}
    try:
        about = capsule.about
        report.note(
            f"capsule of cluster {about.cluster}: events {about.begin.sequence + 1:,} to {about.end.sequence:,}"
            + (f", {about.reason}" if about.reason else "")
        )
        state = await capsule.begin()
        with report.stage("every kernel holds the state before the incident") as check:
            for name, (underlay, mac) in (await nodes_to_show(capsule)).items():
                nodes[name] = await prepare_node(state, name, underlay, mac)
            _check_rows(nodes, state)
            check.detail = "\n".join(f"{name}: {len(node.rows)} rows" for name, node in nodes.items())
        if not report.ok:
            return
        async for step in capsule.steps():
            if pause:
                await asyncio.to_thread(_wait)
            await _step(step, nodes, report)
    finally:
        for node in nodes.values():
            if node.engine is not None:
                node.engine.close()
            await node.machine.close()
        capsule.close()


def _wait() -> None:
    sys.stdout.write("— Enter for the next step —")
    sys.stdout.flush()
    sys.stdin.readline()


async def _step(step: CapsuleStep, nodes: dict[str, ReplayedNode], report: Report) -> None:
    first = step.events[0]
    names = ", ".join(f"{r.event.aggregate} {r.event.verb} {r.event.entity}" for r in step.events)
    moment = first.envelope.time.isoformat(sep=" ", timespec="milliseconds")
    with report.stage(f"event {first.sequence:,} · {moment} · by {first.envelope.actor}: {names}") as check:
        for recorded in step.events:
            for node in nodes.values():
                node.follow(recorded.sequence, recorded.event)
        lines = []
        for name, node in nodes.items():
            before, node.rows = node.rows, await overlay_rows(node.machine)
            changes = before.differences(node.rows)
            words = [c.replace("missing ", "+ ", 1).replace("stale ", "- ", 1) for c in changes]
            if words:
                lines.append(f"{name}: {len(node.rows)} rows")
                lines += [f"    {word}" for word in words[:ROWS_SHOWN]]
                if len(words) > ROWS_SHOWN:
                    lines.append(f"    … and {len(words) - ROWS_SHOWN} more")
        check.detail = "\n".join(lines) or "no kernel row changed"
        check.measured = {"sequence": first.sequence, "command": first.envelope.command_id}
        _check_rows(nodes, step.state)


def _check_rows(nodes: dict[str, ReplayedNode], state: ClusterState) -> None:
    """Every kernel has exactly what the controller's state wants. Raises CheckFailedError."""
    for name, node in nodes.items():
        wrong = node.rows.differences(expected_rows(state, name))
        if wrong:
            raise CheckFailedError(f"{name} differs from the controller's state: {'; '.join(wrong[:5])}")


def work(path: Path, *, as_json: bool, pause: bool) -> int:
    """The sandbox's worker: exit code 0 when every kernel was right at every step."""
    from events.cli.tables import console, print_json

    report = Report(None if as_json else console())
    asyncio.run(replay(path, report, pause=pause))
    report.summary()
    if as_json:
        print_json(report.document())
    return 0 if report.ok else 1
