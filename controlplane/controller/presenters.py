"""Cluster state and agents' reports → the shapes of :mod:`events.protocol.queries`. Pure.

Pool, ranges, CLB reservations and conditions are described here once; the answers on the bus and those of
the HTTP API are made of them, for the live state and for any past one. Nothing here may know a transport.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Literal

import msgspec

from controlplane.cluster.addressing.plan import PODS_UNUSABLE
from controlplane.cluster.conditions import conditions, kernel_conditions
from controlplane.cluster.decisions.exhaustion import earliest_free
from controlplane.cluster.range_counts import range_counts
from controlplane.cluster.state import ClusterState, Range, asker_node
from events.protocol.clb import Backend
from events.protocol.queries import (
    REMEDIES,
    CidrView,
    ClbAddressView,
    ClbBackendView,
    ClbView,
    Condition,
    EntryView,
    PoolView,
    RangeView,
    RefusalView,
)
from events.types import ClbAddress, ClbReserved

FROM_REPORTS = frozenset({"drain_waiting"})
"""Conditions that say something about agents: not known of a past that nobody recorded."""
URGENCY = ("critical", "warning", "info")
"""Severities, the most urgent first."""


def cidr_views(state: ClusterState) -> list[CidrView]:
    """Each container CIDR with the counts of its ranges."""
    return [
        CidrView(
            cidr=counts.cidr.cidr,
            first_index=counts.cidr.first_index,
            capacity=counts.cidr.capacity,
            since=counts.cidr.appended,
            allocated=counts.allocated,
            draining=counts.draining,
            quarantined=counts.quarantined,
            free=counts.free,
        )
        for counts in range_counts(state)
    ]


def pool_view(state: ClusterState) -> PoolView:
    """The pool's numbers, and the range that the next node would get."""
    definition = state.definition
    following = state.pool.next_free(state.pool.cursor) if state.capacity else None
    size = definition.range_size if definition else 0
    return PoolView(
        capacity=state.capacity,
        allocated=len(state.owned),
        draining=len(state.draining),
        quarantined=len(state.quarantined),
        free=state.pool.free,
        cursor=state.pool.cursor,
        next_range=state.cidr_of(following) if following is not None else "",
        earliest_free=earliest_free(state),
        range_size=size,
        pods_per_node=size - PODS_UNUSABLE if definition else 0,
        service_cidr=definition.service_cidr if definition else "",
        cidrs=cidr_views(state),
    )


def range_view(state: ClusterState, held: Range, *, nothing: Literal[0] | None = None) -> RangeView:
    """A range with its phase. ``nothing`` stands for the sequences of an allocated one; 0 in the HTTP API."""
    rest = state.quarantined.get(held.index)
    return RangeView(
        index=held.index,
        cidr=held.cidr,
        phase=state.phase_of(held.index) or "free",
        node=held.node,
        uid=held.uid,
        epoch=held.epoch,
        draining_since=state.draining.get(held.index, nothing),
        watermark=rest.watermark if rest else nothing,
        until=rest.until if rest else None,
    )


def refusal_views(state: ClusterState, name: str) -> list[RefusalView]:
    """What a node was refused, the oldest first."""
    known = state.refusals.get(asker_node(name), {})
    return [
        RefusalView(code=item.code, message=item.message, since=item.since)
        for item in sorted(known.values(), key=lambda item: item.since)
    ]


def all_conditions(
    state: ClusterState,
    applied: Mapping[str, int],
    differing: Iterable[tuple[str, tuple[str, ...]]],
    *,
    recorded: bool = True,
    absent: Container[str] = frozenset(),
) -> list[Condition]:
    """What a person should know, from the log and from the agents' reports, the most urgent first.

    ``applied`` is uid → applied sequence; ``differing`` are nodes whose kernel differs, with the rows that
    their agents name; ``absent`` are uids that have never reported. Without ``recorded`` nothing is known of
    the agents.
    """
    found = [
        condition
        for condition in conditions(state, applied, absent)
        if recorded or condition.code not in FROM_REPORTS
    ]
    found += kernel_conditions(differing)
    found = [msgspec.structs.replace(one, help=one.help or REMEDIES.get(one.code, "")) for one in found]
    return sorted(found, key=lambda condition: URGENCY.index(condition.severity))


# --- CLB ---------------------------------------------------------------------------------------------


def clb_views(state: ClusterState) -> list[ClbView]:
    """The reservations by name."""
    return [clb_view(state, entry) for _, entry in sorted(state.clb.items())]


def clb_view(state: ClusterState, entry: ClbReserved) -> ClbView:
    """One reservation with its addresses and who holds them."""
    return ClbView(
        name=entry.name,
        subnet=entry.subnet,
        gateway=entry.gateway,
        provider=entry.provider,
        addresses=[_address(state, entry, item) for item in entry.addresses],
        excluded=len(entry.excluded),
    )


def _address(state: ClusterState, entry: ClbReserved, item: ClbAddress) -> ClbAddressView:
    holder = state.holders.get(item.address)
    serving = [
        backend
        for key, backend in state.backends.items()
        if key.name == entry.name and key.purpose == item.purpose
    ]
    return ClbAddressView(
        purpose=item.purpose,
        address=item.address,
        holder=holder.node if holder else "",
        epoch=holder.epoch if holder else 0,
        backends=len(serving),
        healthy=sum(backend.healthy for backend in serving),
    )


def entry_views(state: ClusterState) -> list[EntryView]:
    """The entries by name."""
    return [entry_view(state, name) for name in sorted(state.entries)]


def entry_view(state: ClusterState, name: str) -> EntryView:
    """One entry, and who holds the address by which its sources come."""
    entry = state.entries[name]
    holder = state.holders.get(entry.address)
    return EntryView(
        name=name,
        sources=list(entry.sources),
        address=entry.address,
        reservation=state.clb_addresses.get(entry.address, ""),
        since=entry.since,
        node=holder.node if holder else "",
        epoch=holder.epoch if holder else 0,
    )


def backend_views(
    state: ClusterState, reservation: str, *, check_in_words: bool = False
) -> list[ClbBackendView]:
    """The backends of a reservation by port. ``check_in_words`` says the whole check instead of its kind."""
    return [
        ClbBackendView(
            purpose=key.purpose,
            protocol=key.protocol,
            port=key.port,
            address=key.address,
            backend_port=key.backend_port,
            affinity=backend.affinity,
            check=check_text(backend) if check_in_words else backend.check,
            healthy=backend.healthy,
            since=backend.changed,
            since_at=backend.changed_at,
            reason=backend.reason,
            added=backend.added,
        )
        for key, backend in sorted(state.backends.items())
        if key.name == reservation
    ]


def check_text(backend: Backend) -> str:
    """A backend's health check in words."""
    if backend.check == "none":
        return "none"
    what = backend.check if backend.check == "tcp" else f"{backend.check} {backend.check_path}"
    port = f" on port {backend.check_port}" if backend.check_port else ""
    return (
        f"{what}{port} every {backend.check_interval_s:g} s, up after {backend.rise}, down after {backend.fall}"
    )
