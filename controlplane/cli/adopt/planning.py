"""Candidates → the plan of an adoption, or every finding at once. Pure: the rules are the controller's own.

What the cluster would be (container CIDR, range size, Service range, VNI, port, MTU) is taken from what the
nodes have, and each of it can be said instead. The nodes are then decided upon exactly as a controller would.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import msgspec

from controlplane.cli.adopt.sources import Network, SubnetEnv
from controlplane.cluster.addressing.addresses import Net, network
from controlplane.cluster.addressing.mac import vtep_mac
from controlplane.cluster.addressing.plan import prefix_of
from controlplane.cluster.decide import decide
from controlplane.cluster.decisions.given_range import Finding, read
from controlplane.cluster.evolve import evolve
from controlplane.cluster.state import ClusterState
from controlplane.kubernetes.flannel_nodes import Candidate, adopted, judge
from events.errors import BadRequest
from events.log import BATCH_LIMIT
from events.protocol.commands import AdoptedNode, AdoptNodes, BeginAdoption, Command, DefineCluster
from events.types import Network as Declared

FORMAT = "isthmus-adoption-plan/1"
CUSTOMARY = ("10.42.0.0/16", "10.244.0.0/16")
"""Container CIDRs that k3s, and flannel, kubeadm and kind use when nobody says another."""
FLANNEL_VNI, FLANNEL_PORT = 1, 8472
BATCH = BATCH_LIMIT // 2 - 100


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """What the operator says instead of what the nodes have; 0 and empty: as they have it."""

    cluster: str = "default"
    source: str = "flannel"
    cidr: str = ""
    range_size: int = 0
    services: int = 256
    service_cidr: str = ""
    vni: int = 0
    port: int = 0
    mtu: int = 0
    keep_name: bool = False
    skip: tuple[str, ...] = ()


class Origin(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the nodes are read: the Kubernetes API, or files (``-``: a pipe, which is read once).

    ``kind`` is that of nodes that do not say it; ``source`` what the ranges are of, where that was said.
    """

    kubernetes: bool = False
    kubeconfig: str = ""
    nodes: str = ""
    leases: str = ""
    cilium: str = ""
    hosts: str = ""
    subnet_envs: tuple[str, ...] = ()
    kind: str = "cloud"
    source: str = ""
    underlay_cidrs: tuple[str, ...] = ()


class AdoptionPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What ``run`` does. ``digest`` is the SHA-256 of the rest; ``cursor`` the index behind the highest range.

    ``device`` is the present network's tunnel device; empty: there is none to take over. ``keep_name``: its
    name stays, too, since kernels before Linux 6.2 rename no device that is up.
    """

    format: str
    cluster: str
    source: str
    define: DefineCluster
    service_cidr: str
    mtu: int
    cursor: int
    capacity: int
    device: str
    nodes: tuple[AdoptedNode, ...]
    skipped: tuple[str, ...] = ()
    keep_name: bool = False
    origin: Origin | None = None
    digest: str = ""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """The plan, or nothing and why: one entry per finding, with node, code and message."""

    plan: AdoptionPlan | None
    findings: list[dict[str, str]]
    notes: tuple[str, ...] = ()


def make(
    candidates: Sequence[Candidate],
    wish: Wish,
    *,
    configured: Network | None = None,
    subnet_envs: Mapping[str, SubnetEnv] | None = None,
    origin: Origin | None = None,
    again: bool = False,
) -> Report:
    """Judge the candidates. Raises Refused and BadRequest for wishes that no candidate could meet.

    ``again``: a plan that was made goes on; a node that was left out need not be there any more.
    """
    configured, envs = configured or Network(), subnet_envs or {}
    unknown = [] if again else sorted(set(wish.skip) - {each.node for each in candidates})
    if unknown:
        raise BadRequest("bad_request", f"--skip {', '.join(unknown)[:200]}: no such node is in the input")
    chosen = [each for each in candidates if each.node not in wish.skip]
    if not chosen:
        raise BadRequest("bad_request", "no node is left to adopt")
    findings: list[dict[str, str]] = []
    flannel = wish.source == "flannel"
    if flannel:
        for each in chosen:
            judge(each, keep_name=wish.keep_name)
    vni = _one(chosen, "vni", wish.vni or configured.vni, FLANNEL_VNI, "adopt_vni_differs", "VNI")
    port = _one(chosen, "port", wish.port or configured.port, FLANNEL_PORT, "adopt_port_differs", "VXLAN port")
    mtu = _mtu(chosen, envs, wish, findings)
    nets = {each.node: net for each in chosen if (net := read(each.range)[0]) is not None}
    size = wish.range_size or (1 << (32 - configured.length) if configured.length else 0) or _most(nets)
    cidr, said = _container(wish, configured, envs, nets)
    define = DefineCluster(
        container_cidr=cidr,
        pods_per_node=size,
        services=wish.services,
        vni=vni,
        vxlan_port=port,
        networks=(Declared(cidr=wish.service_cidr, kind="route", name="services"),)
        if wish.service_cidr
        else (),
    )
    state = _begun(wish, define)
    nodes = tuple(adopted(each, each.mac if flannel else vtep_mac(each.uid)) for each in chosen)
    findings += [_entry(each.node, found) for each in chosen for found in each.findings]
    blamed = {(entry["node"], entry["code"]) for entry in findings}
    for part in range(0, len(nodes), BATCH):
        decision = decide(state, AdoptNodes(nodes=nodes[part : part + BATCH]), datetime.now(UTC))
        told = decision.refusal.details.get("findings", []) if decision.refusal is not None else []
        findings += [
            entry for entry in told if (entry["node"], entry["code"]) not in blamed and not _echo(entry, blamed)
        ]
        for event in decision.events:
            evolve(state, state.sequence + 1, event)
    notes = [f"container CIDR {cidr}: {said}"]
    if not flannel:
        notes.append(
            f"{wish.source} leaves no device to take over: nodes get a new one when their agent starts"
        )
    canal = sum(each.attached_by_calico for each in chosen) if flannel else 0
    if canal:
        notes.append(
            f"{canal:,} nodes are canal's: Calico attaches their pods and keeps their policies. Start the "
            f"agents with --cni-network k8s-pod-network, and move Calico's file away from the CNI folder"
        )
    if findings:
        return Report(plan=None, findings=findings, notes=tuple(notes))
    plan = AdoptionPlan(
        format=FORMAT,
        cluster=wish.cluster,
        source=wish.source,
        define=define,
        service_cidr=state.definition.service_cidr if state.definition else "",
        mtu=mtu,
        cursor=state.pool.cursor,
        capacity=state.capacity,
        device=f"flannel.{vni}" if flannel else "",
        nodes=tuple(sorted(nodes, key=lambda node: state.owned[node.node].index)),
        skipped=wish.skip,
        keep_name=wish.keep_name,
        origin=origin,
    )
    return Report(plan=sealed(plan), findings=[], notes=tuple(notes))


def sealed(plan: AdoptionPlan) -> AdoptionPlan:
    """The plan with its digest."""
    bare = msgspec.structs.replace(plan, digest="")
    return msgspec.structs.replace(bare, digest=sha256(msgspec.json.encode(bare, order="sorted")).hexdigest())


def opened(content: bytes) -> AdoptionPlan:
    """The plan of a file. Raises BadRequest(adopt_plan_invalid)."""
    try:
        plan = msgspec.json.decode(content, type=AdoptionPlan)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("adopt_plan_invalid", f"it is no plan of an adoption: {error}") from error
    if plan.format != FORMAT:
        raise BadRequest(
            "adopt_plan_invalid", f"it has format {plan.format[:64]!r}, this program reads {FORMAT!r}"
        )
    if sealed(plan).digest != plan.digest:
        raise BadRequest(
            "adopt_plan_invalid",
            f"it was changed since it was made: its digest says {plan.digest[:16]!r}…, its content gives "
            f"{sealed(plan).digest[:16]!r}…; make it anew: isthmus adopt plan --help",
        )
    return plan


def commands(plan: AdoptionPlan) -> list[Command]:
    """What brings the plan into the log, in order; repeating all of it writes nothing."""
    parts = [plan.nodes[start : start + BATCH] for start in range(0, len(plan.nodes), BATCH)]
    return [
        plan.define,
        BeginAdoption(source=plan.source, plan=plan.digest),
        *(AdoptNodes(nodes=part) for part in parts),
    ]


def _begun(wish: Wish, define: DefineCluster) -> ClusterState:
    """The cluster as it would be just before its first node. Raises Refused and BadRequest."""
    state = ClusterState(wish.cluster)
    for command in (define, BeginAdoption(source=wish.source)):
        decision = decide(state, command, datetime.now(UTC))
        if decision.refusal is not None:
            raise decision.refusal
        for event in decision.events:
            evolve(state, state.sequence + 1, event)
    return state


def _one(  # noqa: PLR0917  what is said about one property
    chosen: Sequence[Candidate], field: str, said: int | None, usual: int, code: str, what: str
) -> int:
    """The value that holds for all; nodes with another one are told of it, both sides named."""
    silent = said or usual  # what flannel takes where nobody says anything
    have = [(silent if getattr(each, field) is None else getattr(each, field), each) for each in chosen]
    counts = Counter(value for value, _ in have)
    value = said or (counts.most_common(1)[0][0] if counts else usual)
    holder = next((each.node for has, each in have if has == value), "")
    for has, each in have:
        if has != value:
            others = (
                f"{counts[value]} others, such as {holder}, have {value}" if holder else f"{value} is wanted"
            )
            each.found(code, f"its {what} is {has}; {others}")
    return int(value)


def _mtu(
    chosen: Sequence[Candidate], envs: Mapping[str, SubnetEnv], wish: Wish, findings: list[dict[str, str]]
) -> int:
    """The inner MTU in bytes; 0: the agent follows the underlay, as flannel does."""
    by_range = {net: each for each in chosen if (net := read(each.range)[0]) is not None}
    wanted = wish.mtu or (Counter(env.mtu for env in envs.values()).most_common(1)[0][0] if envs else 0)
    holder = next((name for name, env in envs.items() if env.mtu == wanted), "")
    for name, env in envs.items():
        net, _ = read(env.range)
        if net is None or net not in by_range:
            text = f"its FLANNEL_SUBNET {env.range} is the range of no node in the input"
            findings.append(_entry(name, Finding("adopt_range_missing", text)))
        if env.mtu != wanted:
            text = f"its FLANNEL_MTU is {env.mtu} bytes, {holder or 'what was asked for'} has {wanted}"
            findings.append(_entry(name, Finding("adopt_mtu_differs", text)))
    return wanted


def _most(nets: Mapping[str, Net]) -> int:
    sizes = Counter(net.size for net in nets.values())
    if not sizes:
        return 256
    return sizes.most_common(1)[0][0]


def _container(
    wish: Wish, configured: Network, envs: Mapping[str, SubnetEnv], nets: Mapping[str, Net]
) -> tuple[str, str]:
    """The container CIDR, and where it was found."""
    if wish.cidr:
        return wish.cidr, "as said"
    if configured.cidr:
        return configured.cidr, "flannel's configuration"
    for name, env in envs.items():
        if env.cidr:
            return env.cidr, f"subnet.env ({name})"
    if not nets:
        return CUSTOMARY[0], "nothing says it; no node has a range that can be read"
    count = Counter(home for net in nets.values() for home in CUSTOMARY if network(home).contains(net))
    if count and count.most_common(1)[0][1] * 2 > len(nets):
        return count.most_common(1)[0][0], "customary, and most ranges lie in it; say --cidr if it is another"
    size = _most(nets)
    alike = [net for net in nets.values() if net.size == size]
    first, last = min(net.first for net in alike), max(net.last for net in alike)
    block = 1 << min(max((first ^ last).bit_length(), size.bit_length()), 24)
    while (first & ~(block - 1)) + block - wish.services <= last and block < 1 << 24:
        block *= 2  # its last segment is kept for Services
    return (
        f"{Net(first & ~(block - 1), block)}",
        "the smallest that holds the nodes' ranges; say --cidr if it is wider",
    )


def _entry(node: str, found: Finding) -> dict[str, str]:
    return {"node": node, "code": found.code, "message": found.message}


def _echo(entry: Mapping[str, Any], blamed: set[tuple[str, str]]) -> bool:
    """Whether a finding only follows from one that was told already: what was not read cannot be right."""
    causes = {
        "adopt_mac_invalid": ("adopt_annotation_missing", "adopt_annotation_unreadable", "adopt_backend",
                              "adopt_node_unnamed"),
        "node_name_invalid": ("adopt_node_unnamed", "adopt_node_unreadable"),
        "bad_request": ("adopt_node_unnamed", "adopt_node_unreadable"),
        "underlay_address_invalid": ("adopt_node_unnamed", "adopt_node_unreadable"),
    }  # fmt: skip
    return any((entry["node"], cause) in blamed for cause in causes.get(entry["code"], ()))


def size_text(plan: AdoptionPlan) -> str:
    """The range size in words."""
    size = plan.define.pods_per_node
    return f"/{prefix_of(size)}, {size:,} addresses"
