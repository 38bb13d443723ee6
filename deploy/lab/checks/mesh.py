"""Breaks paths in the lab on purpose, and holds the verdict of the agents' measurements to the cause.

Each kind of break is done where a person or a device would do it: on a host, on a cable, on the way between
the sites. All kinds that are asked for are broken at once, each at nodes of its own, so the verdict must tell
them apart. Cancelled, what was broken stays so until the lab ends.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import msgspec

from deploy.lab.failures import CheckFailedError, CommandFailedError
from deploy.lab.machines.daemons import Daemon
from deploy.lab.machines.shell import run
from events.errors import Unavailable, Usage
from events.protocol.mesh import FindingView, MeshView, NodeTrace, ShowMesh

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from deploy.lab.reports.report import Report
    from deploy.lab.runtime import Lab, LabNode

VERDICT_LIMIT_S = 90.0
"""A lost path is named within seconds; a machine that runs much else at once may take longer."""
POLL_S = 0.3
PORT = 8472
NARROW_MTU = 1400
TABLE = "ip lab_break"
FILTER = (
    f"add table {TABLE}; add chain {TABLE} c {{ type filter hook HOOK priority -10; }}; "
    f"add rule {TABLE} c udp dport {PORT} drop"
)
FORWARD = f"add table {TABLE}; add chain {TABLE} c {{ type filter hook forward priority 0; policy drop; }}"
ROUTES = "199"
"""The routing table of the wrong route."""
NOBODY = "02:00:00:00:00:99"
"""A MAC address that no machine of the lab has."""


@dataclass(frozen=True, slots=True)
class Break:
    """One kind. ``nodes``: how many cloud nodes it takes; two nodes are a pair.

    ``scope`` and ``fault`` are what the verdict must be (an empty fault: with strict filters of the way back
    both directions are lost, without them one), ``names`` words of the cause that its evidence or a trace must
    have.
    """

    title: str
    scope: str
    fault: str
    names: str
    make: Callable[[Lab, Sequence[LabNode]], Awaitable[None]]
    mend: Callable[[Lab, Sequence[LabNode]], Awaitable[None]]
    nodes: int = 1
    broken: Callable[[Sequence[str]], tuple[str, str]] = field(default=lambda _: ("", ""))


async def _filter(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001 - as the others
    await at[0].machine.run("nft", FILTER.replace("HOOK", "input"))


async def _no_forwarding(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await at[0].machine.run("nft", FORWARD)


async def _no_filter(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await at[0].machine.run("nft", f"delete table {TABLE}")


async def _route(lab: Lab, at: Sequence[LabNode]) -> None:
    target = lab.members.live[at[1].name].range
    way = ("via", str(at[0].node.site.gateway), "dev", "eth0")
    await at[0].machine.run("ip", "route", "add", target, *way, "table", ROUTES)
    await at[0].machine.run("ip", "rule", "add", "to", target, "lookup", ROUTES, "priority", "99")


async def _no_route(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await at[0].machine.run("ip", "rule", "del", "priority", "99")
    await at[0].machine.run("ip", "route", "flush", "table", ROUTES)


async def _narrow(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await run(["ip", "link", "set", f"u-{at[0].name}", "mtu", str(NARROW_MTU)])


async def _wide(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await run(["ip", "link", "set", f"u-{at[0].name}", "mtu", "1500"])


async def _one_way(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    there = ("to", str(at[1].node.underlay), "dev", "eth0")
    await at[0].machine.run("ip", "neigh", "replace", *there, "lladdr", NOBODY, "nud", "permanent")


async def _both_ways(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await at[0].machine.run("ip", "neigh", "del", str(at[1].node.underlay), "dev", "eth0")


async def _unplug(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    for cable in ("u", "m"):
        await run(["ip", "link", "set", f"{cable}-{at[0].name}", "down"])


async def _plug(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    for cable in ("u", "m"):
        await run(["ip", "link", "set", f"{cable}-{at[0].name}", "up"])


async def _wrong_row(lab: Lab, at: Sequence[LabNode]) -> None:
    """Another program writes the row again and again: the agent repairs it until that is a fight."""
    mac, nowhere = lab.members.live[at[1].name].mac, at[0].node.site.subnet[250]
    write = f"while :; do bridge fdb replace {mac} dev isthmus dst {nowhere} self permanent; sleep 0.1; done"
    program = Daemon("wrong-row", at[0].machine, ("sh", "-c", write), lab.directory.log("wrong-row"))
    await program.start()
    lab.stand_ins.append(program)


async def _right_row(lab: Lab, at: Sequence[LabNode]) -> None:
    for program in [one for one in lab.stand_ins if one.name == "wrong-row"]:
        await program.kill()
        lab.stand_ins.remove(program)
    member = lab.members.live[at[1].name]
    line = ("bridge", "fdb", "replace", member.mac, "dev", "isthmus", "dst", member.underlay)
    await at[0].machine.run(*line, "self", "permanent")


async def _close_port(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await lab.fabric.machines["router"].run("nft", FILTER.replace("HOOK", "forward"))


async def _open_port(lab: Lab, at: Sequence[LabNode]) -> None:  # noqa: ARG001
    await lab.fabric.machines["router"].run("nft", f"delete table {TABLE}")


BREAKS: Final[dict[str, Break]] = {
    "filter": Break(
        f"{{0}}'s own firewall drops UDP port {PORT}", "node", "direction", f"UDP port {PORT} is dropped here",
        _filter, _no_filter, broken=lambda at: ("", at[0]),
    ),
    "forward": Break(
        "{0}'s own firewall forwards nothing", "node", "pods", "not forwarded here", _no_forwarding, _no_filter,
    ),
    "peer": Break("{0} is dead", "node", "silent", "no report of", _unplug, _plug),
    "mtu": Break(
        f"{{0}}'s cable carries {NARROW_MTU} bytes", "node", "large", "bytes do not arrive", _narrow, _wide,
    ),
    "route": Break(
        "{0} routes {1}'s range elsewhere", "pair", "", f"leave by eth0 (table {ROUTES}), not by isthmus",
        _route, _no_route, nodes=2,
    ),
    "direction": Break(
        "nothing from {0} arrives at {1}", "pair", "direction", "answers no datagram",
        _one_way, _both_ways, nodes=2, broken=lambda at: (at[0], at[1]),
    ),
    "fdb": Break(
        "another program writes {0}'s FDB row of {1}", "pair", "direction", "FDB entry",
        _wrong_row, _right_row, nodes=2, broken=lambda at: (at[0], at[1]),
    ),
    "port": Break(
        f"UDP port {PORT} is closed between the sites", "sites", "silent", f"UDP port {PORT}",
        _close_port, _open_port, nodes=0,
    ),
}  # fmt: skip
"""The order is that in which nodes are given out: whole nodes first, then pairs in a row."""


@dataclass(slots=True)
class _Broken:
    kind: Break
    at: list[LabNode]
    since_s: float = 0.0
    seconds: float = 0.0
    finding: FindingView | None = None
    traces: tuple[NodeTrace, ...] = ()

    @property
    def title(self) -> str:
        return self.kind.title.format(*(node.name for node in self.at))

    @property
    def key(self) -> tuple[str, str, str]:
        """What the finding must be about."""
        if self.kind.scope == "sites":
            return "sites", "idc", "vpc"
        names = sorted(node.name for node in self.at)
        return self.kind.scope, names[0], names[1] if len(names) > 1 else ""


def nodes_needed(kinds: Sequence[str]) -> int:
    """How many cloud nodes these kinds take: each node of its own, pairs in a row share their ends."""
    single = sum(BREAKS[kind].nodes == 1 for kind in kinds)
    pairs = sum(BREAKS[kind].nodes == 2 for kind in kinds)
    return single + (pairs + 1 if pairs else 0)


def chosen(kinds: Sequence[str], cloud: int) -> tuple[str, ...]:
    """The kinds asked for, each once, ``all`` of them if that is among them.

    Raises Usage(usage) when there are too few cloud nodes to tell them apart.
    """
    found = tuple(kind for kind in BREAKS if kind in kinds or "all" in kinds)
    needed = nodes_needed(found)
    if needed > cloud:
        line = " ".join(f"--break {kind}" for kind in kinds)
        raise Usage(
            "usage",
            f"--break of {', '.join(found)} at once takes {needed} cloud nodes, there are {cloud}: "
            f"isthmus lab {line} --cloud {needed}",
        )
    return found


async def breaks(lab: Lab, report: Report, kinds: Sequence[str], *, keep: bool) -> None:
    """Breaks paths, waits for the verdict, and mends them again (not when they are to be looked at).

    Raises CheckFailedError.
    """
    with report.stage("All nodes measure each other, and nothing is lost") as check:
        pairs = len(lab.nodes) * (len(lab.nodes) - 1)
        view = await _until(lab, lambda seen: _measured(seen) == pairs and not seen.findings, f"{pairs} paths")
        check.measured = {"paths": _measured(view)}
        check.detail = f"{_measured(view)} paths, of {view.capable} nodes"
    await traced(lab, report)
    broken = _give_out(lab, kinds)
    loop = asyncio.get_running_loop()
    for one in broken:
        await one.kind.make(lab, one.at)
        one.since_s = loop.time()
    for one in broken:
        with report.stage(f"The verdict names it: {one.title}") as check:
            await _verdict(lab, one)
            if one.finding is None:
                raise CheckFailedError("no verdict")
            text = [f"after {one.seconds:.1f} s: {one.finding.sentence}", *one.finding.evidence]
            text += [f"{told.by} → {told.of} stops at {told.stops}" for told in one.traces if told.stops]
            check.detail = "\n".join(text)
            check.measured = {
                "scope": one.finding.scope,
                "fault": one.finding.fault,
                "sentence": one.finding.sentence,
                "evidence": list(one.finding.evidence),
                "hops": [hop.text for told in one.traces for hop in told.hops if hop.passed is False],
                "stops": [told.stops for told in one.traces if told.stops],
                "event": one.finding.recorded,
                "seconds": round(one.seconds, 1),
            }
    with report.stage("Nothing else is called lost, and a script learns of it by the exit code") as check:
        try:
            said = await lab.isthmus("mesh")
        except CommandFailedError as error:
            if "ended with 1:" not in str(error):
                raise
        else:
            raise CheckFailedError(f"isthmus mesh ended with 0:\n{said}")
        seen = await _ask(lab, ShowMesh())
        wanted = {one.key for one in broken}
        false = [
            one.sentence for one in seen.findings if one.recorded and (one.scope, one.a, one.b) not in wanted
        ]
        if false:
            raise CheckFailedError("; ".join(false))
        check.detail = f"{sum(bool(one.recorded) for one in seen.findings)} findings for {len(wanted)} breaks"
    if keep:
        report.note("What was broken stays so: isthmus mesh (on the machine controller) shows it")
        return
    for one in broken:
        await one.kind.mend(lab, one.at)
    with report.stage("Mended: every path is restored, and recorded so") as check:
        seconds = round(await _restored(lab), 1)
        events = await lab.isthmus("events", "tail", "--from", "1", "--json")
        check.measured = {"seconds": seconds, "restored": events.count("path.restored.v1")}
        if check.measured["restored"] < len(broken):
            raise CheckFailedError(f"{check.measured['restored']} events for {len(broken)} paths")


async def traced(lab: Lab, report: Report) -> None:
    """A way that passes, traced on demand as an operator does it: exit code 0, all hops of both ends.

    Raises CheckFailedError.
    """
    with report.stage("A way is traced on demand by the agents of both ends") as check:
        a, b = next(iter(lab.nodes)), lab.topology.nodes[-1].name
        check.detail = (await lab.isthmus("mesh", a, b)).strip()
        for way in (f"{a} → {b}", f"{b} → {a}"):
            if not any(line.startswith(way) and "passes" in line for line in check.detail.splitlines()):
                raise CheckFailedError(f"no trace {way}:\n{check.detail}")


async def _restored(lab: Lab) -> float:
    started = asyncio.get_running_loop().time()
    await _until(lab, lambda seen: not seen.findings, "all paths to be restored")
    return asyncio.get_running_loop().time() - started


def _give_out(lab: Lab, kinds: Sequence[str]) -> list[_Broken]:
    cloud = [node for node in lab.nodes.values() if node.node.kind == "cloud"]
    found: list[_Broken] = []
    for kind in (BREAKS[name] for name in kinds):
        found.append(_Broken(kind, cloud[: kind.nodes]))
        del cloud[: 1 if kind.nodes else 0]
    return found


async def _verdict(lab: Lab, one: _Broken) -> None:
    """Wait until the finding is recorded and its cause is named in it or by a trace."""
    pair = one.at if len(one.at) == 2 else []
    query = ShowMesh(a=pair[0].name, b=pair[1].name) if pair else ShowMesh()
    names = [node.name for node in one.at]

    def told(seen: MeshView) -> bool:
        for found in seen.findings:
            if (found.scope, found.a, found.b) != one.key or not found.recorded:
                continue
            if one.kind.fault not in {"", found.fault}:
                continue
            one.finding, one.traces = found, seen.traces
            hops = [hop for trace in seen.traces for hop in trace.hops if hop.passed is False]
            return any(one.kind.names in text for text in (*found.evidence, *(hop.text for hop in hops)))
        return False

    tracing = msgspec.structs.replace(query, trace=bool(pair))
    await _until(lab, told, f"the verdict {one.key} {one.kind.fault}, naming {one.kind.names!r}", tracing)
    one.seconds = asyncio.get_running_loop().time() - one.since_s
    start, end = one.kind.broken(names)
    if one.kind.fault == "direction" and one.finding is not None:
        wanted = f"nothing passes from {start or 'the others'} to {end or 'the others'}"
        if wanted not in one.finding.sentence:
            raise CheckFailedError(f"{one.finding.sentence!r}, not {wanted!r}")


def _measured(view: MeshView) -> int:
    return sum(path.measured for path in view.sites)


async def _ask(lab: Lab, query: ShowMesh) -> MeshView:
    return await lab.client.ask(query, MeshView)


async def _until(
    lab: Lab, condition: Callable[[MeshView], bool], what: str, query: ShowMesh | None = None
) -> MeshView:
    """The first answer that meets the condition. Raises CheckFailedError with the last one."""
    loop = asyncio.get_running_loop()
    deadline, seen = loop.time() + VERDICT_LIMIT_S, None
    while loop.time() < deadline:
        try:
            seen = await _ask(lab, query or ShowMesh())
        except Unavailable:
            pass
        else:
            if condition(seen):
                return seen
        await asyncio.sleep(POLL_S)
    raise CheckFailedError(f"waited {VERDICT_LIMIT_S:g} s for {what}; the last answer: {_told(seen)}")


def _told(seen: MeshView | None) -> str:
    if seen is None:
        return "none came"
    said: list[Any] = [(one.sentence, one.recorded, *one.evidence) for one in seen.findings]
    said += [(told.by, told.of, told.stops) for told in seen.traces]
    return f"{_measured(seen)} paths measured, {said or 'nothing lost'}"
