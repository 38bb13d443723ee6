"""Decisions about entries: who from outside of the overlay may reach pods, and by which address they come.

The address is one of a CLB pair that our gateways serve, so that it is held, announced and failed over like
every other; as a router's next hop it takes nothing from what the pair serves.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from controlplane.cluster import entry_sources
from controlplane.cluster.addressing.addresses import Net, network
from controlplane.cluster.decision import Decision, DecisionContext, definition_of
from controlplane.cluster.decisions.holders import PROVIDER, gateway_addresses
from controlplane.cluster.decisions.overlap import source_conflicts
from controlplane.cluster.state import ClusterState
from events.errors import BadRequest, Refused
from events.protocol.clb import Entry
from events.protocol.commands import AddEntry, RemoveEntry
from events.subjects import check_label
from events.types import EntryAdded, EntryRemoved

ENTRIES_LIMIT = 64
SOURCES_LIMIT = 64
"""CIDRs of one entry."""


def add(state: ClusterState, command: AddEntry, now: datetime, context: DecisionContext) -> Decision:
    """Let the sources in, and nobody else by this name. The same again writes nothing.

    Raises BadRequest(bad_request), Refused(cidr_conflict_with_entry, entry_address_unknown).
    """
    del now, context
    definition_of(state)
    check_label(command.entry, "entry")
    sources = _sources(state, command)
    existing = state.entries.get(command.entry)
    if existing is None and len(state.entries) >= ENTRIES_LIMIT:
        raise BadRequest(
            "bad_request",
            f"there are {len(state.entries)} entries, the limit is {ENTRIES_LIMIT}: one entry takes up to "
            f"{SOURCES_LIMIT} sources",
            field="entry",
        )
    address = _address(state, command.address or (existing.address if existing else ""))
    event = EntryAdded(name=command.entry, sources=sources, address=address)
    same = existing is not None and (existing.sources, existing.address) == (sources, address)
    shut_out = [source for source in (existing.sources if existing else ()) if source not in sources]
    closes = {"gateways": sorted(state.gateways), "shut_out": shut_out} if shut_out else {}
    return Decision(() if same else (event,), _described(state, command.entry, Entry.of(event, 0)) | closes)


def remove(state: ClusterState, command: RemoveEntry, now: datetime, context: DecisionContext) -> Decision:
    """Let them in no more. Raises Refused(entry_unknown)."""
    del now, context
    definition_of(state)
    entry = known(state, command.entry)
    closes = {"gateways": sorted(state.gateways), "shut_out": list(entry.sources)}
    return Decision((removed(command.entry, entry),), _described(state, command.entry, entry) | closes)


def removed(name: str, entry: Entry) -> EntryRemoved:
    """The event by which an entry ends."""
    return EntryRemoved(name=name, sources=entry.sources, address=entry.address)


def known(state: ClusterState, name: str) -> Entry:
    """The entry of that name. Raises Refused(entry_unknown)."""
    found = state.entries.get(name)
    if found is None:
        listed = ", ".join(sorted(state.entries)[:8]) or "none"
        raise Refused("entry_unknown", f"no entry is named {name[:63]!r}; there are: {listed}", entry=name[:63])
    return found


def by_address(state: ClusterState, addresses: set[str]) -> list[str]:
    """The names of entries whose sources come by one of these."""
    return sorted(name for name, entry in state.entries.items() if entry.address in addresses)


def _sources(state: ClusterState, command: AddEntry) -> tuple[str, ...]:
    """The sources in order, each once. Raises BadRequest, Refused."""
    if not 1 <= len(command.sources) <= SOURCES_LIMIT:
        raise BadRequest(
            "bad_request",
            f"{len(command.sources)} sources; an entry has 1 … {SOURCES_LIMIT} (a CIDR holds many hosts)",
            field="sources",
        )
    found: set[Net] = set()
    for text in command.sources:
        net = network(text, "source")
        problem = entry_sources.no_hosts(net)
        if problem:
            raise BadRequest(
                "bad_request",
                f"source {net} {problem}: list the hosts that are to reach pods, for example 10.0.0.0/28",
                field="sources",
            )
        conflicts = source_conflicts(command.entry, net, state)
        if conflicts:
            raise conflicts[0].refused()
        found.add(net)
    return tuple(str(net) for net in sorted(found))


def _address(state: ClusterState, given: str) -> str:
    """The address of a pair that our gateways hold. Raises Refused(entry_address_unknown), BadRequest."""
    served = {address: name for name, _, address in gateway_addresses(state)}
    if given in served:
        return given
    if given:
        owner = state.clb_addresses.get(given)
        why = (
            f"{given} is reserved by {owner!r}, whose provider is {state.clb[owner].provider!r}"
            if owner is not None
            else f"{given[:64]!r} belongs to no reservation"
        )
        offered = ", ".join(served) or "none"
        raise Refused(
            "entry_address_unknown",
            f"{why}: an entry takes an address that gateways hold (provider {PROVIDER!r}); "
            f"there are: {offered}",
            address=given[:64],
        )
    reservations = sorted(set(served.values()))
    if not reservations:
        raise Refused(
            "entry_address_unknown",
            "no gateway holds an address by which sources could come: "
            "`isthmus clb reserve NAME --subnet CIDR --provider gateway` reserves two, "
            "`isthmus clb gateway add NODE` lets a node hold them",
        )
    if len(reservations) > 1:
        raise BadRequest(
            "bad_request",
            f"reservations {', '.join(reservations)} all have addresses that gateways hold: name one with "
            f"--address ({', '.join(served)})",
            field="address",
        )
    return next(iter(served))


def _described(state: ClusterState, name: str, entry: Entry) -> dict[str, Any]:
    holder = state.holders.get(entry.address)
    return {
        "name": name,
        "sources": list(entry.sources),
        "address": entry.address,
        "node": holder.node if holder else "",
        "containers": [own.cidr for own in state.cidrs],
    }
