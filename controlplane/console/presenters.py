"""Cluster state → answers of the API. Pure: the same for the live state and for any past one."""

from __future__ import annotations

import msgspec

from controlplane.cluster.addressing.addresses import address_text
from controlplane.cluster.addressing.plan import PODS_UNUSABLE
from controlplane.cluster.decisions.time import watermark
from controlplane.cluster.state import ClusterState, Node
from controlplane.console.event_text import mark, sentence
from controlplane.console.schemas import (
    EventRow,
    NetworkView,
    NodeDetail,
    NodeRow,
    Overview,
    Position,
    SiteView,
    Space,
)
from controlplane.controller.agents.reports import Reports, agent_state, agents_by_state
from controlplane.controller.answers import peer_ways
from controlplane.controller.presenters import (
    all_conditions,
    cidr_views,
    clb_views,
    entry_views,
    pool_view,
    range_view,
    refusal_views,
)
from controlplane.readmodel.asof import moment
from events.codec import Recorded
from events.protocol.queries import Condition


def overview(state: ClusterState, position: Position, cluster: str, reports: Reports) -> Overview:
    """The overlay at a glance; what only a live controller knows is added by its caller."""
    definition = state.definition
    sites: dict[tuple[str, str], list[int]] = {}
    for node in state.nodes.values():
        counts = sites.setdefault((node.site, node.kind), [0, 0])
        counts[0] += 1
        counts[1] += node.name in state.unreachable
    return Overview(
        cluster=cluster,
        defined=definition is not None,
        deleted=bool(state.deleted),
        position=position,
        pool=pool_view(state),
        vni=definition.vni if definition else 0,
        vxlan_port=definition.vxlan_port if definition else 0,
        nodes=len(state.nodes),
        cloud=len(state.nodes) - state.external,
        external=state.external,
        unreachable=len(state.unreachable),
        fenced=len(state.fenced),
        sites=[
            SiteView(site=site, kind=kind, nodes=counts[0], unreachable=counts[1])
            for (site, kind), counts in sorted(sites.items())
        ],
        clb=clb_views(state),
        entries=entry_views(state),
        networks=[
            NetworkView(cidr=network.cidr, kind=network.kind, name=network.name)
            for network in state.networks.values()
        ],
        conditions=conditions_of(state, reports),
        watermark=(watermark(state, reports.applied, absent=reports.absent) or 0) if reports.recorded else 0,
        agents=agents_by_state(state, reports) if reports.recorded else {},
        agents_behind=behind(state, reports, position.settled) if reports.recorded else 0,
        kernels=kernels(state, reports) if reports.recorded else {},
        encrypted_between_sites=state.encrypts.between_sites in {"sending", "required"},
    )


def conditions_of(state: ClusterState, reports: Reports) -> list[Condition]:
    """What a person should know; of the agents as far as somebody recorded what they said."""
    members = (named for uid, named in reports.differing.items() if state.by_uid.get(uid) is not None)
    found = all_conditions(state, reports.applied, members, recorded=reports.recorded, absent=reports.absent)
    return [*reports.further, *found]


def behind(state: ClusterState, reports: Reports, settled: int) -> int:
    """Members whose agent lacks an event that has been there for a while (up to ``settled``)."""
    applied = reports.applied
    return sum(0 < applied.get(node.uid, 0) < settled for node in state.nodes.values())


def late(state: ClusterState, reports: Reports, sequence: int) -> list[str]:
    """Members whose agent lacks a sequence, the furthest behind first. Agents never heard are not counted."""
    applied = reports.applied
    found = [(applied[n.uid], n.name) for n in state.nodes.values() if 0 < applied.get(n.uid, 0) < sequence]
    return [name for _, name in sorted(found)]


def kernels(state: ClusterState, reports: Reports) -> dict[str, int]:
    """Members counted by what the attestation of their kernel says; ``unreported`` when it says nothing."""
    counts: dict[str, int] = {}
    for node in state.nodes.values():
        verdict = reports.kernel_of(node.uid) or "unreported"
        counts[verdict] = counts.get(verdict, 0) + 1
    return counts


def space(state: ClusterState, position: Position) -> Space:
    """The address space in columns."""
    entries = sorted(state.ranges.values(), key=lambda entry: entry.index)
    definition = state.definition
    return Space(
        position=position,
        cidrs=cidr_views(state),
        range_size=definition.range_size if definition else 0,
        service_cidr=definition.service_cidr if definition else "",
        capacity=state.pool.capacity,
        cursor=state.pool.cursor,
        index=[entry.index for entry in entries],
        phase="".join(_letter(state, entry.index) for entry in entries),
        node=[entry.node for entry in entries],
        epoch=[entry.epoch for entry in entries],
    )


def _letter(state: ClusterState, index: int) -> str:
    if index in state.quarantined:
        return "q"
    return "d" if index in state.draining else "a"


def node_row(state: ClusterState, node: Node, reports: Reports, head: int) -> NodeRow:
    """One member's row; ``head`` is the sequence that is shown."""
    owned = state.owned.get(node.name)
    observed = reports.of(node.uid)
    applied = reports.applied.get(node.uid, 0)
    return NodeRow(
        name=node.name,
        kind=node.kind,
        site=node.site,
        announced=node.announced,
        range=owned.cidr if owned else "",
        index=owned.index if owned else -1,
        epoch=owned.epoch if owned else 0,
        state=agent_state(state, node, reports),
        applied=applied,
        behind=max(0, head - applied) if applied else 0,
        age_s=round(reports.age_s(observed), 1) if observed is not None else -1.0,
        kernel=observed.kernel if observed is not None else "",
        kernel_at=observed.kernel_at if observed is not None else 0,
        path=observed.path if observed is not None else "",
        passed_age_s=round(reports.passed_age_s(node.uid), 1),
        stale=observed is not None and (node.name in state.unreachable or observed.state == "silent"),
        conditions=list(observed.conditions) if observed is not None else [],
        version=observed.version if observed is not None else "",
        mtu=observed.mtu if observed is not None else 0,
        path_mtu=observed.path_mtu if observed is not None else 0,
        translated=node.underlay != node.announced,
        behind_nat=state.behind_nat[node.name].since if node.name in state.behind_nat else 0,
        seen_as=state.behind_nat[node.name].seen_as if node.name in state.behind_nat else "",
        fast_path=observed.fast_path if observed is not None else "",
        pods=observed.pods if observed is not None else -1,
        ways=observed.ways.sentence() if observed is not None and observed.ways is not None else "",
    )


def matching(state: ClusterState, *, text: str, kind: str | None, site: str | None) -> list[Node]:
    """Members by name; those whose name, address or range contains ``text``."""
    return [node for _, node in sorted(state.nodes.items()) if _fits(state, node, text, kind, site)]


def _fits(state: ClusterState, node: Node, text: str, kind: str | None, site: str | None) -> bool:
    if (kind is not None and node.kind != kind) or (site is not None and node.site != site):
        return False
    if not text or text in node.name or text in node.announced:
        return True
    owned = state.owned.get(node.name)
    return owned is not None and text in owned.cidr


def node_detail(state: ClusterState, name: str, position: Position, reports: Reports) -> NodeDetail | None:
    """One node's page; None when this state has never heard of it."""
    node = state.nodes.get(name)
    ranges = [range_view(state, entry, nothing=0) for entry in state.ranges.values() if entry.node == name]
    refusals = refusal_views(state, name)
    fenced = [uid for uid, entry in state.fenced.items() if entry.node == name]
    if node is None:
        if not (ranges or refusals or fenced):
            return None
        return NodeDetail(position=position, name=name, ranges=ranges, refusals=refusals, fenced=fenced)
    observed = reports.of(node.uid)
    owned = state.owned.get(name)
    return NodeDetail(
        position=position,
        name=name,
        member=node_row(state, node, reports, position.sequence),
        uid=node.uid,
        underlay=node.underlay,
        vtep_mac=node.vtep_mac,
        joined=node.joined,
        gateway=_gateway(owned.cidr) if owned else "",
        usable_pods=(state.definition.range_size - PODS_UNUSABLE) if state.definition else 0,
        kernel_digest=observed.digest if observed else "",
        kernel_rows=list(observed.rows) if observed else [],
        agent_version=observed.version if observed else "",
        peers=observed.peers if observed else 0,
        peer_ways=list(peer_ways(state, observed.ways, moment(observed.heard_us or None))) if observed else [],
        gateway_able=bool(observed and observed.gateway),
        gateway_marked=state.gateways.get(name, 0),
        holds=[h.address for h in state.holders.values() if h.node == name],
        unreachable_since=state.unreachable.get(name),
        ranges=ranges,
        refusals=refusals,
        fenced=fenced,
    )


def _gateway(cidr: str) -> str:
    """The first address of a range: the node's own, and its pods' gateway."""
    a, b, c, d = (int(part) for part in cidr.partition("/")[0].split("."))
    return address_text((a << 24 | b << 16 | c << 8 | d) + 1)


def event_row(recorded: Recorded, *, with_data: bool) -> EventRow:
    """One event for the feed."""
    envelope = recorded.envelope
    parts = envelope.traceparent.split("-")
    body = msgspec.to_builtins(recorded.event) if with_data else {}
    first = recorded.sequence - envelope.tx_index
    return EventRow(
        sequence=recorded.sequence,
        time=envelope.time,
        type=envelope.type,
        entity=recorded.event.entity,
        actor=envelope.actor,
        command_id=envelope.command_id,
        summary=sentence(recorded.event),
        mark=mark(recorded.event),
        trace_id=parts[1] if len(parts) == 4 else "",
        data=body,
        first=first,
        last=first + envelope.tx_count - 1,
    )
