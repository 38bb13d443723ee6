"""What the source of an entry may be: a network of hosts outside of the container network. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from controlplane.cluster.addressing.addresses import Net, network
from controlplane.cluster.state import ClusterState
from events import types
from events.errors import Refused

SHORTEST_PREFIX = 8
"""A source is no more than a sixteen millionth of all addresses: nobody lists the internet by mistake."""

_NO_HOSTS = {
    "0.0.0.0/8": "'this network'",
    "127.0.0.0/8": "loopback",
    "169.254.0.0/16": "link-local",
    "224.0.0.0/3": "multicast and reserved",
}


def no_hosts(net: Net) -> str:
    """Why no packet of a host elsewhere can come from there; empty when one can."""
    if net.prefix < SHORTEST_PREFIX:
        return f"is wider than a /{SHORTEST_PREFIX}"
    return next((f"holds {what} addresses ({cidr})" for cidr, what in _NO_HOSTS.items()
                 if network(cidr).overlaps(net)), "")  # fmt: skip


def added(state: ClusterState, event: types.EntryAdded) -> tuple[int, str] | None:
    """What folding the event would break."""
    problem = _problem(state, event.name, event.sources, event.address)
    return (19, problem) if problem else None


def appended(state: ClusterState, net: Net) -> str:
    """Which entry names addresses of a network that is to be one for containers; empty when none does."""
    for name, entry in state.entries.items():
        for source in entry.sources:
            if network(source).overlaps(net):
                return f"{net} overlaps {source}, a source of entry {name!r}"
    return ""


def whole(state: ClusterState) -> Iterator[tuple[int, str]]:
    """Every entry of a state that lets in what it must not."""
    for name, entry in state.entries.items():
        problem = _problem(state, name, entry.sources, entry.address)
        if problem:
            yield 19, problem


def _problem(state: ClusterState, name: str, sources: tuple[str, ...], address: str) -> str:
    if address not in state.clb_addresses:
        return f"entry {name!r} leads by {address}, which no reservation has"
    try:
        nets = [network(source) for source in sources]
        containers = [network(own.cidr) for own in state.cidrs]
    except Refused as error:
        return f"entry {name!r}: {error.message}"
    for net in nets:
        if no_hosts(net):
            return f"source {net} of entry {name!r} {no_hosts(net)}"
        for own in containers:
            if own.overlaps(net):
                return f"source {net} of entry {name!r} overlaps the container CIDR {own}"
    return ""
