"""`isthmus doctor`: looks at everything that the overlay needs of this node, and says what to do.

It changes nothing. Each check returns findings; a check that cannot be made says so instead of
pretending. The judgements are pure functions elsewhere (:mod:`nodeagent.dataplane.preflight`).
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import time
from collections.abc import Iterator
from datetime import datetime
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import msgspec

from events import subjects
from events.bus.connection import BusOptions, connect
from events.codes import CODES
from events.errors import IsthmusError, Usage
from events.status import SILENT_INTERVALS
from nodeagent import local_files, privileges, system
from nodeagent.config import DEFAULT_DEVICE
from nodeagent.dataplane import host_settings, preflight
from nodeagent.dataplane.underlay import Underlay, overlay_mtu, resolve
from nodeagent.fastpath import programs
from nodeagent.fastpath.start import SWITCHED_OFF
from nodeagent.gateway.link import ArpSocket
from nodeagent.health import encryption, findings
from nodeagent.health.findings import Finding, Level
from nodeagent.membership.cache import Cache
from nodeagent.membership.peers import Peer
from nodeagent.membership.view import View
from nodeagent.nat.findings import findings as nat_findings
from nodeagent.netlink import links
from nodeagent.netlink.udp_ports import holders
from nodeagent.path_mtu import probe

CLOCK_SKEW_LIMIT_S = 2.0
PROBED_PEERS = 5


class ExaminedNode(msgspec.Struct, frozen=True, kw_only=True):
    """What is examined."""

    cluster: str
    bus: BusOptions
    state_dir: Path
    underlay: str = "auto"
    device: str = DEFAULT_DEVICE


async def examine(node: ExaminedNode, *, bus: bool = True) -> list[Finding]:
    """All findings, in the order of the checks; without ``bus`` those of the machine alone.

    Cancelled, it leaves nothing behind: it changes nothing.
    """
    view = _known_view(node)
    found: list[Finding] = []
    checks = (
        *(_privileges, _programs, _encryption, _pods, _sysctls, _fast_path),
        *(_underlay, _overlays, _nat, _routes, _agent),
    )
    for check in checks:
        try:
            found += await asyncio.to_thread(lambda: list(check(node, view)))  # noqa: B023  awaited at once
        except IsthmusError as error:
            found.append(Finding(check.__name__[1:], "problem", error.message, CODES[error.code].remedy))
        except OSError as error:
            found.append(Finding(check.__name__[1:], "info", f"cannot be checked: {error}"))
    found += await findings.filters(view.plan.cidrs if view is not None and view.plan is not None else ())
    if not bus:
        return found
    found += await _bus(node)
    found += await _paths(node, view)
    return found


def _known_view(node: ExaminedNode) -> View | None:
    """The view that the agent last kept, if there is one."""
    status = _status(node)
    if status is None:
        return None
    view = Cache(node.state_dir).load(status.cluster, status.node, status.uid)
    return view if view.sequence else None


def _privileges(_: ExaminedNode, __: View | None) -> Iterator[Finding]:
    if privileges.effective() >> privileges.CAP_NET_ADMIN & 1:
        yield Finding("capability", "ok", "CAP_NET_ADMIN is there")
    else:
        yield Finding(
            "capability",
            "problem",
            "CAP_NET_ADMIN is missing: rows cannot be written",
            "run as root, or by the shipped systemd unit",
        )


def _programs(_: ExaminedNode, __: View | None) -> Iterator[Finding]:
    if system.find("nft"):
        yield Finding("nftables", "ok", "nft is installed")
    else:
        yield Finding(
            "nftables",
            "problem",
            "nft is not installed: pods are not shielded, and do not reach outside",
            "apt-get install nftables",
        )


def _encryption(node: ExaminedNode, view: View | None) -> Iterator[Finding]:
    yield from encryption.findings(node.device, view)


def _pods(node: ExaminedNode, view: View | None) -> Iterator[Finding]:
    yield from findings.plugins(_status(node))
    if view is not None and view.own is not None:
        yield from findings.max_pods(view.own.cidr)


def _status(node: ExaminedNode) -> local_files.LocalStatus | None:
    try:
        return local_files.read_status(node.state_dir)
    except IsthmusError:
        return None


def _sysctls(node: ExaminedNode, _: View | None) -> Iterator[Finding]:
    yield from findings.forwarding(node.device)
    yield from findings.connections()
    strict = [
        name
        for name in ("all", node.device)
        if host_settings.read_sysctl(f"net/ipv4/conf/{name}/rp_filter") == "1"
    ]
    if strict:
        yield Finding(
            "rp_filter",
            "info",
            f"strict for {', '.join(strict)}: fine for the tunnel, but it drops "
            "packets of asymmetric underlay routes",
            "sysctl -w net.ipv4.conf.all.rp_filter=2 if routes are asymmetric",
        )
    else:
        yield Finding("rp_filter", "ok", "not strict")
    if host_settings.needs_software_checksum(behind_nat=False):
        yield Finding("checksum", "info", "this kernel needs TX checksum offload off; the agent does that")


def _fast_path(node: ExaminedNode, _: View | None) -> Iterator[Finding]:
    """What the running agent says; where none runs, whether the programs load here."""
    if local_files.running(node.state_dir):
        said = local_files.read_status(node.state_dir).fastpath or "off: this agent's release has none"
        level: Level = "ok" if said == "on" or said.startswith("on:") else "warning"
        if SWITCHED_OFF in said:
            level = "info"
        cure = "remove the cause, and where the programs did not load, restart the agent; pods work, but slower"
        fix = cure if level == "warning" else ""
        yield Finding("fast path", level, said, fix)
        return
    try:
        programs.load().close()
    except IsthmusError as error:
        yield Finding("fast path", "warning", f"off: {error.message}", "pods work without it, but slower")
        return
    yield Finding("fast path", "ok", "this kernel takes its programs")


def _underlay(node: ExaminedNode, view: View | None) -> Iterator[Finding]:
    try:
        underlay = resolve(_underlay_of(node, view))
    except Usage as error:
        fix = "give --underlay DEVICE or ADDRESS, here and to the agent"
        yield Finding("underlay", "problem", error.message, fix)
        return
    if not underlay.present:
        yield Finding(
            "underlay",
            "problem",
            f"{underlay.address} is not on any device that is up and has a carrier",
            "bring the link up (`ip -br link` says NO-CARRIER where nobody is at the other end), or start the "
            "agent with --underlay DEVICE",
        )
        return
    yield Finding(
        "underlay",
        "ok",
        f"{underlay.address} on {underlay.device}, MTU {underlay.mtu} (inside {overlay_mtu(underlay)})",
    )
    yield from _twin(underlay)
    yield from findings.segmentation(underlay.device)
    if view is not None:
        members = (peer.underlay for peer in view.peers)
        limit = host_settings.read_sysctl(findings.NEIGHBOURS_MAX.replace(".", "/"))
        yield from findings.neighbour_table(underlay.address, members, limit)
    link = links.find(node.device)
    if link is not None and link.mtu > underlay.mtu - links.VXLAN_OVERHEAD_V4:
        yield Finding(
            "mtu",
            "problem",
            f"{node.device} has MTU {link.mtu}, the underlay {underlay.mtu}: large packets are lost",
            "restart the agent; it follows the underlay's MTU",
        )
    if view is not None and view.plan is not None:
        joined_with = member.underlay if (member := view.members.get(view.node)) is not None else ""
        for cidr in view.plan.cidrs:
            if IPv4Address(underlay.address) in IPv4Network(cidr) and underlay.address != joined_with:
                yield Finding(
                    "underlay",
                    "problem",
                    f"the underlay address {underlay.address} lies in the container network {cidr}",
                    "give the node an address outside it",
                )


def _twin(underlay: Underlay) -> Iterator[Finding]:
    """Whether another machine on the link has the node's address (ARP probe, RFC 5227). This one's own other
    devices answer, too (arp_ignore 0), and a router may for all (proxy ARP): it keeps nobody from joining.
    """
    try:
        with contextlib.closing(ArpSocket(underlay.device)) as arp:
            other = arp.taken(underlay.address)
    except OSError:
        return  # no Ethernet device, no CAP_NET_RAW, or the device went down
    if other and other not in {link.mac for link in links.links()}:
        yield Finding(
            "underlay",
            "warning",
            f"{underlay.address} is also the address of another machine on {underlay.device}, MAC {other}: "
            "packets of both get lost by turns, unless that is a router that answers for all",
            "give one of them another address; if it is a copy of this machine, stop the agent there, then: "
            "isthmus agent new-identity --yes",
        )


def _underlay_of(node: ExaminedNode, view: View | None) -> str:
    """Whatever was asked for; else the address that the agent joined with."""
    member = view.members.get(view.node) if view is not None else None
    return member.underlay if node.underlay == "auto" and member is not None else node.underlay


def _overlays(node: ExaminedNode, view: View | None) -> Iterator[Finding]:
    present = links.links()
    vni, port = (view.plan.vni, view.plan.port) if view is not None and view.plan is not None else (100, 8472)
    conflicts = preflight.vxlan_conflicts(present, node.device, vni, port)
    for link in conflicts:
        yield Finding(
            "vxlan",
            "problem",
            f"device {link.name} holds vni {link.vni} on UDP port {link.port}"
            f"{', for all VNIs' if link.metadata else ''}: ours cannot be up beside it",
            f"ip link del {shlex.quote(link.name)}, or define the cluster with another port",
        )
    # A vxlan device that is up has the port's socket; without one, the socket is some program's.
    tunnels = any(link.kind == "vxlan" and link.port == port and link.up for link in present)
    held = () if tunnels else holders({port})
    if held:
        yield Finding(
            "vxlan",
            "problem",
            f"UDP port {port} is held by {held[0]}: the tunnel cannot be up beside it",
            "stop it, or define the cluster with another port",
        )
    elif not conflicts:
        yield Finding("vxlan", "ok", f"vni {vni} on UDP port {port} is free for {node.device}")
    for link, name in preflight.other_overlays(present, node.device):
        yield Finding(
            "other overlay",
            "warning",
            f"device {link.name} belongs to {name}: two overlays on one node are rarely meant",
            f"remove {name} from this node if it is a leftover",
        )


def _nat(node: ExaminedNode, view: View | None) -> Iterator[Finding]:
    status = _status(node)
    if view is not None and view.plan is not None:
        yield from nat_findings(node.device, view.plan.vni, view.plan.port, status.nat if status else "")


def _routes(node: ExaminedNode, view: View | None) -> Iterator[Finding]:
    if view is None or view.plan is None:
        yield Finding("routes", "info", "the container network is not known here yet: no agent has run")
        return
    link = links.find(node.device)
    routes = preflight.foreign_routes(link.index if link else 0)
    member = view.members.get(view.node)
    is_accepted = preflight.accepted(
        view.plan.networks, view.plan.cidrs, member.underlay if member is not None else ""
    )
    found = preflight.overlapping(routes, view.plan.cidrs, view.own.cidr if view.own else "")
    conflicts = [(route, cidr) for route, cidr in found if not is_accepted(route.network)]
    for route, cidr in found:
        if is_accepted(route.network):
            yield Finding(
                "routes", "info", f"the route {route.network} overlaps {cidr}: accepted, as the log says"
            )
    for route, cidr in conflicts[:10]:
        yield Finding(
            "routes",
            "problem",
            f"the route {route.network} overlaps the container network {cidr} and draws its packets away",
            f"ip route del {route.network}",
        )
    if not conflicts:
        yield Finding("routes", "ok", f"no other route meets {', '.join(view.plan.cidrs)}")


def _agent(node: ExaminedNode, _: View | None) -> Iterator[Finding]:
    running = local_files.running(node.state_dir)
    try:
        status = local_files.read_status(node.state_dir)
    except IsthmusError:
        yield Finding("agent", "info", "no agent has run with this state directory yet")
        return
    if not running:
        yield Finding(
            "agent",
            "warning",
            f"the agent is not running; its rows stand since event {status.applied}",
            "systemctl start isthmus-agent",
        )
        return
    silent_s = local_files.now_of(status) - status.written_at
    if silent_s > SILENT_INTERVALS * status.interval_s:
        yield Finding(
            "agent",
            "problem",
            f"it has said nothing for {silent_s:.0f} s (it was {status.state}): it hangs, or is stopped",
            f"look at it (`cat /proc/{status.pid}/status`), and restart it: systemctl restart isthmus-agent",
        )
        return
    yield from findings.path(status)
    level: Level = "ok" if status.state == "ready" else "warning"
    yield Finding("agent", level, f"{status.state}, {status.peers} peers, applied event {status.applied}")
    for condition in status.conditions:
        yield Finding("agent", "warning", condition)


async def _bus(node: ExaminedNode) -> list[Finding]:
    where = ", ".join(node.bus.servers)
    try:
        client = await connect(node.bus, name="isthmus-doctor")
    except IsthmusError as error:
        return [Finding("bus", "problem", error.message, "check --bus, the network and the server")]
    try:
        trip = time.perf_counter()
        await client.flush(timeout=3)
        trip = time.perf_counter() - trip
        found = [Finding("bus", "ok", f"{where} answers in {trip * 1000:.1f} ms")]
        request = f"{node.bus.api_prefix}.STREAM.INFO.{subjects.stream(node.cluster)}"
        before = time.time()
        answer = await client.request(request, b"", timeout=3)
        return [*found, *_log_findings(node.cluster, answer.data, before, time.time())]
    except Exception as error:  # whatever the client raises is the finding
        return [
            Finding(
                "log",
                "problem",
                f"the log of cluster {node.cluster!r} does not answer: {error}",
                "check --cluster, and that a controller has been started once",
            )
        ]
    finally:
        await client.close()


def _log_findings(cluster: str, body: bytes, before: float, after: float) -> Iterator[Finding]:
    info = msgspec.json.decode(body, type=dict[str, object])
    if "error" in info:
        yield Finding(
            "log",
            "problem",
            f"the bus has no log of cluster {cluster!r}",
            "start a controller, check --cluster",
        )
        return
    yield Finding("log", "ok", f"the log of cluster {cluster!r} is there")
    stamp = info.get("ts")
    if isinstance(stamp, str):
        yield clock(msgspec.convert(stamp, datetime), before, after)


def clock(there: datetime, before: float, after: float) -> Finding:
    """This node's clock against the bus's, which was asked between ``before`` and ``after`` (Unix seconds)."""
    skew = (before + after) / 2 - there.timestamp()
    bad = abs(skew) > CLOCK_SKEW_LIMIT_S
    return Finding(
        "clock",
        "warning" if bad else "ok",
        f"{skew:+.2f} s against the bus",
        "start a time service (chrony, systemd-timesyncd)" if bad else "",
    )


async def _paths(node: ExaminedNode, view: View | None) -> list[Finding]:
    """How large packets may be on the way to some peers, by the tunnel's own kind of packet."""
    link = await asyncio.to_thread(links.find, node.device)
    if view is None or view.own is None or link is None or not len(view.peers):
        return [Finding("path", "info", "no peers are known here yet")]
    try:
        underlay = await asyncio.to_thread(resolve, _underlay_of(node, view))
        wanted = link.mtu + links.VXLAN_OVERHEAD_V4
        ways = [
            (peer, way)
            for peer in probe.sample(view.peers, PROBED_PEERS)
            if (way := probe.path_to(peer, view, underlay.address)) is not None
        ]
        passed = await asyncio.gather(*(probe.measure(way, wanted) for _, way in ways))
        mtus = await asyncio.to_thread(lambda: [links.route_mtu(way.peer_vtep) for _, way in ways])
    except (IsthmusError, OSError) as error:
        return [Finding("path", "info", f"cannot be checked: {error}")]
    return [
        _path(peer, wanted, size, mtu, way.port)
        for (peer, way), size, mtu in zip(ways, passed, mtus, strict=True)
    ]


def _path(peer: Peer, wanted: int, passed: int, mtu: int, port: int) -> Finding:
    """``mtu`` is the inner MTU that the peer's route has, 0 for the device's."""
    name, overhead = f"{peer.node} ({peer.underlay})", links.VXLAN_OVERHEAD_V4
    if passed == wanted:
        return Finding("path", "ok", f"{name}: {wanted} bytes pass in one piece, {wanted - overhead} inside")
    if not passed:
        return Finding(
            "path",
            "warning",
            f"{name}: no answer through the tunnel",
            f"is its agent up, and UDP port {port} open on the way?",
        )
    if mtu and mtu + overhead <= passed:
        return Finding(
            "path",
            "info",
            f"{name}: at most {passed} bytes pass in one piece, and its route says so: {mtu} inside",
            f"raise the MTU on the way, if {wanted} bytes should pass",
        )
    return Finding(
        "path",
        "problem",
        f"{name}: at most {passed} bytes pass in one piece, the tunnel sends {wanted}: what is larger is cut "
        "into pieces on the way, or lost",
        "a running agent gives the peer's route that MTU within minutes; else start it with "
        f"--mtu {passed - overhead}, or raise the MTU on the way",
    )
