"""What a row may be, whatever the log says: the agent's own short list.

A faulty or compromised controller writes authentic events that make no sense. What an agent takes from them
becomes rows of this kernel and lines of nft scripts, so each value is held against this list first, row by
row; what does not pass is left out and told. Pure; every function answers why not, in words, or nothing.

A MAC is checked by a pattern, not by netaddr: that accepts other notations too (``66-0-…``), takes seven times
as long for each row, and would add 4 MiB to every agent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Network, collapse_addresses
from socket import AF_INET, inet_ntop, inet_pton
from typing import NamedTuple

import msgspec

from events.protocol.clb import Backend, BackendKey, Entry, Traffic
from events.types import Event
from nodeagent.membership.peers import Peer

SHOWN = 60
"""Characters of a senseless value that are shown."""

_MAC = re.compile(r"(?:[0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_SOUND_MAC = re.compile(r"[0-9a-fA-F][26aeAE](?::[0-9a-fA-F]{2}){5}").fullmatch
"""Unicast and locally administered: the first byte's last two bits are 10."""
_LENGTHS = {str(length): length for length in range(1, 33)}
_GROUP = 0x01
_HIGHEST_VNI = (1 << 24) - 1
_PATH = re.compile(r"/[!-~]{0,2047}")
_CLB_BOUNDS: dict[str, tuple[float, float]] = {
    "port": (1, 65535),
    "backend_port": (1, 65535),
    "check_port": (0, 65535),
    "check_interval_s": (0.01, 86400),
    "check_timeout_s": (0.01, 86400),
    "rise": (1, 10000),
    "fall": (1, 10000),
}


class Network(NamedTuple):
    """An IPv4 network as two numbers."""

    first: int
    length: int

    def holds(self, other: Network) -> bool:
        """Whether the other one lies within it."""
        return other.length >= self.length and not (self.first ^ other.first) >> 32 - self.length

    def meets(self, other: Network) -> bool:
        """Whether they have an address in common."""
        return not (self.first ^ other.first) >> 32 - min(self.length, other.length)


_new = tuple.__new__  # a named tuple's own constructor is a Python function


def quoted(value: str) -> str:
    """A value of unknown content, for a message."""
    return repr(value[:SHOWN]) if value.isprintable() else ascii(value[:SHOWN])


def number_of(address: str) -> int | None:
    """An IPv4 address in its usual form as a number; None for anything else."""
    try:
        packed = inet_pton(AF_INET, address)
    except (OSError, ValueError):
        return None
    return int.from_bytes(packed, "big") if inet_ntop(AF_INET, packed) == address else None


def network_of(cidr: str) -> Network | None:
    """A network in canonical form, of 1 to 32 bits and without host bits; None for anything else."""
    address, _, bits = cidr.partition("/")
    first, length = number_of(address), _LENGTHS.get(bits)
    if first is None or length is None or first & (1 << 32 - length) - 1:
        return None
    return _new(Network, (first, length))


@lru_cache(maxsize=64)  # a join names its address up to three times
def unicast_problem(address: str, what: str = "the underlay address") -> str:
    """Whether the tunnel can reach that address."""
    number = number_of(address)
    if number is None:
        return f"{what} {quoted(address)} is no IPv4 address"
    top = number >> 24
    if 0 < top < 224 and top != 127 and number >> 16 != 0xA9FE:
        return ""
    if top == 0:
        kind = "of 'this network'"
    elif top == 127:
        kind = "a loopback address"
    elif top < 224:
        kind = "link-local"
    else:
        kind = "a multicast address" if top < 240 else "reserved or the broadcast address"
    return f"{what} {address} is {kind}"


def mac_problem(mac: str) -> str:
    """Whether that is the MAC of a tunnel's end: unicast and locally administered."""
    if _SOUND_MAC(mac):
        return ""
    if not _MAC.fullmatch(mac):
        return f"the MAC {quoted(mac)} is none"
    group = int(mac[:2], 16) & _GROUP
    return f"the MAC {mac} is {'a group address' if group else 'not locally administered'}"


def container_problem(cidr: str) -> str:
    """Whether that can be a network for containers."""
    network = network_of(cidr)
    if network is None:
        return f"the container CIDR {quoted(cidr)} is no network in canonical form"
    top = network.first >> 24
    if network.length < 8 or top in {0, 127} or top >= 224 or network.first >> 16 == 0xA9FE:
        return f"the container CIDR {cidr} is no range of unicast addresses"
    return ""


def source_problem(cidr: str) -> str:
    """Whether hosts elsewhere can have these addresses, so that an entry may let them in."""
    network = network_of(cidr)
    if network is None or network.length < 8:
        return f"the source {quoted(cidr)} is no network in canonical form of 8 to 32 bits"
    if any(network.meets(other) for other in _NO_HOSTS):
        return f"the source {cidr} holds addresses of no host elsewhere"
    return ""


def overlay_problem(vni: int, port: int) -> str:
    """Whether a tunnel device can have these."""
    if not 1 <= vni <= _HIGHEST_VNI:
        return f"the VNI {str(vni)[:SHOWN]} is outside 1 … {_HIGHEST_VNI}"
    return "" if 1 <= port <= 65535 else f"the UDP port {str(port)[:SHOWN]} is outside 1 … 65535"


def clb_problem(event: Event | Backend | Entry) -> str:
    """Whether what an event says of a CLB pair can be served: its addresses, ports, and checks."""
    for field, (low, high) in _CLB_BOUNDS.items():
        value = getattr(event, field, low)
        if not low <= value <= high:  # also what is no number
            return f"its {field} {str(value)[:SHOWN]} is outside {low:g} … {high:g}"
    path = getattr(event, "check_path", "/")
    if not _PATH.fullmatch(path):
        return f"its check_path {quoted(path)} is no path"
    for source in getattr(event, "sources", ()):
        problem = source_problem(source)
        if problem:
            return problem
    addresses = [getattr(item, "address", "") for item in getattr(event, "addresses", ())]
    addresses += [event.address] if hasattr(event, "address") else []
    return next((problem for address in addresses if (problem := unicast_problem(address, "its address"))), "")


_NO_HOSTS = (Network(0, 8), Network(127 << 24, 8), Network(0xA9FE << 16, 16), Network(224 << 24, 3))
"""This network, loopback, link-local, multicast and what is reserved."""


def sound_sources(entries: Iterable[Entry], containers: Iterable[str]) -> tuple[str, ...]:
    """Whom the entries let in, none twice; nobody with an address of a network for containers."""
    inside = [network for cidr in containers if (network := network_of(cidr)) is not None]
    found = [
        source
        for entry in entries
        for source in entry.sources
        if (network := network_of(source)) is not None and not any(network.meets(own) for own in inside)
    ]
    return tuple(str(network) for network in collapse_addresses(map(IPv4Network, found)))


class RowRules:
    """The list for this node's plan, range and addresses."""

    def __init__(
        self, containers: Iterable[str], service: str, range_size: int, local: frozenset[str] = frozenset()
    ) -> None:
        """``containers`` are sound; ``range_size`` is in addresses, 0 when it is not known."""
        self._containers = [network for cidr in containers if (network := network_of(cidr)) is not None]
        self._service = network_of(service)
        self._length = 33 - range_size.bit_length() if 0 < range_size <= 1 << 24 else 0
        self.local = local
        """This node's own addresses: no peer is there."""

    def range_problem(self, cidr: str) -> str:
        """Whether that can be somebody's range."""
        network = network_of(cidr)
        if network is None:
            return f"the range {quoted(cidr)} is no network in canonical form"
        for container in self._containers:
            if container.holds(network):
                break
        else:
            return f"the range {cidr} is in no container CIDR"
        if self._length and network.length != self._length:
            return f"the range {cidr} is no /{self._length}, as all ranges of this cluster are"
        if self._service is not None and self._service.meets(network):
            return f"the range {cidr} is in the Service range"
        return ""

    def problem(self, peer: Peer, own: Peer | None, *, elsewhere: bool = False) -> str:
        """Whether a peer's three rows make sense here. ``own`` is what this node has itself.

        ``elsewhere``: the peer is behind NAT, so that its address is another machine's than this node's own.
        """
        mac, underlay = peer.vtep_mac, peer.underlay
        problem = self.range_problem(peer.cidr) or mac_problem(mac) or unicast_problem(underlay)
        if problem:
            return problem
        if not elsewhere and (underlay in self.local or (own is not None and underlay == own.underlay)):
            return f"the underlay address {underlay} is this node's own"
        if own is not None and mac.lower() == own.vtep_mac.lower():
            return f"the MAC {mac} is this node's own"
        return ""


def sound_traffic(traffic: Traffic) -> Traffic:
    """What of it can be served."""
    return msgspec.structs.replace(
        traffic,
        reservations=tuple(one for one in traffic.reservations if not clb_problem(one)),
        backends=tuple(
            (key, one) for key, one in traffic.backends if not (_key_problem(key) or clb_problem(one))
        ),
        holders=tuple(one for one in traffic.holders if not unicast_problem(one.address)),
        entries={name: one for name, one in traffic.entries.items() if not clb_problem(one)},
        former={a: m for a, m in traffic.former.items() if not (unicast_problem(a) or unicast_problem(m))},
    )


def _key_problem(key: BackendKey) -> str:
    return unicast_problem(key.address) or ("" if min(key.port, key.backend_port) >= 1 else "port")
