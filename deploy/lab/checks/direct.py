"""Nodes of one site talk without the tunnel: counted packets, a network that stops passing them, and back.

Cancelled, what was cut off stays so until the lab ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.lab.checks.waiting import counted, until
from deploy.lab.failures import CheckFailedError
from deploy.lab.traffic.measure import judge_pairs, probe_all
from nodeagent.local_files import read_status

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab, LabNode

FOUND_S, LEFT_S = 60.0, 20.0
TABLE = "inet lab_direct"
COUNT = f"""
add table {TABLE}
add chain {TABLE} wire {{{{ type filter hook prerouting priority -400; }}}}
add rule {TABLE} wire iifname eth0 ip saddr {{source}} counter comment "plain"
add rule {TABLE} wire iifname eth0 udp dport 8472 @th,336,32 {{number:#x}} counter comment "tunnel"
"""
CUT = f"add rule {TABLE} wire iifname eth0 ip saddr {{containers}} drop"


async def on_one_link(lab: Lab, report: Report) -> None:
    """Pods talk plainly inside a site, and by the tunnel for as long as the network passes no plain packets.

    Raises CheckFailedError.
    """
    with report.stage("Nodes of one site reach each other without the tunnel") as check:
        seconds = await _until(lab, FOUND_S, "reached directly", lambda node: _neighbours(lab, node))
        pods = lab.nodes[lab.topology.nodes[0].name].pods
        other = lab.nodes[_neighbours(lab, lab.nodes[lab.topology.nodes[0].name])[0]]
        source = pods[0].address
        number = int.from_bytes(bytes(int(part) for part in source.split(".")), "big")
        await other.machine.run("nft", "-f", "-", stdin=COUNT.format(source=source, number=number))
        results = await probe_all(lab)
        plain, tunnelled = (await counted(other.machine, TABLE, ("plain", "tunnel"))).values()
        if not plain or tunnelled:
            raise CheckFailedError(
                f"{other.name} got {plain} plain packets of {source} and {tunnelled} by the tunnel"
            )
        judge_pairs(check, results)
        check.measured |= {"plain": plain, "tunnelled": tunnelled, "found_s": round(seconds, 1)}
        check.detail += (
            f"\n{plain} packets of one pod came to {other.name} plain, {tunnelled} by the tunnel; "
            f"found within {seconds:.1f} s"
        )
    if not check.ok:
        return
    with report.stage("The network stops to pass plain packets: the tunnel takes over, and back") as check:
        containers = str(lab.members.plan.container_cidr) if lab.members.plan is not None else ""
        await other.machine.run("nft", CUT.format(containers=containers))
        wanted = {name: [] if name == other.name else _without(lab, name, other.name) for name in lab.nodes}
        left = await _until(lab, LEFT_S, "left", lambda node: wanted[node.name])
        judge_pairs(check, await probe_all(lab))
        await other.machine.run("nft", f"delete table {TABLE}")
        back = await _until(lab, FOUND_S, "reached directly again", lambda node: _neighbours(lab, node))
        check.measured |= {"left_s": round(left, 1), "back_s": round(back, 1)}
        check.detail += f"\nthe tunnel again after {left:.1f} s, plain again {back:.1f} s after it was mended"


def _neighbours(lab: Lab, node: LabNode) -> list[str]:
    return sorted(
        other.name for other in lab.nodes.values() if other.node.site == node.node.site and other is not node
    )


def _without(lab: Lab, name: str, gone: str) -> list[str]:
    return [other for other in _neighbours(lab, lab.nodes[name]) if other != gone]


async def _until(lab: Lab, limit_s: float, what: str, wanted: Callable[[LabNode], list[str]]) -> float:
    """Wait until each agent reaches exactly those nodes directly; seconds. Raises CheckFailedError."""

    def differing() -> str:
        for node in lab.nodes.values():
            if not node.agent.running:
                continue
            ways = read_status(node.directory / "state").peer_ways
            direct = sorted(way.peer for way in ways if way.way == "direct")
            if direct != wanted(node):
                return f"{node.name} reaches {direct} directly, not {wanted(node)}: not {what}"
        return ""

    return await until(limit_s, differing)
