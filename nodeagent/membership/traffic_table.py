"""What an agent knows of CLB pairs: the fold of the log into holders, backends and gateways.

Deterministic; no clock, kernel or bus. It is part of the node's view and goes with it into the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

from events.protocol.clb import Backend, BackendKey, Entry, Holder, Traffic
from events.types import (
    ClbBackendAdded,
    ClbBackendHealthChanged,
    ClbBackendRemoved,
    ClbHolderAssigned,
    ClbHolderWithdrawn,
    ClbReleased,
    ClbReserved,
    EntryAdded,
    EntryRemoved,
    Event,
    NodeFenced,
    NodeGatewayMarked,
    NodeGatewayUnmarked,
    NodeLeft,
)

CONCERNED = (
    ClbReserved,
    ClbReleased,
    ClbBackendAdded,
    ClbBackendRemoved,
    ClbBackendHealthChanged,
    ClbHolderAssigned,
    ClbHolderWithdrawn,
    NodeGatewayMarked,
    NodeGatewayUnmarked,
    NodeLeft,
    NodeFenced,
    EntryAdded,
    EntryRemoved,
)
"""The events that change it."""


class TrafficTable:
    """Mutable counterpart of :class:`events.protocol.clb.Traffic`. ``version`` grows with every change."""

    def __init__(self, traffic: Traffic | None = None) -> None:
        traffic = traffic or Traffic()
        self.reservations = {entry.name: entry for entry in traffic.reservations}
        self.gateways = dict(traffic.gateways)
        self.backends: dict[BackendKey, Backend] = dict(traffic.backends)
        self.holders = {holder.address: holder for holder in traffic.holders}
        self.former = dict(traffic.former)
        """Held address → underlay address of the machine that held it just before, where this view saw it."""
        self.entries = dict(traffic.entries)
        """Name → who from outside may reach pods through gateways."""
        self.version = 0

    def save(self) -> Traffic:
        """As a value."""
        return Traffic(
            reservations=tuple(self.reservations.values()),
            gateways=dict(self.gateways),
            backends=tuple(self.backends.items()),
            holders=tuple(self.holders.values()),
            former=dict(self.former),
            entries=dict(self.entries),
        )

    def held_by(self, node: str, uid: str) -> Iterator[Holder]:
        """What this installation of the node holds, in order of address."""
        for address in sorted(self.holders):
            holder = self.holders[address]
            if (holder.node, holder.uid) == (node, uid):
                yield holder

    def behind(self, holder: Holder) -> dict[BackendKey, Backend]:
        """The backends of a held address."""
        return {
            key: backend
            for key, backend in self.backends.items()
            if (key.name, key.purpose) == (holder.name, holder.purpose)
        }

    def apply(self, sequence: int, event: Event, former: str = "") -> None:
        """Fold one event; others than :data:`CONCERNED` change nothing.

        ``former``: at a change of the holder, the underlay address of the one before. It is taken down at
        that moment, since a gateway that leaves is no member any more when its connections still go on.
        """
        match event:
            case ClbReserved():
                self.reservations[event.name] = event
            case ClbReleased():
                self._release(event)
            case ClbBackendAdded():
                key = BackendKey.of(event)
                self.backends[key] = Backend.added_by(event, sequence, self.backends.get(key))
            case ClbBackendRemoved():
                self.backends.pop(BackendKey.of(event), None)
            case ClbBackendHealthChanged():
                known = self.backends.get(BackendKey.of(event))
                if known is not None:
                    self.backends[BackendKey.of(event)] = known.judged_by(event, sequence)
            case ClbHolderAssigned():
                self._assign(sequence, event, former)
            case ClbHolderWithdrawn():
                held = self.holders.get(event.address)
                if held is not None and held.epoch <= event.epoch:
                    del self.holders[event.address]
            case EntryAdded():
                self.entries[event.name] = Entry.of(event, sequence)
            case EntryRemoved():
                self.entries.pop(event.name, None)
            case NodeGatewayMarked():
                self.gateways[event.node] = sequence
            case NodeGatewayUnmarked() | NodeLeft() | NodeFenced():
                self.gateways.pop(event.node, None)
            case _:
                return
        self.version += 1

    def without(self, event: Event) -> None:
        """Leave an event out that makes no sense; whom an entry let in before, it takes away all the same."""
        if isinstance(event, EntryAdded) and self.entries.pop(event.name, None) is not None:
            self.version += 1

    def _assign(self, sequence: int, event: ClbHolderAssigned, former: str) -> None:
        """The newer epoch counts, whatever came before."""
        held = self.holders.get(event.address)
        if held is None or held.epoch < sequence:
            self.holders[event.address] = Holder.assigned_by(event, sequence)
            if former and event.previous != event.node:
                self.former[event.address] = former
            else:
                self.former.pop(event.address, None)

    def _release(self, event: ClbReleased) -> None:
        self.reservations.pop(event.name, None)
        for key in [key for key in self.backends if key.name == event.name]:
            del self.backends[key]
        for item in event.addresses:
            self.holders.pop(item.address, None)
            self.former.pop(item.address, None)
