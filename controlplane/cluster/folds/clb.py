"""Reservations, gateways, and backends: what their events do to the state.

Each handler looks before it writes (:mod:`controlplane.cluster.evolve`).
"""

from __future__ import annotations

from controlplane.cluster.folds.contradiction import Contradiction
from controlplane.cluster.state import ClusterState, asker_clb
from events.protocol.clb import Backend, BackendKey, Holder
from events.types import (
    ClbBackendAdded,
    ClbBackendHealthChanged,
    ClbBackendRemoved,
    ClbHolderAssigned,
    ClbHolderWithdrawn,
    ClbReleased,
    ClbReserved,
    NodeGatewayMarked,
    NodeGatewayUnmarked,
)


def reserved(state: ClusterState, sequence: int, event: ClbReserved) -> None:  # noqa: ARG001
    """Two addresses are taken, and whatever was refused for that name is settled."""
    state.clb[event.name] = event
    for item in event.addresses:
        state.clb_addresses[item.address] = event.name
    state.refusals.pop(asker_clb(event.name), None)


def released(state: ClusterState, sequence: int, event: ClbReleased) -> None:  # noqa: ARG001
    """The addresses are free, and the backends behind them are gone. Raises Contradiction."""
    addresses = {item.address for item in state.clb[event.name].addresses}
    if not addresses <= state.clb_addresses.keys():
        raise Contradiction(f"another reservation has taken addresses of {event.name}")
    del state.clb[event.name]
    for address in addresses:
        del state.clb_addresses[address]
    for key in [key for key in state.backends if key.name == event.name]:
        del state.backends[key]


def marked(state: ClusterState, sequence: int, event: NodeGatewayMarked) -> None:
    """The node is a gateway. Raises Contradiction."""
    if event.node not in state.nodes:
        raise Contradiction(f"{event.node} is no member")
    state.gateways[event.node] = sequence


def unmarked(state: ClusterState, sequence: int, event: NodeGatewayUnmarked) -> None:  # noqa: ARG001
    """The node is a gateway no more."""
    del state.gateways[event.node]


def backend_added(state: ClusterState, sequence: int, event: ClbBackendAdded) -> None:
    """A backend, or new settings of one whose health stays known. Raises Contradiction."""
    key = BackendKey.of(event)
    if event.name not in state.clb:
        raise Contradiction(f"there is no reservation {event.name}")
    state.backends[key] = Backend.added_by(event, sequence, state.backends.get(key))


def backend_removed(state: ClusterState, sequence: int, event: ClbBackendRemoved) -> None:  # noqa: ARG001
    """The backend is gone."""
    del state.backends[BackendKey.of(event)]


def health_changed(state: ClusterState, sequence: int, event: ClbBackendHealthChanged) -> None:
    """Gateways found the backend well, or not."""
    key = BackendKey.of(event)
    state.backends[key] = state.backends[key].judged_by(event, sequence)


def assigned(state: ClusterState, sequence: int, event: ClbHolderAssigned) -> None:
    """A gateway holds the address. Raises Contradiction."""
    held = state.holders.get(event.address)
    if held is not None:
        raise Contradiction(f"{held.node} holds {event.address} since {held.epoch}")
    state.holders[event.address] = Holder.assigned_by(event, sequence)


def holder_withdrawn(state: ClusterState, sequence: int, event: ClbHolderWithdrawn) -> None:  # noqa: ARG001
    """Nobody holds the address."""
    del state.holders[event.address]
