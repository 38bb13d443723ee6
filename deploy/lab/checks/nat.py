"""Branches behind NAT: found out, every pair passes, and what routers do to them heals. Counted packets.

Cancelled, what was changed at a router or gateway stays so until the lab ends.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING

from deploy.lab.checks.encryption import count_anew, encrypt, judge_wire
from deploy.lab.checks.joining import by_one_command, undone
from deploy.lab.checks.waiting import counted, until
from deploy.lab.failures import CheckFailedError
from deploy.lab.machines.machine import ip_batch
from deploy.lab.topology.layout import WAN
from deploy.lab.traffic.measure import Flows, judge_pairs, probe_all
from events.protocol.ways import way_between
from nodeagent.dataplane.second_device import second_vni
from nodeagent.local_files import read_status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deploy.lab.machines.pods import Pod
    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab, LabNode
    from events.types import EncryptionScope

FOUND_S, HEALED_S = 90.0, 30.0
ANSWERED_MS = 400
KEPT_S = 5
SPREAD_MS = 10
"""Between two packets to each pod where they are encrypted, from one pod after the other. Those of all pods at
once, two hundred, overflow the socket of the gateway's program in userspace when it waits for a core: 212,992
bytes hold some 270 of these packets (the rest is counted by UdpRcvbufErrors).
"""
FORGETS_S = 30
FLUSH = "from pyroute2 import NFCTSocket; NFCTSocket().flush()"
VNI, FORGED_PORT = 100, 7999
TABLE = "inet lab_nat"
COUNT = f"""
add table {TABLE}
add chain {TABLE} wire {{{{ type filter hook prerouting priority -400; }}}}
add rule {TABLE} wire iifname "isthmus*" udp dport {{port}} counter comment "forged"
add rule {TABLE} wire iifname "isthmus*" counter comment "all"
"""
FORGE = """
import socket, struct, sys
to, vni, mac, source, target, port = sys.argv[1:]
def total(data):
    words = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while words >> 16: words = (words & 0xFFFF) + (words >> 16)
    return ~words & 0xFFFF
ends = map(socket.inet_aton, (source, target))
ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, 36, 0, 0, 64, 17, 0, *ends))
ip[10:12] = struct.pack("!H", total(bytes(ip)))
inner = bytes(ip) + struct.pack("!4H8s", 7000, int(port), 16, 0, b"stranger")
frame = bytes.fromhex(mac.replace(":", "")) + bytes.fromhex("660000000099") + b"\\x08\\x00" + inner
out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
out.bind(("", 8472))
for _ in range(20):
    out.sendto(struct.pack("!II", 0x08000000, int(vni) << 8) + frame, (to, 8472))
"""
MOVED = {"branch": WAN[21]}


async def behind_nat(lab: Lab, report: Report, scope: EncryptionScope) -> None:
    """The whole of it, and encrypted where ``scope`` says so. Raises nothing: each stage says what it saw."""
    await _found_out(lab, report)
    if not report.ok:
        return
    await by_one_command(lab, report)
    await _pairs(lab, report)
    await _router(lab, report, "The branch's router loses its table of connections", _flush)
    await _router(lab, report, "The branch's router gets another address", _move)
    await _idle(lab, report)
    await _relay_gone(lab, report)
    await _strangers(lab, report)
    if scope != "off" and report.ok:
        await _encrypted(lab, report, scope)
    await undone(lab, report)


async def _found_out(lab: Lab, report: Report) -> None:
    with report.stage("Which nodes are behind NAT is found out, and becomes a fact of the log") as check:
        hidden = {node.name for node in lab.topology.nodes if node.site.outside is not None}
        started = time.monotonic()
        await lab.members.wait_for(
            lambda: set(lab.members.behind_nat) == hidden,
            FOUND_S,
            f"{sorted(hidden)} to be behind NAT, and no other",
        )
        check.measured["found_s"] = round(time.monotonic() - started, 1)
        for name in sorted(node.name for node in lab.topology.nodes if node.kind == "cloud"):
            await lab.isthmus("clb", "gateway", "add", name)
        seen = ", ".join(f"{name} as {lab.members.behind_nat[name]}" for name in sorted(hidden))
        addresses = sorted(name for name in hidden if lab.members.live[name].underlay.endswith(".11"))
        check.detail = (
            f"{seen}; {' and '.join(addresses)} have one private address; the cloud nodes are gateways"
        )


async def _pairs(lab: Lab, report: Report) -> None:
    with report.stage("Every pair passes: through the tunnel, through NAT, or relayed") as check:
        seconds = await until(FOUND_S, lambda: _differing(lab))
        judge_pairs(check, await probe_all(lab))
        for one in lab.nodes.values():
            for other in lab.nodes.values():
                here, there = _way(one, other.name), _way(other, one.name)
                if here != there and here.startswith("relayed"):
                    raise CheckFailedError(f"{one.name} and {other.name}: {here} there, {there} back")
        check.measured["settled_s"] = round(seconds, 1)
        check.detail += f"; all ways are there {seconds:.1f} s after the gateways"
        _table(lab, report)


def _table(lab: Lab, report: Report) -> None:
    names = sorted(lab.nodes)
    report.table(
        "The way from each node to each other one",
        ("from \\ to", *names),
        [(one, *("·" if one == other else _way(lab.nodes[one], other) for other in names)) for one in names],
    )


async def _router(lab: Lab, report: Report, name: str, change: Callable[[Lab], Awaitable[None]]) -> None:
    with report.stage(name) as check:
        await change(lab)
        seconds = await _healed(lab)
        judge_pairs(check, await probe_all(lab))
        check.measured["healed_s"] = round(seconds, 1)
        check.detail += f"; healed in {seconds:.1f} s"


async def _flush(lab: Lab) -> None:
    await lab.fabric.machines["branch-router"].run(sys.executable, "-c", FLUSH)


async def _move(lab: Lab) -> None:
    router, address = lab.fabric.machines["branch-router"], MOVED["branch"]
    old = next(site.outside for site in lab.topology.sites if site.name == "branch")
    await ip_batch(
        router.inside(),
        [
            f"addr del {old}/{WAN.prefixlen} dev wan",
            f"addr add {address}/{WAN.prefixlen} dev wan",
            f"route replace default via {WAN[1]}",
        ],
    )


async def _idle(lab: Lab, report: Report) -> None:
    with report.stage(f"Routers forget after {FORGETS_S} s, and pods say nothing for longer") as check:
        for site in ("branch", "home"):
            for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
                file = f"/proc/sys/net/netfilter/{name}"
                await lab.fabric.machines[f"{site}-router"].run("sh", "-c", f"echo {FORGETS_S} > {file}")
        await asyncio.sleep(FORGETS_S + 5)
        judge_pairs(check, await probe_all(lab))
        check.detail += f"; the first packet after {FORGETS_S + 5} s passes, in every pair"


async def _relay_gone(lab: Lab, report: Report) -> None:
    with report.stage("The gateway that relays stops answering: the other one takes over") as check:
        gateway = _way(lab.nodes["branch-1"], "home-1").removeprefix("relayed ")
        if gateway not in lab.nodes:
            raise CheckFailedError(f"branch-1 reaches home-1 by {gateway!r}: that is no gateway of the lab")
        machine = lab.nodes[gateway].machine
        await machine.run("ip", "link", "set", "eth0", "down")
        seconds = await _healed(lab, but=gateway)
        other = _way(lab.nodes["branch-1"], "home-1")
        await machine.run("ip", "link", "set", "eth0", "up")
        await machine.run("ip", "route", "replace", "default", "via", str(lab.nodes[gateway].node.site.gateway))
        back = await _healed(lab)
        await until(HEALED_S, lambda: _not_relayed_by(lab, gateway))
        await asyncio.sleep(KEPT_S)  # encrypted, sessions with it begin anew
        judge_pairs(check, await probe_all(lab, interval_ms=SPREAD_MS, in_turn=True))
        check.measured |= {"relayed_s": round(seconds, 1), "back_s": round(back, 1)}
        check.detail += (
            f"; {gateway} gone, {other} after {seconds:.1f} s, everything again {back:.1f} s after its return"
        )


async def _encrypted(lab: Lab, report: Report, scope: EncryptionScope) -> None:
    one, other = (lab.nodes[name].pods[0] for name in ("branch-1", "home-1"))
    relayed = [(one, other), (other, one)]
    with report.stage(f"Under traffic to encryption ({scope}), relayed packets, too") as check:
        async with Flows(lab, None, relayed) as flows:
            seconds = await encrypt(lab, scope)
        flows.judge(check)
        check.measured["settled_s"] = round(seconds, 1)
        check.detail += f"; settled after {seconds:.1f} s"
    if not check.ok:
        return
    await count_anew(lab, scope)
    with report.stage("Every pair passes, nothing in the clear on any node's or router's link") as check:
        await _healed(lab)
        judge_pairs(check, await probe_all(lab, interval_ms=SPREAD_MS, in_turn=True))
        await judge_wire(lab, check)
        ways = read_status(lab.nodes["branch-1"].directory / "state").peer_ways
        found = next(way for way in ways if way.peer == "home-1")
        if (found.way, found.encrypted) != ("relayed", True):
            raise CheckFailedError(f"branch-1 says that it reaches home-1 by {found}")
    with report.stage("The branch's router loses its connections, encrypted ones, too") as check:
        await _flush(lab)
        seconds = await _healed(lab)
        await asyncio.sleep(KEPT_S)  # by then all sessions of that site have new mappings
        judge_pairs(check, await probe_all(lab, interval_ms=SPREAD_MS, in_turn=True))
        check.measured["healed_s"] = round(seconds, 1)
        check.detail += f"; the first packets pass again after {seconds:.1f} s"
    await _relay_gone(lab, report)
    with report.stage("Meanwhile nothing was in the clear; back to plain packets under traffic") as check:
        await judge_wire(lab, check)
        detail = check.detail
        async with Flows(lab, None, relayed) as flows:
            await encrypt(lab, "off")
        flows.judge(check)
        check.detail += detail


async def _strangers(lab: Lab, report: Report) -> None:
    with report.stage("A stranger reaches no pod through a gateway") as check:
        router, plan = lab.fabric.machines["router"], lab.members.plan
        cidr = str(plan.container_cidr) if plan is not None else ""
        tried = 0
        for gateway in (node for node in lab.nodes.values() if node.node.kind == "cloud"):
            await router.run("ip", "route", "replace", cidr, "via", str(gateway.node.underlay))
            for pod in lab.pods:
                tried += 1
                line = f"ping -c 2 -i 0.2 -W 0.3 {pod.address} >/dev/null && echo in || true"
                if await router.run("sh", "-c", line):
                    raise CheckFailedError(f"the router reaches {pod.name} by {gateway.name}")
        await router.run("ip", "route", "del", cidr)
        forged = await _forged(lab)
        check.detail = (
            f"{tried} ways to {len(lab.pods)} pods tried, none let in; of {forged} forged packets for the "
            f"gateways' tunnels none was forwarded"
        )


async def _forged(lab: Lab) -> int:
    """Have a machine that is no member send the gateways what looks like home-1's pod's packets for branch-1's.

    How many. Raises CheckFailedError when one comes to branch-1.
    """
    branch = lab.nodes["branch-1"]
    source, target = lab.nodes["home-1"].pods[0].address, branch.pods[0].address
    await branch.machine.run("nft", "-f", "-", stdin=COUNT.format(port=FORGED_PORT))
    sent = 0
    for gateway in (node for node in lab.nodes.values() if node.node.kind == "cloud"):
        for vni in (VNI, second_vni(VNI)):
            mac = lab.members.live[gateway.name].mac
            arguments = (str(gateway.node.underlay), str(vni), mac, source, target, str(FORGED_PORT))
            await lab.fabric.machines["router"].run(sys.executable, "-c", FORGE, *arguments)
            sent += 20
    # One that is let in comes, too: what counts nothing proves nothing.
    await lab.nodes["home-1"].pods[0].probe([target], count=1)
    counts = await counted(branch.machine, TABLE, ("forged", "all"))
    await branch.machine.run("nft", f"delete table {TABLE}")
    if counts["forged"] or not counts["all"]:
        raise CheckFailedError(f"{counts['forged']} forged packets came to branch-1, {counts['all']} of all")
    return sent


# --- what is looked at -----------------------------------------------------------------------------------


def _way(node: LabNode, peer: str) -> str:
    """How the node's agent says that it reaches the peer: ``tunnel``, ``nat``, ``relayed GATEWAY``."""
    found = next((way for way in read_status(node.directory / "state").peer_ways if way.peer == peer), None)
    if found is None:
        return "tunnel"
    return f"{found.way} {found.via}" if found.way == "relayed" else found.way


def _not_relayed_by(lab: Lab, gateway: str) -> str:
    """Which end does not have that gateway relay again; empty when both do."""
    for one, other in (("branch-1", "home-1"), ("home-1", "branch-1")):
        if (found := _way(lab.nodes[one], other)) != f"relayed {gateway}":
            return f"{one} reaches {other} by {found}, not by {gateway}"
    return ""


def _differing(lab: Lab) -> str:
    """The first pair that is not reached as the log has it; empty when all are."""
    for one in lab.nodes.values():
        for other in lab.nodes.values():
            if one is other:
                continue
            behind = [node.node.site.outside is not None for node in (one, other)]
            wanted = way_between(*behind, one_site=one.node.site == other.node.site)
            if _way(one, other.name).split()[0] != wanted:
                return f"{one.name} reaches {other.name} by {_way(one, other.name)}, not {wanted}"
    return ""


async def _healed(lab: Lab, but: str = "") -> float:
    """Seconds until packets pass in every pair (without that node). Raises CheckFailedError."""
    started = time.monotonic()
    while True:
        round_s = time.monotonic() - started
        silent = await _silent(lab, but)
        if not silent:
            return round_s
        if round_s > HEALED_S:
            raise CheckFailedError(f"not healed within {HEALED_S:g} s: {', '.join(silent[:6])}")


async def _silent(lab: Lab, but: str) -> list[str]:
    """The pairs of pods in which not one packet of a few came back."""
    pods = [pod for pod in lab.pods if pod.node.name != but]

    async def probe(source: Pod) -> list[str]:
        targets = [pod for pod in pods if pod.node.name != source.node.name]
        reports = await source.probe(
            [pod.address for pod in targets], count=3, interval_ms=20, timeout_ms=ANSWERED_MS
        )
        return [
            f"{source.name} → {pod.name}"
            for pod, found in zip(targets, reports, strict=True)
            if not found["received"]
        ]

    return [pair for pairs in await asyncio.gather(*map(probe, pods)) for pair in pairs]
