"""CLB reservations for the API: who holds the addresses, what stands behind them, and how that came about.

Pure: from a state and the events of a reservation, the same for the present and the past.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from controlplane.cluster.decisions.holders import PROVIDER
from controlplane.cluster.state import ClusterState
from controlplane.console.schemas import (
    ClbDetail,
    ClbGatewayView,
    ClbHealthChange,
    ClbTenure,
    Position,
)
from controlplane.controller.agents.reports import Reports
from controlplane.controller.presenters import backend_views, clb_view
from events import types
from events.codec import Recorded


def clb_detail(
    state: ClusterState,
    name: str,
    position: Position,
    reports: Reports,
    *,
    reserved: tuple[int, datetime | None],
    times: Mapping[int, datetime],
    tenures: Sequence[Recorded],
    health: Sequence[Recorded],
) -> ClbDetail | None:
    """One reservation's page; None when there is none of that name at this sequence.

    ``reserved`` is when it was reserved, ``times`` the moments of the holders' epochs; ``tenures`` and
    ``health`` are the events of each kind, newest first.
    """
    entry = state.clb.get(name)
    if entry is None:
        return None
    held = {item.address: state.holders.get(item.address) for item in entry.addresses}
    return ClbDetail(
        position=position,
        reservation=clb_view(state, entry),
        reserved=reserved[0],
        reserved_at=reserved[1],
        excluded=list(entry.excluded),
        held_since={address: times.get(holder.epoch) for address, holder in held.items() if holder is not None},
        backends=backend_views(state, name, check_in_words=True),
        gateways=_gateways(state, entry, reports) if entry.provider == PROVIDER else [],
        tenures=tenures_of(tenures),
        health=[
            ClbHealthChange(
                sequence=recorded.sequence,
                at=recorded.envelope.time,
                purpose=event.purpose,
                backend=f"{event.protocol} {event.port} to {event.address}:{event.backend_port}",
                healthy=event.healthy,
                node=event.node,
                reason=event.reason,
            )
            for recorded in health
            if isinstance(event := recorded.event, types.ClbBackendHealthChanged)
        ],
    )


def _gateways(state: ClusterState, entry: types.ClbReserved, reports: Reports) -> list[ClbGatewayView]:
    own = {item.address for item in entry.addresses}
    found = []
    for name, since in sorted(state.gateways.items()):
        node = state.nodes[name]
        observed = reports.of(node.uid)
        found.append(
            ClbGatewayView(
                node=name,
                since=since,
                state="unreachable" if name in state.unreachable else reports.state_of(node.uid),
                able=bool(observed and observed.gateway),
                holds=sorted(h.address for h in state.holders.values() if h.node == name and h.address in own),
            )
        )
    return found


def tenures_of(events: Sequence[Recorded]) -> list[ClbTenure]:
    """Who held which address from when to when, newest first; ``events`` may begin in the middle."""
    ended: list[ClbTenure] = []
    open_: dict[str, tuple[types.ClbHolderAssigned, Recorded, float]] = {}
    last_end: dict[str, datetime] = {}
    for recorded in sorted(events, key=lambda one: one.sequence):
        event, at = recorded.event, recorded.envelope.time
        if isinstance(event, types.ClbHolderAssigned):
            before = last_end.get(event.address)
            gap_s = max(0.0, (at - before).total_seconds()) if before is not None else 0.0
            open_[event.address] = (event, recorded, gap_s)
        elif isinstance(event, types.ClbHolderWithdrawn):
            last_end[event.address] = at
            began = open_.pop(event.address, None)
            ended.append(
                ClbTenure(
                    purpose=event.purpose,
                    address=event.address,
                    node=event.node,
                    epoch=event.epoch,
                    at=began[1].envelope.time if began is not None else None,
                    until=recorded.sequence,
                    until_at=at,
                    cause=event.cause,
                    reason=event.reason,
                    gap_s=began[2] if began is not None else 0.0,
                )
            )
    ended += [
        ClbTenure(
            purpose=event.purpose,
            address=event.address,
            node=event.node,
            epoch=recorded.sequence,
            at=recorded.envelope.time,
            gap_s=gap_s,
        )
        for event, recorded, gap_s in open_.values()
    ]
    return sorted(ended, key=lambda tenure: tenure.epoch, reverse=True)
