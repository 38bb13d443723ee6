"""The rows of gateways, their addresses, backends and entries.

Kinds ``gateway``, ``holder``, ``backend``, ``health``, ``entries``.

A mark ends with the node's membership and a backend with its reservation. Those ends are not written
as rows: a mark counts while the node is a member that joined before it, a backend while the
reservation that it was added to stands (:mod:`controlplane.readmodel.asof` reads them so).
"""

from __future__ import annotations

from controlplane.readmodel.rows import Handlers, Rows
from events import types


def part_of(event: types.ClbBackendAdded | types.ClbBackendRemoved | types.ClbBackendHealthChanged) -> str:
    """Which backend of its reservation."""
    return f"{event.purpose} {event.protocol} {event.port} {event.address} {event.backend_port}"


def _backend_added(rows: Rows, sequence: int, time_us: int, event: types.ClbBackendAdded) -> None:
    rows.fact(sequence, time_us, ("backend", event.name, part_of(event)), event)


def _backend_removed(rows: Rows, sequence: int, time_us: int, event: types.ClbBackendRemoved) -> None:
    part = part_of(event)
    rows.facts.close(("backend", event.name, part), sequence, time_us)
    if rows.facts.is_open(("health", event.name, part)):
        rows.facts.close(("health", event.name, part), sequence, time_us)


def _health_changed(rows: Rows, sequence: int, time_us: int, event: types.ClbBackendHealthChanged) -> None:
    rows.fact(sequence, time_us, ("health", event.name, part_of(event)), event)


def _assigned(rows: Rows, sequence: int, time_us: int, event: types.ClbHolderAssigned) -> None:
    rows.fact(sequence, time_us, ("holder", event.address, ""), event)


def _withdrawn(rows: Rows, sequence: int, time_us: int, event: types.ClbHolderWithdrawn) -> None:
    rows.facts.close(("holder", event.address, ""), sequence, time_us)


def _marked(rows: Rows, sequence: int, time_us: int, event: types.NodeGatewayMarked) -> None:
    rows.fact(sequence, time_us, ("gateway", event.node, ""), event)


def _unmarked(rows: Rows, sequence: int, time_us: int, event: types.NodeGatewayUnmarked) -> None:
    rows.facts.close(("gateway", event.node, ""), sequence, time_us)


def _entry_added(rows: Rows, sequence: int, time_us: int, event: types.EntryAdded) -> None:
    rows.fact(sequence, time_us, ("entries", event.name, ""), event)


def _entry_removed(rows: Rows, sequence: int, time_us: int, event: types.EntryRemoved) -> None:
    rows.facts.close(("entries", event.name, ""), sequence, time_us)


HANDLERS: Handlers = {
    types.ClbBackendAdded: _backend_added,
    types.ClbBackendRemoved: _backend_removed,
    types.ClbBackendHealthChanged: _health_changed,
    types.ClbHolderAssigned: _assigned,
    types.ClbHolderWithdrawn: _withdrawn,
    types.NodeGatewayMarked: _marked,
    types.NodeGatewayUnmarked: _unmarked,
    types.EntryAdded: _entry_added,
    types.EntryRemoved: _entry_removed,
}
