"""Packets between nodes encrypted: there and back under traffic, and counted on every node's underlay.

Cancelled, what is encrypted by then stays so until the lab ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.lab import commands
from deploy.lab.checks.waiting import POLL_S, counted, until
from deploy.lab.failures import CheckFailedError
from deploy.lab.traffic.measure import Flows, judge_pairs, probe_all
from events.protocol.commands import SetEncryption
from events.protocol.encryption import WIREGUARD_PORT, WIREGUARD_PORTS
from events.protocol.queries import ClusterView, ShowCluster
from nodeagent.config import DEFAULT_DEVICE
from nodeagent.dataplane.second_device import second_vni
from nodeagent.local_files import read_status
from nodeagent.wireguard import kernel, userspace
from nodeagent.wireguard.pairs import name_pattern

if TYPE_CHECKING:
    from deploy.lab.machines.machine import Machine
    from deploy.lab.reports.report import Check, Report
    from deploy.lab.runtime import Lab, LabNode
    from events.types import EncryptionScope

SETTLED_S, BACK_S = 90.0, 30.0
TABLE = "inet lab_encryption"
PORTS = f"{WIREGUARD_PORT}-{WIREGUARD_PORT + WIREGUARD_PORTS - 1}"
COUNT = f"""
add table {TABLE}
delete table {TABLE}
add table {TABLE}
add chain {TABLE} wire {{{{ type filter hook prerouting priority -400; }}}}
add rule {TABLE} wire {{device}} ip saddr {{containers}} counter comment "plain"
add rule {TABLE} wire {{device}} udp dport 8472 @th,96,24 {{vnis}} {{strangers}} counter comment "tunnel"
add rule {TABLE} wire {{device}} udp dport {PORTS} counter comment "encrypted"
"""


def unable() -> str:
    """Why nothing can be encrypted on this machine; empty when it can."""
    why = kernel.missing()
    return why and userspace.missing()


async def there_and_back(lab: Lab, report: Report, scope: EncryptionScope) -> None:
    """From plain to encrypted and back under traffic, and what is on the wire. Raises CheckFailedError."""
    mtus = _mtus(lab)
    with report.stage(f"The cluster goes over to encryption ({scope}) under traffic") as check:
        async with Flows(lab, None) as flows:
            seconds = await encrypt(lab, scope)
        flows.judge(check)
        check.measured["settled_s"] = round(seconds, 1)
        check.detail += f"; settled after {seconds:.1f} s"
    if not check.ok:
        return
    with report.stage("Nothing is in the clear on any node's underlay, every pair is answered") as check:
        await count_anew(lab, scope)
        judge_pairs(check, await probe_all(lab, in_turn=True))
        await judge_wire(lab, check)
    if not check.ok:
        return
    victim = lab.nodes[lab.topology.nodes[0].name]
    with report.stage(f"{victim.name} gets another key under traffic: nothing in the clear") as check:
        await count_anew(lab, scope)
        async with Flows(lab, victim.name) as flows:
            key, seconds = await _rotated(victim)
        flows.judge(check)
        await judge_wire(lab, check)
        check.measured["key_s"] = round(seconds, 1)
        check.detail += f"\n{key} is its key, after {seconds:.1f} s its only one"
    if not check.ok:
        return
    with report.stage(f"{victim.name}'s WireGuard is taken away: nothing in the clear") as check:
        await count_anew(lab, scope)
        async with Flows(lab, victim.name) as flows:
            await _taken_away(victim)
        gone_ms = max(result["longest_silence_ms"] for result in flows.results)
        judge_pairs(check, await probe_all(lab, in_turn=True))
        await judge_wire(lab, check)
        check.measured["gone_silence_ms"] = round(gone_ms)
        check.detail += f"\nsilent for {gone_ms:.0f} ms"
    with report.stage("The cluster goes back to plain packets under traffic") as check:
        async with Flows(lab, None) as flows:
            await encrypt(lab, "off")
            await until(BACK_S, lambda: "" if _mtus(lab) == mtus else "devices pass what they passed before")
        flows.judge(check)


async def encrypt(lab: Lab, scope: EncryptionScope) -> float:
    """Have the cluster encrypt that, and wait until it does: seconds. Raises CheckFailedError."""
    started = time.monotonic()
    await lab.client.send(SetEncryption(scope=scope))
    while True:
        found = (await lab.client.ask(ShowCluster(), ClusterView)).encryption
        if found.scope == scope and found.settled:
            return time.monotonic() - started
        if time.monotonic() - started > SETTLED_S:
            raise CheckFailedError(f"not encrypted ({scope}) within {SETTLED_S:g} s: {found}")
        await asyncio.sleep(POLL_S)


async def count_anew(lab: Lab, scope: EncryptionScope) -> None:
    """Count from now on what crosses the underlays of all nodes, and what routers of branches forward."""
    plan = lab.members.plan
    containers, vni = (str(plan.container_cidr), plan.vni) if plan is not None else ("", 0)
    vnis = f"{{ {vni}, {second_vni(vni)} }}"
    for node in lab.nodes.values():
        strangers = f"ip saddr != {node.node.site.subnet}" if scope == "sites" else ""
        rules = COUNT.format(device="iifname eth0", containers=containers, vnis=vnis, strangers=strangers)
        await node.machine.run("nft", "-f", "-", stdin=rules)
    for router in _routers(lab):
        rules = COUNT.format(device="", containers=containers, vnis=vnis, strangers="")
        await router.run("nft", "-f", "-", stdin=rules)


def _routers(lab: Lab) -> list[Machine]:
    sites = (site for site in lab.topology.sites if site.outside is not None)
    return [lab.fabric.machines[f"{site.name}-router"] for site in sites]


async def judge_wire(lab: Lab, check: Check) -> None:
    """Whether since then nothing crossed in the clear. Raises CheckFailedError."""
    found = dict.fromkeys(("plain", "tunnel", "encrypted"), 0)
    for machine in (*(node.machine for node in lab.nodes.values()), *_routers(lab)):
        for word, packets in (await counted(machine, TABLE, tuple(found))).items():
            found[word] += packets
    check.measured |= found
    if found["plain"] or found["tunnel"] or not found["encrypted"]:
        raise CheckFailedError(
            f"on the underlays: {found['encrypted']} packets encrypted, {found['tunnel']} of the tunnel and "
            f"{found['plain']} plain ones in the clear"
        )
    check.detail += f"\non the underlays {found['encrypted']:,} encrypted packets, none in the clear"


def _mtus(lab: Lab) -> dict[str, int]:
    return {name: read_status(node.directory / "state").mtu for name, node in lab.nodes.items()}


def _line(node: LabNode) -> str:
    return read_status(node.directory / "state").encryption


async def _rotated(node: LabNode) -> tuple[str, float]:
    """Give it another key, and wait until that is its only one; the key, and how long it took (s)."""
    before, state = _line(node).rpartition(" ")[2], str(node.directory / "state")
    started = time.monotonic()

    def anew() -> bool:
        return _line(node).startswith("on") and before not in _line(node)

    await node.machine.run(commands.ISTHMUS, "agent", "rotate-key", "--state-dir", state)
    await until(BACK_S, lambda: "" if anew() else "the next key is the only one")
    return _line(node).rpartition(" ")[2], time.monotonic() - started


def _sessions(node: LabNode) -> bool:
    """Whether it has one with every peer."""
    found = re.search(r"(\d+) peers, (\d+) with a session", _line(node))
    return found is not None and found[1] == found[2]


def _kill_program(node: LabNode) -> None:
    space = Path(f"/proc/{node.machine.pid}/ns/net").readlink()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            ours = entry.name.isdigit() and (entry / "comm").read_text().strip() == userspace.PROGRAM
            if ours and (entry / "ns" / "net").readlink() == space:
                os.kill(int(entry.name), signal.SIGKILL)


async def _taken_away(node: LabNode) -> None:
    devices = name_pattern(DEFAULT_DEVICE)[:-1]
    if kernel.missing():
        _kill_program(node)
    else:
        for line in (await node.machine.run("ip", "-brief", "link", "show", "type", "wireguard")).splitlines():
            await node.machine.run("ip", "link", "del", line.split()[0])
    started = time.monotonic()
    while f"dev {devices}" not in await node.machine.run("ip", "route", "show", "proto", "84"):
        if time.monotonic() - started > BACK_S:
            raise CheckFailedError(f"{node.name} has no routes into WireGuard after {BACK_S:g} s")
        await asyncio.sleep(POLL_S)
    # With its device its sessions are gone, and what others send by theirs is lost until there are new ones.
    await until(BACK_S, lambda: "" if _sessions(node) else "the node has a session with every peer again")
