"""Each event as one short sentence, and one character, for the feed. Words only: nothing is computed here."""

from __future__ import annotations

from controlplane.cluster.addressing.plan import addresses_and_pods
from controlplane.cluster.mesh import findings
from events import types

MARKS = {
    "added": "⇥", "adopted": "▣", "adoption-begun": "⇥", "adoption-ended": "⇤", "allocated": "▣",
    "backend-added": "+",
    "backend-health-changed": "♥", "backend-removed": "−", "bound": "⇔", "cidr-appended": "+",
    "conflict-overridden": "!", "defined": "◎", "deleted": "×", "draining": "◐", "encryption-changed": "⚷",
    "fenced": "×",
    "freed": "○", "gateway-marked": "G", "gateway-unmarked": "G", "holder-assigned": "⇄",
    "holder-withdrawn": "⇄", "joined": "+", "key-changed": "⚷", "left": "−", "lost": "✕", "nat-changed": "⇌",
    "network-declared": "+",
    "network-withdrawn": "−", "parked": "∥", "quarantined": "◑", "recovered": "✓", "released": "⇄",
    "removed": "−",
    "reserved": "⇄", "restored": "✓", "shared-used": "✓",
    "underlay-changed": "→", "unreachable": "?", "used": "✓",
}  # fmt: skip
"""The last word of an event's type → its mark."""


def mark(event: types.Event) -> str:
    """The character before an event's sentence; a dot for an event that this program does not know."""
    return "!" if "refused" in event.verb else MARKS.get(event.verb, "•")


def sentence(event: types.Event) -> str:
    """What happened, for a person. An event that this program does not know is named by its type."""
    match event:
        case types.NodeJoined():
            where = f" at {event.site}" if event.site else ""
            return f"{event.node} joined{where} as {event.kind} node, reached at {event.announced}"
        case types.NodeUnderlayChanged():
            mac = f", VTEP {event.vtep_mac}" if event.vtep_mac else ""
            return f"{event.node} is now reached at {event.announced}{mac}"
        case types.NodeLeft():
            return f"{event.node} left{_because(event.reason)}"
        case types.NodeUnreachable():
            return f"{event.node} stopped reporting"
        case types.NodeRecovered():
            return f"{event.node} reports again"
        case types.NodeFenced():
            return f"{event.node} was fenced by {event.cause}{_because(event.reason)}"
        case types.NodeBound():
            return f"{event.node} is the Kubernetes Node {event.node_uid}"
        case types.NodeKeyChanged():
            reached = f"encrypted at port {event.port}" if event.port else "which cannot encrypt"
            beside = f"; {event.beside} stays valid beside it" if event.beside else ""
            return f"{event.node} has the key {event.key}, {reached}{beside}"
        case types.NodeNatChanged():
            end = "" if event.behind else " any more"
            seen = f", seen as {event.seen_as} by {', '.join(event.seen_by)}" if event.seen_as else ""
            return f"{event.node} is {'' if event.behind else 'not '}behind NAT{end}{seen}"
        case types.ClusterEncryptionChanged():
            within, between = event.within_sites, event.between_sites
            return f"encryption {event.scope}: {within} within sites, {between} between sites"
        case types.RangeAdopted():
            return f"{event.cidr} of {event.node} adopted from {event.source}"
        case types.RangeAllocated():
            return f"{event.cidr} allocated to {event.node}"
        case types.RangeDraining():
            return f"{event.cidr} of {event.node} is draining"
        case types.RangeQuarantined():
            return f"{event.cidr} rests in quarantine until {event.until:%H:%M:%S} UTC"
        case types.RangeFreed():
            return f"{event.cidr} is back in the pool"
        case types.AllocationRefused():
            return f"{event.node} was refused a range: {event.message}"
        case types.ClbReserved():
            return f"{_pair(event)} reserved for CLB {event.name}"
        case types.ClbReleased():
            return f"{_pair(event)} released by CLB {event.name}"
        case types.ClbRefused():
            return f"CLB {event.name} was refused: {event.message}"
        case types.NodeGatewayMarked():
            return f"{event.node} may hold CLB addresses now"
        case types.NodeGatewayUnmarked():
            return f"{event.node} is a gateway no more"
        case types.ClbHolderAssigned():
            before = f" after {event.previous}" if event.previous else ""
            return f"{event.node} holds {event.address} ({event.purpose} of {event.name}){before}"
        case types.ClbHolderWithdrawn():
            return f"{event.address} taken from {event.node}: {event.reason or event.cause}"
        case types.ClbBackendAdded():
            return f"{event.purpose} of {event.name}: {_backend(event)} added"
        case types.ClbBackendRemoved():
            return f"{event.purpose} of {event.name}: {_backend(event)} removed"
        case types.ClbBackendHealthChanged():
            health = "healthy" if event.healthy else "unhealthy"
            return f"{event.purpose} of {event.name}: {_backend(event)} is {health}{_because(event.reason)}"
        case types.EntryAdded():
            return f"{', '.join(event.sources)} may reach pods by {event.address} (entry {event.name})"
        case types.EntryRemoved():
            return f"{', '.join(event.sources)} may reach pods by entry {event.name} no more"
        case types.ClusterDefined():
            return (
                f"cluster defined: {event.container_cidr} in {event.capacity:,} ranges of "
                f"{addresses_and_pods(event.range_size)}, Services {event.service_cidr}"
            )
        case types.ClusterDeleted():
            return f"cluster deleted{_because(event.reason)}"
        case types.CidrAppended():
            return f"{event.cidr} appended: {event.capacity:,} more ranges"
        case types.AdoptionBegun():
            return f"nodes of a running cluster keep their ranges from here on: adoption from {event.source}"
        case types.AdoptionEnded():
            return f"no further range is adopted{_because(event.reason)}"
        case types.NetworkDeclared():
            return f"{event.network.kind} network {event.network.cidr} declared"
        case types.NetworkWithdrawn():
            return f"network {event.cidr} withdrawn"
        case types.ConflictOverridden():
            return f"overlap of {event.ours} with {event.theirs} accepted: {event.reason}"
        case types.ConflictRefused():
            return f"{event.command} was refused: {event.message}"
        case types.PathLost():
            broken = event.broken_from, event.broken_to
            return findings.sentence(event.scope, event.a, event.b, event.fault, broken)
        case types.PathRestored():
            names = f" {event.a} and {event.b}" if event.b else f" {event.a}" if event.a else ""
            return f"packets pass again: {event.scope}{names}"
        case types.JoinTokenUsed():
            by = f"proved itself as pod {event.pod}" if event.pod else "redeemed a join token"
            return f"{event.node} {by}; its credentials end {event.expires:%Y-%m-%d %H:%M} UTC"
        case types.SharedTokenUsed():
            return (
                f"{event.node} was let in by use {event.use} of {event.uses} of a join token; its credentials "
                f"end {event.expires:%Y-%m-%d %H:%M} UTC"
            )
        case types.EventsParked():
            several = event.first < event.last
            what = f"events {event.first} to {event.last}" if several else f"event {event.first}"
            return f"{what} parked: {event.reason}"
        case _:
            return f"{event.aggregate} {event.entity} {event.verb.replace('-', ' ')}"


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""


def _backend(event: types.ClbBackendAdded | types.ClbBackendRemoved | types.ClbBackendHealthChanged) -> str:
    return f"{event.protocol} {event.port} to {event.address}:{event.backend_port}"


def _pair(event: types.ClbReserved | types.ClbReleased) -> str:
    return " and ".join(address.address for address in event.addresses)
