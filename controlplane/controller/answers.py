"""Answers to questions about the present: pure functions of the folded state and the agents' reports.

Nothing here changes anything or waits. Pages are cut by key, so that a reader of many pages meets
each member at most once even while the state moves on.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, Union

import msgspec

from controlplane.cluster.addressing.addresses import address_value, network
from controlplane.cluster.decisions.clb import reserved
from controlplane.cluster.decisions.entries import known
from controlplane.cluster.decisions.holders import PROVIDER
from controlplane.cluster.decisions.time import watermark
from controlplane.cluster.digest import state_digest
from controlplane.cluster.state import ClusterState, Node
from controlplane.controller.presenters import (
    all_conditions,
    backend_views,
    cidr_views,
    clb_view,
    entry_view,
    entry_views,
    pool_view,
    range_view,
    refusal_views,
)
from events.errors import BadRequest, Refused
from events.protocol.queries import (
    PAGE_LIMIT,
    QUERIES,
    AddressOwner,
    Answer,
    ClbAnswer,
    ClbList,
    ClusterView,
    Condition,
    EntryList,
    EntryView,
    HolderView,
    ListClb,
    ListEntries,
    ListNodes,
    ListRanges,
    NodePage,
    NodeView,
    Query,
    RangePage,
    ShowClb,
    ShowCluster,
    ShowEntry,
    ShowNode,
    WhoHas,
)
from events.protocol.ways import PeerWayView
from events.status import AgentStatus, WaysReport

if TYPE_CHECKING:
    from controlplane.controller.agents.liveness import Liveness

T = TypeVar("T", bound=Query)


class Unreported:
    """Nobody has reported: for answers about a state that no agent follows (a replay, a test)."""

    last_seen = applied = statuses = differences = agreeing = MappingProxyType[str, Any]({})
    absent = frozenset[str]()

    def stale(self, uid: str) -> bool:  # noqa: ARG002  as Liveness has it
        """It says nothing that could be old."""
        return False


UNREPORTED = Unreported()
LastReports: TypeAlias = Union["Liveness", Unreported]
"""The last report of each agent, by uid."""


def conditions_now(state: ClusterState, reports: LastReports) -> list[Condition]:
    """:func:`~controlplane.controller.presenters.all_conditions` of the present."""
    differing = ((found.node, found.rows) for found in reports.differences.values())
    return all_conditions(state, reports.applied, differing, absent=reports.absent)


def show_cluster(state: ClusterState, query: ShowCluster, reports: LastReports) -> ClusterView:  # noqa: ARG001
    """The cluster in numbers. O(n log n), for its digest."""
    return ClusterView(
        cluster=state.name,
        sequence=state.sequence,
        digest=state_digest(state),
        definition=state.definition,
        cidrs=tuple(cidr_views(state)),
        pool=pool_view(state),
        networks=tuple(state.networks[cidr] for cidr in sorted(state.networks)),
        overrides=tuple(state.overrides[key] for key in sorted(state.overrides)),
        nodes=len(state.nodes),
        external=state.external,
        unreachable=len(state.unreachable),
        fenced_uids=len(state.fenced),
        reservations=len(state.clb),
        watermark=watermark(state, reports.applied, absent=reports.absent),
        conditions=tuple(conditions_now(state, reports)),
        encryption=state.encrypts,
    )


def _page(keys: list[Any], limit: int) -> tuple[list[Any], int, Any]:
    """The ``limit`` smallest keys, how many there are, and the key to go on from (None at the end)."""
    if not 1 <= limit <= PAGE_LIMIT:
        raise BadRequest("bad_request", f"limit is {limit}; the bounds are 1 … {PAGE_LIMIT}", field="limit")
    page = heapq.nsmallest(limit, keys)
    return page, len(keys), page[-1] if len(keys) > limit else None


def list_nodes(state: ClusterState, query: ListNodes, reports: LastReports) -> NodePage:
    """A page of members; ``total`` counts the matches after ``after``."""
    names = [name for name in state.nodes if name > query.after]
    if (query.kind, query.site, query.unreachable) != (None, None, None):
        names = [name for name in names if _fits(state, name, query)]
    page, total, following = _page(names, query.limit)
    views = tuple(node_view(state, state.nodes[name], reports) for name in page)
    return NodePage(sequence=state.sequence, nodes=views, total=total, next_after=following)


def _fits(state: ClusterState, name: str, query: ListNodes) -> bool:
    node = state.nodes[name]
    return (
        (query.kind is None or node.kind == query.kind)
        and (query.site is None or node.site == query.site)
        and (query.unreachable is None or (name in state.unreachable) == query.unreachable)
    )


PATH_MAX = 20
"""Characters of what an agent says of its path; its words are longer by none."""
PASSED_AGE_MAX_S = 10 * 365 * 86400.0


def node_view(state: ClusterState, node: Node, reports: LastReports = UNREPORTED) -> NodeView:
    """One member with its range and its agent's last report."""
    owned = state.owned.get(node.name)
    status = reports.statuses.get(node.uid)
    applied = reports.applied.get(node.uid)
    differs = reports.differences.get(node.uid)
    return NodeView(
        node=node.name,
        uid=node.uid,
        kind=node.kind,
        site=node.site,
        underlay=node.underlay,
        announced=node.announced,
        vtep_mac=node.vtep_mac,
        cidr=owned.cidr if owned else "",
        index=owned.index if owned else -1,
        epoch=owned.epoch if owned else 0,
        joined=node.joined,
        changed=node.changed,
        unreachable=node.name in state.unreachable,
        last_seen=reports.last_seen.get(node.uid) or state.unreachable.get(node.name),
        applied=applied,
        lag=max(0, state.sequence - applied) if applied is not None else None,
        agent_state=status.state if status else "",
        agent_conditions=status.conditions if status else (),
        kernel=kernel_verdict(reports, node.uid),
        kernel_at=differs.sequence if differs is not None else reports.agreeing.get(node.uid, 0),
        path=status.path[:PATH_MAX] if status else "",
        passed_at=passed_at(status, reports.last_seen.get(node.uid)),
        stale=status is not None and reports.stale(node.uid),
        drift=status.drift if status else (),
        pods=status.pods if status else -1,
        stray_pods=status.stray_pods if status else (),
        refusals=tuple(refusal_views(state, node.name)),
        behind_nat=state.behind_nat[node.name].since if node.name in state.behind_nat else 0,
        seen_as=state.behind_nat[node.name].seen_as if node.name in state.behind_nat else "",
        ways=status.ways.sentence() if status and status.ways else "",
    )


def peer_ways(state: ClusterState, ways: WaysReport | None, heard: datetime | None) -> tuple[PeerWayView, ...]:
    """Which way packets take to the peers that a node's report names; ``heard`` is that report's arrival."""
    if ways is None:
        return ()
    names = {owned.epoch: name for name, owned in state.owned.items()}
    return tuple(
        PeerWayView(
            peer=names[way.epoch],
            way=way.kind,
            since=heard - timedelta(seconds=min(way.since_s, PASSED_AGE_MAX_S)) if heard else None,
            via=way.via,
            encrypted=way.encrypted,
            why=way.why,
        )
        for way in ways.peers
        if way.epoch in names
    )


def passed_at(status: AgentStatus | None, heard: datetime | None) -> datetime | None:
    """When a packet of the node's pods last passed, by the clock of ``heard``, the report's arrival."""
    if status is None or heard is None or not 0 <= status.passed_age_s <= PASSED_AGE_MAX_S:
        return None
    return heard - timedelta(seconds=status.passed_age_s)


def kernel_verdict(reports: LastReports, uid: str) -> str:
    """``agrees``, ``differs`` or empty when nothing is known."""
    if uid in reports.differences:
        return "differs"
    return "agrees" if uid in reports.agreeing else ""


def show_node(state: ClusterState, query: ShowNode, reports: LastReports) -> NodeView:
    """One member, or the refusals of a node that is none. Raises Refused(node_unknown)."""
    node = state.nodes.get(query.node)
    if node is not None:
        status = reports.statuses.get(node.uid)
        ways = peer_ways(state, status.ways if status else None, reports.last_seen.get(node.uid))
        return msgspec.structs.replace(node_view(state, node, reports), peer_ways=ways)
    refusals = tuple(refusal_views(state, query.node))
    if not refusals:
        raise Refused(
            "node_unknown",
            f"no live node is named {query.node[:253]!r} ({len(state.nodes):,} live nodes); "
            f"its past: isthmus replay history node {query.node[:253]}",
            node=query.node[:253],
        )
    return NodeView(node=query.node, member=False, refusals=refusals)


def list_ranges(state: ClusterState, query: ListRanges, reports: LastReports) -> RangePage:  # noqa: ARG001
    """A page of the ranges that are not free, in order of index."""
    source: Iterable[int] = {
        None: state.ranges,
        "allocated": (owned.index for owned in state.owned.values()),
        "draining": state.draining,
        "quarantined": state.quarantined,
    }[query.phase]
    page, total, following = _page([index for index in source if index > query.after], query.limit)
    views = tuple(range_view(state, state.ranges[index]) for index in page)
    return RangePage(sequence=state.sequence, ranges=views, total=total, next_after=following)


def who_has(state: ClusterState, query: WhoHas, reports: LastReports) -> AddressOwner:  # noqa: ARG001
    """Whose the address is now. Raises BadRequest(bad_request) when it is no address."""
    value = address_value(query.address)
    if value is None:
        raise BadRequest("bad_request", f"{query.address[:64]!r} is not an IPv4 address", field="address")
    reservation = state.clb_addresses.get(query.address)
    if reservation is not None:
        purpose = next(a.purpose for a in state.clb[reservation].addresses if a.address == query.address)
        held = state.holders.get(query.address)
        return AddressOwner(
            address=query.address,
            kind="clb",
            reservation=reservation,
            purpose=purpose,
            node=held.node if held else "",
        )
    at_home = state.at_address(query.address)
    if at_home:
        return AddressOwner(address=query.address, kind="node", node=at_home[0], also=at_home[1:])
    definition = state.definition
    for own in state.cidrs:
        if not network(own.cidr).has(value) or definition is None:
            continue
        position = (value - own.first) // definition.range_size
        if position < own.capacity:
            owned = state.ranges.get(own.first_index + position)
            cidr = state.cidr_of(own.first_index + position)
            if owned is None:
                return AddressOwner(address=query.address, kind="free_range", cidr=cidr)
            return AddressOwner(
                address=query.address, kind="range", cidr=cidr, node=owned.node, range=range_view(state, owned)
            )
        if own.first_index == 0 and network(definition.service_cidr).has(value):
            return AddressOwner(address=query.address, kind="service", cidr=definition.service_cidr)
        return AddressOwner(address=query.address, kind="stranded", cidr=own.cidr)
    return AddressOwner(address=query.address, kind="outside")


def list_clb(state: ClusterState, query: ListClb, reports: LastReports) -> ClbList:  # noqa: ARG001
    """All reservations."""
    return ClbList(sequence=state.sequence, reservations=tuple(state.clb[n] for n in sorted(state.clb)))


def show_clb(state: ClusterState, query: ShowClb, reports: LastReports) -> ClbAnswer:  # noqa: ARG001
    """One reservation. Raises Refused(clb_unknown)."""
    reservation = reserved(state, query.reservation)
    served = reservation.provider == PROVIDER
    return ClbAnswer(
        sequence=state.sequence,
        reservation=reservation,
        holders=tuple(
            HolderView(purpose=item.purpose, address=item.address, node=item.holder, epoch=item.epoch)
            for item in (clb_view(state, reservation).addresses if served else ())
        ),
        backends=tuple(backend_views(state, reservation.name)),
        gateways=tuple(sorted(state.gateways)) if served else (),
    )


def list_entries(state: ClusterState, query: ListEntries, reports: LastReports) -> EntryList:  # noqa: ARG001
    """All entries."""
    return EntryList(sequence=state.sequence, entries=entry_views(state))


def show_entry(state: ClusterState, query: ShowEntry, reports: LastReports) -> EntryView:  # noqa: ARG001
    """One entry. Raises Refused(entry_unknown)."""
    known(state, query.entry)
    return entry_view(state, query.entry)


_ANSWERERS: dict[type[Query], Callable[[ClusterState, Any, LastReports], Answer]] = {
    ShowCluster: show_cluster,
    ListNodes: list_nodes,
    ShowNode: show_node,
    ListRanges: list_ranges,
    WhoHas: who_has,
    ListClb: list_clb,
    ShowClb: show_clb,
    ListEntries: list_entries,
    ShowEntry: show_entry,
}
_DECODERS = {query.name: msgspec.json.Decoder(query) for query in QUERIES}
_encode = msgspec.json.Encoder().encode


def ask(state: ClusterState, query: Query, reports: LastReports = UNREPORTED) -> Answer:
    """Answer a query. Raises Refused and BadRequest."""
    return _ANSWERERS[type(query)](state, query, reports)


def answer(
    state: ClusterState,
    name: str,
    body: bytes,
    reports: LastReports = UNREPORTED,
    *,
    further: Sequence[Condition] = (),
    about: Callable[[], Mapping[str, Any]] = dict,
) -> bytes:
    """Answer the request ``body`` to query ``name`` (an empty body counts as ``{}``) with JSON.

    ``further`` are conditions of the controller itself, named before the cluster's own; ``about`` gives fields
    of a :class:`ClusterView` that only it knows.

    Raises Refused and BadRequest (``unknown_command``, ``bad_request``).
    """
    decoder = _DECODERS.get(name)
    if decoder is None:
        raise BadRequest(
            "unknown_command",
            f"no query is named {name[:64]!r}; there are {', '.join(sorted(_DECODERS))}",
            name=name[:64],
        )
    found = ask(state, decoded(decoder, name, body), reports)
    if isinstance(found, ClusterView):
        found = msgspec.structs.replace(found, conditions=(*further, *found.conditions), **about())
    return _encode(found)


def decoded(decoder: msgspec.json.Decoder[T], name: str, body: bytes) -> T:
    """The query ``name`` out of a request (an empty body counts as ``{}``). Raises BadRequest(bad_request)."""
    try:
        return decoder.decode(body or b"{}")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("bad_request", f"query {name}: {error}", query=name) from error
